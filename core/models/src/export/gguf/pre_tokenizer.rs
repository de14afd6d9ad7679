//! The name that llama.cpp gives to a `tokenizer.json`'s way of cutting text before merging.
//!
//! Upstream tells them apart by the hash of a test text; here the rules themselves are compared.

use serde_json::Value as Json;

/// How a byte-level BPE cuts text.
#[derive(Debug, Default, PartialEq, Eq)]
struct Rules {
    /// Regular expressions, one after another.
    patterns: Vec<String>,
    /// Whether each digit stands alone.
    digits: bool,
    /// Whether punctuation stands alone.
    punctuation: bool,
    /// Whether GPT-2's expression comes in the end.
    gpt2: bool,
}

const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN2: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN35: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const GPT2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";
const GPT4O: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const TEKKEN: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// The name, or what about the rules has none.
pub(super) fn name(tokenizer: &Json) -> Result<&'static str, String> {
    let mut rules = Rules::default();
    let pre = tokenizer.get("pre_tokenizer").filter(|pre| !pre.is_null());
    collect(pre.ok_or("tokenizer.json has no pre-tokenizer")?, &mut rules)?;
    let ignores_merges = tokenizer.pointer("/model/ignore_merges").and_then(Json::as_bool).unwrap_or(false);
    let patterns: Vec<&str> = rules.patterns.iter().map(String::as_str).collect();
    let known = match (patterns.as_slice(), rules.digits, rules.punctuation, rules.gpt2) {
        ([], false, false, true) | ([GPT2], false, false, false) => Some("gpt-2"),
        ([], true, false, true) => Some("smollm"),
        (["[0-9][0-9][0-9]"], _, true, true) => Some("falcon"),
        ([LLAMA3], false, false, false) => Some(if ignores_merges { "llama-bpe" } else { "dbrx" }),
        ([QWEN2], false, false, false) => Some("qwen2"),
        ([QWEN35], false, false, false) => Some("qwen35"),
        ([GPT4O], false, false, false) => Some("gpt-4o"),
        ([TEKKEN], false, false, false) => Some("tekken"),
        ([first, _, third], false, false, false)
            if *first == r"\p{N}{1,3}" && third.contains(r"\p{P}\p{S}") =>
        {
            Some("deepseek-v3")
        }
        (["[\r\n]", word, ..], _, false, false) if word.contains("A-Za-z") => Some("deepseek-llm"),
        (["[\r\n]", word, ..], _, false, false) if word.contains(r"\p{L}+") => Some("deepseek-coder"),
        _ => None,
    };
    known.ok_or_else(|| {
        let what =
            rules.patterns.first().map_or_else(|| "its rules".to_owned(), |first| format!("`{first}`"));
        format!("llama.cpp has no pre-tokenizer that cuts text like {what}")
    })
}

fn collect(pre: &Json, rules: &mut Rules) -> Result<(), String> {
    let flag = |key: &str, default| pre.get(key).and_then(Json::as_bool).unwrap_or(default);
    match pre.get("type").and_then(Json::as_str).unwrap_or_default() {
        "Sequence" => {
            let parts = pre.get("pretokenizers").and_then(Json::as_array);
            parts.into_iter().flatten().try_for_each(|part| collect(part, rules))
        }
        "ByteLevel" => {
            rules.gpt2 |= flag("use_regex", true);
            Ok(())
        }
        "Digits" => {
            rules.digits |= flag("individual_digits", false);
            Ok(())
        }
        "Punctuation" => {
            rules.punctuation = true;
            Ok(())
        }
        "Split" => {
            let pattern = pre.get("pattern").ok_or("a Split without pattern")?;
            let text = pattern.get("Regex").or_else(|| pattern.get("String")).and_then(Json::as_str);
            rules.patterns.push(text.ok_or("a Split without pattern")?.to_owned());
            Ok(())
        }
        other => Err(format!("llama.cpp has no byte-level pre-tokenizer `{other}`")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn split(pattern: &str) -> Json {
        json!({"type": "Sequence", "pretokenizers": [
            {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": false},
            {"type": "ByteLevel", "add_prefix_space": false, "use_regex": false}]})
    }

    #[test]
    fn rules_have_the_names_that_llama_cpp_knows() {
        let level = json!({"type": "ByteLevel", "add_prefix_space": false});
        let digits = json!({"type": "Sequence", "pretokenizers": [
            {"type": "Digits", "individual_digits": true}, {"type": "ByteLevel", "use_regex": true}]});
        for (pre, ignore, expected) in [
            (level, false, "gpt-2"),
            (digits, false, "smollm"),
            (split(LLAMA3), true, "llama-bpe"),
            (split(LLAMA3), false, "dbrx"),
            (split(QWEN2), false, "qwen2"),
            (split(GPT4O), false, "gpt-4o"),
            (split(TEKKEN), false, "tekken"),
        ] {
            let tokenizer = json!({"pre_tokenizer": pre, "model": {"ignore_merges": ignore}});
            assert_eq!(name(&tokenizer), Ok(expected));
        }
    }

    #[test]
    fn unknown_rules_are_named() {
        let error = name(&json!({"pre_tokenizer": split("[aeiou]+")})).unwrap_err();
        assert!(error.contains("[aeiou]+"), "{error}");
    }
}
