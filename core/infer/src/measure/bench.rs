//! Prefill and decode speed, whose clock is the caller's, and what the machine would allow.

use drophammer_sdk::profile::{self, MachineLimits, Operation, Profile};
use drophammer_sdk::{Batch, Session};
use serde::{Deserialize, Serialize};

use super::source::MeasureError;

/// What to run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BenchPlan {
    /// Tokens of the prompt.
    pub prompt: u32,
    /// Tokens generated, one at a time, from an empty cache.
    pub generate: u32,
    /// Runs that count, of each kind.
    pub repetitions: u32,
    /// Runs before them that do not.
    pub warm_up: u32,
}

impl Default for BenchPlan {
    fn default() -> Self {
        Self { prompt: 512, generate: 128, repetitions: 3, warm_up: 1 }
    }
}

/// Tokens per second over the runs that count.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Speed {
    /// Tokens per run.
    pub tokens: u32,
    /// The slowest run.
    pub min_tps: f64,
    /// The middle run.
    pub median_tps: f64,
    /// The fastest run: the one least disturbed by others on the machine.
    pub max_tps: f64,
    /// Seconds of each run, in order.
    pub seconds: Vec<f64>,
}

/// What a bench found; a kind that was not asked for (0 tokens) has no runs.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Bench {
    /// Reading a prompt.
    pub prefill: Speed,
    /// Generating.
    pub decode: Speed,
}

/// Runs the plan. `clock` gives seconds from any fixed moment; `keep_on` is asked between runs.
///
/// # Errors
/// [`MeasureError::Chunk`] when a run does not fit the context, [`MeasureError::Cancelled`], and whatever the session
/// returns.
pub fn bench(
    session: &mut dyn Session,
    plan: &BenchPlan,
    clock: &mut dyn FnMut() -> f64,
    keep_on: &mut dyn FnMut() -> bool,
) -> Result<Bench, MeasureError> {
    let context = session.limits().context;
    let longest = plan.prompt.max(plan.generate);
    if longest > context {
        let limit = format!("the model's context of {context}");
        return Err(MeasureError::Chunk { chunk: longest as usize, limit });
    }
    let mut run = |tokens: u32, at_once: u32| -> Result<Speed, MeasureError> {
        let mut seconds = Vec::new();
        for round in 0..plan.warm_up + plan.repetitions {
            if !keep_on() {
                return Err(MeasureError::Cancelled);
            }
            session.remove(0, 0, u32::MAX)?;
            let start = clock();
            read(session, tokens, at_once)?;
            if round >= plan.warm_up {
                seconds.push(clock() - start);
            }
        }
        session.remove(0, 0, u32::MAX)?;
        Ok(speed(tokens, seconds))
    };
    let (prompt, generate) = (plan.prompt, plan.generate);
    Ok(Bench {
        prefill: if prompt > 0 { run(prompt, u32::MAX)? } else { Speed::default() },
        decode: if generate > 0 { run(generate, 1)? } else { Speed::default() },
    })
}

/// Where the time of a run went, and what the machine could do.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Roofline {
    /// What the session's threads do at most.
    pub limits: MachineLimits,
    /// Operations of reading the prompt.
    pub prefill: Vec<Operation>,
    /// Operations of generating.
    pub decode: Vec<Operation>,
}

/// One run of each kind of the plan under the session's own clock; `None` if it has none.
///
/// # Errors
/// Whatever the session returns.
pub fn roofline(session: &mut dyn Session, plan: &BenchPlan) -> Result<Option<Roofline>, MeasureError> {
    let Some(profile) = profile::of(session) else { return Ok(None) };
    let limits = profile.limits()?;
    let mut recorded = |tokens: u32, at_once: u32| -> Result<Vec<Operation>, MeasureError> {
        session.remove(0, 0, u32::MAX)?;
        read(session, tokens, at_once)?; // to warm up
        session.remove(0, 0, u32::MAX)?;
        profile.record(true)?;
        read(session, tokens, at_once)?;
        let recorded = profile.recorded()?;
        profile.record(false)?;
        Ok(recorded)
    };
    let (prefill, decode) = (recorded(plan.prompt, u32::MAX)?, recorded(plan.generate, 1)?);
    session.remove(0, 0, u32::MAX)?;
    Ok(Some(Roofline { limits, prefill, decode }))
}

/// Pushes `count` tokens through sequence 0, `at_once` or as many as a batch takes; one row of output per batch.
fn read(session: &mut dyn Session, count: u32, at_once: u32) -> Result<(), MeasureError> {
    let limits = session.limits();
    let mut row = vec![0.0; limits.output_width as usize];
    let mut done = 0;
    while done < count {
        let end = count.min(done.saturating_add(at_once.min(limits.max_batch).max(1)));
        let positions: Vec<u32> = (done..end).collect();
        // What the tokens are does not matter to a dense model; for a mixture of experts they should differ.
        let tokens: Vec<u32> =
            positions.iter().map(|p| p.wrapping_mul(2_654_435_761) % limits.output_width.max(1)).collect();
        let sequences = vec![0; tokens.len()];
        let outputs = [tokens.len() as u32 - 1];
        let batch =
            Batch { tokens: &tokens, positions: &positions, sequences: &sequences, outputs: &outputs };
        session.forward(batch, &mut row)?;
        done = end;
    }
    Ok(())
}

fn speed(tokens: u32, seconds: Vec<f64>) -> Speed {
    let tps = |seconds: f64| f64::from(tokens) / seconds.max(f64::MIN_POSITIVE);
    let mut sorted = seconds.clone();
    sorted.sort_unstable_by(f64::total_cmp);
    let at = |index: usize| sorted.get(index).map_or(0.0, |&s| tps(s));
    Speed {
        tokens,
        min_tps: sorted.last().map_or(0.0, |&s| tps(s)),
        median_tps: at(sorted.len() / 2),
        max_tps: at(0),
        seconds,
    }
}
