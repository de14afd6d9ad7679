//! The promises, one function each.

mod artifacts;
mod outputs;
mod resources;
mod sessions;

pub use resources::load_once;

use anyhow::Result;

use crate::subject::Subject;

/// A promise.
pub struct Case {
    /// Its name, as `--case` and `conformance.toml` give it.
    pub name: &'static str,
    /// What is promised.
    pub promise: &'static str,
    run: fn(&Subject) -> Result<String>,
}

/// What came of a case that did not fail.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// It holds; what was seen.
    Holds(String),
    /// The backend says it does not apply, and why.
    Excepted(String),
}

impl Case {
    /// Runs the case.
    ///
    /// # Errors
    /// What is wrong.
    pub fn run(&self, subject: &Subject) -> Result<Outcome> {
        match subject.exceptions.cases.get(self.name) {
            Some(reason) => Ok(Outcome::Excepted(reason.clone())),
            None => (self.run)(subject).map(Outcome::Holds),
        }
    }
}

/// All promises.
pub const CASES: &[Case] = &[
    Case {
        name: "trained-model",
        promise: "a trained model gives the float32 logits computed elsewhere",
        run: outputs::trained_model,
    },
    Case {
        name: "architectures",
        promise: "every architecture's fixture gives the float32 outputs computed elsewhere",
        run: outputs::architectures,
    },
    Case {
        name: "adapters",
        promise: "an adapter attached to a session gives the logits of the merged model; one of another model is refused",
        run: outputs::adapters,
    },
    Case { name: "chunks", promise: "any chunking of a prompt gives the same rows", run: sessions::chunks },
    Case {
        name: "batching",
        promise: "sequences in one batch give what each gives alone",
        run: sessions::batching,
    },
    Case {
        name: "sequences",
        promise: "a copy goes on as its source would, a removed tail is forgotten, and neither disturbs others",
        run: sessions::sequences,
    },
    Case {
        name: "limits",
        promise: "batches outside the limits are refused by name and change nothing",
        run: sessions::limits,
    },
    Case {
        name: "cancelling",
        promise: "a cancelled job ends as cancelled, and a forge goes on where it stopped",
        run: artifacts::cancelling,
    },
    Case {
        name: "reproducible",
        promise: "the same source and goal give the same bytes",
        run: artifacts::reproducible,
    },
    Case {
        name: "bad-input",
        promise: "cut, emptied, damaged and missing files are refused with a next step",
        run: artifacts::bad_input,
    },
    Case {
        name: "memory-budget",
        promise: "a context that does not fit is refused before it is allocated, with the figure",
        run: resources::memory_budget,
    },
    Case {
        name: "unloading",
        promise: "a dropped session gives back its memory and descriptors",
        run: resources::unloading,
    },
    Case {
        name: "workers",
        promise: "fresh processes that load, run and end leave nothing behind",
        run: resources::workers,
    },
];
