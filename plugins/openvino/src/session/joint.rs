//! Several sequences in one request: when each goes on with a single token, all their tokens go through the model together, and its
//! weights are read once.
//!
//! The request's variables have a row per member. Members join when they go on together: their own requests' keys and values are copied
//! into rows of one length, and what a shorter one lacks is masked out as removed entries are. They leave by not being named in
//! `beam_idx`, which is how the runtime chooses the rows that stay; what is still needed of them is copied into a request of
//! their own before.

use drophammer_sdk::{OutputKind, Result};

use super::{Entry, Given, OpenVinoSession, Sequence, mask_of};
use crate::runtime::{Request, State};

/// The request that members share.
#[derive(Default)]
pub(super) struct Joint {
    request: Option<Request>,
    /// The sequence of each row; `None` for one that has left.
    members: Vec<Option<usize>>,
}

impl Joint {
    /// A sequence's row.
    fn row(&self, sequence: usize) -> Option<usize> {
        self.members.iter().position(|member| *member == Some(sequence))
    }

    /// Forgets a sequence: its row goes with the next run.
    pub(super) fn leave(&mut self, sequence: usize) {
        self.members.iter_mut().filter(|member| **member == Some(sequence)).for_each(|member| *member = None);
    }
}

/// A sequence that goes on with one token, and where its row of the output is to go.
pub(super) struct Next {
    pub(super) sequence: usize,
    pub(super) entry: Entry,
    pub(super) place: Option<usize>,
}

impl OpenVinoSession {
    /// Whether these sequences can go on in one request.
    pub(super) fn can_join(&self, next: &[Next]) -> bool {
        next.len() > 1
            && !self.fixed
            && self.limits.output_kind == OutputKind::Logits
            && self.compiled.tells_states()
            && next.iter().all(|next| self.sequences[next.sequence].due.is_empty())
    }

    /// Runs one token of each; writes the rows that are wanted.
    pub(super) fn run_joint(&mut self, next: &[Next], output: &mut [f32]) -> Result<()> {
        let crowded = self.joint.members.iter().flatten().count() > 2 * next.len();
        if crowded || next.iter().any(|next| self.joint.row(next.sequence).is_none()) {
            self.join(next)?;
        }
        let width = self.limits.output_width as usize;
        let rows: Vec<usize> =
            (0..self.joint.members.len()).filter(|row| self.joint.members[*row].is_some()).collect();
        let members: Vec<usize> = self.joint.members.iter().flatten().copied().collect();
        let given: Vec<Option<&Next>> =
            members.iter().map(|member| next.iter().find(|next| next.sequence == *member)).collect();
        let column = |of: fn(Entry) -> u32| -> Vec<i64> {
            given.iter().map(|next| next.map_or(0, |next| i64::from(of(next.entry)))).collect()
        };
        let (ids, positions) = (column(|entry| entry.token), column(|entry| entry.position));
        let beams: Vec<i32> = rows.iter().map(|&row| row as i32).collect();
        let mut mask = Vec::new();
        for (&member, next) in members.iter().zip(&given) {
            let held = self.sequences[member].held.iter().copied();
            mask.extend(mask_of(held.chain([next.map(|next| next.entry)])));
        }
        let Some(request) = self.joint.request.as_mut() else { return Ok(()) };
        let run = Given { ids: &ids, mask: &mask, positions: &positions, beams: &beams, rows: &[0] };
        run.to(request, &self.inputs)?;
        if let Err(error) = request.infer() {
            // What the rows hold now is unknown.
            self.joint = Joint::default();
            for member in members {
                self.sequences[member].compute_again();
            }
            return Err(error);
        }
        self.joint.members = members.iter().copied().map(Some).collect();
        request.output(|values| {
            for (next, row) in given.iter().zip(values.chunks_exact(width)) {
                if let Some(place) = next.and_then(|next| next.place) {
                    output[place * width..][..width].copy_from_slice(row);
                }
            }
            Ok(())
        })?;
        for (&member, next) in members.iter().zip(&given) {
            self.sequences[member].held.push(next.map(|next| next.entry));
        }
        Ok(())
    }

    /// Gives a member a request of its own.
    pub(super) fn part(&mut self, sequence: usize) -> Result<()> {
        let Some(row) = self.joint.row(sequence) else { return Ok(()) };
        let Some(request) = self.joint.request.as_mut() else { return Ok(()) };
        let states = request.read_states()?;
        self.give_own(sequence, row, &states)?;
        self.joint.leave(sequence);
        Ok(())
    }

