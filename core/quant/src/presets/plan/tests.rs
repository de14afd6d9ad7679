//! Presets against what llama.cpp b11434 wrote.

use super::super::{PRESETS, preset};
use super::*;

/// A Llama by its sizes, as its GGUF file lists tensors.
struct Llama {
    layers: u32,
    width: u64,
    inner: u64,
    heads: u32,
    key_heads: u32,
    head: u64,
    vocabulary: u64,
    tied: bool,
}

/// HuggingFaceTB/SmolLM2-135M.
const SMOLLM2: Llama = Llama {
    layers: 30,
    width: 576,
    inner: 1536,
    heads: 9,
    key_heads: 3,
    head: 64,
    vocabulary: 49152,
    tied: true,
};

/// The fixture trained for this project.
const SHAKESPEARE: Llama = Llama {
    layers: 4,
    width: 256,
    inner: 768,
    heads: 8,
    key_heads: 4,
    head: 32,
    vocabulary: 2048,
    tied: false,
};

impl Llama {
    fn facts(&self) -> ModelFacts {
        ModelFacts {
            architecture: "llama".into(),
            layers: self.layers,
            heads: self.heads,
            key_heads: self.key_heads,
            ..ModelFacts::default()
        }
    }

    fn tensors(&self) -> Vec<(String, Vec<u64>)> {
        let mut tensors = vec![
            ("token_embd.weight".into(), vec![self.vocabulary, self.width]),
            ("output_norm.weight".into(), vec![self.width]),
        ];
        if !self.tied {
            tensors.push(("output.weight".into(), vec![self.vocabulary, self.width]));
        }
        let keys = u64::from(self.key_heads) * self.head;
        for layer in 0..self.layers {
            for (name, shape) in [
                ("attn_norm", vec![self.width]),
                ("ffn_norm", vec![self.width]),
                ("attn_q", vec![u64::from(self.heads) * self.head, self.width]),
                ("attn_k", vec![keys, self.width]),
                ("attn_v", vec![keys, self.width]),
                ("attn_output", vec![self.width, u64::from(self.heads) * self.head]),
                ("ffn_gate", vec![self.inner, self.width]),
                ("ffn_up", vec![self.inner, self.width]),
                ("ffn_down", vec![self.width, self.inner]),
            ] {
                tensors.push((format!("blk.{layer}.{name}.weight"), shape));
            }
        }
        tensors
    }

    fn bytes(&self, name: &str) -> u64 {
        let tensors = self.tensors();
        let listed: Vec<Tensor<'_>> = tensors.iter().map(|(name, shape)| Tensor { name, shape }).collect();
        let choices = plan(preset(name).unwrap(), &self.facts(), &listed, &[]);
        choices
            .iter()
            .zip(&tensors)
            .map(|(choice, (_, shape))| {
                choice
                    .dtype()
                    .unwrap_or(DType::F32)
                    .bytes_for(shape.iter().product())
                    .unwrap()
                    .next_multiple_of(32)
            })
            .sum()
    }
}

#[test]
fn files_have_the_sizes_that_llama_quantize_writes() {
    // Files of one model differ in their tensors alone, so sizes less tensors must all leave the same rest.
    let smollm2 = [
        ("q8_0", 144_811_072),
        ("q6_k", 138_382_912),
        ("q5_k_m", 112_103_488),
        ("q4_k_m", 105_454_144),
        ("q3_k_m", 93_510_208),
        ("q4_0", 91_726_912),
        ("iq4_xs", 91_312_192),
        ("q2_k", 88_201_792),
    ];
    let shakespeare = [("q8_0", 4_527_328), ("q4_k_m", 2_683_616), ("q2_k", 1_824_992)];
    for (model, sizes) in [(&SMOLLM2, &smollm2[..]), (&SHAKESPEARE, &shakespeare[..])] {
        let rests: Vec<u64> = sizes.iter().map(|(name, size)| size - model.bytes(name)).collect();
        assert!(
            rests.iter().all(|rest| *rest == rests[0]),
            "{:?}",
            sizes.iter().zip(&rests).collect::<Vec<_>>()
        );
    }
}

fn one(preset_name: &str, facts: &ModelFacts, name: &str, shape: &[u64]) -> Choice {
    plan(
        preset(preset_name).unwrap(),
        facts,
        &[Tensor { name, shape }, Tensor { name: "output.weight", shape: &[32, 256] }],
        &[],
    )[0]
}

