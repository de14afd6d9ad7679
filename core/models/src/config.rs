//! `config.json`, read with checks, in its old and its new spelling.

use serde_json::Value as Json;

use crate::description::{
    Attention, Description, Embedding, Experts, FeedForward, Head, Layer, LayerNorms, ModelKind, NormRule,
    Wiring,
};
use crate::error::{Error, Result};
use crate::graph::{Activation, Gating, Scoring};
use crate::rope::{Rope, RopeLayout, RopeScaling, Yarn};

/// No model of any known family comes near; a hostile file must not make us allocate.
const MOST_LAYERS: u32 = 4096;
/// Widths, counts and lengths stay far from overflowing 32-bit products of two.
const MOST: u64 = 1 << 30;

/// A model's configuration.
#[derive(Debug, Clone, Copy)]
pub struct Config<'a> {
    json: &'a Json,
    /// What holds where the document is silent.
    defaults: &'a Json,
    layout: RopeLayout,
}

impl<'a> Config<'a> {
    /// Wraps a document.
    pub fn new(json: &'a Json) -> Self {
        Self { json, defaults: &Json::Null, layout: RopeLayout::Halves }
    }

    /// The same with values for keys that the document does not name. A null in the document is no silence.
    #[must_use]
    pub fn with_defaults(self, defaults: &'a Json) -> Self {
        Self { defaults, ..self }
    }

    /// The same for weights whose rotated rows lie in `layout`.
    #[must_use]
    pub fn with_layout(self, layout: RopeLayout) -> Self {
        Self { layout, ..self }
    }

