//! The four kinds of vocabulary as tokenizers.

use std::cmp::Reverse;
use std::collections::HashMap;

use drophammer_formats::gguf::{Array, Metadata};
use tokenizers::decoders::byte_fallback::ByteFallback;
use tokenizers::decoders::fuse::Fuse;
use tokenizers::decoders::sequence::Sequence as DecoderSequence;
use tokenizers::decoders::strip::Strip;
use tokenizers::decoders::wordpiece::WordPiece as WordPieceDecoder;
use tokenizers::models::bpe::{BPE, Merges};
use tokenizers::models::unigram::Unigram;
use tokenizers::models::wordpiece::WordPiece;
use tokenizers::normalizers::{
    BertNormalizer, Precompiled, Prepend, Replace, Sequence as NormalizerSequence,
};
use tokenizers::pre_tokenizers::bert::BertPreTokenizer;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::sequence::Sequence as PreTokenizerSequence;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::{
    AddedToken, DecoderWrapper, NormalizerWrapper, PreTokenizerWrapper, SplitDelimiterBehavior, Tokenizer,
};

use super::super::Frame;
use super::super::error::Problem;
use super::super::pieces::SPACE_MARK;
use super::pre::{self, PreTokenizer};
use super::vocabulary::{TokenKind, Vocabulary};

/// Longer tokens are no result of merges: deriving merges looks at every cut of a token.
const LONGEST_MERGED: usize = 512;

type Built = Result<(Tokenizer, Frame), Problem>;

fn broken(error: impl std::fmt::Display) -> Problem {
    Problem::broken(error.to_string())
}

/// GPT-2's kind: regular expressions cut, bytes merge by rank.
pub(super) fn byte_level_bpe(vocabulary: &Vocabulary<'_>, metadata: &Metadata) -> Built {
    let pre = pre_tokenizer(metadata)?;
    let merges = metadata
        .array("tokenizer.ggml.merges")
        .and_then(Array::as_strings)
        .ok_or_else(|| Problem::broken("`tokenizer.ggml.merges` is not there or not a list of strings"))?;
    let ids = ids_by_text(vocabulary);
    let model = BPE::builder()
        .vocab_and_merges(
            ids.clone().into_iter().collect::<tokenizers::models::bpe::Vocab>(),
            known_merges(merges, &ids),
        )
        .ignore_merges(pre.ignore_merges)
        .byte_fallback(pre.spaces)
        .build()
        .map_err(broken)?;
    let mut tokenizer = Tokenizer::new(model);
    let mut steps = Vec::with_capacity(pre.patterns.len() + 1);
    for pattern in pre.patterns {
        let pattern = SplitPattern::Regex((*pattern).to_owned());
        let split = Split::new(pattern, SplitDelimiterBehavior::Isolated, false).map_err(broken)?;
        steps.push(PreTokenizerWrapper::from(split));
    }
    if pre.spaces {
        tokenizer.with_normalizer(Some(Replace::new(" ", SPACE_MARK).map_err(broken)?));
        tokenizer.with_decoder(Some(spaces_decoder(false)?));
    } else {
        steps.push(ByteLevel::new(false, true, false).into());
        tokenizer.with_decoder(Some(ByteLevel::default()));
    }
    tokenizer.with_pre_tokenizer(Some(PreTokenizerSequence::new(steps)));
    add_special(&mut tokenizer, vocabulary);
    Ok((tokenizer, Frame { bos: Some(pre.add_bos), eos: Some(false) }))
}

fn pre_tokenizer(metadata: &Metadata) -> Result<PreTokenizer, Problem> {
    let name = metadata.str("tokenizer.ggml.pre").unwrap_or_else(|| {
        tracing::warn!("the GGUF file names no pre-tokenizer (tokenizer.ggml.pre); taking `default`");
        "default"
    });
    pre::by_name(name).ok_or_else(|| {
        let known: Vec<_> = pre::names().collect();
        Problem::Unsupported(format!(
            "the pre-tokenizer `{name}` is not known; known are {}",
            known.join(", ")
        ))
    })
}

