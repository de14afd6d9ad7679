//! RoBERTa, XLM-R and sentence encoders on them: BERT whose positions begin after the padding token's number.

use super::bert::{GGUF_NAMES, NAMES, encoder, to_gguf};
use super::{Family, Gguf};
use crate::config::Config;
use crate::description::Description;
use crate::error::Result;

pub(super) static FAMILY: Family = Family {
    name: "roberta",
    model_types: &["roberta", "xlm-roberta", "camembert"],
    describe,
    names: &[NAMES],
    norm_offset: 0.0,
    // llama.cpp runs it as a BERT whose table begins at position 0.
    gguf: Some(Gguf { names: |_| GGUF_NAMES, metadata: to_gguf, is: |_| false, ..Gguf::new("bert") }),
};

fn describe(config: &Config<'_>) -> Result<Description> {
    let padding = config.maybe_count("pad_token_id")?.unwrap_or(1);
    encoder(config, "roberta", padding + 1)
}
