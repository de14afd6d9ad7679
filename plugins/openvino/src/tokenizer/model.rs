//! Vocabularies: how pieces of text become tokens, and what tokens are as text.

use serde_json::Value as Json;

use super::rules::{Told, flag, kind, list};

/// A tokenizer's model.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Model {
    /// Every token's bytes by id; gaps are empty.
    pub(super) vocabulary: Vec<Vec<u8>>,
    pub(super) kind: Kind,
    /// What stands for unknown text.
    pub(super) unknown: Option<String>,
    /// Whether unknown text becomes tokens of its bytes.
    pub(super) byte_fallback: bool,
    /// Whether neighbouring unknown characters become one token.
    pub(super) fuse_unknown: bool,
    /// What tokens are as text.
    pub(super) decoding: Decoding,
}

/// How pieces become tokens.
#[derive(Debug, PartialEq)]
pub(super) enum Kind {
    /// Pairs that merge, first ones first; and what ends a word.
    Bpe { merges: Vec<(Vec<u8>, Vec<u8>)>, end_of_word: String },
    /// The longest beginning of a word that is a token, then of its rest: those have a prefix.
    WordPiece { prefix: String, most_characters: u64 },
    /// The likeliest tokens, by the logarithms of their probabilities.
    Unigram { scores: Vec<f32> },
}

impl Default for Kind {
    fn default() -> Self {
        Kind::Bpe { merges: Vec::new(), end_of_word: String::new() }
    }
}

/// How tokens become text again.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Decoding {
    /// Replaced in every token.
    replaced: Vec<(String, String)>,
    /// Whether tokens like `<0x0A>` are bytes.
    bytes: bool,
    /// Words begin with a space, but for those of this prefix, which goes.
    words: Option<String>,
    /// Characters that are taken from the beginning of the text, each so many times.
    pub(super) stripped: Vec<(String, u64)>,
    /// Characters that are taken from its end.
    pub(super) stripped_end: Vec<(String, u64)>,
}

impl Model {
    /// Reads a model; `bytes` says that its vocabulary is of bytes.
    ///
    /// # Errors
    /// Which part has no form in a graph.
    pub(super) fn read(model: &Json, bytes: bool, decoder: &Json) -> Told<Self> {
        let mut out = Self {
            unknown: model.get("unk_token").and_then(Json::as_str).map(str::to_owned),
            byte_fallback: flag(model, "byte_fallback"),
            fuse_unknown: flag(model, "fuse_unk"),
            ..Self::default()
        };
        match kind(model) {
            "BPE" => out.bpe(model, bytes)?,
            "WordPiece" => {
                out.tokens(model, |text| Ok(text.as_bytes().to_vec()))?;
                let text = |key: &str| model.get(key).and_then(Json::as_str);
                let prefix = text("continuing_subword_prefix").unwrap_or("##").to_owned();
                out.unknown.get_or_insert_with(|| "[UNK]".to_owned());
                out.decoding.words = Some(prefix.clone());
                out.decoding.stripped.push((" ".to_owned(), 1));
                let most = model.get("max_input_chars_per_word").and_then(Json::as_u64);
                out.kind = Kind::WordPiece { prefix, most_characters: most.unwrap_or(100) };
            }
            "Unigram" => out.unigram(model)?,
            other => return Err(format!("its model {other} has no form in a graph yet")),
        }
        out.decoding.read(decoder)?;
        Ok(out)
    }

