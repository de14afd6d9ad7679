//! Which tokenizer files lie beside the weights.

use std::path::{Path, PathBuf};

macro_rules! tokenizer_files {
    ($($(#[$doc:meta])* $field:ident = $name:literal,)*) => {
        /// Paths of the tokenizer's files, each where it exists.
        #[derive(Debug, Clone, Default, PartialEq, Eq)]
        pub struct TokenizerFiles {
            $($(#[$doc])* pub $field: Option<PathBuf>,)*
        }

        impl TokenizerFiles {
            /// Looks for every known file in a directory.
            pub fn find(directory: &Path) -> Self {
                let existing = |name: &str| Some(directory.join(name)).filter(|path| path.is_file());
                Self { $($field: existing($name),)* }
            }

            /// The files that exist: their usual name and path.
            pub fn iter(&self) -> impl Iterator<Item = (&'static str, &Path)> {
                [$(($name, self.$field.as_deref()),)*].into_iter().filter_map(|(name, path)| Some((name, path?)))
            }
        }
    };
}

tokenizer_files! {
    /// The complete tokenizer, for the `tokenizers` library.
    tokenizer_json = "tokenizer.json",
    /// Class, special tokens, chat template.
    tokenizer_config = "tokenizer_config.json",
    /// A SentencePiece model.
    tokenizer_model = "tokenizer.model",
    /// The same under its T5 and ALBERT name.
    spiece_model = "spiece.model",
    /// The same under its multilingual BERT name.
    sentencepiece_model = "sentencepiece.bpe.model",
    /// Token → id of a byte-level BPE.
    vocab_json = "vocab.json",
    /// Merges of a byte-level BPE.
    merges = "merges.txt",
    /// One token per line, for WordPiece.
    vocab_txt = "vocab.txt",
    /// Special tokens by their role.
    special_tokens_map = "special_tokens_map.json",
    /// Tokens added after training.
    added_tokens = "added_tokens.json",
    /// The chat template as its own file.
    chat_template_jinja = "chat_template.jinja",
    /// The chat template in JSON, as processors keep it.
    chat_template_json = "chat_template.json",
}

impl TokenizerFiles {
    /// Whether there is anything a tokenizer can be built from.
    pub fn is_complete(&self) -> bool {
        self.tokenizer_json.is_some()
            || self.tokenizer_model.is_some()
            || self.spiece_model.is_some()
            || self.sentencepiece_model.is_some()
            || self.vocab_txt.is_some()
            || (self.vocab_json.is_some() && self.merges.is_some())
    }
}
