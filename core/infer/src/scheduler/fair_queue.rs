//! A queue in which flows take turns.

use std::collections::VecDeque;

/// First come, first served within a flow; one from each flow in turn.
#[derive(Debug)]
pub(super) struct FairQueue<T> {
    flows: VecDeque<(u64, VecDeque<T>)>,
}

impl<T> Default for FairQueue<T> {
    fn default() -> Self {
        Self { flows: VecDeque::new() }
    }
}

impl<T> FairQueue<T> {
    pub(super) fn push(&mut self, flow: u64, item: T) {
        match self.flows.iter_mut().find(|(id, _)| *id == flow) {
            Some((_, items)) => items.push_back(item),
            None => self.flows.push_back((flow, VecDeque::from([item]))),
        }
    }

    /// Takes the first item of the first flow whose turn it is and whose first item is `ready`; that flow goes to the
    /// end of the round.
    pub(super) fn pop(&mut self, ready: impl Fn(&T) -> bool) -> Option<T> {
        let place = self.flows.iter().position(|(_, items)| items.front().is_some_and(&ready))?;
        let (flow, mut items) = self.flows.remove(place)?;
        let item = items.pop_front();
        if !items.is_empty() {
            self.flows.push_back((flow, items));
        }
        item
    }

    /// Takes out every item that is `unwanted`.
    pub(super) fn take_all(&mut self, unwanted: impl Fn(&T) -> bool) -> Vec<T> {
        let mut taken = Vec::new();
        for (_, items) in &mut self.flows {
            for item in std::mem::take(items) {
                if unwanted(&item) { taken.push(item) } else { items.push_back(item) }
            }
        }
        self.flows.retain(|(_, items)| !items.is_empty());
        taken
    }

    pub(super) fn is_empty(&self) -> bool {
        self.flows.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flows_take_turns_and_keep_their_own_order() {
        let mut queue = FairQueue::default();
        for (flow, item) in [(1, "a1"), (1, "a2"), (1, "a3"), (2, "b1"), (3, "c1"), (2, "b2")] {
            queue.push(flow, item);
        }
        let mut order = Vec::new();
        while let Some(item) = queue.pop(|_| true) {
            order.push(item);
        }
        assert_eq!(order, ["a1", "b1", "c1", "a2", "b2", "a3"]);
        assert!(queue.is_empty());
    }

    #[test]
    fn an_item_that_is_not_ready_holds_up_its_own_flow_only() {
        let mut queue = FairQueue::default();
        for (flow, item) in [(1, 10), (1, 11), (2, 20)] {
            queue.push(flow, item);
        }
        assert_eq!(queue.pop(|item| *item != 10), Some(20));
        assert_eq!(queue.pop(|item| *item != 10), None);
        assert_eq!(queue.take_all(|item| *item == 10), [10]);
        assert_eq!(queue.pop(|item| *item != 10), Some(11));
    }
}
