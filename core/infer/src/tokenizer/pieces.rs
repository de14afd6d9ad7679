//! The bytes every token stands for.

use std::collections::HashMap;
use std::sync::LazyLock;

use serde_json::Value as Json;
use tokenizers::DecoderWrapper;

use super::error::Problem;

/// The character SentencePiece writes for a space.
pub(super) const SPACE_MARK: &str = "▁";

/// Vocabularies have few gaps between ids; an id beyond this many times their size is no id but a broken file.
const MOST_SPREAD: usize = 8;

/// How token names become text. Read from a decoder's configuration; steps that do not apply are empty.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Rules {
    /// Names are bytes in GPT-2's printable alphabet.
    pub(super) byte_level: bool,
    /// `<0x0A>` is a byte.
    pub(super) byte_fallback: bool,
    /// Replacements in order, such as `▁` by a space.
    pub(super) replace: Vec<(String, String)>,
    /// Spaces that vanish at the start of a text.
    pub(super) leading_spaces: usize,
    /// Marks a token that continues a word; others get a space before them.
    pub(super) continuation: Option<String>,
}

impl Rules {
    /// What a decoder of the `tokenizers` library does to one token.
    pub(super) fn of(decoder: Option<&DecoderWrapper>) -> Self {
        let mut rules = Self::default();
        match decoder.map(serde_json::to_value) {
            Some(Ok(json)) => rules.add(&json),
            _ => rules.byte_level = false,
        }
        rules
    }

    fn add(&mut self, decoder: &Json) {
        let text = |key: &str| decoder.get(key).and_then(Json::as_str).unwrap_or_default().to_owned();
        match decoder.get("type").and_then(Json::as_str).unwrap_or_default() {
            "Sequence" => {
                for step in decoder.get("decoders").and_then(Json::as_array).into_iter().flatten() {
                    self.add(step);
                }
            }
            "ByteLevel" => self.byte_level = true,
            "ByteFallback" => self.byte_fallback = true,
            "Replace" => {
                let pattern = decoder.pointer("/pattern/String").and_then(Json::as_str).unwrap_or_default();
                if !pattern.is_empty() {
                    self.replace.push((pattern.to_owned(), text("content")));
                }
            }
            "Strip" if text("content") == " " => {
                self.leading_spaces =
                    decoder.get("start").and_then(Json::as_u64).unwrap_or(0).min(16) as usize;
            }
            "Metaspace" => {
                self.replace.push((text("replacement"), " ".to_owned()));
                self.leading_spaces = usize::from(text("prepend_scheme") != "never");
            }
            "WordPiece" => {
                self.continuation = Some(text("prefix"));
                self.leading_spaces = 1;
            }
            "BPEDecoder" => self.replace.push((text("suffix"), " ".to_owned())),
            _ => {}
        }
    }

    /// The bytes of a token from the model's vocabulary.
    fn bytes(&self, name: &str) -> Vec<u8> {
        if self.byte_level
            && let Some(bytes) = name.chars().map(|c| BYTE_OF_CHAR.get(&c).copied()).collect()
        {
            return bytes;
        }
        if self.byte_fallback
            && let Some(byte) = byte_token(name)
        {
            return vec![byte];
        }
        let mut text = match &self.continuation {
            Some(mark) => name.strip_prefix(mark.as_str()).map_or_else(|| format!(" {name}"), str::to_owned),
            None => name.to_owned(),
        };
        for (pattern, content) in self.replace.iter().filter(|(pattern, _)| !pattern.is_empty()) {
            text = text.replace(pattern, content);
        }
        text.into_bytes()
    }
}

/// `<0x0A>` → 10.
pub(super) fn byte_token(name: &str) -> Option<u8> {
    let digits = name.strip_prefix("<0x")?.strip_suffix('>')?;
    (digits.len() == 2 && digits.bytes().all(|b| b.is_ascii_hexdigit()))
        .then(|| u8::from_str_radix(digits, 16).ok())
        .flatten()
}

/// GPT-2's printable alphabet: printable Latin-1 bytes stand for themselves, the others for `U+0100` onwards.
static BYTE_OF_CHAR: LazyLock<HashMap<char, u8>> = LazyLock::new(|| {
    let printable = |b: u8| matches!(b, b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF);
    let shifted = (0..=255u8).filter(|&b| !printable(b)).zip(0x100u32..);
    let own = (0..=255u8).filter(|&b| printable(b)).map(|b| (b, u32::from(b)));
    own.chain(shifted).filter_map(|(byte, code)| Some((char::from_u32(code)?, byte))).collect()
});

/// What a vocabulary says about one token.
pub(super) struct Entry<'a> {
    pub(super) id: u32,
    pub(super) name: &'a str,
    /// Its name is its text: no rule of the decoder applies.
    pub(super) literal: bool,
    /// It is no text.
    pub(super) special: bool,
}