    /// The document.
    pub fn json(&self) -> &'a Json {
        self.json
    }

    /// A key's value; a null counts as absent.
    pub fn get(&self, key: &str) -> Option<&'a Json> {
        self.json.get(key).or_else(|| self.defaults.get(key)).filter(|value| !value.is_null())
    }

    /// The first of several spellings that is there.
    pub fn first(&self, keys: &[&str]) -> Option<&'a Json> {
        self.spelled(keys).map(|(_, value)| value)
    }

    /// The same with its spelling. No spelling's default hides what the document says in another.
    fn spelled<'k>(&self, keys: &[&'k str]) -> Option<(&'k str, &'a Json)> {
        let said = keys
            .iter()
            .find_map(|&key| Some((key, self.json.get(key)?)).filter(|(_, value)| !value.is_null()));
        said.or_else(|| keys.iter().find_map(|&key| Some((key, self.get(key)?))))
    }

    /// A text that must be there.
    ///
    /// # Errors
    /// If it is absent or no text.
    pub fn string(&self, key: &str) -> Result<&'a str> {
        self.text(key)?.ok_or_else(|| missing(key))
    }

    /// A text, where it is there.
    ///
    /// # Errors
    /// If it is no text.
    pub fn text(&self, key: &str) -> Result<Option<&'a str>> {
        self.get(key).map(|value| value.as_str().ok_or_else(|| bad(key, value, "not a text"))).transpose()
    }

    /// A count that must be there.
    ///
    /// # Errors
    /// If it is absent, no whole number, or absurdly large.
    pub fn count(&self, key: &str) -> Result<u32> {
        self.maybe_count(key)?.ok_or_else(|| missing(key))
    }

    /// A count, where it is there.
    ///
    /// # Errors
    /// If it is no whole number or absurdly large.
    pub fn maybe_count(&self, key: &str) -> Result<Option<u32>> {
        self.get(key).map(|value| whole(key, value)).transpose()
    }

    /// A count of at least one, in the first of several spellings.
    ///
    /// # Errors
    /// As [`Config::count`], and if it is 0.
    pub fn positive(&self, keys: &[&str]) -> Result<u32> {
        let Some((key, value)) = self.spelled(keys) else {
            return Err(missing(keys.first().copied().unwrap_or_default()));
        };
        match whole(key, value)? {
            0 => Err(bad(key, value, "must be at least 1")),
            count => Ok(count),
        }
    }

    /// A number, where it is there.
    ///
    /// # Errors
    /// If it is no finite number.
    pub fn number(&self, key: &str) -> Result<Option<f64>> {
        self.get(key).map(|value| finite(key, value)).transpose()
    }

    /// A number with a default.
    ///
    /// # Errors
    /// If it is no finite number.
    pub fn number_or(&self, key: &str, default: f64) -> Result<f64> {
        Ok(self.number(key)?.unwrap_or(default))
    }

    /// A truth value; absent means false.
    ///
    /// # Errors
    /// If it is something else.
    pub fn flag(&self, key: &str) -> Result<bool> {
        self.flag_or(key, false)
    }

    /// A truth value with a default.
    ///
    /// # Errors
    /// If it is something else.
    pub fn flag_or(&self, key: &str, default: bool) -> Result<bool> {
        self.get(key)
            .map_or(Ok(default), |value| value.as_bool().ok_or_else(|| bad(key, value, "not true or false")))
    }

    /// An activation by the name configurations use, in the first of several spellings.
    ///
    /// # Errors
    /// If it is unknown.
    pub fn activation(&self, keys: &[&str], default: Activation) -> Result<Activation> {
        let Some((key, value)) = self.spelled(keys) else { return Ok(default) };
        Ok(match value.as_str() {
            Some("silu" | "swish") => Activation::Silu,
            Some("gelu") => Activation::Gelu,
            Some("gelu_new" | "gelu_fast" | "gelu_pytorch_tanh" | "gelu_accurate") => Activation::GeluTanh,
            Some("relu") => Activation::Relu,
            Some("relu2" | "relu_squared") => Activation::ReluSquared,
            _ => return Err(bad(key, value, "an unknown activation")),
        })
    }

    /// The decoder that most families vary: pre-norm RMS, gated feed-forward, rotation of whole heads, no biases.
    ///
    /// # Errors
    /// Which key is missing or makes no sense.
    pub fn decoder(&self, family: &'static str) -> Result<Description> {
        let hidden = self.positive(&["hidden_size", "n_embd", "dim"])?;
        let heads = self.positive(&["num_attention_heads", "n_head", "n_heads"])?;
        let kv_heads = self.maybe_count("num_key_value_heads")?.unwrap_or(heads);
        let width = self.maybe_count("head_dim")?.unwrap_or(hidden / heads);
        let inner = ["intermediate_size", "n_inner", "ffn_hidden_size", "hidden_dim"];
        let inner = if self.first(&inner).is_some() { self.positive(&inner)? } else { 4 * hidden };
        let norm = NormRule::rms(self.epsilon()?);
        let layer = Layer {
            wiring: Wiring::Sequential,
            norms: LayerNorms { attention: Some(norm), feed_forward: Some(norm), ..LayerNorms::default() },
            residual_scale: 1.0,
            attention: Attention {
                heads,
                kv_heads,
                key_width: width,
                value_width: width,
                input_bias: false,
                output_bias: false,
                query_key_norm: None,
                rope: Some(0),
                scale: Attention::usual_scale(width),
                softcap: None,
                window: None,
                sinks: false,
                latent: None,
            },
            feed_forward: FeedForward::Gated {
                width: inner,
                gating: Gating::By(self.activation(&["hidden_act", "hidden_activation"], Activation::Silu)?),
                bias: false,
            },
        };
        let layers = self.positive(&["num_hidden_layers", "n_layer", "n_layers"])?;
        if layers > MOST_LAYERS {
            return Err(bad("num_hidden_layers", &Json::from(layers), "more layers than any model has"));
        }
        Ok(Description {
            family,
            kind: ModelKind::Decoder,
            vocabulary: self.positive(&["vocab_size"])?,
            hidden,
            context: self.context()?,
            embedding: Embedding { scale: 1.0, positions: None, token_types: 0, norm: None },
            ropes: vec![self.rope(width, 10_000.0)?],
            layers: vec![layer; layers as usize],
            final_norm: Some(norm),
            head: Some(Head {
                tied: self.flag("tie_word_embeddings")?,
                bias: false,
                scale: 1.0,
                softcap: None,
            }),
            pooling: None,
        })
    }

    /// A mixture of experts of inner width `width`: softmax over all, then the best; no shared expert, no biases.
    ///
    /// # Errors
    /// Which key is missing or makes no sense.
    pub fn experts(&self, width: u32, gating: Gating) -> Result<Experts> {
        Ok(Experts {
            count: self.positive(&["num_local_experts", "num_experts", "n_routed_experts"])?,
            used: self.positive(&["num_experts_per_tok", "experts_per_token"])?,
            width,
            gating,
            scoring: Scoring::Softmax,
            normalize: self.flag("norm_topk_prob")?,
            scale: self.number_or("routed_scaling_factor", 1.0)? as f32,
            correction: false,
            groups: None,
            bias: false,
            shared: None,
        })
    }

    /// The longest sequence the model was made for.
    fn context(&self) -> Result<u32> {
        let keys = ["max_position_embeddings", "n_positions", "max_sequence_length", "n_ctx"];
        if self.first(&keys).is_some() { self.positive(&keys) } else { Ok(2048) }
    }

    /// The norms' ε under any of its names.
    ///
    /// # Errors
    /// If it is no finite number.
    pub fn epsilon(&self) -> Result<f32> {
        let keys = ["rms_norm_eps", "layer_norm_eps", "norm_epsilon", "layer_norm_epsilon", "norm_eps"];
        Ok(self.spelled(&keys).map_or(Ok(1e-5), |(key, value)| finite(key, value))? as f32)
    }

    /// Which layers slide, by `layer_types` or, where that is absent, by `usual`.
    ///
    /// # Errors
    /// If `layer_types` is no list of one known name per layer.
    pub fn sliding(&self, layers: usize, usual: impl Fn(usize) -> bool) -> Result<Vec<bool>> {
        let Some(types) = self.get("layer_types") else { return Ok((0..layers).map(usual).collect()) };
        let names = types.as_array().filter(|names| names.len() == layers);
        let names = names.ok_or_else(|| bad("layer_types", types, "not one name per layer"))?;
        names
            .iter()
            .map(|name| match name.as_str() {
                Some("sliding_attention") => Ok(true),
                Some("full_attention") => Ok(false),
                _ => Err(bad("layer_types", name, "an attention that is not supported")),
            })
            .collect()
    }

    /// Gives the layers that slide their window.
    ///
    /// # Errors
    /// As [`Config::sliding`], and if the window is no count.
    pub fn slide(&self, description: &mut Description, usual: impl Fn(usize) -> bool) -> Result<()> {
        let Some(window) = self.maybe_count("sliding_window")?.filter(|&window| window > 0) else {
            return Ok(());
        };
        let sliding = self.sliding(description.layers.len(), usual)?;
        for (layer, _) in description.layers.iter_mut().zip(sliding).filter(|(_, sliding)| *sliding) {
            layer.attention.window = Some(window);
        }
        Ok(())
    }

    /// The rotation, from `rope_parameters` (new) or `rope_theta` and `rope_scaling` (old), of heads of `width`.
    ///
    /// # Errors
    /// Which key is missing or makes no sense; an unknown kind of scaling.
    pub fn rope(&self, width: u32, default_theta: f64) -> Result<Rope> {
        let empty = Json::Null;
        let parameters = self.first(&["rope_parameters", "rope_scaling"]).unwrap_or(&empty);
        self.rope_from(parameters, width, default_theta)
    }

    /// As [`Config::rope`], from a given object; what it lacks is read from the configuration itself.
    ///
    /// # Errors
    /// As [`Config::rope`].
    pub fn rope_from(&self, parameters: &Json, width: u32, default_theta: f64) -> Result<Rope> {
        let own = Config::new(parameters);
        let theta = match own.number("rope_theta")? {
            Some(theta) => theta,
            None => match self.first(&["rope_theta", "rotary_emb_base"]) {
                Some(theta) => finite("rope_theta", theta)?,
                None => default_theta,
            },
        };
        if theta <= 1.0 {
            return Err(bad("rope_theta", &Json::from(theta), "must be greater than 1"));
        }
        let partial = match own.number("partial_rotary_factor")? {
            Some(part) => part,
            None => match self.first(&["partial_rotary_factor", "rotary_pct", "rope_pct"]) {
                Some(part) => finite("partial_rotary_factor", part)?,
                None => 1.0,
            },
        };
        if !(0.0..=1.0).contains(&partial) {
            return Err(bad("partial_rotary_factor", &Json::from(partial), "must lie between 0 and 1"));
        }
        let width = (f64::from(width) * partial) as u32 / 2 * 2;
        let scaling = self.rope_scaling(own, width)?;
        Ok(Rope { width, start: 0, layout: self.layout, theta, scaling })
    }

    fn rope_scaling(&self, own: Config<'_>, width: u32) -> Result<RopeScaling> {
        let kind = match own.text("rope_type")? {
            Some(kind) => kind,
            None => own.text("type")?.unwrap_or("default"),
        };
        let factor = || {
            let factor = own.number("factor")?.ok_or_else(|| missing("rope_scaling.factor"))?;
            if factor < 1e-3 {
                Err(bad("rope_scaling.factor", &Json::from(factor), "must be positive"))
            } else {
                Ok(factor)
            }
        };
        let context = || self.context();
        let original = || {
            let key = "original_max_position_embeddings";
            let original = match own.maybe_count(key)? {
                None => self.maybe_count(key)?,
                own => own,
            };
            original.map_or_else(context, |original| Ok(original.max(1)))
        };
        Ok(match kind {
            "default" | "mrope" => RopeScaling::None,
            "linear" => RopeScaling::Linear { factor: factor()? },
            "dynamic" => RopeScaling::Dynamic { factor: factor()?, original: context()? },
            "llama3" => RopeScaling::Llama3 {
                factor: factor()?,
                low: own.number_or("low_freq_factor", 1.0)?,
                high: own.number_or("high_freq_factor", 4.0)?,
                original: original()?,
            },
            "yarn" => RopeScaling::Yarn(yarn(own, factor()?, original()?)?),
            "factors" => RopeScaling::Factors(pair_factors(own, "factors", width)?),
            "longrope" | "su" => Self::long_rope(own, width, original()?, context()?)?,
            _ => {
                return Err(Error::Unsupported {
                    family: self.text("model_type")?.unwrap_or("config").to_owned(),
                    what: format!("rope scaling `{}`", kind.chars().take(40).collect::<String>()),
                });
            }
        })
    }

    fn long_rope(own: Config<'_>, width: u32, original: u32, context: u32) -> Result<RopeScaling> {
        let stretch = own.number_or("factor", f64::from(context) / f64::from(original))?;
        let usual = if stretch <= 1.0 { 1.0 } else { (1.0 + stretch.ln() / f64::from(original).ln()).sqrt() };
        let magnitude = own.number_or("attention_factor", usual)?;
        Ok(RopeScaling::Long {
            short: pair_factors(own, "short_factor", width)?,
            long: pair_factors(own, "long_factor", width)?,
            original,
            magnitude,
        })
    }
}

