//! What a `tokenizer.json` comes to, as far as its kind can be told in a graph: byte-level BPE today (GPT-2's, Llama 3's,
//! Qwen's, SmolLM's and their relatives).

use serde_json::Value as Json;

/// The pattern that GPT-2 cuts text by, where a byte-level rule names none.
const GPT2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";

/// A tokenizer's rules.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Rules {
    /// Every token's bytes by id; gaps are empty.
    pub(super) vocabulary: Vec<Vec<u8>>,
    /// Pairs that merge, first ones first.
    pub(super) merges: Vec<(Vec<u8>, Vec<u8>)>,
    /// Patterns that cut text, one after another; each says whether single matches become pieces.
    pub(super) patterns: Vec<Pattern>,
    /// Tokens that are recognized in text before anything else.
    pub(super) added: Vec<Added>,
    /// Ids put around a text; the text itself is `None`.
    pub(super) template: Vec<Option<u32>>,
    /// Unicode normalization to do first.
    pub(super) normalization: Option<&'static str>,
    /// Whether a token that is whole in the vocabulary is taken without merging.
    pub(super) ignore_merges: bool,
}

/// A cut.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Pattern {
    pub(super) regex: String,
    /// `isolate`, `remove`, `merge_with_previous`, …
    pub(super) behaviour: &'static str,
    pub(super) invert: bool,
}

/// A token that is recognized in text.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Added {
    pub(super) id: u32,
    pub(super) text: String,
    pub(super) special: bool,
    pub(super) strip_left: bool,
    pub(super) strip_right: bool,
}

type Told<T> = Result<T, String>;

fn kind(value: &Json) -> &str {
    value.get("type").and_then(Json::as_str).unwrap_or_default()
}

fn list<'a>(value: &'a Json, key: &str) -> &'a [Json] {
    value.get(key).and_then(Json::as_array).map_or(&[], Vec::as_slice)
}

fn flag(value: &Json, key: &str) -> bool {
    value.get(key).and_then(Json::as_bool).unwrap_or(false)
}

impl Rules {
    /// Reads the document.
    ///
    /// # Errors
    /// Which part has no form in a graph.
    pub(super) fn read(document: &Json) -> Told<Self> {
        let mut rules = Self::default();
        let model = document.get("model").ok_or("it has no model")?;
        if kind(model) != "BPE" {
            return Err(format!("its model is {}, and graphs are written for byte-level BPE", kind(model)));
        }
        rules.normalizer(document.get("normalizer").unwrap_or(&Json::Null))?;
        if !rules.pre_tokenizer(document.get("pre_tokenizer").unwrap_or(&Json::Null))? {
            return Err("its BPE is not on the level of bytes".to_owned());
        }
        rules.model(model)?;
        rules.added(list(document, "added_tokens"))?;
        rules.post_processor(document.get("post_processor").unwrap_or(&Json::Null))?;
        Ok(rules)
    }

    fn normalizer(&mut self, rule: &Json) -> Told<()> {
        match kind(rule) {
            "" => Ok(()),
            "NFC" => {
                self.normalization = Some("NFC");
                Ok(())
            }
            "Sequence" => list(rule, "normalizers").iter().try_for_each(|rule| self.normalizer(rule)),
            other => Err(format!("its normalizer {other} has no form in a graph yet")),
        }
    }

    /// Notes the cuts; says whether one of the steps maps bytes.
    fn pre_tokenizer(&mut self, rule: &Json) -> Told<bool> {
        match kind(rule) {
            "" => Ok(false),
            "Sequence" => {
                let mut bytes = false;
                for rule in list(rule, "pretokenizers") {
                    bytes |= self.pre_tokenizer(rule)?;
                }
                Ok(bytes)
            }
            "ByteLevel" => {
                if flag(rule, "add_prefix_space") {
                    return Err("it puts a space before every text".to_owned());
                }
                if rule.get("use_regex").and_then(Json::as_bool).unwrap_or(true) {
                    self.patterns.push(Pattern {
                        regex: GPT2.to_owned(),
                        behaviour: "isolate",
                        invert: false,
                    });
                }
                Ok(true)
            }
            "Split" => {
                let pattern = rule.get("pattern").unwrap_or(&Json::Null);
                let regex = match (pattern.get("Regex"), pattern.get("String")) {
                    (Some(Json::String(regex)), _) => regex.clone(),
                    (_, Some(Json::String(text))) => quoted(text),
                    _ => return Err("a cut of its pre-tokenizer has no pattern".to_owned()),
                };
                let behaviour = match rule.get("behavior").and_then(Json::as_str).unwrap_or_default() {
                    "Isolated" => "isolate",
                    "Removed" => "remove",
                    "MergedWithPrevious" => "merge_with_previous",
                    "MergedWithNext" => "merge_with_next",
                    "Contiguous" => "contiguous",
                    other => return Err(format!("the cut {other} has no form in a graph")),
                };
                self.patterns.push(Pattern { regex, behaviour, invert: flag(rule, "invert") });
                Ok(false)
            }
            "Digits" => {
                let regex = if flag(rule, "individual_digits") { r"\p{Nd}" } else { r"\p{Nd}+" };
                self.patterns.push(Pattern { regex: regex.to_owned(), behaviour: "isolate", invert: false });
                Ok(false)
            }
            other => Err(format!("its pre-tokenizer {other} has no form in a graph yet")),
        }
    }

