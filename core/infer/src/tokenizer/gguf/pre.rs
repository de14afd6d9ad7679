//! How byte-level BPE vocabularies cut a text before merging, by the name in `tokenizer.ggml.pre`.
//!
//! The patterns are those of the models' own `tokenizer.json` files. Each pattern cuts what the ones before it left;
//! what a pattern does not match stays a piece.

/// One pre-tokenizer.
#[derive(Debug, Clone, Copy)]
pub(super) struct PreTokenizer {
    /// Applied one after another.
    pub(super) patterns: &'static [&'static str],
    /// A piece that is a token is taken as it is, whatever the merges say.
    pub(super) ignore_merges: bool,
    /// Whether a text begins with the beginning-of-text token where the metadata do not say.
    pub(super) add_bos: bool,
    /// Tokens are UTF-8 with `▁` for spaces, not bytes in GPT-2's alphabet.
    pub(super) spaces: bool,
}

const GPT2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";
const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN2: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN35: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const GPT4O: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const TEKKEN: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const DEEPSEEK3: &str = r##"[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"##;
const SEED_CODER: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1}| ?[^\s\p{L}\p{N}\r\n]+|\s*[\r\n]+|\s+(?!\S)|\s+";
const BAILING: &str = r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+";
const BLOOM: &str = r" ?[^(\s|.,!?\x{2026}\x{3002}\x{FF0C}\x{3001}\x{0964}\x{06D4}\x{060C})]+";
const DEEPSEEK_WORD: &str = r"\s?[A-Za-z\x{00B5}\x{00C0}-\x{00D6}\x{00D8}-\x{00F6}\x{00F8}-\x{01BA}\x{01BC}-\x{01BF}\x{01C4}-\x{0293}\x{0295}-\x{02AF}\x{0370}-\x{0373}\x{0376}\x{0377}\x{037B}-\x{037D}\x{037F}\x{0386}\x{0388}-\x{038A}\x{038C}\x{038E}-\x{03A1}\x{03A3}-\x{03F5}\x{03F7}-\x{0481}\x{048A}-\x{052F}\x{0531}-\x{0556}\x{10A0}-\x{10C5}\x{13A0}-\x{13F5}\x{13F8}-\x{13FD}\x{1C90}-\x{1CBA}\x{1CBD}-\x{1CBF}\x{1D00}-\x{1D2B}\x{1D6B}-\x{1D77}\x{1D79}-\x{1D9A}\x{1E00}-\x{1F15}\x{1F18}-\x{1F1D}\x{1F20}-\x{1F45}\x{1F48}-\x{1F4D}\x{1F50}-\x{1F57}\x{1F59}\x{1F5B}\x{1F5D}\x{1F5F}-\x{1F7D}\x{1F80}-\x{1FB4}\x{1FB6}-\x{1FBC}\x{1FBE}\x{1FC2}-\x{1FC4}\x{1FC6}-\x{1FCC}\x{1FD0}-\x{1FD3}\x{1FD6}-\x{1FDB}\x{1FE0}-\x{1FEC}\x{1FF2}-\x{1FF4}\x{1FF6}-\x{1FFC}\x{2102}\x{2107}\x{210A}-\x{2113}\x{2115}\x{2119}-\x{211D}\x{2124}\x{2126}\x{2128}\x{212A}-\x{212D}\x{212F}-\x{2134}\x{2139}\x{213C}-\x{213F}\x{2145}-\x{2149}\x{214E}\x{2183}\x{2184}\x{2C00}-\x{2C7B}\x{2C7E}-\x{2CE4}\x{2CEB}-\x{2CEE}\x{2CF2}\x{2CF3}\x{A640}-\x{A66D}\x{A680}-\x{A69B}\x{A722}-\x{A76F}\x{A771}-\x{A787}\x{A78B}-\x{A78E}\x{AB70}-\x{ABBF}\x{FB00}-\x{FB06}\x{FB13}-\x{FB17}\x{FF21}-\x{FF3A}\x{FF41}-\x{FF5A}\x{10400}-\x{1044F}\x{104B0}-\x{104D3}\x{104D8}-\x{104FB}\x{10C80}-\x{10CB2}\x{10CC0}-\x{10CF2}\x{118A0}-\x{118DF}\x{1E900}-\x{1E943}]+";
const DEEPSEEK_PUNCTUATION: &str =
    r"\s?[!-/:-~\x{FF01}-\x{FF0F}\x{FF1A}-\x{FF5E}\x{2018}-\x{201F}\x{3000}-\x{3002}]+";
const DIGIT: &str = r"\p{N}";
const THREE_DIGITS: &str = r"[0-9][0-9][0-9]";
const CJK: &str = r"[\x{4E00}-\x{9FA5}\x{0800}-\x{4E00}\x{AC00}-\x{D7FF}]+";
const KANA_AND_HAN: &str = r"[\x{4E00}-\x{9FA5}\x{3040}-\x{309F}\x{30A0}-\x{30FF}]+";
const LINES: &str = r"[^\n]+|[\n]+";

const fn cut(patterns: &'static [&'static str]) -> PreTokenizer {
    PreTokenizer { patterns, ignore_merges: false, add_bos: false, spaces: false }
}

const fn whole(patterns: &'static [&'static str]) -> PreTokenizer {
    PreTokenizer { ignore_merges: true, ..cut(patterns) }
}

type Row = (&'static [&'static str], PreTokenizer);