    fn bpe(&mut self, model: &Json, bytes: bool) -> Told<()> {
        if model
            .get("continuing_subword_prefix")
            .and_then(Json::as_str)
            .is_some_and(|prefix| !prefix.is_empty())
        {
            return Err("prefixes of later parts of words have no form in a graph".to_owned());
        }
        let characters = bytes_of_characters();
        let read = |text: &str| -> Told<Vec<u8>> {
            if !bytes {
                return Ok(text.as_bytes().to_vec());
            }
            let byte = |c: char| characters.iter().position(|&known| known == c).map(|byte| byte as u8);
            let read: Option<_> = text.chars().map(byte).collect();
            read.ok_or_else(|| format!("its token {text:?} holds no bytes"))
        };
        // Special tokens may be written plainly.
        self.tokens(model, |text| Ok(read(text).unwrap_or_else(|_| text.as_bytes().to_vec())))?;
        let mut merges = Vec::new();
        for merge in list(model, "merges") {
            let (left, right) = match merge {
                Json::String(text) => text.split_once(' ').ok_or("a merge has one side")?,
                Json::Array(pair) => match pair.as_slice() {
                    [Json::String(left), Json::String(right)] => (left.as_str(), right.as_str()),
                    _ => return Err("a merge is no pair".to_owned()),
                },
                _ => return Err("a merge is no text".to_owned()),
            };
            merges.push((read(left)?, read(right)?));
        }
        let end = model.get("end_of_word_suffix").and_then(Json::as_str).unwrap_or_default();
        self.kind = Kind::Bpe { merges, end_of_word: end.to_owned() };
        Ok(())
    }

    fn unigram(&mut self, model: &Json) -> Told<()> {
        let mut scores = Vec::new();
        for (id, entry) in list(model, "vocab").iter().enumerate() {
            let text = entry.get(0).and_then(Json::as_str);
            let score = entry.get(1).and_then(Json::as_f64);
            let (text, score) =
                text.zip(score).ok_or("an entry of its vocabulary is no token with a score")?;
            self.set(id, text.as_bytes().to_vec());
            scores.push(score as f32);
        }
        let unknown =
            model.get("unk_id").and_then(Json::as_u64).and_then(|id| self.vocabulary.get(id as usize));
        self.unknown = unknown.map(|bytes| String::from_utf8_lossy(bytes).into_owned());
        // The library's own behaviour, which its files do not say.
        self.fuse_unknown = true;
        self.kind = Kind::Unigram { scores };
        Ok(())
    }

    fn tokens(&mut self, model: &Json, read: impl Fn(&str) -> Told<Vec<u8>>) -> Told<()> {
        let vocabulary = model.get("vocab").and_then(Json::as_object).ok_or("its model has no vocabulary")?;
        for (text, id) in vocabulary {
            let id = id.as_u64().filter(|&id| id < 1 << 24).ok_or("an id of its vocabulary is no number")?;
            self.set(id as usize, read(text)?);
        }
        Ok(())
    }

    /// A token's bytes.
    pub(super) fn set(&mut self, id: usize, bytes: Vec<u8>) {
        if self.vocabulary.len() <= id {
            self.vocabulary.resize(id + 1, Vec::new());
        }
        self.vocabulary[id] = bytes;
    }

    /// The id of the token for unknown text.
    pub(super) fn unknown_id(&self) -> Option<usize> {
        let unknown = self.unknown.as_ref()?.as_bytes();
        self.vocabulary.iter().position(|token| token == unknown)
    }

    /// What every token is as text; `added` ones are what they are.
    pub(super) fn texts(&self, added: impl Fn(usize) -> bool) -> Vec<Vec<u8>> {
        let tokens = self.vocabulary.iter().enumerate();
        tokens.map(|(id, token)| if added(id) { token.clone() } else { self.decoding.text(token) }).collect()
    }
}