    fn model(&mut self, model: &Json) -> Told<()> {
        let characters = bytes_of_characters();
        let bytes = |text: &str| -> Told<Vec<u8>> {
            let byte = |c: char| characters.iter().position(|&known| known == c).map(|byte| byte as u8);
            text.chars()
                .map(byte)
                .collect::<Option<_>>()
                .ok_or_else(|| format!("its token {text:?} holds no bytes"))
        };
        self.ignore_merges = flag(model, "ignore_merges");
        let vocabulary = model.get("vocab").and_then(Json::as_object).ok_or("its model has no vocabulary")?;
        for (text, id) in vocabulary {
            let id = id.as_u64().filter(|&id| id < 1 << 24).ok_or("an id of its vocabulary is no number")?;
            // Special tokens may be written plainly.
            self.set(id as usize, bytes(text).unwrap_or_else(|_| text.as_bytes().to_vec()));
        }
        for merge in list(model, "merges") {
            let (left, right) = match merge {
                Json::String(text) => text.split_once(' ').ok_or("a merge has one side")?,
                Json::Array(pair) => match pair.as_slice() {
                    [Json::String(left), Json::String(right)] => (left.as_str(), right.as_str()),
                    _ => return Err("a merge is no pair".to_owned()),
                },
                _ => return Err("a merge is no text".to_owned()),
            };
            self.merges.push((bytes(left)?, bytes(right)?));
        }
        Ok(())
    }

    fn set(&mut self, id: usize, bytes: Vec<u8>) {
        if self.vocabulary.len() <= id {
            self.vocabulary.resize(id + 1, Vec::new());
        }
        self.vocabulary[id] = bytes;
    }

    fn added(&mut self, tokens: &[Json]) -> Told<()> {
        for token in tokens {
            let text = token.get("content").and_then(Json::as_str).ok_or("an added token has no text")?;
            let id = token
                .get("id")
                .and_then(Json::as_u64)
                .filter(|&id| id < 1 << 24)
                .ok_or("an added token has no id")?;
            self.set(id as usize, text.as_bytes().to_vec());
            self.added.push(Added {
                id: id as u32,
                text: text.to_owned(),
                special: flag(token, "special"),
                strip_left: flag(token, "lstrip"),
                strip_right: flag(token, "rstrip"),
            });
        }
        Ok(())
    }

    fn post_processor(&mut self, rule: &Json) -> Told<()> {
        match kind(rule) {
            "" | "ByteLevel" => {
                if self.template.is_empty() {
                    self.template = vec![None];
                }
                Ok(())
            }
            "Sequence" => list(rule, "processors").iter().try_for_each(|rule| self.post_processor(rule)),
            "TemplateProcessing" => {
                self.template.clear();
                for part in list(rule, "single") {
                    if part.get("Sequence").is_some() {
                        self.template.push(None);
                        continue;
                    }
                    let name = part
                        .pointer("/SpecialToken/id")
                        .and_then(Json::as_str)
                        .ok_or("its template has an unknown part")?;
                    let ids = rule
                        .pointer("/special_tokens")
                        .and_then(|tokens| tokens.get(name))
                        .map(|token| list(token, "ids"));
                    for id in ids.ok_or("its template names an unknown token")? {
                        self.template.push(Some(id.as_u64().ok_or("its template has no id")? as u32));
                    }
                }
                Ok(())
            }
            other => Err(format!("its post-processor {other} has no form in a graph yet")),
        }
    }
}

/// A text as a regular expression that matches it.
pub(super) fn quoted(text: &str) -> String {
    let mut out = String::with_capacity(text.len() * 2);
    for c in text.chars() {
        if c.is_ascii_punctuation() && c != '_' {
            out.push('\\');
        }
        out.push(c);
    }
    out
}

/// The character that stands for each byte in a byte-level vocabulary (GPT-2): printable bytes for themselves, the others
/// as characters from U+0100 on, in order.
fn bytes_of_characters() -> [char; 256] {
    let mut characters = ['\0'; 256];
    let mut next = 0x100;
    for byte in 0..=255u8 {
        let printable = matches!(byte, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff);
        characters[usize::from(byte)] = if printable {
            char::from(byte)
        } else {
            next += 1;
            char::from_u32(next - 1).unwrap_or_default()
        };
    }
    characters
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn characters_stand_for_bytes_as_gpt2_has_it() {
        let characters = bytes_of_characters();
        assert_eq!(characters[b' ' as usize], 'Ġ');
        assert_eq!(characters[b'\n' as usize], 'Ċ');
        assert_eq!(characters[b'A' as usize], 'A');
        assert_eq!(characters[0xad], '\u{143}');
    }

    #[test]
    fn what_has_no_form_is_named() {
        for (document, named) in [
            (r#"{"model": {"type": "WordPiece"}}"#, "WordPiece"),
            (r#"{"model": {"type": "BPE"}, "pre_tokenizer": null}"#, "level of bytes"),
            (r#"{"model": {"type": "BPE"}, "normalizer": {"type": "Lowercase"}}"#, "Lowercase"),
            (r"{}", "no model"),
        ] {
            let error = Rules::read(&serde_json::from_str(document).unwrap()).unwrap_err();
            assert!(error.contains(named), "{error}");
        }
    }

    #[test]
    fn a_template_lists_its_tokens_around_the_text() {
        let mut rules = Rules::default();
        let rule = r#"{"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "<s>"}}, {"Sequence": {"id": "A"}}],
            "special_tokens": {"<s>": {"ids": [7]}}}"#;
        rules.post_processor(&serde_json::from_str(rule).unwrap()).unwrap();
        assert_eq!(rules.template, [Some(7), None]);
    }
}
