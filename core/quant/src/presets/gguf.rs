//! llama.cpp's mixtures.

use drophammer_formats::DType::{
    self, BF16, F16, F32, Iq1M, Iq1S, Iq2S, Iq2Xs, Iq2Xxs, Iq3S, Iq3Xxs, Iq4Nl, Iq4Xs, Mxfp4, Q1_0, Q2K, Q3K,
    Q4_0, Q4_1, Q4K, Q5_0, Q5_1, Q5K, Q6K, Q8_0, Tq1_0, Tq2_0,
};

use super::Role::{AttentionOutput, Down, Gate, Key, Other, Query, Up, Value};
use super::When::{
    Among, Blind, EightExperts, Falcon, FirstEighth, FirstSixteenth, FourExperts, Informed, Middle,
    NotEightExperts, NotFalcon, Sensitive, Stacked, WideGroups,
};
use super::{Preset, Role, Rule, When};

/// The preset with this name, in either case.
pub fn preset(name: &str) -> Option<&'static Preset> {
    PRESETS.iter().find(|preset| preset.name.eq_ignore_ascii_case(name))
}

const fn rule(role: Role, when: &'static [When], then: DType) -> Rule {
    Rule { role, when, then }
}

/// A mixture without rules of its own.
const fn plain(name: &'static str, file_type: u32, base: DType) -> Preset {
    Preset { name, file_type, base, output: Q6K, embedding: base, rules: EIGHT, wants_importance: false }
}

/// With eight experts attention is a small share of the model, and gets more.
const EIGHT: &[Rule] = &[rule(Value, &[EightExperts], Q8_0), rule(Key, &[EightExperts], Q8_0)];

/// Rules of the smallest mixtures: `low` for sensitive parts, `attention` for attention outputs.
macro_rules! tiny {
    ($name:literal, $file_type:literal, $base:expr, $low:expr, $attention:expr, $embedding:expr) => {
        Preset {
            name: $name,
            file_type: $file_type,
            base: $base,
            output: Q5K,
            embedding: $embedding,
            rules: &[
                rule(Value, &[WideGroups], Q4K),
                rule(Value, &[FourExperts], Q4K),
                rule(Value, &[], $low),
                rule(Key, &[EightExperts], Q4K),
                rule(Down, &[FirstEighth], $low),
                rule(AttentionOutput, &[EightExperts], Q5K),
                rule(AttentionOutput, &[], $attention),
            ],
            wants_importance: true,
        }
    };
}

/// A larger mixture: the common rules for eight experts, then its own.
macro_rules! mixture {
    ($name:literal, $file_type:literal, $base:expr, $output:expr, $embedding:expr, $wants:literal,
     [$($role:ident [$($when:expr),*] $then:expr;)*]) => {
        Preset {
            name: $name,
            file_type: $file_type,
            base: $base,
            output: $output,
            embedding: $embedding,
            rules: &[
                rule(Value, &[EightExperts], Q8_0),
                rule(Key, &[EightExperts], Q8_0),
                $(rule($role, &[$($when),*], $then),)*
            ],
            wants_importance: $wants,
        }
    };
}

