//! How good and how fast a model is, measured next to its session.

use std::io::Read;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Instant;

use drophammer_formats::Source;
use drophammer_infer::Tokenizer;
use drophammer_infer::measure::{
    BenchPlan, EVALUATION_TEXT, LogitSource, MeasureError, Measurement, Protocol, Roofline, SessionSource,
    bench, measure, roofline,
};
use drophammer_sdk::host::Plugin;
use drophammer_sdk::{BackendError, ErrorCode, JobContext, Result, Session};

use super::{format, io, load};
use crate::worker::lending::Borrowed;
use crate::worker::line::WorkerJob;
use crate::worker::protocol::{BenchOrder, Benched, MeasureOrder};

/// The longest text that is read, bytes.
const TEXT_LIMIT: u64 = 64 << 20;

/// Perplexity and, with a channel to a reference, the distance from it.
pub(super) fn quality(
    plugin: &Plugin,
    order: &MeasureOrder,
    job: &WorkerJob,
    reference: Option<UnixStream>,
) -> Result<Measurement> {
    job.progress("load", "", 0, 0);
    let tokenizer = tokenizer(&order.vocabulary)?;
    let text = text(order.text.as_deref(), EVALUATION_TEXT)?;
    let tokens = tokenizer.encode(&text, false).map_err(|error| failed(&error.into()))?;
    let mut session = load(plugin, &order.load, job)?;
    let mut borrowed = reference.map(Borrowed::wait).transpose()?;
    let mut protocol = Protocol { most_tokens: order.most_tokens, ..Protocol::default() };
    let contexts = [
        Some(session.limits().context),
        borrowed.as_ref().map(|b| drophammer_sdk::Session::limits(b).context),
    ];
    let context = contexts.into_iter().flatten().min().unwrap_or(u32::MAX);
    protocol.chunk = protocol.chunk.min(context as usize);
    let chunks = protocol.chunks(&tokens).map_err(|error| failed(&error))?.len();
    let total = (chunks * (protocol.chunk - 1)) as u64;
    let mut model = SessionSource::new(session.as_mut()).map_err(|error| failed(&error))?;
    let mut other = match &mut borrowed {
        Some(borrowed) => Some(SessionSource::new(borrowed).map_err(|error| failed(&error))?),
        None => None,
    };
    let other = other.as_mut().map(|source| source as &mut dyn LogitSource);
    let mut done = 0;
    let mut watch = |_: &drophammer_infer::measure::Scored| {
        done += 1;
        job.progress("measure", "", done, total);
        !job.cancelled()
    };
    measure(&mut model, other, &tokens, &protocol, &mut watch).map_err(|error| failed(&error))
}

/// Seconds to load, and tokens per second.
pub(super) fn speed(plugin: &Plugin, order: &BenchOrder, job: &WorkerJob) -> Result<Benched> {
    job.progress("load", "", 0, 0);
    let start = Instant::now();
    let mut session = load(plugin, &order.load, job)?;
    let load_seconds = start.elapsed().as_secs_f64();
    let plan = plan(order, session.as_ref());
    let runs = u64::from(plan.warm_up + plan.repetitions) * 2;
    let mut run = 0;
    let mut keep_on = || {
        job.progress("bench", "", run, runs);
        run += 1;
        !job.cancelled()
    };
    let mut clock = || start.elapsed().as_secs_f64();
    let bench = bench(session.as_mut(), &plan, &mut clock, &mut keep_on).map_err(|error| failed(&error))?;
    let profiles = session.extension(drophammer_sdk::profile::ID).is_some();
    Ok(Benched { load_seconds, threads: job.budgets().threads, bench, profiles })
}

/// Where the time goes.
pub(super) fn profile(plugin: &Plugin, order: &BenchOrder, job: &WorkerJob) -> Result<Option<Roofline>> {
    job.progress("load", "", 0, 0);
    let mut session = load(plugin, &order.load, job)?;
    job.progress("profile", "", 0, 0);
    let plan = plan(order, session.as_ref());
    roofline(session.as_mut(), &plan).map_err(|error| failed(&error))
}

/// What is ordered, within the session's context.
fn plan(order: &BenchOrder, session: &dyn Session) -> BenchPlan {
    let context = session.limits().context;
    BenchPlan {
        prompt: order.prompt.min(context),
        generate: order.generate.min(context),
        repetitions: order.repetitions,
        ..BenchPlan::default()
    }
}

/// The first tokenizer found; if there is none, why the first place has none.
pub(super) fn tokenizer(places: &[PathBuf]) -> Result<Tokenizer> {
    let mut why = None;
    for place in places {
        let found = Source::open(place)
            .map_err(format)
            .and_then(|source| Tokenizer::from_source(&source).map_err(|error| failed(&error.into())));
        match found {
            Ok(tokenizer) => return Ok(tokenizer),
            Err(error) => why = why.or(Some(error)),
        }
    }
    Err(why.unwrap_or_else(|| {
        BackendError::new(ErrorCode::InvalidRequest, "no tokenizer to read the text with")
    }))
}

/// The file's text, or the one that is usual.
pub(super) fn text(path: Option<&Path>, usual: &str) -> Result<String> {
    let Some(path) = path else { return Ok(usual.to_owned()) };
    let mut text = String::new();
    let file = std::fs::File::open(path).map_err(|error| io(path, &error))?;
    file.take(TEXT_LIMIT).read_to_string(&mut text).map_err(|error| io(path, &error))?;
    Ok(text)
}

pub(super) fn failed(error: &MeasureError) -> BackendError {
    let code = match error {
        MeasureError::Backend(error) => return error.clone(),
        MeasureError::Cancelled => return BackendError::cancelled(),
        MeasureError::TooShort { .. } | MeasureError::Chunk { .. } => ErrorCode::InvalidRequest,
        MeasureError::NoLogits => ErrorCode::UnsupportedInput,
        MeasureError::Disconnected => ErrorCode::WorkerDied,
        MeasureError::OutOfStep { .. } => ErrorCode::Failed,
        _ => ErrorCode::InvalidInput,
    };
    BackendError::new(code, error.to_string())
}
