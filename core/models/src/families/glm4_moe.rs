//! GLM 4.5 and 4.6: DeepSeek's routing over plain attention, half of each head rotated.

use serde_json::{Map, Value as Json};

use super::deepseek;
use super::{Family, Gguf, GgufKeys};
use crate::config::Config;
use crate::description::{Description, NormRule, NormSpan};
use crate::error::Result;
use crate::names::hugging_face::{EXPERTS, LLAMA};

pub(super) static FAMILY: Family = Family {
    name: "glm4_moe",
    model_types: &["glm4_moe"],
    describe,
    names: &[deepseek::MIXTURE, EXPERTS, LLAMA],
    norm_offset: 0.0,
    gguf: Some(Gguf {
        names: |_| super::seed_oss::GGUF_NAMES,
        config: from_gguf,
        metadata: deepseek::mixtures_to_gguf,
        ..Gguf::new("glm4moe")
    }),
};

fn describe(config: &Config<'_>) -> Result<Description> {
    let bias = config.flag("attention_bias")?;
    let mut description = config.decoder("glm4_moe")?.with_biases(bias, false, false);
    if config.flag("use_qk_norm")? {
        description = description.with_query_key_norm(NormRule::rms(config.epsilon()?), NormSpan::Head);
    }
    deepseek::sigmoid_mixtures(config, &mut description)?;
    Ok(description)
}

fn from_gguf(keys: &GgufKeys<'_>, config: &mut Map<String, Json>) {
    deepseek::mixtures_from_gguf(keys, config);
    config.insert("use_qk_norm".into(), keys.has_tensor("blk.0.attn_q_norm.weight").into());
}