    fn give_own(&mut self, sequence: usize, row: usize, states: &[State]) -> Result<()> {
        let one = |state: &State| rows_of(state, &[Some((state, row))], state.shape[2]);
        let own: Vec<State> = states.iter().map(one).collect();
        let mut request = self.compiled.request()?;
        request.write_states(&own)?;
        self.sequences[sequence].request = Some(request);
        Ok(())
    }

    /// Makes these sequences the members. Others that were get requests of their own.
    fn join(&mut self, next: &[Next]) -> Result<()> {
        let before = match self.joint.request.as_mut() {
            Some(request) if self.joint.members.iter().any(Option::is_some) => request.read_states()?,
            _ => Vec::new(),
        };
        let others: Vec<usize> = self.joint.members.iter().flatten().copied().collect();
        for other in others.into_iter().filter(|other| next.iter().all(|next| next.sequence != *other)) {
            if let Some(row) = self.joint.row(other) {
                self.give_own(other, row, &before)?;
            }
        }
        // Where each one's numbers are: in the rows of the members so far, in a request of its own, or nowhere yet.
        let mut own = Vec::with_capacity(next.len());
        for next in next {
            let Sequence { request, held, .. } = &mut self.sequences[next.sequence];
            let request = request.as_mut().filter(|_| !held.is_empty());
            own.push(request.map(Request::read_states).transpose()?.unwrap_or_default());
        }
        let longest = next.iter().map(|next| self.sequences[next.sequence].held.len()).max().unwrap_or(0);
        let sample = own.iter().find(|states| !states.is_empty()).unwrap_or(&before);
        let joined: Vec<State> = (0..sample.len())
            .map(|variable| {
                let parts: Vec<Option<(&State, usize)>> = next
                    .iter()
                    .zip(&own)
                    .map(|(next, own)| match self.joint.row(next.sequence) {
                        Some(row) => Some((&before[variable], row)),
                        None => own.get(variable).map(|state| (state, 0)),
                    })
                    .collect();
                rows_of(&sample[variable], &parts, longest)
            })
            .collect();
        let mut request = self.compiled.request()?;
        if longest > 0 {
            request.write_states(&joined)?;
        }
        let members = next.iter().map(|next| Some(next.sequence)).collect();
        self.joint = Joint { request: Some(request), members };
        for next in next {
            let Sequence { request, held, .. } = &mut self.sequences[next.sequence];
            *request = None;
            held.resize(longest, None);
        }
        Ok(())
    }
}

/// Rows of states like `like`, filled up with zeros to `tokens` tokens; a row that is nowhere is zeros.
fn rows_of(like: &State, rows: &[Option<(&State, usize)>], tokens: usize) -> State {
    let [_, heads, _, width] = like.shape;
    let mut numbers = Vec::with_capacity(rows.len() * heads * tokens * width);
    for row in rows {
        for head in 0..heads {
            let end = numbers.len() + tokens * width;
            if let Some((state, row)) = row {
                let own = state.shape[2] * width;
                let begin = (row * heads + head) * own;
                numbers.extend_from_slice(&state.numbers[begin..begin + own.min(tokens * width)]);
            }
            numbers.resize(end, 0.0);
        }
    }
    State { shape: [rows.len(), heads, tokens, width], numbers }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_of_several_states_are_one_length() {
        let state = |shape: [usize; 4], first: u8| {
            let count = shape.iter().product::<usize>();
            State { shape, numbers: (0..count).map(|i| f32::from(first) + i as f32).collect() }
        };
        let (short, long) = (state([1, 2, 1, 2], 10), state([2, 2, 2, 2], 50));
        let joined = rows_of(&long, &[Some((&long, 1)), Some((&short, 0)), None], 2);
        assert_eq!(joined.shape, [3, 2, 2, 2]);
        assert_eq!(joined.numbers[..8], [58.0, 59.0, 60.0, 61.0, 62.0, 63.0, 64.0, 65.0]);
        assert_eq!(joined.numbers[8..16], [10.0, 11.0, 0.0, 0.0, 12.0, 13.0, 0.0, 0.0]);
        assert_eq!(joined.numbers[16..], [0.0; 8]);
    }
}