/// Names that mean the same, and what they mean.
const TABLE: &[Row] = &[
    (&["default"], cut(&[r"[\p{P}\$\+<=>\^~\|]+", GPT2, r"\p{N}+", THREE_DIGITS])),
    (
        &[
            "llama3",
            "llama-v3",
            "llama-bpe",
            "falcon3",
            "falcon-h1",
            "pixtral",
            "midm-2.0",
            "lfm2",
            "jina-v5-nano",
        ],
        PreTokenizer { add_bos: true, ..whole(&[LLAMA3]) },
    ),
    (&["dbrx", "smaug-bpe", "chatglm-bpe"], cut(&[LLAMA3])),
    (&["glm4", "glm5"], whole(&[LLAMA3])),
    (
        &[
            "gpt-2",
            "phi-2",
            "jina-es",
            "jina-de",
            "jina-v2-es",
            "jina-v2-de",
            "jina-v1-en",
            "jina-v2-code",
            "roberta-bpe",
            "gigachat",
            "a.x-4.0",
            "mellum",
            "modern-bert",
            "mpt",
            "olmo",
            "jais",
            "trillion",
            "exaone4",
            "granite-docling",
        ],
        cut(&[GPT2]),
    ),
    (
        &["smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b", "mellum2"],
        cut(&[DIGIT, GPT2]),
    ),
    (
        &[
            "qwen2",
            "deepseek-r1-qwen",
            "kormo",
            "f2llmv2",
            "stablelm2",
            "megrez",
            "hunyuan",
            "solar-open",
            "grok-2",
        ],
        cut(&[QWEN2]),
    ),
    (&["qwen35"], cut(&[QWEN35])),
    (&["gpt-4o", "llama4", "kanana2", "talkie", "minimax-m2"], cut(&[GPT4O])),
    (&["granite-embed-multi-97m"], whole(&[GPT4O])),
    (&["tiny_aya", "cohere2moe"], cut(&[r"\d{1,3}(?=(?:\d{3})*\b)", GPT4O])),
    (&["tekken"], PreTokenizer { add_bos: true, ..whole(&[TEKKEN]) }),
    (&["falcon"], cut(&[r"[\p{P}\$\+<=>\^~\|`]+", GPT2, THREE_DIGITS])),
    (&["deepseek-llm"], cut(&[r"[\r\n]", DEEPSEEK_WORD, DEEPSEEK_PUNCTUATION, r"\s+$", CJK, r"\p{N}+"])),
    (&["deepseek-coder"], cut(&[r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", CJK, DIGIT])),
    (&["deepseek-v3", "hunyuan-dense", "joyai-llm", "hy_v4"], cut(&[r"\p{N}{1,3}", KANA_AND_HAN, DEEPSEEK3])),
    (&["seed-coder"], cut(&[SEED_CODER])),
    (&["bailingmoe", "bailingmoe2", "llada-moe"], cut(&[BAILING])),
    (&["bloom", "poro-chat", "gpt3-finnish"], cut(&[BLOOM])),
    (&["viking"], cut(&[BLOOM, DIGIT])),
    (&["laguna"], cut(&[LINES, QWEN2])),
    (&["minicpm5"], whole(&[r"\p{N}{1,3}", LLAMA3])),
    (&["gemma4", "granite-embed-multi-311m"], PreTokenizer { spaces: true, ..cut(&[LINES]) }),
];

/// The pre-tokenizer of this name.
pub(super) fn by_name(name: &str) -> Option<PreTokenizer> {
    TABLE.iter().find(|(names, _)| names.contains(&name)).map(|(_, pre)| *pre)
}

/// Every name there is.
pub(super) fn names() -> impl Iterator<Item = &'static str> {
    TABLE.iter().flat_map(|(names, _)| names.iter().copied())
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
    use tokenizers::{
        OffsetReferential, OffsetType, PreTokenizedString, PreTokenizer as _, SplitDelimiterBehavior,
    };

    fn pieces(name: &str, text: &str) -> Vec<String> {
        let mut string = PreTokenizedString::from(text);
        for pattern in by_name(name).unwrap().patterns {
            let pattern = SplitPattern::Regex((*pattern).to_owned());
            let split = Split::new(pattern, SplitDelimiterBehavior::Isolated, false)
                .unwrap_or_else(|error| panic!("{name}: {error}"));
            split.pre_tokenize(&mut string).unwrap();
        }
        let splits = string.get_splits(OffsetReferential::Original, OffsetType::Byte);
        splits.into_iter().map(|(piece, _, _)| piece.to_owned()).collect()
    }

    #[test]
    fn every_name_is_there_once_and_all_its_patterns_lose_nothing() {
        let text = "I'll pay  $1234,50\n\n\tto Zoë — 名前は「カナ」 🦀!\r\n  end ";
        let mut seen = std::collections::HashSet::new();
        for name in names() {
            assert!(seen.insert(name), "{name} twice");
            assert_eq!(pieces(name, text).concat(), text, "{name}");
        }
    }

    #[test]
    fn texts_are_cut_where_each_family_cuts_them() {
        let text = "We'LL see 12345!\n";
        for (name, expected) in [
            ("gpt-2", &["We", "'", "LL", " see", " 12345", "!", "\n"][..]),
            ("smollm", &["We", "'", "LL", " see", " ", "1", "2", "3", "4", "5", "!", "\n"]),
            ("llama-bpe", &["We", "'LL", " see", " ", "123", "45", "!\n"]),
            ("qwen2", &["We", "'LL", " see", " ", "1", "2", "3", "4", "5", "!\n"]),
            ("gpt-4o", &["We'LL", " see", " ", "123", "45", "!\n"]),
            ("tekken", &["We", "'LL", " see", " ", "1", "2", "3", "4", "5", "!\n"]),
            ("deepseek-v3", &["We", "'LL", " see", " ", "123", "45", "!\n"]),
            ("gemma4", &["We'LL see 12345!", "\n"]),
        ] {
            assert_eq!(pieces(name, text), expected, "{name}");
        }
    }
}
