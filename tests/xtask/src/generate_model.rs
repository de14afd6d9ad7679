//! `cargo xtask generate-model`: a large model of random weights, for measuring speed and memory.
//!
//! A Llama, or a Qwen 3 with mixtures of experts, in a Hugging Face directory, BF16, without tokenizer; weights are normally distributed with the deviation
//! a fresh network has, so that encoders meet realistic blocks. The same size gives the same bytes everywhere.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use clap::ValueEnum;
use drophammer_formats::placed::{PlacedFiles, write_synced};
use drophammer_formats::{DType, TensorDecl, safetensors};
use serde_json::json;

/// Options of the task.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// How large.
    #[arg(long)]
    params: Size,
    /// The directory to make.
    out: PathBuf,
}

/// Sizes with their shapes.
#[derive(Clone, Copy, ValueEnum)]
enum Size {
    /// 10 million parameters.
    #[value(name = "10m")]
    Tiny,
    /// 1.1 billion parameters: TinyLlama's shape.
    #[value(name = "1.1b")]
    Small,
    /// 4 billion parameters.
    #[value(name = "4b")]
    Large,
    /// A mixture of 64 experts, 8 of which a token uses: 1.7 billion parameters, 0.3 billion of them for each token.
    #[value(name = "1.7b-a0.3b")]
    Mixture,
}

struct Shape {
    hidden: u64,
    layers: u64,
    heads: u64,
    kv_heads: u64,
    /// Of the feed-forward network, or of one expert.
    ffn: u64,
    vocab: u64,
    experts: Option<Experts>,
}

#[derive(Clone, Copy)]
struct Experts {
    count: u64,
    used: u64,
}

impl Size {
    fn shape(self) -> Shape {
        let (hidden, layers, heads, kv_heads, ffn, vocab) = match self {
            Size::Tiny => (256, 4, 8, 4, 768, 8192),
            Size::Small => (2048, 22, 32, 4, 5632, 32000),
            Size::Large => (3072, 38, 24, 8, 8192, 32000),
            Size::Mixture => (1024, 16, 16, 4, 512, 32000),
        };
        let experts = matches!(self, Size::Mixture).then_some(Experts { count: 64, used: 8 });
        Shape { hidden, layers, heads, kv_heads, ffn, vocab, experts }
    }
}

/// Writes the model.
pub(crate) fn run(options: &Options) -> Result<()> {
    generate(&options.params.shape(), &options.out)
        .with_context(|| format!("cannot generate a model in {}", options.out.display()))
}

fn generate(shape: &Shape, out: &Path) -> Result<()> {
    std::fs::create_dir_all(out)?;
    let tensors = tensors(shape);
    // Shards as large as the common uploader makes them.
    let layout = safetensors::plan("model", &tensors, &[("format", "pt")], Some(5_000_000_000))?;
    let files = PlacedFiles::create(out, layout)?;
    let quantiles = normal_quantiles();
    for (index, tensor) in tensors.iter().enumerate() {
        write_tensor(&files, index, tensor, &quantiles)?;
    }
    files.finish()?;
    write_synced(&out.join("config.json"), format!("{:#}\n", config(shape)).as_bytes())?;
    Ok(())
}

fn config(shape: &Shape) -> serde_json::Value {
    let (architecture, family) = match shape.experts {
        None => ("LlamaForCausalLM", "llama"),
        Some(_) => ("Qwen3MoeForCausalLM", "qwen3_moe"),
    };
    let mut config = json!({
        "architectures": [architecture],
        "model_type": family,
        "hidden_size": shape.hidden,
        "intermediate_size": shape.ffn,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "vocab_size": shape.vocab,
        "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "hidden_act": "silu",
        "tie_word_embeddings": false,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "torch_dtype": "bfloat16",
    });
    if let Some(Experts { count, used }) = shape.experts {
        config["head_dim"] = (shape.hidden / shape.heads).into();
        config["moe_intermediate_size"] = shape.ffn.into();
        config["num_experts"] = count.into();
        config["num_experts_per_tok"] = used.into();
        config["norm_topk_prob"] = true.into();
    }
    config
}

