//! Responses that may be read again and gone on from: the newest ones, in memory.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};

use serde_json::Value;

/// Memory that kept responses may take, in bytes of their text.
const MOST_BYTES: usize = 32 << 20;

/// The newest responses.
#[derive(Debug, Default)]
pub(crate) struct Memory {
    kept: Mutex<VecDeque<Kept>>,
}

#[derive(Debug)]
struct Kept {
    document: Value,
    /// Everything up to and including the answer, as chat messages.
    conversation: Vec<Value>,
    bytes: usize,
}

impl Kept {
    fn is(&self, id: &str) -> bool {
        self.document["id"] == id
    }
}

impl Memory {
    fn kept(&self) -> MutexGuard<'_, VecDeque<Kept>> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps a response with the conversation it answers; the oldest go when there are too many.
    pub(super) fn keep(&self, document: Value, mut conversation: Vec<Value>) {
        conversation.extend(super::request::messages_of(document["output"].as_array().into_iter().flatten()));
        let text = |value: &Value| value.to_string().len();
        let bytes = text(&document) + conversation.iter().map(text).sum::<usize>();
        let mut kept = self.kept();
        kept.push_back(Kept { document, conversation, bytes });
        let mut all: usize = kept.iter().map(|one| one.bytes).sum();
        while all > MOST_BYTES {
            let Some(oldest) = kept.pop_front() else { return };
            all -= oldest.bytes;
        }
    }

    /// What was said up to the end of a response.
    pub(super) fn conversation(&self, id: &str) -> Option<Vec<Value>> {
        self.kept().iter().find(|one| one.is(id)).map(|one| one.conversation.clone())
    }

    /// A response as it was given.
    pub(super) fn document(&self, id: &str) -> Option<Value> {
        self.kept().iter().find(|one| one.is(id)).map(|one| one.document.clone())
    }

    /// Forgets a response; false when it is not there.
    pub(super) fn forget(&self, id: &str) -> bool {
        let mut kept = self.kept();
        let before = kept.len();
        kept.retain(|one| !one.is(id));
        kept.len() < before
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_newest_responses_are_kept_with_what_was_said() {
        let memory = Memory::default();
        let large = "x".repeat(MOST_BYTES / 3);
        for id in ["a", "b", "c"] {
            let output = json!([{"type": "message", "role": "assistant",
                "content": [{"type": "output_text", "text": id}]}]);
            let said = json!({"role": "user", "content": large});
            memory.keep(json!({"id": id, "output": output}), vec![said]);
        }
        assert!(memory.document("a").is_none(), "the oldest had to go");
        let conversation = memory.conversation("c").unwrap();
        assert_eq!(conversation[1]["content"], "c");
        assert!(memory.forget("c") && !memory.forget("c"));
    }
}