/// One positive factor for each rotated pair.
fn pair_factors(own: Config<'_>, key: &str, width: u32) -> Result<Vec<f32>> {
    let value = own.get(key).ok_or_else(|| missing(key))?;
    let items = value.as_array().ok_or_else(|| bad(key, value, "not a list"))?;
    let factors = items.iter().map(|item| Ok(finite(key, item)? as f32)).collect::<Result<Vec<_>>>()?;
    if factors.len() != (width / 2) as usize || factors.iter().any(|&factor| factor <= 0.0) {
        return Err(bad(key, &Json::from(factors.len()), &format!("must be {} positive numbers", width / 2)));
    }
    Ok(factors)
}

fn yarn(own: Config<'_>, factor: f64, original: u32) -> Result<Yarn> {
    let usual = match (own.number("mscale")?, own.number("mscale_all_dim")?) {
        (Some(scale), Some(all)) if scale != 0.0 && all != 0.0 => {
            Yarn::usual_magnitude(factor, scale) / Yarn::usual_magnitude(factor, all)
        }
        _ => Yarn::usual_magnitude(factor, 1.0),
    };
    let magnitude = own.number_or("attention_factor", usual)?;
    Ok(Yarn {
        factor,
        original,
        beta_fast: own.number("beta_fast")?.filter(|&beta| beta > 0.0).unwrap_or(32.0),
        beta_slow: own.number("beta_slow")?.filter(|&beta| beta > 0.0).unwrap_or(1.0),
        magnitude,
        truncate: own.flag_or("truncate", true)?,
    })
}

fn whole(key: &str, value: &Json) -> Result<u32> {
    match value.as_u64() {
        Some(count) if count <= MOST => Ok(count as u32),
        Some(_) => Err(bad(key, value, "larger than any model has")),
        None => Err(bad(key, value, "not a whole number")),
    }
}

/// A finite number.
pub(crate) fn finite(key: &str, value: &Json) -> Result<f64> {
    value.as_f64().filter(|number| number.is_finite()).ok_or_else(|| bad(key, value, "not a number"))
}

/// An [`Error::MissingKey`].
pub(crate) fn missing(key: &str) -> Error {
    Error::MissingKey { key: key.to_owned() }
}

/// An [`Error::BadValue`].
pub(crate) fn bad(key: &str, value: &Json, problem: &str) -> Error {
    let value = value.to_string().chars().take(60).collect();
    Error::BadValue { key: key.to_owned(), value, problem: problem.to_owned() }
}
