//! Text ↔ token ids.
//!
//! A [`Tokenizer`] is read from a model's own files: `tokenizer.json` as the `tokenizers` library defines it, a
//! SentencePiece model, or the vocabulary inside a GGUF file. Encoding is that library's; decoding is done here, over one table that holds the
//! bytes of every token, because a stream of text needs bytes and not strings: a token may end in the middle of a
//! character.

mod error;
mod export;
mod gguf;
mod huggingface;
mod pieces;
mod sentencepiece;
mod stream;

use std::path::Path;

use drophammer_formats::{Source, gguf::Metadata};

pub use error::TokenizerError;
pub use stream::Detokenizer;

use pieces::Pieces;

/// Result of this module.
pub type Result<T, E = TokenizerError> = std::result::Result<T, E>;

/// Tokens with a role.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SpecialTokens {
    /// Begins a text.
    pub bos: Option<u32>,
    /// Ends a text.
    pub eos: Option<u32>,
    /// Stands for characters the vocabulary lacks.
    pub unknown: Option<u32>,
    /// Fills rows of a batch.
    pub padding: Option<u32>,
    /// Every token after which generation ends (end of text, of turn, of message), ascending.
    pub end_of_generation: Vec<u32>,
}

/// What [`Tokenizer::encode`] puts around a text when asked; `None` leaves it to the tokenizer's own post-processor.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Frame {
    bos: Option<bool>,
    eos: Option<bool>,
}

/// Names that models give to tokens which end a turn. They count where the vocabulary marks them as special.
const END_OF_TURN_NAMES: &[&str] = &[
    "<|eot_id|>",
    "<|im_end|>",
    "<|end|>",
    "<|end_of_text|>",
    "<|endoftext|>",
    "<|eom_id|>",
    "<|return|>",
    "<|call|>",
    "<|eot|>",
    "<|END_OF_TURN_TOKEN|>",
    "<|end_of_turn|>",
    "<end_of_turn>",
    "<turn|>",
    "<end_of_utterance>",
    "<|user|>",
    "<EOT>",
    "</s>",
    "<eos>",
    "<｜end▁of▁sentence｜>",
];

/// A model's tokenizer.
#[derive(Debug, Clone)]
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    pieces: Pieces,
    special: SpecialTokens,
    frame: Frame,
}

impl Tokenizer {
    /// Reads the tokenizer of an open model.
    ///
    /// # Errors
    /// [`TokenizerError::Missing`] when there is none; the others when what is there cannot be used.
    pub fn from_source(source: &Source) -> Result<Self> {
        if source.metadata().get("tokenizer.ggml.model").is_some() {
            return Self::from_gguf(source.metadata(), source.root());
        }
        huggingface::open(source.tokenizer(), source.root(), source.config(), source.generation_config())
    }

    /// Reads the tokenizer of a directory that need not hold weights.
    ///
    /// # Errors
    /// As for [`Self::from_source`].
    pub fn from_directory(directory: &Path) -> Result<Self> {
        let files = drophammer_formats::TokenizerFiles::find(directory);
        huggingface::open(&files, directory, None, None)
    }

    /// Builds the tokenizer from GGUF metadata; `path` is named in errors.
    ///
    /// # Errors
    /// As for [`Self::from_source`].
    pub fn from_gguf(metadata: &Metadata, path: &Path) -> Result<Self> {
        gguf::build(metadata).map_err(|problem| problem.at(path))
    }

    fn assemble(
        mut inner: tokenizers::Tokenizer,
        pieces: Pieces,
        mut special: SpecialTokens,
        frame: Frame,
    ) -> std::result::Result<Self, error::Problem> {
        // A stored truncation or padding belongs to somebody's training run, not to the text.
        inner.with_truncation(None).map_err(|e| error::Problem::Broken(e.to_string()))?;
        inner.with_padding(None);
        let count = pieces.len() as u32;
        for role in [&mut special.bos, &mut special.eos, &mut special.unknown, &mut special.padding] {
            *role = role.filter(|&id| id < count);
        }
        let named = END_OF_TURN_NAMES.iter().filter_map(|name| inner.token_to_id(name));
        special.end_of_generation.extend(named.filter(|&id| pieces.is_special(id)));
        special.end_of_generation.extend(special.eos);
        special.end_of_generation.retain(|&id| id < count);
        special.end_of_generation.sort_unstable();
        special.end_of_generation.dedup();
        Ok(Self { inner, pieces, special, frame })
    }

