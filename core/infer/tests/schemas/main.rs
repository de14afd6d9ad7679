//! Random JSON schemas, and whatever a model might write under them: all of it is valid.
//!
//! Tokens are chosen by chance among those that the constraint allows, which is harsher than any model. An independent
//! validator judges the text. `DROPHAMMER_SCHEMAS=1000` tries that many schemas instead of a few.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod generate;

use std::path::Path;

use drophammer_formats::Source;
use drophammer_infer::constrain::{Constraint, ConstraintFactory, Grammar};
use drophammer_infer::tokenizer::Tokenizer;
use fastrand::Rng;
use serde_json::Value as Json;

/// Schemas that are tried unless the environment says otherwise.
const USUAL: u64 = 60;
/// Tokens after which the text is brought to its end wherever the constraint lets it.
const ENOUGH: usize = 120;
/// Tokens after which it ought to have ended.
const TOO_MUCH: usize = 4000;

fn tokenizer() -> Tokenizer {
    let fixture = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/shakespeare-llama");
    Tokenizer::from_source(&Source::open(&fixture).unwrap()).unwrap()
}

/// Whether a text or a string in it ends with this token. Brackets end nothing inside a string, and outside of one there
/// is little else to choose.
fn ends(tokenizer: &Tokenizer, token: u32) -> bool {
    tokenizer.special().end_of_generation.contains(&token)
        || tokenizer.token_bytes(token).first() == Some(&b'"')
}

/// Writes by chance until the constraint is complete.
fn write(tokenizer: &Tokenizer, mut constraint: Constraint, chance: &mut Rng) -> String {
    let mut bytes = Vec::new();
    for count in 0..TOO_MUCH {
        if constraint.is_complete() {
            break;
        }
        let mask = constraint.mask().unwrap();
        let allowed: Vec<u32> = (0..tokenizer.len() as u32).filter(|&token| mask.allows(token)).collect();
        assert!(!allowed.is_empty(), "nothing may follow {}", String::from_utf8_lossy(&bytes));
        let ending: Vec<u32> = allowed.iter().copied().filter(|&token| ends(tokenizer, token)).collect();
        // Without this, chance would hardly ever close a text's quotes.
        let end = count > ENOUGH || chance.u8(..6) == 0;
        let token = *chance.choice(if end && !ending.is_empty() { &ending } else { &allowed }).unwrap();
        if tokenizer.special().end_of_generation.contains(&token) {
            break;
        }
        bytes.extend_from_slice(tokenizer.token_bytes(token));
        constraint.accept(token).unwrap();
        assert!(count + 1 < TOO_MUCH, "no end: {}", String::from_utf8_lossy(&bytes));
    }
    String::from_utf8(bytes).unwrap()
}

/// The text with exponents of at most two digits: JSON's numbers have no bounds, those of the judge have.
fn bounded(text: &str) -> String {
    let (mut out, mut in_string, mut escaped, mut exponent) = (String::new(), false, false, None);
    for letter in text.chars() {
        if in_string {
            in_string = escaped || letter != '"';
            escaped = !escaped && letter == '\\';
        } else {
            in_string = letter == '"';
            exponent = match (letter, exponent) {
                ('0'..='9', Some(digits)) => Some(digits + 1),
                // No digit follows an `e` of `true` or `false`.
                ('+' | '-', Some(0)) | ('e' | 'E', _) => Some(0),
                _ => None,
            };
        }
        if in_string || exponent.is_none_or(|digits| digits <= 2) {
            out.push(letter);
        }
    }
    out
}

/// Why a text is not what a schema wants.
fn judge(schema: &Json, text: &str) -> Result<(), String> {
    let value: Json = serde_json::from_str(&bounded(text)).map_err(|error| error.to_string())?;
    let mut schemas = boon::Schemas::new();
    let mut compiler = boon::Compiler::new();
    compiler.add_resource("schema.json", schema.clone()).unwrap();
    let compiled = compiler.compile("schema.json", &mut schemas).unwrap();
    schemas.validate(&value, compiled).map_err(|error| format!("{error:#}"))
}

#[test]
fn whatever_is_written_under_a_random_schema_is_valid() {
    let wanted = std::env::var("DROPHAMMER_SCHEMAS").map_or(USUAL, |count| count.parse().unwrap());
    let tokenizer = tokenizer();
    let factory = ConstraintFactory::new(&tokenizer).unwrap();
    let mut longest = 0;
    for seed in 0..wanted {
        let mut chance = Rng::with_seed(seed);
        let schema = generate::schema(&mut chance);
        let constraint = factory.compile(&Grammar::JsonSchema(schema.clone()));
        let constraint = constraint.unwrap_or_else(|error| panic!("schema {seed}: {error}: {schema}"));
        let text = write(&tokenizer, constraint, &mut chance);
        longest = longest.max(text.len());
        if let Err(why) = judge(&schema, &text) {
            panic!("schema {seed}: {why}\n{schema}\n{text}");
        }
    }
    println!("{wanted} of {wanted} valid; the longest text has {longest} bytes");
}

#[test]
fn the_judge_tells_wrong_from_right() {
    assert_eq!(
        bounded(r#"[1e-3385, "1e999\"1e999", 2E77, true, 12e123]"#),
        r#"[1e-33, "1e999\"1e999", 2E77, true, 12e12]"#
    );
    let schema = serde_json::json!({"type": "array", "items": {"minimum": 3}, "maxItems": 2});
    assert!(judge(&schema, "[3, 4]").is_ok());
    for wrong in ["[2]", "[3, 4, 5]", "{}", "[3"] {
        assert!(judge(&schema, wrong).is_err(), "{wrong}");
    }
}
