//! What a `tokenizer.json` comes to, as far as its kind can be told in a graph.

use serde_json::Value as Json;

use super::model::Model;

/// The pattern that GPT-2 cuts text by, where a byte-level rule names none.
const GPT2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";
/// Characters that BERT puts between spaces.
const CHINESE: &str = r"([\x{4E00}-\x{9FFF}\x{3400}-\x{4DBF}\x{20000}-\x{2A6DF}\x{2A700}-\x{2CEAF}\x{F900}-\x{FAFF}\x{2F800}-\x{2FA1F}])";

/// A tokenizer's rules.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Rules {
    /// What is done to the whole text first.
    pub(super) before: Vec<Step>,
    /// Tokens that are recognized in text before anything that follows.
    pub(super) added: Vec<Added>,
    /// What is done to the pieces between them.
    pub(super) steps: Vec<Step>,
    pub(super) model: Model,
    /// Ids put around a text; the text itself is `None`.
    pub(super) template: Vec<Option<u32>>,
    /// What is put before a text, until added tokens are known.
    first_prefix: Option<String>,
}

/// A change of text, or a cut.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Step {
    /// Unicode normalization: `NFC`, `NFD`, `NFKC`, `NFKD`.
    Normalize(&'static str),
    /// Upper case becomes lower case.
    Lowercase,
    /// SentencePiece's map of characters, compiled.
    Characters(Vec<u8>),
    /// What matches becomes something else (`$1` is the first group).
    Replace { regex: String, with: String },
    /// Text is cut.
    Cut(Pattern),
}

/// A cut.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Pattern {
    pub(super) regex: String,
    /// `isolate`, `remove`, `mergedwithprevious`, …
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

pub(super) type Told<T> = Result<T, String>;

pub(super) fn kind(value: &Json) -> &str {
    value.get("type").and_then(Json::as_str).unwrap_or_default()
}

pub(super) fn list<'a>(value: &'a Json, key: &str) -> &'a [Json] {
    value.get(key).and_then(Json::as_array).map_or(&[], Vec::as_slice)
}

pub(super) fn flag(value: &Json, key: &str) -> bool {
    value.get(key).and_then(Json::as_bool).unwrap_or(false)
}

impl Rules {
    /// Reads the document.
    ///
    /// # Errors
    /// Which part has no form in a graph.
    pub(super) fn read(document: &Json) -> Told<Self> {
        let mut rules = Self::default();
        let part = |key: &str| document.get(key).unwrap_or(&Json::Null);
        let model = document.get("model").ok_or("it has no model")?;
        rules.normalizer(part("normalizer"))?;
        let bytes = rules.pre_tokenizer(part("pre_tokenizer"))?;
        rules.model = Model::read(model, bytes, part("decoder"))?;
        rules.added(list(document, "added_tokens"))?;
        rules.post_processor(part("post_processor"))?;
        if let Some(first) = rules.first_prefix.take() {
            rules.before.push(rules.prefixed(&first));
        }
        Ok(rules)
    }

    fn replace(&mut self, regex: impl Into<String>, with: impl Into<String>) {
        self.steps.push(Step::Replace { regex: regex.into(), with: with.into() });
    }

    fn normalizer(&mut self, rule: &Json) -> Told<()> {
        match kind(rule) {
            "" => {}
            "NFC" => self.steps.push(Step::Normalize("NFC")),
            "NFD" => self.steps.push(Step::Normalize("NFD")),
            "NFKC" => self.steps.push(Step::Normalize("NFKC")),
            "NFKD" => self.steps.push(Step::Normalize("NFKD")),
            "Lowercase" => self.steps.push(Step::Lowercase),
            "StripAccents" => self.replace(r"\p{Mn}", ""),
            "Prepend" => {
                let text = rule.get("prepend").and_then(Json::as_str).unwrap_or_default();
                self.replace(r"^([\s\S])", format!("{}$1", inserted(text)));
            }
            "Replace" => {
                let content = rule.get("content").and_then(Json::as_str).unwrap_or_default();
                self.replace(pattern(rule)?, inserted(content));
            }
            "Strip" => {
                if flag(rule, "strip_left") {
                    self.replace(r"^\s+", "");
                }
                if flag(rule, "strip_right") {
                    self.replace(r"\s+$", "");
                }
            }
            "Precompiled" => {
                let text = rule.get("precompiled_charsmap").and_then(Json::as_str).unwrap_or_default();
                let map = decode_base64(text).ok_or("its map of characters is no base64")?;
                if !map.is_empty() {
                    self.steps.push(Step::Characters(map));
                }
            }
            "BertNormalizer" => self.bert_normalizer(rule),
            "Sequence" => list(rule, "normalizers").iter().try_for_each(|rule| self.normalizer(rule))?,
            other => return Err(format!("its normalizer {other} has no form in a graph yet")),
        }
        Ok(())
    }

