//! Models and jobs that the tests share.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{LazyLock, Mutex};

use drophammer_formats::placed::PlacedFiles;
use drophammer_formats::{DType, Source, TensorDecl, safetensors};
use drophammer_native::Native;
use drophammer_sdk::{
    Backend, Batch, ForgeRequest, Goal, HostInfo, LoadRequest, Options, Result, Session, Unwatched,
};

/// What tests do: on two threads.
pub(crate) const JOB: Unwatched = Unwatched { threads: 2 };

/// A path below `tests/fixtures`.
pub(crate) fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures").join(name)
}

pub(crate) fn native() -> Native {
    Native::open(HostInfo::default()).unwrap()
}

pub(crate) fn load(path: &Path, reference: bool, sequences: u32) -> Box<dyn Session> {
    try_load(path, reference, sequences, Options::new()).unwrap()
}

pub(crate) fn try_load(
    path: &Path,
    reference: bool,
    sequences: u32,
    options: Options,
) -> Result<Box<dyn Session>> {
    let request = LoadRequest {
        path: path.to_owned(),
        context: Some(256),
        max_sequences: sequences,
        reference,
        options,
        ..LoadRequest::default()
    };
    native().load(&request, Box::new(JOB))
}

/// How far logits in fast mode may be from reference mode's, relative: further where activations have eight bits.
pub(crate) fn fast_tolerance() -> f64 {
    #[cfg(target_arch = "x86_64")]
    if std::is_x86_feature_detected!("avx2") {
        return 0.006;
    }
    #[cfg(target_arch = "aarch64")]
    if std::arch::is_aarch64_feature_detected!("dotprod") {
        return 0.006;
    }
    0.002
}

/// `tokens` as rows, and the values that are due for them.
pub(crate) fn reference(directory: &Path) -> (Vec<Vec<u32>>, Vec<f32>) {
    let file = Source::open(directory.join("reference.safetensors")).unwrap();
    let tokens = file.tensor("tokens").unwrap();
    let ids: Vec<u32> = file
        .bytes(tokens)
        .chunks_exact(8)
        .map(|bytes| i64::from_le_bytes(bytes.try_into().unwrap()) as u32)
        .collect();
    let rows = ids.chunks(tokens.row_elements() as usize).map(<[u32]>::to_vec).collect();
    let due = file.tensor("logits").or_else(|| file.tensor("hidden")).unwrap();
    let due =
        file.bytes(due).chunks_exact(4).map(|bytes| f32::from_le_bytes(bytes.try_into().unwrap())).collect();
    (rows, due)
}

/// The tiny models of every architecture that have reference outputs.
pub(crate) fn architectures() -> Vec<PathBuf> {
    let all = std::fs::read_dir(fixture("arch")).unwrap().map(|entry| entry.unwrap().path());
    all.filter(|directory| directory.join("reference.safetensors").exists()).collect()
}

/// Every token's outputs, all sequences in one batch.
pub(crate) fn forward(session: &mut dyn Session, rows: &[Vec<u32>]) -> Vec<f32> {
    let outputs: Vec<u32> = (0..rows.iter().map(Vec::len).sum::<usize>() as u32).collect();
    forward_wanted(session, rows, &outputs)
}

/// The outputs of some tokens, all sequences in one batch.
pub(crate) fn forward_wanted(session: &mut dyn Session, rows: &[Vec<u32>], outputs: &[u32]) -> Vec<f32> {
    let tokens: Vec<u32> = rows.concat();
    let positions: Vec<u32> = rows.iter().flat_map(|row| 0..row.len() as u32).collect();
    let sequences: Vec<u32> = rows.iter().zip(0..).flat_map(|(row, s)| vec![s; row.len()]).collect();
    let mut out = vec![f32::NAN; outputs.len() * session.limits().output_width as usize];
    let batch = Batch { tokens: &tokens, positions: &positions, sequences: &sequences, outputs };
    session.forward(batch, &mut out).unwrap();
    out
}

pub(crate) fn largest_difference(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, |m, d| if d > m || d.is_nan() { d } else { m })
}

/// The trained model in a scheme, made once per process.
pub(crate) fn quantized(scheme: &str) -> &'static Path {
    forged(&fixture("shakespeare-llama"), scheme)
}

/// A small model of random weights in a scheme, in whose layers a token uses `used` of six experts; made once per process.
pub(crate) fn mixture(used: u64, scheme: &str) -> &'static Path {
    static SOURCES: LazyLock<Mutex<HashMap<u64, PathBuf>>> = LazyLock::new(Mutex::default);
    let source = SOURCES.lock().unwrap().entry(used).or_insert_with(|| random_mixture(used)).clone();
    forged(&source, scheme)
}

