use proptest::prelude::*;

use super::*;

fn sampler(parameters: SamplingParameters, seed: u64) -> Sampler {
    Sampler::new(parameters, seed, &[]).unwrap()
}

fn frequencies(parameters: &SamplingParameters, logits: &[f32], draws: u64) -> Vec<f64> {
    let mut counts = vec![0u64; logits.len()];
    for seed in 0..draws {
        let choice = sampler(parameters.clone(), seed).choose(&mut logits.to_vec(), None).unwrap();
        counts[choice.token as usize] += 1;
    }
    counts.into_iter().map(|count| count as f64 / draws as f64).collect()
}

fn assert_near(found: &[f64], expected: &[f64]) {
    for (f, e) in found.iter().zip(expected) {
        // 20 000 draws: five standard deviations are at most 0.018.
        assert!((f - e).abs() < 0.018 && (*e > 0.0 || *f == 0.0), "{found:?}, expected {expected:?}");
    }
}

/// Logits of the probabilities 0.5, 0.3, 0.15, 0.05 in a shuffled order.
fn logits() -> Vec<f32> {
    [0.15f32, 0.5, 0.05, 0.3].map(f32::ln).to_vec()
}

#[test]
fn draws_follow_the_distribution_that_each_rule_leaves() {
    let p = SamplingParameters::default;
    let hot: Vec<f64> = [0.15f64, 0.5, 0.05, 0.3].map(f64::sqrt).to_vec();
    let hot_sum: f64 = hot.iter().sum();
    for (parameters, expected) in [
        (p(), vec![0.15, 0.5, 0.05, 0.3]),
        (SamplingParameters { temperature: 2.0, ..p() }, hot.iter().map(|w| w / hot_sum).collect()),
        (SamplingParameters { top_k: 2, ..p() }, vec![0.0, 0.625, 0.0, 0.375]),
        (SamplingParameters { top_p: 0.6, ..p() }, vec![0.0, 0.625, 0.0, 0.375]),
        (SamplingParameters { top_p: 0.45, ..p() }, vec![0.0, 1.0, 0.0, 0.0]),
        (SamplingParameters { min_p: 0.25, ..p() }, vec![0.15 / 0.95, 0.5 / 0.95, 0.0, 0.3 / 0.95]),
        (SamplingParameters { top_k: 3, min_p: 0.5, ..p() }, vec![0.0, 0.625, 0.0, 0.375]),
        // The entropy is 1.142 nats; surprises are 0.693, 1.204, 1.897, 2.996.
        (SamplingParameters { typical_p: 0.25, ..p() }, vec![0.0, 0.0, 0.0, 1.0]),
        (SamplingParameters { typical_p: 0.7, ..p() }, vec![0.0, 0.625, 0.0, 0.375]),
        (SamplingParameters { logit_bias: vec![(1, f32::NEG_INFINITY)], ..p() }, vec![0.3, 0.0, 0.1, 0.6]),
        (SamplingParameters { temperature: 0.0, ..p() }, vec![0.0, 1.0, 0.0, 0.0]),
    ] {
        assert_near(&frequencies(&parameters, &logits(), 20_000), &expected);
    }
}

#[test]
fn penalties_change_the_logits_of_seen_tokens_as_their_definitions_say() {
    let greedy = SamplingParameters::greedy();
    let run = |parameters: SamplingParameters, prompt: &[u32], logits: &[f32]| {
        let mut sampler = Sampler::new(parameters, 0, prompt).unwrap();
        (0..4).map(|_| sampler.choose(&mut logits.to_vec(), None).unwrap().token).collect::<Vec<_>>()
    };
    let row = [2.0, 1.5, -1.0];
    assert_eq!(run(greedy.clone(), &[], &row), [0, 0, 0, 0]);
    let presence = SamplingParameters { presence_penalty: 0.6, ..greedy.clone() };
    assert_eq!(run(presence, &[], &row), [0, 1, 0, 0]);
    let frequency = SamplingParameters { frequency_penalty: 0.3, ..greedy.clone() };
    assert_eq!(run(frequency, &[], &row), [0, 0, 1, 0]);
    let repetition = SamplingParameters { repetition_penalty: 1.5, ..greedy.clone() };
    assert_eq!(run(repetition.clone(), &[0], &row), [1, 0, 0, 0]);
    // Negative logits move down, not up.
    assert_eq!(run(repetition, &[0], &[-1.0, -1.2, -2.0]), [1, 0, 0, 0]);
}

