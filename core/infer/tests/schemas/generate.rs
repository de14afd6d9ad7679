//! Schemas by chance, from the keywords that the JSON-Schema test suite is simplest about.

use fastrand::Rng;
use serde_json::{Map, Value as Json, json};

/// How deep schemas nest.
const DEEP: u32 = 3;

/// A schema that some value meets.
pub(crate) fn schema(chance: &mut Rng) -> Json {
    let mut root = any(chance, 0);
    if let Json::Object(root) = &mut root
        && chance.bool()
    {
        // What is named is referred to: by this schema, as one way to meet it, and by itself.
        let named = any(chance, 1);
        let list = json!({
            "type": "object",
            "properties": {"value": {"$ref": "#/$defs/named"}, "next": {"anyOf": [{"$ref": "#/$defs/list"}, {"type": "null"}]}},
            "required": ["value", "next"],
            "additionalProperties": false,
        });
        let one = Json::Object(std::mem::take(root));
        let ways = match chance.u8(..3) {
            0 => json!([one, {"$ref": "#/$defs/named"}]),
            1 => json!([one, {"$ref": "#/$defs/list"}]),
            _ => json!([{"$ref": "#/$defs/list"}]),
        };
        root.insert("anyOf".to_owned(), ways);
        root.insert("$defs".to_owned(), json!({"named": named, "list": list}));
    }
    root
}

fn any(chance: &mut Rng, depth: u32) -> Json {
    let simple = depth >= DEEP;
    match chance.u8(..if simple { 7 } else { 11 }) {
        0 => text(chance),
        1 => number(chance),
        2 => integer(chance),
        3 => json!({"type": "boolean"}),
        4 => json!({"enum": values(chance)}),
        5 => json!({"const": value(chance)}),
        6 => json!({"type": types(chance)}),
        7 | 8 => object(chance, depth),
        9 => array(chance, depth),
        _ => {
            let ways = (0..chance.u8(1..4)).map(|_| any(chance, depth + 1));
            json!({"anyOf": ways.collect::<Vec<_>>()})
        }
    }
}

fn with(kind: &str, keywords: impl IntoIterator<Item = (&'static str, Json)>) -> Json {
    let mut schema = Map::new();
    schema.insert("type".to_owned(), json!(kind));
    schema.extend(keywords.into_iter().map(|(name, value)| (name.to_owned(), value)));
    Json::Object(schema)
}

fn text(chance: &mut Rng) -> Json {
    let mut keywords = Vec::new();
    if chance.u8(..4) == 0 {
        let patterns =
            ["^[a-z]{2,5}$", "^(to|not) be$", "^[A-Z][a-z]*( [A-Z][a-z]*)?$", "^[0-9]{3}$", "^a+b?$"];
        return with("string", [("pattern", json!(chance.choice(patterns)))]);
    }
    let least = chance.u8(..4);
    if chance.bool() {
        keywords.push(("minLength", json!(least)));
    }
    if chance.bool() {
        keywords.push(("maxLength", json!(least + chance.u8(..9))));
    }
    with("string", keywords)
}

/// Bounds around some number, each of them there or not, with it or without.
fn bounds(chance: &mut Rng, least: Json, most: Json) -> Vec<(&'static str, Json)> {
    let mut keywords = Vec::new();
    match chance.u8(..3) {
        0 => {}
        1 => keywords.push(("minimum", least)),
        _ => keywords.push(("exclusiveMinimum", least)),
    }
    match chance.u8(..3) {
        0 => {}
        1 => keywords.push(("maximum", most)),
        _ => keywords.push(("exclusiveMaximum", most)),
    }
    keywords
}

fn integer(chance: &mut Rng) -> Json {
    let least = chance.i32(-1000..1000);
    let most = least + 2 + chance.i32(..1000).abs();
    let keywords = bounds(chance, json!(least), json!(most));
    with("integer", keywords)
}

fn number(chance: &mut Rng) -> Json {
    let least = f64::from(chance.i32(-4000..4000)) / 8.0;
    let most = least + 0.5 + f64::from(chance.u16(..4000)) / 4.0;
    let keywords = bounds(chance, json!(least), json!(most));
    with("number", keywords)
}

fn types(chance: &mut Rng) -> Json {
    let all = ["null", "boolean", "integer", "number", "string"];
    let mut some: Vec<&str> = all.into_iter().filter(|_| chance.bool()).collect();
    if some.is_empty() {
        some.push("null");
    }
    // One kind may stand alone.
    if some.len() == 1 && chance.bool() { json!(some[0]) } else { json!(some) }
}

/// Names with all that makes them hard to write.
fn name(chance: &mut Rng) -> String {
    const NAMES: &[&str] =
        &["name", "age", "a b", "\"quoted\"", "ключ", "a\\b", "", "$ref", "tab\t", "x/y", "é"];
    (*chance.choice(NAMES).unwrap()).to_owned()
}

fn value(chance: &mut Rng) -> Json {
    match chance.u8(..7) {
        0 => Json::Null,
        1 => json!(chance.bool()),
        2 => json!(chance.i32(-50..50)),
        3 => json!(f64::from(chance.i16(..)) / 64.0),
        4 => json!([value_of(chance), value_of(chance)]),
        5 => json!({name(chance): value_of(chance)}),
        _ => value_of(chance),
    }
}

fn value_of(chance: &mut Rng) -> Json {
    if chance.bool() { json!(chance.u8(..)) } else { json!(name(chance)) }
}

fn values(chance: &mut Rng) -> Vec<Json> {
    let mut values: Vec<Json> = Vec::new();
    for _ in 0..chance.u8(1..5) {
        let one = value(chance);
        if !values.contains(&one) {
            values.push(one);
        }
    }
    values
}

fn object(chance: &mut Rng, depth: u32) -> Json {
    let mut properties = Map::new();
    for _ in 0..chance.u8(..5) {
        properties.insert(name(chance), any(chance, depth + 1));
    }
    let required: Vec<String> = properties.keys().filter(|_| chance.bool()).cloned().collect();
    let mut keywords = vec![("properties", Json::Object(properties)), ("required", json!(required))];
    match chance.u8(..3) {
        0 => keywords.push(("additionalProperties", json!(false))),
        1 => keywords.push(("additionalProperties", any(chance, DEEP))),
        _ => {}
    }
    with("object", keywords)
}

fn array(chance: &mut Rng, depth: u32) -> Json {
    let least = chance.u8(..3);
    let mut keywords = Vec::new();
    if chance.u8(..4) == 0 {
        let first: Vec<Json> = (0..chance.u8(1..3)).map(|_| any(chance, depth + 1)).collect();
        keywords.push(("prefixItems", json!(first)));
    }
    keywords.push(("items", any(chance, depth + 1)));
    if chance.bool() {
        keywords.push(("minItems", json!(least)));
    }
    keywords.push(("maxItems", json!(least + chance.u8(1..4))));
    with("array", keywords)
}