/// Every mixture, from largest to smallest.
pub const PRESETS: &[Preset] = &[
    plain("f32", 0, F32),
    plain("f16", 1, F16),
    plain("bf16", 32, BF16),
    Preset { output: Q8_0, ..plain("q8_0", 7, Q8_0) },
    plain("q6_k", 18, Q6K),
    mixture!("q5_k_m", 17, Q5K, Q6K, Q5K, false, [
        Value [Sensitive] Q6K;
        Down [Sensitive] Q6K;
    ]),
    plain("q5_k_s", 16, Q5K),
    plain("q5_1", 9, Q5_1),
    mixture!("q5_0", 8, Q5_0, Q6K, Q5_0, false, [
        Down [Informed, FirstEighth] Q5_1;
    ]),
    mixture!("q4_k_m", 15, Q4K, Q6K, Q4K, false, [
        Value [Sensitive] Q6K;
        Down [Falcon, FirstSixteenth] Q6K;
        Down [Falcon, Sensitive] Q5K;
        Down [NotFalcon, Sensitive] Q6K;
        AttentionOutput [NotFalcon, EightExperts] Q5K;
    ]),
    mixture!("q4_k_s", 14, Q4K, Q6K, Q4K, false, [
        Value [Among(4)] Q5K;
        Down [NotFalcon, FirstEighth] Q5K;
        AttentionOutput [NotFalcon, EightExperts] Q5K;
    ]),
    plain("q4_1", 3, Q4_1),
    mixture!("q4_0", 2, Q4_0, Q6K, Q4_0, false, [
        Down [Informed, FirstEighth] Q4_1;
    ]),
    mixture!("iq4_nl", 25, Iq4Nl, Q6K, Iq4Nl, false, [
        Value [WideGroups] Q5K;
        Down [Blind, FirstEighth] Q5K;
        AttentionOutput [NotFalcon, EightExperts] Q5K;
    ]),
    mixture!("iq4_xs", 30, Iq4Xs, Q6K, Iq4Xs, false, [
        Value [WideGroups] Q5K;
        Down [Blind, FirstEighth] Q5K;
        AttentionOutput [NotFalcon, EightExperts] Q5K;
    ]),
    Preset {
        name: "mxfp4_moe",
        file_type: 38,
        base: Q8_0,
        output: Q8_0,
        embedding: Q8_0,
        rules: &[
            rule(Up, &[Stacked], Mxfp4),
            rule(Gate, &[Stacked], Mxfp4),
            rule(Down, &[Stacked], Mxfp4),
            rule(Other, &[Stacked], Mxfp4),
            rule(Value, &[Stacked], Mxfp4),
            rule(Key, &[Stacked], Mxfp4),
            rule(Query, &[Stacked], Mxfp4),
            rule(AttentionOutput, &[Stacked], Mxfp4),
        ],
        wants_importance: false,
    },
    mixture!("q3_k_l", 13, Q3K, Q6K, Q3K, false, [
        Value [] Q5K;
        Down [Falcon] Q4K;
        Down [] Q5K;
        AttentionOutput [Falcon] Q4K;
        AttentionOutput [NotEightExperts] Q5K;
    ]),
    mixture!("q3_k_m", 12, Q3K, Q6K, Q3K, false, [
        Value [Among(2)] Q5K;
        Value [] Q4K;
        Down [FirstSixteenth] Q5K;
        Down [NotFalcon] Q4K;
        Down [Sensitive] Q4K;
        AttentionOutput [NotFalcon, EightExperts] Q5K;
        AttentionOutput [NotFalcon] Q4K;
    ]),
    mixture!("iq3_m", 27, Iq3S, Q6K, Iq3S, false, [
        Value [] Q4K;
        Down [FirstEighth] Q4K;
        Down [EightExperts, Sensitive] Q4K;
        AttentionOutput [NotFalcon, EightExperts] Q5K;
        AttentionOutput [NotFalcon] Q4K;
    ]),
    mixture!("q3_k_s", 11, Q3K, Q6K, Q3K, false, [
        AttentionOutput [NotFalcon, EightExperts] Q5K;
    ]),
    mixture!("iq3_s", 26, Iq3S, Q6K, Iq3S, false, [
        Value [WideGroups] Q4K;
        AttentionOutput [NotFalcon, EightExperts] Q5K;
    ]),
    mixture!("iq3_xs", 22, Iq3S, Q6K, Iq3S, false, [
        Value [WideGroups] Q4K;
        Key [] Iq3Xxs;
        Query [] Iq3Xxs;
        AttentionOutput [NotFalcon, EightExperts] Q5K;
        Gate [Middle] Iq3Xxs;
        Up [Middle] Iq3Xxs;
    ]),
    mixture!("iq3_xxs", 23, Iq3Xxs, Q5K, Iq3S, true, [
        Value [WideGroups] Q4K;
        Value [Blind] Iq3S;
        Key [] Iq2S;
        Query [] Iq2S;
        Down [Blind, FirstEighth] Q4K;
        Down [Blind] Q3K;
        AttentionOutput [NotFalcon, EightExperts] Q5K;
        AttentionOutput [NotFalcon] Iq3S;
    ]),
    mixture!("q2_k", 10, Q2K, Q6K, Q2K, false, [
        Value [WideGroups] Q4K;
        Value [] Q3K;
        Down [] Q3K;
        AttentionOutput [NotFalcon, EightExperts] Q5K;
        AttentionOutput [NotFalcon] Q3K;
    ]),
    mixture!("q2_k_s", 21, Q2K, Q6K, Q2K, true, [
        Value [WideGroups] Q4K;
        Down [FirstEighth] Q4K;
    ]),
    tiny!("iq2_m", 29, Iq2S, Iq3S, Iq3S, Iq3S),
    tiny!("iq2_s", 28, Iq2Xs, Iq3S, Iq3S, Iq3S),
    tiny!("iq2_xs", 20, Iq2Xs, Q2K, Iq2Xs, Q2K),
    tiny!("iq2_xxs", 19, Iq2Xxs, Q2K, Iq2Xxs, Q2K),
    Preset { embedding: Q4K, ..plain("tq2_0", 37, Tq2_0) },
    tiny!("iq1_m", 31, Iq1M, Q2K, Iq2Xxs, Q2K),
    Preset { embedding: Q4K, ..plain("tq1_0", 36, Tq1_0) },
    tiny!("iq1_s", 24, Iq1S, Q2K, Iq2Xxs, Q2K),
    plain("q1_0", 40, Q1_0),
];