impl Decoding {
    fn read(&mut self, rule: &Json) -> Told<()> {
        match kind(rule) {
            // Bytes are bytes already.
            "" | "ByteLevel" | "Fuse" | "WordPiece" => {}
            "Sequence" => list(rule, "decoders").iter().try_for_each(|rule| self.read(rule))?,
            "ByteFallback" => self.bytes = true,
            "Replace" => {
                let text = rule.pointer("/pattern/String").and_then(Json::as_str);
                let text = text.ok_or("its decoder replaces by a regular expression")?;
                let content = rule.get("content").and_then(Json::as_str).unwrap_or_default();
                self.replaced.push((text.to_owned(), content.to_owned()));
            }
            "Strip" => {
                let count = |key: &str| rule.get(key).and_then(Json::as_u64).unwrap_or(0);
                let content = rule.get("content").and_then(Json::as_str).unwrap_or(" ");
                for (list, key) in [(&mut self.stripped, "start"), (&mut self.stripped_end, "stop")] {
                    if count(key) > 0 {
                        list.push((content.to_owned(), count(key)));
                    }
                }
            }
            "Metaspace" => {
                let mark = rule.get("replacement").and_then(Json::as_str).unwrap_or("\u{2581}");
                self.replaced.push((mark.to_owned(), " ".to_owned()));
                let scheme = rule.get("prepend_scheme").and_then(Json::as_str);
                if scheme != Some("never")
                    && rule.get("add_prefix_space").and_then(Json::as_bool) != Some(false)
                {
                    self.stripped.push((" ".to_owned(), 1));
                }
            }
            "BPEDecoder" => {
                let suffix = rule.get("suffix").and_then(Json::as_str).unwrap_or("</w>");
                self.replaced.push((suffix.to_owned(), " ".to_owned()));
                self.stripped_end.push((" ".to_owned(), 1));
            }
            other => return Err(format!("its decoder {other} has no form in a graph yet")),
        }
        Ok(())
    }

    /// A token as text.
    fn text(&self, token: &[u8]) -> Vec<u8> {
        let Ok(text) = std::str::from_utf8(token) else { return token.to_vec() };
        let byte =
            text.strip_prefix("<0x").and_then(|rest| rest.strip_suffix('>')).filter(|hex| hex.len() == 2);
        if let (true, Some(Ok(byte))) = (self.bytes, byte.map(|hex| u8::from_str_radix(hex, 16))) {
            return vec![byte];
        }
        if let Some(prefix) = &self.words {
            return match text.strip_prefix(prefix.as_str()) {
                Some(rest) => rest.as_bytes().to_vec(),
                // The library takes spaces before these away again.
                None if matches!(text, "." | "," | "!" | "?") => token.to_vec(),
                None => format!(" {text}").into_bytes(),
            };
        }
        let replaced = self.replaced.iter().fold(text.to_owned(), |text, (from, to)| text.replace(from, to));
        replaced.into_bytes()
    }
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

    fn read(model: &str, decoder: &str) -> Model {
        let parse = |text: &str| serde_json::from_str(text).unwrap();
        Model::read(&parse(model), false, &parse(decoder)).unwrap()
    }

    #[test]
    fn tokens_of_bytes_and_marks_become_text() {
        let model = read(
            r#"{"type": "BPE", "byte_fallback": true, "vocab": {"<0x0A>": 0, "▁a": 1, "<s>": 2}, "merges": ["▁ a"]}"#,
            r#"{"type": "Sequence", "decoders": [{"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
                {"type": "ByteFallback"}, {"type": "Fuse"}, {"type": "Strip", "content": " ", "start": 1, "stop": 0}]}"#,
        );
        assert!(model.byte_fallback);
        assert_eq!(model.texts(|id| id == 2), [b"\n".to_vec(), b" a".to_vec(), b"<s>".to_vec()]);
        assert_eq!(model.decoding.stripped, [(" ".to_owned(), 1)]);
    }

    #[test]
    fn pieces_of_words_join_and_words_part() {
        let model = read(
            r###"{"type": "WordPiece", "unk_token": "[UNK]", "vocab": {"[UNK]": 0, "play": 1, "##ing": 2, ".": 3}}"###,
            r###"{"type": "WordPiece", "prefix": "##"}"###,
        );
        assert_eq!(model.unknown_id(), Some(0));
        assert_eq!(model.texts(|id| id == 0)[1..], [b" play".to_vec(), b"ing".to_vec(), b".".to_vec()]);
    }

    #[test]
    fn likelihoods_stay_with_their_tokens() {
        let model =
            read(r#"{"type": "Unigram", "unk_id": 0, "vocab": [["<unk>", 0.0], ["▁a", -2.5]]}"#, "null");
        assert_eq!(model.kind, Kind::Unigram { scores: vec![0.0, -2.5] });
        assert_eq!((model.unknown_id(), model.vocabulary.len()), (Some(0), 2));
    }
}
