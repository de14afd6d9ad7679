use serde_json::json;

use super::*;
use crate::constrain::{ConstraintFactory, Grammar};
use crate::testing::{constrained_text, tokenizer};

const DIALECTS: [Dialect; 3] = [Dialect::Tagged { told: true }, Dialect::Listed, Dialect::Bare];

fn tools(choice: Choice, parallel: bool) -> Tools {
    let weather = json!({"type": "function", "function": {"name": "weather", "description": "of a city", "parameters": {
        "type": "object", "properties": {"city": {"type": "string", "maxLength": 8}, "days": {"type": "integer"}},
        "required": ["city"], "additionalProperties": false}}});
    let time = json!({"type": "function", "function": {"name": "time", "parameters": {
        "type": "object", "properties": {"zone": {"enum": ["UTC", "CET"]}}, "required": ["zone"],
        "additionalProperties": false}}});
    Tools { list: vec![weather, time], choice, parallel }
}

fn read(dialect: Dialect, text: &str, at_once: usize) -> Vec<Piece> {
    let mut reader = CallReader::new(dialect);
    let characters: Vec<char> = text.chars().collect();
    let mut pieces: Vec<Piece> = Vec::new();
    for chunk in characters.chunks(at_once) {
        pieces.extend(reader.push(&chunk.iter().collect::<String>()));
    }
    pieces.extend(reader.finish());
    // Texts beside each other are one.
    let mut joined: Vec<Piece> = Vec::new();
    for piece in pieces {
        match (joined.last_mut(), piece) {
            (Some(Piece::Text(before)), Piece::Text(more)) => before.push_str(&more),
            (_, piece) => joined.push(piece),
        }
    }
    joined
}

fn call(name: &str, arguments: &str) -> Piece {
    Piece::Call { name: name.to_owned(), arguments: arguments.to_owned() }
}

#[test]
fn calls_are_taken_out_of_text_however_it_is_cut() {
    let [tagged, listed, bare] = DIALECTS;
    let text = |text: &str| Piece::Text(text.to_owned());
    let cases = [
        (tagged, "Just text < and <tool.", vec![text("Just text < and <tool.")]),
        (
            tagged,
            "Let me see.\n<tool_call>\n{\"name\": \"a\", \"arguments\": {\"x\": 1}}\n</tool_call>\n<tool_call>{\"name\": \
             \"b\", \"arguments\": {}}</tool_call>",
            vec![text("Let me see.\n"), call("a", "{\"x\":1}"), call("b", "{}")],
        ),
        (tagged, "<tool_call>\n{\"name\": \"a\", \"arguments\": {}}", vec![call("a", "{}")]),
        (tagged, "<tool_call>nonsense</tool_call>!", vec![text("<tool_call>nonsense</tool_call>!")]),
        (listed, "[TOOL_CALLS][{\"name\": \"a\", \"arguments\": {}}]", vec![call("a", "{}")]),
        (listed, "[{\"name\": \"a\", \"arguments\": {}}]", vec![call("a", "{}")]),
        (listed, "[1, 2] is a list", vec![text("[1, 2] is a list")]),
        (listed, "Hello [x]", vec![text("Hello [x]")]),
        (bare, "{\"name\": \"a\", \"parameters\": {\"q\": \"é\"}}", vec![call("a", "{\"q\":\"é\"}")]),
        (bare, "{\"no\": \"call\"}", vec![text("{\"no\": \"call\"}")]),
        (bare, "Hi {there}", vec![text("Hi {there}")]),
    ];
    for (dialect, answer, expected) in cases {
        for at_once in [1, 2, 7, 1000] {
            assert_eq!(read(dialect, answer, at_once), expected, "{dialect:?} {answer} by {at_once}");
        }
    }
}

