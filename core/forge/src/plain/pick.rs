//! Which operations are left as they are, as the user says.

use drophammer_formats::onnx::{Graph, Node};
use drophammer_sdk::{BackendError, ErrorCode, Goal, Result};

/// Operations to leave in floats: kinds or names, `*` standing for any letters.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Pick {
    patterns: Vec<String>,
}

impl Pick {
    /// The goal's option `exclude`: a list, or one text with commas between.
    ///
    /// # Errors
    /// [`ErrorCode::InvalidRequest`] for anything else, and for a pattern that nothing in the graph answers to.
    pub fn of(goal: &Goal, graph: &Graph) -> Result<Self> {
        let Some(value) = goal.options.get("exclude") else { return Ok(Self::default()) };
        let invalid = |message: String, help: &str| {
            BackendError::new(ErrorCode::InvalidRequest, message).with_help(help)
        };
        let texts: Option<Vec<&str>> = match value {
            serde_json::Value::String(text) => Some(text.split(',').collect()),
            serde_json::Value::Array(list) => list.iter().map(serde_json::Value::as_str).collect(),
            _ => None,
        };
        let texts = texts.ok_or_else(|| {
            invalid(
                format!("option `exclude`: {value} is no list of operations"),
                "Write exclude=Softmax,head_*.",
            )
        })?;
        let patterns: Vec<String> = texts.iter().map(|text| text.trim().to_owned()).collect();
        let unknown = patterns.iter().find(|pattern| !graph.nodes.iter().any(|node| names(pattern, node)));
        if let Some(pattern) = unknown {
            return Err(invalid(
                format!("option `exclude`: no operation is of the kind or has the name `{pattern}`"),
                "Name kinds (Conv) or nodes, with * for any letters.",
            ));
        }
        Ok(Self { patterns })
    }

    /// Whether an operation is left as it is.
    pub fn leaves(&self, node: &Node) -> bool {
        self.patterns.iter().any(|pattern| names(pattern, node))
    }
}

/// By its kind, its name, or that of its first output: exporters leave nodes without names.
fn names(pattern: &str, node: &Node) -> bool {
    let output = node.outputs.first().map_or("", String::as_str);
    [node.op_type.as_str(), node.name.as_str(), output].iter().any(|name| fits(pattern, name))
}

/// Whether a name is what a pattern with `*` for any letters says.
fn fits(pattern: &str, name: &str) -> bool {
    match pattern.split_once('*') {
        None => pattern == name,
        Some((head, rest)) => name.strip_prefix(head).is_some_and(|name| {
            (0..=name.len()).filter(|at| name.is_char_boundary(*at)).any(|at| fits(rest, &name[at..]))
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_fit_by_letters_and_stars() {
        for (pattern, name, due) in [
            ("Conv", "Conv", true),
            ("Conv", "ConvTranspose", false),
            ("Conv*", "ConvTranspose", true),
            ("*/fc*", "/model/fc1/MatMul", true),
            ("*a*b", "xxaybzb", true),
            ("*a*b", "xxayb.", false),
        ] {
            assert_eq!(fits(pattern, name), due, "{pattern} {name}");
        }
    }

    #[test]
    fn what_nothing_answers_to_is_refused() {
        let node = Node { op_type: "Conv".into(), outputs: vec!["y.1".into()], ..Node::default() };
        let graph = Graph { nodes: vec![node], ..Graph::default() };
        let goal = |value: serde_json::Value| Goal {
            options: [("exclude".to_owned(), value)].into_iter().collect(),
            ..Goal::default()
        };
        let pick = Pick::of(&goal("y.*".into()), &graph).unwrap();
        assert!(pick.leaves(&graph.nodes[0]));
        assert!(!Pick::of(&Goal::default(), &graph).unwrap().leaves(&graph.nodes[0]));
        assert!(Pick::of(&goal("Softmax".into()), &graph).unwrap_err().message.contains("`Softmax`"));
        assert!(Pick::of(&goal(3.into()), &graph).is_err());
    }
}
