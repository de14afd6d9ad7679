//! The grammar of an answer with calls.

use serde_json::{Value as Json, json};

use super::dialect::{CLOSE, Dialect, LIST, OPEN};
use crate::constrain::compact;

/// Lark for an answer in which each call is one of `calls` (schemas). `free`: text may come before, between and instead;
/// `single`: one call at most.
pub(super) fn of(dialect: Dialect, calls: &[Json], free: bool, single: bool) -> String {
    let call = match calls {
        [only] => only.clone(),
        several => json!({"anyOf": several}),
    };
    match dialect {
        Dialect::Tagged { .. } => {
            let body = format!("body: \"\\n\" %json {} \"\\n{CLOSE}\"\n", compact(&call));
            let start = match (free, single) {
                // Text that runs into the tag goes on with a call; text that never does is the whole answer.
                (true, true) => "start: lead body | TEXT\n",
                (true, false) => "start: (lead body)* TEXT\n",
                (false, true) => "start: OPEN body\n",
                (false, false) => "start: OPEN body (\"\\n\" OPEN body)*\n",
            };
            format!(
                "{start}{body}lead[suffix=\"{OPEN}\"]: /(?s:.*)/\nOPEN: \"{OPEN}\"\n\
                 TEXT: /(?s:.*)/ & ~/(?s:.*){OPEN}(?s:.*)/\n"
            )
        }
        Dialect::Listed => {
            let most = if single { json!(1) } else { Json::Null };
            let mut list = json!({"type": "array", "items": call, "minItems": 1});
            if !most.is_null() {
                list["maxItems"] = most;
            }
            let list = compact(&list);
            let start = if free { "start: calls | TEXT\n" } else { "start: calls\n" };
            // The marker is a special token in most vocabularies and plain text in some.
            format!("{start}calls: MARK? %json {list}\nMARK: \"{LIST}\"\nTEXT: /[^\\[](?s:.*)/ | \"\"\n")
        }
        Dialect::Bare => {
            let start = if free { "start: call | TEXT\n" } else { "start: call\n" };
            format!("{start}call: %json {}\nTEXT: /[^{{](?s:.*)/ | \"\"\n", compact(&call))
        }
    }
}
