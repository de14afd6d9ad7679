use super::*;
use crate::testing::{constrained_text, tokenizer};

#[test]
fn whatever_a_model_would_say_the_text_is_json_that_the_schema_accepts() {
    let tokenizer = tokenizer();
    let factory = ConstraintFactory::new(&tokenizer).unwrap();
    let schema = json!({
        "type": "object",
        "properties": {
            "name": {"type": "string"},
            "age": {"type": "integer", "minimum": 0, "maximum": 150},
            "mood": {"enum": ["merry", "sad"]},
            "friends": {"type": "array", "items": {"type": "string"}, "maxItems": 3},
        },
        "required": ["name", "age", "mood", "friends"],
        "additionalProperties": false,
    });
    let constraint = factory.compile(&Grammar::JsonSchema(schema)).unwrap();
    for seed in 0..30 {
        let text = constrained_text(&tokenizer, constraint.clone(), seed);
        let value: Json =
            serde_json::from_str(&text).unwrap_or_else(|error| panic!("seed {seed}: {error}: {text}"));
        let keys: Vec<_> = value.as_object().unwrap().keys().map(String::as_str).collect();
        assert_eq!(keys, ["name", "age", "mood", "friends"], "seed {seed}: {text}");
        assert!(value["name"].is_string() && value["age"].as_u64().unwrap() <= 150, "seed {seed}: {text}");
        assert!(["merry", "sad"].contains(&value["mood"].as_str().unwrap()), "seed {seed}: {text}");
        let friends = value["friends"].as_array().unwrap();
        assert!(friends.len() <= 3 && friends.iter().all(Json::is_string), "seed {seed}: {text}");
    }
}

#[test]
fn regular_expressions_and_grammars_hold_for_the_whole_text() {
    let tokenizer = tokenizer();
    let factory = ConstraintFactory::new(&tokenizer).unwrap();
    let date = factory.compile(&Grammar::Regex(r"[0-9]{4}-[01][0-9]-[0-3][0-9]".into())).unwrap();
    let list =
        factory.compile(&Grammar::Lark("start: word (\", \" word){2}\nword: /[a-z]{3}/".into())).unwrap();
    let object = factory.compile(&Grammar::JsonObject).unwrap();
    for seed in 0..10 {
        let found = constrained_text(&tokenizer, date.clone(), seed);
        assert!(found.len() == 10 && found.as_bytes()[4] == b'-', "{found}");
        let words: Vec<String> =
            constrained_text(&tokenizer, list.clone(), seed).split(", ").map(str::to_owned).collect();
        assert!(words.len() == 3 && words.iter().all(|word| word.len() == 3), "{words:?}");
        let object = constrained_text(&tokenizer, object.clone(), seed);
        assert!(serde_json::from_str::<Json>(&object).unwrap().is_object(), "{object}");
    }
}

#[test]
fn what_does_not_compile_is_refused_and_a_wrong_token_is_an_error() {
    let tokenizer = tokenizer();
    let factory = ConstraintFactory::new(&tokenizer).unwrap();
    for grammar in [
        Grammar::JsonSchema(json!({"type": "nonsense"})),
        Grammar::JsonSchema(json!(7)),
        Grammar::Regex("(".into()),
        Grammar::Lark("start: nothing".into()),
    ] {
        assert!(matches!(factory.compile(&grammar), Err(ConstraintError::Grammar { .. })), "{grammar:?}");
    }
    let mut digit = factory.compile(&Grammar::Regex("[0-9]".into())).unwrap();
    let letter = tokenizer.encode("a", false).unwrap()[0];
    assert!(!digit.mask().unwrap().allows(letter));
    assert!(matches!(digit.accept(letter), Err(ConstraintError::Stuck(_))));
}