/// Where a text occurs twice the first id counts.
fn ids_by_text(vocabulary: &Vocabulary<'_>) -> HashMap<String, u32> {
    let mut ids = HashMap::with_capacity(vocabulary.tokens.len());
    for (token, id) in vocabulary.tokens.iter().zip(0u32..) {
        ids.entry(token.to_string()).or_insert(id);
    }
    ids
}

/// Merges whose parts and result are tokens; others could never lead to one.
fn known_merges(merges: &[String], ids: &HashMap<String, u32>) -> Merges {
    let split = |merge: &String| {
        // A token may itself begin with a space.
        let cut = merge.char_indices().skip(1).find(|&(_, c)| c == ' ')?.0;
        let (left, right) = (&merge[..cut], &merge[cut + 1..]);
        let known =
            ids.contains_key(left) && ids.contains_key(right) && ids.contains_key(&format!("{left}{right}"));
        known.then(|| (left.to_owned(), right.to_owned()))
    };
    let known: Merges = merges.iter().filter_map(split).collect();
    if known.len() < merges.len() {
        tracing::warn!(
            merges = merges.len() - known.len(),
            "merges of tokens outside the vocabulary are left out"
        );
    }
    known
}

/// SentencePiece's BPE: the pair whose merged token scores highest merges first; what is no token becomes bytes.
pub(super) fn sentencepiece(vocabulary: &Vocabulary<'_>, metadata: &Metadata) -> Built {
    if vocabulary.scores.is_empty() {
        return Err(Problem::broken("`tokenizer.ggml.scores` is not there, and without it nothing merges"));
    }
    let ids = ids_by_text(vocabulary);
    let merges = derived_merges(vocabulary, &ids);
    let unknown = vocabulary.of_kinds(&[TokenKind::Unknown]).next().map(|(_, token)| token.to_owned());
    let mut model = BPE::builder()
        .vocab_and_merges(ids.into_iter().collect::<tokenizers::models::bpe::Vocab>(), merges)
        .byte_fallback(true)
        .fuse_unk(true);
    if let Some(unknown) = unknown {
        model = model.unk_token(unknown);
    }
    let mut tokenizer = Tokenizer::new(model.build().map_err(broken)?);
    let prefix = metadata.bool("tokenizer.ggml.add_space_prefix").unwrap_or(true);
    let spaces = NormalizerWrapper::from(Replace::new(" ", SPACE_MARK).map_err(broken)?);
    let steps = if prefix { vec![Prepend::new(SPACE_MARK.to_owned()).into(), spaces] } else { vec![spaces] };
    tokenizer.with_normalizer(Some(NormalizerSequence::new(steps)));
    tokenizer.with_decoder(Some(spaces_decoder(prefix)?));
    add_special(&mut tokenizer, vocabulary);
    Ok((tokenizer, Frame { bos: Some(true), eos: Some(false) }))
}

/// `▁` → space, byte tokens → bytes, and the space before the text taken away where one was put there.
fn spaces_decoder(prefix: bool) -> Result<DecoderSequence, Problem> {
    let replace = Replace::new(SPACE_MARK, " ").map_err(broken)?;
    let mut steps: Vec<DecoderWrapper> = vec![replace.into(), ByteFallback::new().into(), Fuse::new().into()];
    if prefix {
        steps.push(Strip::new(' ', 1, 0).into());
    }
    Ok(DecoderSequence::new(steps))
}