/// The bytes of all tokens, one after another.
#[derive(Debug, Clone)]
pub(super) struct Pieces {
    bytes: Vec<u8>,
    /// Start and end of each token in `bytes`; empty for ids without a token.
    ranges: Vec<(u32, u32)>,
    special: Vec<bool>,
    leading_spaces: usize,
}

impl Pieces {
    /// Lays out the tokens. Of two entries with one id the later counts.
    pub(super) fn new<'a>(
        rules: &Rules,
        count: usize,
        entries: impl Iterator<Item = Entry<'a>>,
    ) -> Result<Self, Problem> {
        let limit = count.saturating_mul(MOST_SPREAD).saturating_add(1 << 16);
        let mut pieces = Self {
            bytes: Vec::new(),
            ranges: Vec::with_capacity(count),
            special: Vec::with_capacity(count),
            leading_spaces: rules.leading_spaces,
        };
        for entry in entries {
            let id = entry.id as usize;
            if id >= limit {
                return Err(Problem::broken(format!(
                    "token `{}` has the id {id} in a vocabulary of {count} tokens",
                    entry.name.chars().take(64).collect::<String>()
                )));
            }
            if id >= pieces.ranges.len() {
                pieces.ranges.resize(id + 1, (0, 0));
                pieces.special.resize(id + 1, false);
            }
            let start = pieces.bytes.len();
            if entry.literal {
                pieces.bytes.extend_from_slice(entry.name.as_bytes());
            } else {
                pieces.bytes.extend(rules.bytes(entry.name));
            }
            let range = (u32::try_from(start), u32::try_from(pieces.bytes.len()));
            let (Ok(start), Ok(end)) = range else {
                return Err(Problem::broken("its tokens together are longer than 4 GiB"));
            };
            pieces.ranges[id] = (start, end);
            pieces.special[id] = entry.special;
        }
        if pieces.ranges.is_empty() {
            return Err(Problem::broken("its vocabulary is empty"));
        }
        Ok(pieces)
    }

    pub(super) fn len(&self) -> usize {
        self.ranges.len()
    }

    pub(super) fn bytes(&self, id: u32) -> &[u8] {
        let range = self.ranges.get(id as usize).map_or(0..0, |&(start, end)| start as usize..end as usize);
        self.bytes.get(range).unwrap_or_default()
    }

    pub(super) fn is_special(&self, id: u32) -> bool {
        self.special.get(id as usize).copied().unwrap_or(false)
    }

    pub(super) fn leading_spaces(&self) -> usize {
        self.leading_spaces
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn rules(decoder: &Json) -> Rules {
        let mut rules = Rules::default();
        rules.add(decoder);
        rules
    }

    #[test]
    fn the_printable_alphabet_covers_every_byte_once() {
        let mut bytes: Vec<u8> = BYTE_OF_CHAR.values().copied().collect();
        bytes.sort_unstable();
        assert_eq!(bytes, (0..=255).collect::<Vec<u8>>());
        assert_eq!(BYTE_OF_CHAR[&'Ġ'], b' ');
        assert_eq!(BYTE_OF_CHAR[&'Ċ'], b'\n');
    }

    #[test]
    fn names_become_bytes_as_each_decoder_says() {
        let llama = json!({"type": "Sequence", "decoders": [
            {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
            {"type": "ByteFallback"}, {"type": "Fuse"},
            {"type": "Strip", "content": " ", "start": 1, "stop": 0}]});
        let byte_level = json!({"type": "ByteLevel"});
        let wordpiece = json!({"type": "WordPiece", "prefix": "##", "cleanup": true});
        for (decoder, name, bytes) in [
            (&byte_level, "Ġthe", &b" the"[..]),
            (&byte_level, "ÃĹ", "×".as_bytes()),
            (&byte_level, "名", "名".as_bytes()),
            (&llama, "▁the▁", b" the "),
            (&llama, "<0x0A>", b"\n"),
            (&llama, "<0xZZ>", b"<0xZZ>"),
            (&wordpiece, "##ing", b"ing"),
            (&wordpiece, "ing", b" ing"),
        ] {
            assert_eq!(rules(decoder).bytes(name), bytes, "{name} by {decoder}");
        }
        assert_eq!(rules(&llama).leading_spaces, 1);
        assert_eq!(rules(&byte_level).leading_spaces, 0);
    }

    #[test]
    fn an_id_far_beyond_the_vocabulary_is_refused_before_memory_is_taken() {
        let entry = Entry { id: u32::MAX, name: "x", literal: true, special: false };
        assert!(matches!(Pieces::new(&Rules::default(), 1, [entry].into_iter()), Err(Problem::Broken(_))));
    }
}