    /// The tokenizer as `tokenizer.json` holds it. Where the model wants a token before every text that the file's own rules
    /// do not put there (GGUF files say so apart), the rules are written to put it.
    ///
    /// # Errors
    /// [`TokenizerError::Encode`] when the rules cannot be written.
    pub fn to_json(&self) -> Result<String> {
        let failed = |e: tokenizers::Error| TokenizerError::Encode(e.to_string());
        let mut inner = self.inner.clone();
        let bos =
            self.special.bos.filter(|_| self.frame.bos == Some(true) && inner.get_post_processor().is_none());
        if let Some((bos, name)) = bos.and_then(|bos| Some((bos, inner.id_to_token(bos)?))) {
            let template = tokenizers::processors::template::TemplateProcessing::builder()
                .try_single(format!("{name} $A"))
                .and_then(|builder| {
                    builder.special_tokens(vec![(name, bos)]).build().map_err(|e| e.to_string())
                })
                .map_err(TokenizerError::Encode)?;
            inner.with_post_processor(Some(template));
        }
        inner.to_string(false).map_err(failed)
    }

    /// Token ids of a text. Special tokens written out in the text are recognized, as Hugging Face does it.
    ///
    /// `framed` adds the tokens that the model expects around a text (such as a beginning-of-text token). A prompt
    /// rendered from a chat template already holds them: encode it with `false`.
    ///
    /// # Errors
    /// [`TokenizerError::Encode`] when the tokenizer's own rules fail on the text.
    pub fn encode(&self, text: &str, framed: bool) -> Result<Vec<u32>> {
        let own_frame = framed && self.frame.bos != Some(false);
        let encoding =
            self.inner.encode_fast(text, own_frame).map_err(|e| TokenizerError::Encode(e.to_string()))?;
        let mut ids = encoding.get_ids().to_vec();
        if framed {
            if let (Some(true), Some(bos)) = (self.frame.bos, self.special.bos)
                && ids.first() != Some(&bos)
            {
                ids.insert(0, bos);
            }
            if let (Some(true), Some(eos)) = (self.frame.eos, self.special.eos)
                && ids.last() != Some(&eos)
            {
                ids.push(eos);
            }
        }
        Ok(ids)
    }

    /// The text of token ids without special tokens. Bytes that are no UTF-8 read as `U+FFFD`.
    pub fn decode(&self, ids: &[u32]) -> String {
        let mut stream = Detokenizer::at_start();
        let mut text: String = ids.iter().map(|&id| stream.push(self, id)).collect();
        text.push_str(&stream.finish());
        text
    }

    /// The bytes a token stands for: its own text for a special token, nothing for an id without a token.
    pub fn token_bytes(&self, id: u32) -> &[u8] {
        self.pieces.bytes(id)
    }

    /// The token's name in the vocabulary, as in the tokenizer's files.
    pub fn token_name(&self, id: u32) -> Option<String> {
        self.inner.id_to_token(id)
    }

    /// The id of a token by its name in the vocabulary.
    pub fn token_id(&self, name: &str) -> Option<u32> {
        self.inner.token_to_id(name)
    }

    /// Whether the token controls the model and is no text.
    pub fn is_special(&self, id: u32) -> bool {
        self.pieces.is_special(id)
    }

    /// Whether generation ends with this token.
    pub fn ends_generation(&self, id: u32) -> bool {
        self.special.end_of_generation.binary_search(&id).is_ok()
    }

    /// Tokens with a role.
    pub fn special(&self) -> &SpecialTokens {
        &self.special
    }

    /// One more than the highest token id. A model's logits may be wider: vocabularies are padded.
    pub fn len(&self) -> usize {
        self.pieces.len()
    }

    /// Whether the vocabulary is empty, which a successfully read one never is.
    pub fn is_empty(&self) -> bool {
        self.pieces.len() == 0
    }

    /// How many spaces a text that starts here loses: tokenizers which put a space before every text take it away
    /// again.
    fn leading_spaces(&self) -> usize {
        self.pieces.leading_spaces()
    }
}

#[cfg(test)]
mod tests;