#[test]
fn rules_follow_the_shape_of_the_model() {
    let dense = ModelFacts {
        architecture: "llama".into(),
        layers: 32,
        heads: 32,
        key_heads: 32,
        ..ModelFacts::default()
    };
    let grouped = ModelFacts { key_heads: 8, ..dense.clone() };
    let mixtral = ModelFacts { experts: 8, ..grouped.clone() };
    let seventy = ModelFacts { layers: 80, heads: 64, key_heads: 8, ..dense.clone() };
    let informed = ModelFacts { informed: true, ..dense.clone() };
    let falcon = ModelFacts { architecture: "falcon".into(), ..dense.clone() };
    let square: &[u64] = &[256, 256];
    for (preset, facts, name, expected) in [
        ("q2_k", &dense, "blk.0.attn_v.weight", DType::Q3K),
        ("q2_k", &grouped, "blk.0.attn_v.weight", DType::Q4K),
        ("q2_k", &seventy, "blk.0.attn_v.weight", DType::Q5K),
        ("q4_k_m", &mixtral, "blk.0.attn_v.weight", DType::Q8_0),
        ("q4_k_m", &mixtral, "blk.7.ffn_down_exps.weight", DType::Q4K),
        ("q4_k_m", &mixtral, "blk.6.ffn_down_exps.weight", DType::Q6K),
        ("q4_k_m", &mixtral, "blk.0.attn_output.weight", DType::Q5K),
        ("q4_k_m", &falcon, "output.weight", DType::Q8_0),
        ("q4_0", &dense, "blk.0.ffn_down.weight", DType::Q4_0),
        ("q4_0", &informed, "blk.0.ffn_down.weight", DType::Q4_1),
        ("iq2_xxs", &seventy, "blk.0.attn_v.weight", DType::Q4K),
        ("iq3_xxs", &dense, "blk.0.attn_v.weight", DType::Iq3S),
        ("iq3_xxs", &informed, "blk.0.attn_v.weight", DType::Iq3Xxs),
        ("iq3_xxs", &dense, "token_embd.weight", DType::Iq3S),
        ("tq1_0", &dense, "token_embd.weight", DType::Q4K),
    ] {
        assert_eq!(one(preset, facts, name, square), Choice::As(expected), "{preset} {name} {facts:?}");
    }
    assert_eq!(
        one("mxfp4_moe", &mixtral, "blk.0.ffn_up_exps.weight", &[8, 64, 256]),
        Choice::As(DType::Mxfp4)
    );
    assert_eq!(one("mxfp4_moe", &mixtral, "blk.0.attn_q.weight", square), Choice::As(DType::Q8_0));
    assert_eq!(one("f16", &dense, "token_embd.weight", &[8, 7]), Choice::As(DType::F16));
}

#[test]
fn awkward_widths_fall_back_to_smaller_blocks_and_then_to_f16() {
    for (dtype, width, expected) in [
        (DType::Q4K, 576, DType::Q5_0),
        (DType::Q5K, 576, DType::Q5_1),
        (DType::Q6K, 576, DType::Q8_0),
        (DType::Q2K, 576, DType::Q4_0),
        (DType::Iq2Xs, 96, DType::Iq4Nl),
        (DType::Q4K, 100, DType::F16),
        (DType::Q4_0, 100, DType::F16),
        (DType::Q4K, 512, DType::Q4K),
    ] {
        assert_eq!(fallback(dtype, width), expected, "{dtype} in rows of {width}");
    }
}

#[test]
fn norms_routers_vectors_and_biases_are_kept() {
    let facts = SMOLLM2.facts();
    for (name, shape) in [
        ("blk.0.attn_norm.weight", &[256u64][..]),
        ("blk.0.attn_q_norm.weight", &[8, 256]),
        ("blk.0.attn_q.bias", &[256]),
        ("blk.0.ffn_gate_inp.weight", &[8, 256]),
        ("position_embd.weight", &[512, 256]),
        ("token_types.weight", &[2, 256]),
        ("blk.0.attn_q.weight", &[1, 256]),
    ] {
        assert_eq!(one("q4_k_m", &facts, name, shape), Choice::Keep, "{name}");
    }
}

#[test]
fn the_users_word_comes_first_and_still_falls_back() {
    let overrides: Vec<Override> =
        ["attn_v=q8_0", r"blk\.[01]\.ffn=Q6_K"].iter().map(|o| o.parse().unwrap()).collect();
    let shape = &[256u64, 256][..];
    let tensors = [
        Tensor { name: "blk.3.attn_v.weight", shape },
        Tensor { name: "blk.1.ffn_up.weight", shape },
        Tensor { name: "blk.1.ffn_gate.weight", shape: &[256, 96] },
        Tensor { name: "blk.2.ffn_up.weight", shape },
    ];
    let choices = plan(preset("q4_k_s").unwrap(), &SMOLLM2.facts(), &tensors, &overrides);
    assert_eq!(
        choices,
        [
            Choice::As(DType::Q8_0),
            Choice::As(DType::Q6K),
            Choice::Fallback { wanted: DType::Q6K, used: DType::Q8_0 },
            Choice::As(DType::Q4K),
        ]
    );
}

#[test]
fn malformed_overrides_say_what_is_wrong() {
    for text in ["attn_v", "attn_v=q9", "attn_v=i32", "(=q4_0"] {
        insta::assert_snapshot!(text.parse::<Override>().unwrap_err());
    }
}

#[test]
fn names_and_file_types_are_unique_and_every_base_has_a_number() {
    for (i, a) in PRESETS.iter().enumerate() {
        assert!(a.base.ggml_id().is_some());
        for b in &PRESETS[i + 1..] {
            assert!(a.name != b.name && a.file_type != b.file_type, "{} and {}", a.name, b.name);
        }
    }
}
