//! Vocabularies inside GGUF files, built into the same tokenizer a `tokenizer.json` would give.
//!
//! Keys: <https://github.com/ggml-org/ggml/blob/master/docs/gguf.md#tokenizer>. Byte-level BPE (`gpt2`) is exact;
//! SentencePiece BPE (`llama`) has its merges derived from the scores, as Hugging Face's converter derives them.

mod build;
mod pre;
mod vocabulary;

use drophammer_formats::gguf::Metadata;

use super::error::Problem;
use super::pieces::{Entry, Pieces, Rules};
use super::{Frame, SpecialTokens, Tokenizer};
use vocabulary::{TokenKind, Vocabulary};

/// The tokenizer that the metadata describe.
pub(super) fn build(metadata: &Metadata) -> Result<Tokenizer, Problem> {
    let model = metadata.str("tokenizer.ggml.model").ok_or(Problem::Missing)?;
    let mut vocabulary = Vocabulary::read(metadata)?;
    if model == "bert" {
        vocabulary.restore_wordpiece();
    }
    let (inner, frame) = match model {
        "gpt2" => build::byte_level_bpe(&vocabulary, metadata)?,
        "llama" => build::sentencepiece(&vocabulary, metadata)?,
        "t5" => build::unigram(&vocabulary, metadata)?,
        "bert" => build::wordpiece(&vocabulary)?,
        "none" | "no_vocab" => return Err(Problem::Missing),
        other => {
            return Err(Problem::Unsupported(format!(
                "the vocabulary is of kind `{other}`; known are gpt2, llama, t5 and bert"
            )));
        }
    };
    let rules = Rules::of(inner.get_decoder());
    let entries =
        vocabulary.tokens.iter().zip(&vocabulary.kinds).zip(0u32..).map(|((name, kind), id)| Entry {
            id,
            name,
            literal: matches!(kind, TokenKind::Control | TokenKind::UserDefined),
            special: matches!(kind, TokenKind::Control),
        });
    let pieces = Pieces::new(&rules, vocabulary.tokens.len(), entries)?;
    let id =
        |key: &str| metadata.u64(&format!("tokenizer.ggml.{key}_token_id")).and_then(|id| id.try_into().ok());
    let is_bert = model == "bert";
    let special = SpecialTokens {
        bos: if is_bert { id("cls").or(id("bos")) } else { id("bos") },
        eos: if is_bert { id("seperator").or(id("separator")).or(id("eos")) } else { id("eos") },
        unknown: id("unknown"),
        padding: id("padding"),
        end_of_generation: ["eos", "eot", "eom"].into_iter().filter_map(id).collect(),
    };
    let flag = |key: &str| metadata.bool(&format!("tokenizer.ggml.add_{key}_token"));
    let frame = Frame { bos: flag("bos").or(frame.bos), eos: flag("eos").or(frame.eos) };
    Tokenizer::assemble(inner, pieces, special, frame)
}