fn forged(source: &Path, scheme: &str) -> &'static Path {
    static MADE: LazyLock<Mutex<HashMap<(PathBuf, String), &'static Path>>> = LazyLock::new(Mutex::default);
    let mut made = MADE.lock().unwrap();
    made.entry((source.to_owned(), scheme.to_owned())).or_insert_with(|| {
        let staging = Box::leak(Box::new(tempfile::tempdir().unwrap()));
        let request = ForgeRequest {
            source: source.to_owned(),
            goal: Goal { format: "gguf".into(), scheme: scheme.into(), ..Goal::default() },
            staging: staging.path().to_owned(),
            name: "model".into(),
            ..ForgeRequest::default()
        };
        let plain = matches!(scheme, "f16" | "bf16" | "f32");
        let report =
            if plain { native().convert(&request, &JOB) } else { native().quantize(&request, &JOB) }.unwrap();
        Box::leak(staging.path().join(&report.files[0]).into_boxed_path())
    })
}

/// A Qwen 3 as Hugging Face has it: each expert's matrices are tensors of their own. Widths are multiples of 256, which K-quants take.
fn random_mixture(used: u64) -> PathBuf {
    const LAYERS: u64 = 2;
    const EXPERTS: u64 = 6;
    const WIDTH: u64 = 256;
    const VOCABULARY: u64 = 2048;
    let mut tensors = vec![
        ("model.embed_tokens".to_owned(), vec![VOCABULARY, WIDTH]),
        ("model.norm".to_owned(), vec![WIDTH]),
        ("lm_head".to_owned(), vec![VOCABULARY, WIDTH]),
    ];
    for layer in 0..LAYERS {
        let mut add = |name: &str, shape: &[u64]| {
            tensors.push((format!("model.layers.{layer}.{name}"), shape.to_vec()));
        };
        for (names, shape) in [
            (&["input_layernorm", "post_attention_layernorm"][..], &[WIDTH][..]),
            (&["self_attn.q_norm", "self_attn.k_norm"], &[WIDTH / 4]),
            (&["self_attn.q_proj", "self_attn.o_proj"], &[WIDTH, WIDTH]),
            (&["self_attn.k_proj", "self_attn.v_proj"], &[WIDTH / 2, WIDTH]),
            (&["mlp.gate"], &[EXPERTS, WIDTH]),
        ] {
            for name in names {
                add(name, shape);
            }
        }
        for expert in 0..EXPERTS {
            for name in ["gate_proj", "up_proj", "down_proj"] {
                add(&format!("mlp.experts.{expert}.{name}"), &[WIDTH, WIDTH]);
            }
        }
    }
    let directory = Box::leak(Box::new(tempfile::tempdir().unwrap())).path();
    let declared: Vec<_> = tensors
        .iter()
        .map(|(name, shape)| TensorDecl::new(format!("{name}.weight"), DType::F32, shape.as_slice()))
        .collect();
    let layout = safetensors::plan("model", &declared, &[("format", "pt")], None).unwrap();
    let files = PlacedFiles::create(directory, layout).unwrap();
    let mut state = 1u32;
    let mut random = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / (1 << 23) as f32 - 1.0
    };
    for (number, (_, shape)) in tensors.iter().enumerate() {
        let matrix = shape.len() == 2;
        let value = |x: f32| if matrix { x * (3.0 / WIDTH as f32).sqrt() } else { 1.0 + x / 10.0 };
        let bytes: Vec<u8> =
            (0..shape.iter().product()).flat_map(|_| value(random()).to_le_bytes()).collect();
        files.write_at(number, 0, &bytes).unwrap();
    }
    files.finish().unwrap();
    let config = serde_json::json!({
        "architectures": ["Qwen3MoeForCausalLM"], "model_type": "qwen3_moe", "hidden_size": WIDTH,
        "head_dim": WIDTH / 4, "num_attention_heads": 4, "num_key_value_heads": 2, "num_hidden_layers": LAYERS,
        "moe_intermediate_size": WIDTH, "intermediate_size": WIDTH, "num_experts": EXPERTS,
        "num_experts_per_tok": used, "norm_topk_prob": true, "vocab_size": VOCABULARY,
        "max_position_embeddings": 2048, "rms_norm_eps": 1e-6, "rope_theta": 10000.0, "hidden_act": "silu",
        "tie_word_embeddings": false,
    });
    std::fs::write(directory.join("config.json"), config.to_string()).unwrap();
    // Whose vocabulary is as large.
    let tokenizer = "tokenizer.json";
    std::fs::copy(fixture("shakespeare-llama").join(tokenizer), directory.join(tokenizer)).unwrap();
    directory.to_owned()
}