#[test]
fn logprobs_are_the_models_own_whatever_the_parameters_do() {
    let parameters = SamplingParameters {
        temperature: 0.0,
        logit_bias: vec![(2, 10.0)],
        top_logprobs: Some(2),
        ..SamplingParameters::default()
    };
    let choice = sampler(parameters, 0).choose(&mut logits(), None).unwrap();
    let logprobs = choice.logprobs.unwrap();
    assert_eq!(choice.token, 2);
    assert!((logprobs.logprob - 0.05f32.ln()).abs() < 1e-6);
    assert_eq!(logprobs.top.iter().map(|(token, _)| *token).collect::<Vec<_>>(), [1, 3]);
    assert!((logprobs.top[0].1 - 0.5f32.ln()).abs() < 1e-6);
}

#[test]
fn a_mask_allows_only_its_tokens_and_an_empty_one_is_an_error() {
    let mut mask = TokenMask::none(4);
    let mut sampler = sampler(SamplingParameters::default(), 3);
    assert_eq!(sampler.choose(&mut logits(), Some(&mask)), Err(SamplingError::NothingLeft));
    mask.allow(2);
    for _ in 0..20 {
        assert_eq!(sampler.choose(&mut logits(), Some(&mask)).unwrap().token, 2);
    }
}

#[test]
fn numbers_that_are_none_are_reported_with_their_token() {
    let error = sampler(SamplingParameters::greedy(), 0).choose(&mut [0.0, f32::NAN], None).unwrap_err();
    assert_eq!(error, SamplingError::NotANumber { token: 1 });
}

#[test]
fn values_out_of_their_range_are_refused_by_name() {
    let p = SamplingParameters::default;
    for (parameters, name) in [
        (SamplingParameters { temperature: -0.1, ..p() }, "temperature"),
        (SamplingParameters { temperature: f32::NAN, ..p() }, "temperature"),
        (SamplingParameters { top_p: 0.0, ..p() }, "top_p"),
        (SamplingParameters { min_p: 1.5, ..p() }, "min_p"),
        (SamplingParameters { repetition_penalty: 0.0, ..p() }, "repetition_penalty"),
        (SamplingParameters { frequency_penalty: f32::INFINITY, ..p() }, "frequency_penalty"),
        (SamplingParameters { logit_bias: vec![(0, f32::INFINITY)], ..p() }, "logit_bias"),
        (SamplingParameters { top_logprobs: Some(1000), ..p() }, "top_logprobs"),
    ] {
        assert_eq!(parameters.validate().unwrap_err().name, name);
    }
}

proptest! {
    #[test]
    fn whatever_the_logits_a_possible_token_comes_and_the_seed_decides_which(
        logits in proptest::collection::vec(
            prop_oneof![4 => -50f32..50.0, 1 => Just(f32::NEG_INFINITY)], 1..300),
        temperature in 0f32..3.0,
        top_k in 0u32..50,
        top_p in 0.01f32..=1.0,
        min_p in 0f32..=1.0,
        typical_p in 0.01f32..=1.0,
        seed in any::<u64>(),
    ) {
        let parameters =
            SamplingParameters { temperature, top_k, top_p, min_p, typical_p, ..SamplingParameters::default() };
        let draw = || sampler(parameters.clone(), seed).choose(&mut logits.clone(), None);
        match draw() {
            Ok(choice) => {
                prop_assert!(logits[choice.token as usize] > f32::NEG_INFINITY);
                prop_assert_eq!(draw().unwrap(), choice);
            }
            Err(error) => {
                prop_assert_eq!(error, SamplingError::NothingLeft);
                prop_assert!(logits.iter().all(|&logit| logit == f32::NEG_INFINITY));
            }
        }
    }
}