    fn bert_normalizer(&mut self, rule: &Json) {
        let lowercase = flag(rule, "lowercase");
        if flag(rule, "clean_text") {
            self.replace(r"[\x00-\x08\x0B\x0C\x0E-\x1F\x7F-\x9F\p{Cf}\x{FFFD}]", "");
            self.replace(r"\s", " ");
        }
        if flag(rule, "handle_chinese_chars") {
            self.replace(CHINESE, " $1 ");
        }
        if rule.get("strip_accents").and_then(Json::as_bool).unwrap_or(lowercase) {
            self.steps.push(Step::Normalize("NFD"));
            self.replace(r"\p{Mn}", "");
        }
        if lowercase {
            self.steps.push(Step::Lowercase);
        }
    }

    /// Notes the cuts; says whether one of the steps maps bytes.
    fn pre_tokenizer(&mut self, rule: &Json) -> Told<bool> {
        let mut cut = |regex: &str, behaviour: &'static str, invert: bool| {
            self.steps.push(Step::Cut(Pattern { regex: regex.to_owned(), behaviour, invert }));
        };
        match kind(rule) {
            "" => {}
            "Sequence" => {
                let mut bytes = false;
                for rule in list(rule, "pretokenizers") {
                    bytes |= self.pre_tokenizer(rule)?;
                }
                return Ok(bytes);
            }
            "ByteLevel" => {
                if rule.get("use_regex").and_then(Json::as_bool).unwrap_or(true) {
                    cut(GPT2, "isolate", false);
                }
                if flag(rule, "add_prefix_space") {
                    let place = self.steps.len().saturating_sub(1);
                    self.steps.insert(place, Step::Replace { regex: r"^(\S)".into(), with: " $1".into() });
                }
                return Ok(true);
            }
            "BertPreTokenizer" => {
                cut(r"\s+", "remove", false);
                cut(r"[!-/:-@\[-`{-~\p{P}]", "isolate", false);
            }
            "Whitespace" => cut(r"\w+|[^\w\s]+", "remove", true),
            "WhitespaceSplit" => cut(r"\s+", "remove", false),
            "Punctuation" => cut(r"[!-/:-@\[-`{-~\p{P}]", behaviour(rule, "Isolated")?, false),
            "Split" => cut(&pattern(rule)?, behaviour(rule, "Isolated")?, flag(rule, "invert")),
            "Digits" => {
                cut(if flag(rule, "individual_digits") { r"\p{N}" } else { r"\p{N}+" }, "isolate", false);
            }
            "Metaspace" => self.metaspace(rule),
            other => return Err(format!("its pre-tokenizer {other} has no form in a graph yet")),
        }
        Ok(false)
    }

    fn metaspace(&mut self, rule: &Json) {
        let mark = rule.get("replacement").and_then(Json::as_str).unwrap_or("\u{2581}").to_owned();
        // Written before there were schemes, it says whether a prefix is added: to every piece.
        let old = rule.get("add_prefix_space").and_then(Json::as_bool).unwrap_or(true);
        let scheme = rule.get("prepend_scheme").and_then(Json::as_str);
        self.replace(" ", inserted(&mark));
        match scheme.unwrap_or(if old { "always" } else { "never" }) {
            "always" => self.replace(format!("^([^{mark}])"), format!("{}$1", inserted(&mark))),
            "first" => self.first_prefix = Some(mark.clone()),
            _ => {}
        }
        if rule.get("split").and_then(Json::as_bool).unwrap_or(true) {
            let cut = Pattern { regex: mark, behaviour: "mergedwithnext", invert: false };
            self.steps.push(Step::Cut(cut));
        }
    }

    /// A text that begins neither with the mark, a space, nor a token of its own gets the mark before it.
    fn prefixed(&self, mark: &str) -> Step {
        let tokens: Vec<String> = self.added.iter().map(|token| quoted(&token.text)).collect();
        let but = if tokens.is_empty() { String::new() } else { format!("(?!{})", tokens.join("|")) };
        Step::Replace { regex: format!("^{but}([^ {mark}])"), with: format!("{}$1", inserted(mark)) }
    }

    fn added(&mut self, tokens: &[Json]) -> Told<()> {
        for token in tokens {
            let text = token.get("content").and_then(Json::as_str).ok_or("an added token has no text")?;
            let id = token
                .get("id")
                .and_then(Json::as_u64)
                .filter(|&id| id < 1 << 24)
                .ok_or("an added token has no id")?;
            self.model.set(id as usize, text.as_bytes().to_vec());
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
            "BertProcessing" | "RobertaProcessing" => {
                let id = |key: &str| rule.get(key).and_then(|pair| pair.get(1)).and_then(Json::as_u64);
                let (begin, end) = id("cls").zip(id("sep")).ok_or("its post-processor has no ids")?;
                self.template = vec![Some(begin as u32), None, Some(end as u32)];
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

/// A text as it is put in place of a match.
fn inserted(text: &str) -> String {
    text.replace('$', "$$")
}

/// The regular expression that a rule names, or its text as one.
fn pattern(rule: &Json) -> Told<String> {
    let pattern = rule.get("pattern").unwrap_or(&Json::Null);
    match (pattern.get("Regex"), pattern.get("String")) {
        (Some(Json::String(regex)), _) => Ok(regex.clone()),
        (_, Some(Json::String(text))) => Ok(quoted(text)),
        _ => Err("a rule has no pattern".to_owned()),
    }
}

fn behaviour(rule: &Json, usual: &str) -> Told<&'static str> {
    Ok(match rule.get("behavior").and_then(Json::as_str).unwrap_or(usual) {
        "Isolated" => "isolate",
        "Removed" => "remove",
        "MergedWithPrevious" => "mergedwithprevious",
        "MergedWithNext" => "mergedwithnext",
        "Contiguous" => "contiguous",
        other => return Err(format!("the cut {other} has no form in a graph")),
    })
}

/// Bytes of base64 as RFC 4648 has it, with or without padding.
fn decode_base64(text: &str) -> Option<Vec<u8>> {
    let mut out = Vec::with_capacity(text.len() / 4 * 3);
    let (mut bits, mut count) = (0u32, 0);
    for byte in text.trim_end_matches('=').bytes() {
        let value = match byte {
            b'A'..=b'Z' => byte - b'A',
            b'a'..=b'z' => byte - b'a' + 26,
            b'0'..=b'9' => byte - b'0' + 52,
            b'+' => 62,
            b'/' => 63,
            _ => return None,
        };
        bits = bits << 6 | u32::from(value);
        count += 6;
        if count >= 8 {
            count -= 8;
            out.push((bits >> count) as u8);
        }
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_has_no_form_is_named() {
        for (document, named) in [
            (r#"{"model": {"type": "WordLevel"}}"#, "WordLevel"),
            (r#"{"model": {"type": "BPE"}, "normalizer": {"type": "Nmt"}}"#, "Nmt"),
            (r#"{"model": {"type": "BPE"}, "pre_tokenizer": {"type": "UnicodeScripts"}}"#, "UnicodeScripts"),
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

    #[test]
    fn a_text_gets_its_prefix_unless_it_begins_with_a_token() {
        let document = r#"{"model": {"type": "BPE", "vocab": {"a": 0}, "merges": []},
            "added_tokens": [{"id": 1, "content": "<s>", "special": true}],
            "pre_tokenizer": {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": false}}"#;
        let rules = Rules::read(&serde_json::from_str(document).unwrap()).unwrap();
        let prefix = Step::Replace { regex: r"^(?!\<s\>)([^ ▁])".into(), with: "▁$1".into() };
        assert_eq!(rules.before, [prefix]);
        assert_eq!(rules.steps, [Step::Replace { regex: " ".into(), with: "▁".into() }]);
    }

    #[test]
    fn base64_is_read_with_and_without_padding() {
        for (text, bytes) in
            [("", &b""[..]), ("Zg==", b"f"), ("Zm8", b"fo"), ("Zm9v", b"foo"), ("+/8=", b"\xfb\xff")]
        {
            assert_eq!(decode_base64(text).unwrap(), bytes, "{text}");
        }
        assert_eq!(decode_base64("a b"), None);
    }
}
