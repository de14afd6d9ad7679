//! OLMo 3: OLMo 2 with a window in three of four layers; only the others' rotation is stretched.

use super::gemma3::two_ropes;
use super::{Family, Gguf};
use crate::config::Config;
use crate::description::Description;
use crate::error::Result;
use crate::names::hugging_face::LLAMA;

pub(super) static FAMILY: Family = Family {
    name: "olmo3",
    model_types: &["olmo3"],
    describe,
    names: &[super::olmo2::NAMES, LLAMA],
    norm_offset: 0.0,
    gguf: Some(Gguf {
        needs_output: true,
        is: |keys| keys.u64("olmo2.attention.sliding_window") > Some(0),
        ..Gguf::new("olmo2")
    }),
};

fn describe(config: &Config<'_>) -> Result<Description> {
    let mut description = super::olmo2::decoder(config, "olmo3")?;
    config.slide(&mut description, |layer| !(layer + 1).is_multiple_of(4))?;
    two_ropes(config, &mut description, 10_000.0, ("rope_theta", 10_000.0))?;
    Ok(description)
}