/// Every way to make a token out of two others, best score first.
fn derived_merges(vocabulary: &Vocabulary<'_>, ids: &HashMap<String, u32>) -> Merges {
    struct Merge<'a> {
        score: f32,
        left: &'a str,
        right: &'a str,
        order: (u32, u32),
    }
    let mut merges = Vec::new();
    for (id, token) in vocabulary.of_kinds(&[TokenKind::Normal, TokenKind::UserDefined, TokenKind::Unused]) {
        if token.len() > LONGEST_MERGED {
            continue;
        }
        for (cut, _) in token.char_indices().skip(1) {
            let (left, right) = token.split_at(cut);
            if let (Some(&l), Some(&r)) = (ids.get(left), ids.get(right)) {
                merges.push(Merge { score: vocabulary.scores[id as usize], left, right, order: (l, r) });
            }
        }
    }
    merges.sort_by(|a, b| {
        let lengths = |m: &Merge<'_>| Reverse((m.left.chars().count(), m.right.chars().count()));
        b.score
            .total_cmp(&a.score)
            .then_with(|| lengths(a).cmp(&lengths(b)))
            .then_with(|| a.order.cmp(&b.order))
    });
    merges.into_iter().map(|merge| (merge.left.to_owned(), merge.right.to_owned())).collect()
}

/// SentencePiece's unigram model: the most likely cut of the whole text.
pub(super) fn unigram(vocabulary: &Vocabulary<'_>, metadata: &Metadata) -> Built {
    if vocabulary.scores.is_empty() {
        return Err(Problem::broken("`tokenizer.ggml.scores` is not there"));
    }
    let unknown = vocabulary.of_kinds(&[TokenKind::Unknown]).next().map(|(id, _)| id as usize);
    let byte_fallback = vocabulary.kinds.contains(&TokenKind::Byte);
    let scored = vocabulary.tokens.iter().zip(&vocabulary.scores);
    let scored = scored.map(|(token, &score)| (token.to_string(), f64::from(score))).collect();
    let mut tokenizer = Tokenizer::new(Unigram::from(scored, unknown, byte_fallback).map_err(broken)?);
    let mut steps: Vec<NormalizerWrapper> = Vec::new();
    if let Some(map) = metadata.array("tokenizer.ggml.precompiled_charsmap").and_then(Array::to_i64s) {
        let map: Vec<u8> = map.into_iter().map(|byte| byte as u8).collect();
        if !map.is_empty() {
            steps.push(Precompiled::from(&map).map_err(broken)?.into());
        }
    }
    let prefix = metadata.bool("tokenizer.ggml.add_space_prefix").unwrap_or(true);
    if prefix {
        steps.push(Prepend::new(SPACE_MARK.to_owned()).into());
    }
    steps.push(Replace::new(" ", SPACE_MARK).map_err(broken)?.into());
    tokenizer.with_normalizer(Some(NormalizerSequence::new(steps)));
    tokenizer.with_decoder(Some(spaces_decoder(prefix)?));
    add_special(&mut tokenizer, vocabulary);
    Ok((tokenizer, Frame { bos: Some(false), eos: Some(true) }))
}

/// BERT's WordPiece.
pub(super) fn wordpiece(vocabulary: &Vocabulary<'_>) -> Built {
    let ids = ids_by_text(vocabulary);
    let unknown = "[UNK]";
    if !ids.contains_key(unknown) {
        return Err(Problem::broken("its vocabulary has no [UNK] token"));
    }
    let model = WordPiece::builder()
        .vocab(ids.into_iter().collect::<tokenizers::models::bpe::Vocab>())
        .unk_token(unknown.to_owned())
        .build()
        .map_err(broken)?;
    let mut tokenizer = Tokenizer::new(model);
    tokenizer.with_normalizer(Some(BertNormalizer::new(true, true, None, true)));
    tokenizer.with_pre_tokenizer(Some(BertPreTokenizer));
    tokenizer.with_decoder(Some(WordPieceDecoder::new("##".to_owned(), true)));
    add_special(&mut tokenizer, vocabulary);
    Ok((tokenizer, Frame { bos: Some(true), eos: Some(true) }))
}

/// Control tokens are found in a text before anything cuts it, and so are tokens that a user defined.
fn add_special(tokenizer: &mut Tokenizer, vocabulary: &Vocabulary<'_>) {
    for (kind, special) in [(TokenKind::Control, true), (TokenKind::UserDefined, false)] {
        let tokens: Vec<_> = vocabulary
            .of_kinds(&[kind])
            .map(|(_, token)| AddedToken::from(token, special).normalized(false))
            .collect();
        tokenizer.add_tokens(&tokens);
    }
}