/// Whatever a model that knows nothing writes under the grammar reads as calls that follow the tools' schemas.
#[test]
fn a_grammar_allows_only_what_reads_as_calls_of_the_tools() {
    let tokenizer = tokenizer();
    let factory = ConstraintFactory::new(&tokenizer).unwrap();
    for dialect in DIALECTS {
        for choice in [Choice::Auto, Choice::Required, Choice::Named("time".to_owned())] {
            for parallel in [false, true] {
                let tools = tools(choice.clone(), parallel);
                let grammar = tools.grammar(dialect, true).unwrap();
                for seed in 0..6 {
                    let constraint = factory.compile(&Grammar::Lark(grammar.clone())).unwrap();
                    let text = constrained_text(&tokenizer, constraint, seed);
                    let pieces = read(dialect, &text, 3);
                    let calls = pieces.iter().filter_map(|piece| match piece {
                        Piece::Call { name, arguments } => {
                            Some((name.as_str(), serde_json::from_str::<Json>(arguments).unwrap()))
                        }
                        Piece::Text(_) => None,
                    });
                    let calls: Vec<_> = calls.collect();
                    let told = format!("{dialect:?} {choice:?} {parallel} {text}");
                    if choice != Choice::Auto {
                        assert!(!calls.is_empty() && calls.len() == pieces.len(), "{told}");
                    }
                    assert!(parallel || calls.len() <= 1, "{told}");
                    for (name, arguments) in calls {
                        match name {
                            "time" => assert!(["UTC", "CET"].contains(&arguments["zone"].as_str().unwrap())),
                            "weather" => assert!(
                                arguments["city"].is_string() && choice != Choice::Named("time".into())
                            ),
                            other => panic!("{other}: {told}"),
                        }
                    }
                }
            }
        }
    }
}

#[test]
fn a_free_answer_may_go_over_into_a_call_and_then_keeps_to_it() {
    let tokenizer = tokenizer();
    let factory = ConstraintFactory::new(&tokenizer).unwrap();
    let grammar = tools(Choice::Auto, true).grammar(Dialect::Tagged { told: true }, true).unwrap();
    let follows = |text: &str| {
        let mut constraint = factory.compile(&Grammar::Lark(grammar.clone())).unwrap();
        let tokens = tokenizer.encode(text, false).unwrap();
        tokens
            .iter()
            .all(|&token| constraint.mask().unwrap().allows(token) && constraint.accept(token).is_ok())
    };
    assert!(follows("Well, I do not know. <tool is a word."));
    assert!(follows(
        "Let me see. <tool_call>\n{\"name\": \"time\", \"arguments\": {\"zone\": \"UTC\"}}\n</tool_call> So."
    ));
    assert!(!follows("Let me see. <tool_call>\n{\"name\": \"date\""));
    assert!(!follows("Let me see. <tool_call> perhaps"));
}

#[test]
fn a_dialect_is_known_by_the_template() {
    for (template, dialect) in [
        ("{% if tools %}<tool_call>{% endif %}", Dialect::Tagged { told: true }),
        ("{% if tools %}[AVAILABLE_TOOLS][TOOL_CALLS] [{% endif %}", Dialect::Listed),
        ("<|start_header_id|>{{ tools }}{\"name\": n, \"parameters\": p}", Dialect::Bare),
        ("{{ messages }}", Dialect::Tagged { told: false }),
    ] {
        assert_eq!(Dialect::of_template(template), dialect, "{template}");
    }
}

#[test]
fn a_template_without_tools_gets_them_as_text() {
    let messages = [
        json!({"role": "system", "content": "Be kind."}),
        json!({"role": "user", "content": "What time is it?"}),
        json!({"role": "assistant", "content": null, "tool_calls": [{"id": "1", "type": "function", "function": {
            "name": "time", "arguments": "{\"zone\": \"UTC\"}"}}]}),
        json!({"role": "tool", "tool_call_id": "1", "content": "12:00"}),
    ];
    let told = Dialect::tell(&messages, &tools(Choice::Auto, true).list);
    let system = told[0]["content"].as_str().unwrap();
    assert!(system.starts_with("Be kind.") && system.contains("\"name\":\"weather\""), "{system}");
    let called = told[2]["content"].as_str().unwrap();
    assert_eq!(read(Dialect::Tagged { told: false }, called, 9), [call("time", "{\"zone\":\"UTC\"}")]);
    assert_eq!(told[3]["role"], "user");
    assert!(told[3]["content"].as_str().unwrap().contains("12:00"));
}

#[test]
fn tools_without_a_name_and_choices_without_a_tool_are_refused() {
    let nameless = Tools { list: vec![json!({"type": "function"})], choice: Choice::Auto, parallel: true };
    assert_eq!(nameless.check(), Err(ToolError::Nameless(0)));
    assert_eq!(tools(Choice::Named("x".into()), true).check(), Err(ToolError::Unknown("x".into())));
}