fn tensors(shape: &Shape) -> Vec<TensorDecl> {
    let bf16 = |name: String, dimensions: &[u64]| TensorDecl::new(name, DType::BF16, dimensions);
    let kv = shape.hidden / shape.heads * shape.kv_heads;
    let mut tensors = vec![bf16("model.embed_tokens.weight".into(), &[shape.vocab, shape.hidden])];
    for layer in 0..shape.layers {
        let mut add = |name: &str, dimensions: &[u64]| {
            tensors.push(bf16(format!("model.layers.{layer}.{name}.weight"), dimensions));
        };
        add("input_layernorm", &[shape.hidden]);
        add("self_attn.q_proj", &[shape.hidden, shape.hidden]);
        add("self_attn.k_proj", &[kv, shape.hidden]);
        add("self_attn.v_proj", &[kv, shape.hidden]);
        add("self_attn.o_proj", &[shape.hidden, shape.hidden]);
        if shape.experts.is_some() {
            add("self_attn.q_norm", &[shape.hidden / shape.heads]);
            add("self_attn.k_norm", &[shape.hidden / shape.heads]);
        }
        add("post_attention_layernorm", &[shape.hidden]);
        let mut network = |prefix: &str| {
            add(&format!("{prefix}.gate_proj"), &[shape.ffn, shape.hidden]);
            add(&format!("{prefix}.up_proj"), &[shape.ffn, shape.hidden]);
            add(&format!("{prefix}.down_proj"), &[shape.hidden, shape.ffn]);
        };
        match shape.experts {
            None => network("mlp"),
            Some(Experts { count, .. }) => {
                (0..count).for_each(|expert| network(&format!("mlp.experts.{expert}")));
                add("mlp.gate", &[count, shape.hidden]);
            }
        }
    }
    tensors.push(bf16("model.norm.weight".into(), &[shape.hidden]));
    tensors.push(bf16("lm_head.weight".into(), &[shape.vocab, shape.hidden]));
    tensors
}

/// 65536 standard normal values at equal steps of probability: 16 random bits choose one.
fn normal_quantiles() -> Vec<f32> {
    // Abramowitz and Stegun, Handbook of Mathematical Functions, 26.2.23: |error| < 4.5e-4.
    let upper = |p: f64| {
        let t = (-2.0 * p.ln()).sqrt();
        t - (2.515517 + 0.802853 * t + 0.010328 * t * t)
            / (1.0 + 1.432788 * t + 0.189269 * t * t + 0.001308 * t * t * t)
    };
    (0..65536u32)
        .map(|i| {
            let p = (f64::from(i) + 0.5) / 65536.0;
            (if p < 0.5 { -upper(p) } else { upper(1.0 - p) }) as f32
        })
        .collect()
}

/// Vectors (norms) are ones; matrices are normal with deviation 1/√columns.
fn write_tensor(files: &PlacedFiles, index: usize, tensor: &TensorDecl, quantiles: &[f32]) -> Result<()> {
    let deviation = match tensor.shape[..] {
        [_, columns] => (columns as f32).sqrt().recip(),
        _ => 0.0,
    };
    let mean = if deviation == 0.0 { 1.0 } else { 0.0 };
    // The upper half of a float, cut off: rounding makes no difference to random numbers.
    let table: Vec<[u8; 2]> = quantiles
        .iter()
        .map(|quantile| (((mean + quantile * deviation).to_bits() >> 16) as u16).to_le_bytes())
        .collect();
    let mut random = SplitMix(index as u64);
    let total = tensor.byte_len()?;
    let mut chunk = Vec::with_capacity(8 << 20);
    let mut written = 0;
    while written < total {
        let len = (total - written).min(8 << 20) as usize;
        chunk.clear();
        while chunk.len() < len {
            let bits = random.next();
            for shift in [0, 16, 32, 48] {
                chunk.extend_from_slice(&table[usize::from((bits >> shift) as u16)]);
            }
        }
        files.write_at(index, written, &chunk[..len])?;
        written += len as u64;
    }
    Ok(())
}

/// Steele, Lea, Flood: Fast Splittable Pseudorandom Number Generators (2014).
struct SplitMix(u64);

impl SplitMix {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use drophammer_formats::Source;
    use drophammer_formats::digest;

    #[test]
    fn a_mixture_is_one_that_the_engine_knows() {
        let dir = tempfile::tempdir().unwrap();
        let experts = Some(Experts { count: 6, used: 2 });
        generate(&Shape { experts, ..Size::Tiny.shape() }, dir.path()).unwrap();
        let checkpoint = drophammer_models::Checkpoint::open(dir.path()).unwrap();
        assert_eq!(checkpoint.description().experts().map(|experts| experts.used), Some(2));
    }

    #[test]
    fn a_generated_model_opens_and_is_the_same_each_time() {
        let [first, second] = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
        let digests = [&first, &second].map(|dir| {
            generate(&Size::Tiny.shape(), dir.path()).unwrap();
            let source = Source::open(dir.path()).unwrap();
            assert_eq!(source.tensors().len(), 3 + 4 * 9);
            digest::source(&source, &mut |_| std::ops::ControlFlow::Continue(())).unwrap()
        });
        assert_eq!(digests[0], digests[1]);
    }

    #[test]
    fn the_sizes_have_the_parameters_their_names_say() {
        for (size, expected) in [(Size::Small, 1.1e9), (Size::Large, 4.0e9), (Size::Mixture, 1.7e9)] {
            let parameters: u64 =
                tensors(&size.shape()).iter().map(|t| t.shape.iter().product::<u64>()).sum();
            assert!((parameters as f64 / expected - 1.0).abs() < 0.02, "{parameters}");
        }
    }
}
