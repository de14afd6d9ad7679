//! A loaded model that answers requests until nobody can ask any more.

use std::collections::HashMap;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use drophammer_formats::Source;
use drophammer_infer::Tokenizer;
use drophammer_infer::constrain::{Constraint, ConstraintFactory, Grammar};
use drophammer_infer::sampler::{SamplingParameters, TokenLogprobs};
use drophammer_infer::scheduler::{Config, Event, EventKind, Refused, Request, RequestId, Runner, Scheduler};
use drophammer_infer::template::{ChatTemplate, CivilTime, Conversation, TemplateFiles};
use drophammer_infer::tools::{CallReader, Dialect, Piece, Tools};
use drophammer_sdk::host::Plugin;
use drophammer_sdk::{BackendError, ErrorCode, JobContext as _, OutputKind, Result};

use super::embed::Encoder;
use super::{format, load};
use crate::serving::wire::{Call, Reply, Trouble};
use crate::serving::{Ask, Logprobs, Prompt, TokenLogprob, Usage};
use crate::worker::line::WorkerJob;
use crate::worker::protocol::{Frame, ServeOrder};

/// Tokens that all texts of a step together may guess at. A processor reads about eight at once for the price of two.
const DRAFT: u32 = 7;

/// Loads the order's model and answers over `channel` until the other end is closed.
pub(super) fn serve(plugin: &Plugin, order: &ServeOrder, job: &WorkerJob, channel: UnixStream) -> Result<()> {
    job.progress("load", "", 0, 0);
    // What the backend says of a model it cannot run tells more than that no tokenizer was found for it.
    let voice = voice(&order.vocabulary);
    let session = load(plugin, &order.load, job)?;
    let (tokenizer, template) = voice?;
    let limits = session.limits();
    let tokenizer = Arc::new(tokenizer);
    let ready = Reply::Ready { context: limits.context, sequences: limits.max_sequences };
    if limits.output_kind == OutputKind::Hidden {
        let mut encoder = Encoder::new(session, tokenizer, &order.vocabulary);
        job.progress("serve", "", 0, 0);
        tell(&Mutex::new(channel.try_clone().map_err(broken)?), &ready);
        return encoder.listen(channel);
    }
    let started = Instant::now();
    let draft = if plugin.manifest().steady_batches { DRAFT } else { 0 };
    let config = Config { queue_limit: order.queue, draft, ..Config::default() };
    let clock = Box::new(move || started.elapsed().as_secs_f64());
    let mut scheduler = Scheduler::new(session, tokenizer.clone(), config, clock);
    if let Some(request) = &order.draft {
        if draft == 0 {
            let message = "drafts need a backend whose rows do not depend on what else is in their batch";
            return Err(BackendError::new(ErrorCode::UnsupportedInput, message)
                .with_help("leave the draft out, or take a backend such as the native one"));
        }
        scheduler = scheduler.with_draft_model(load(plugin, request, job)?)?;
    }
    let runner = Runner::start(scheduler).map_err(broken)?;
    job.progress("serve", "", 0, 0);
    let writer = Arc::new(Mutex::new(channel.try_clone().map_err(broken)?));
    tell(&writer, &ready);
    let mut host = Host { tokenizer, template, constraints: None, runner, writer, open: HashMap::new() };
    host.listen(channel).map_err(broken)
}

/// The tokenizer and template of the first of these places that has a tokenizer.
fn voice(places: &[PathBuf]) -> Result<(Tokenizer, ChatTemplate)> {
    let mut why = None;
    for place in places {
        let found = Source::open(place).map_err(format).and_then(|source| {
            let tokenizer = Tokenizer::from_source(&source).map_err(unusable)?;
            let files = TemplateFiles::of_source(&source).map_err(unusable)?;
            let template = ChatTemplate::of_model(&files, &tokenizer).map_err(unusable)?;
            Ok((tokenizer, template))
        });
        match found {
            Ok(found) => return Ok(found),
            Err(error) => drop(why.get_or_insert(error)),
        }
    }
    Err(why
        .unwrap_or_else(|| BackendError::new(ErrorCode::InvalidRequest, "no place to look for a tokenizer")))
}

fn unusable(error: impl std::fmt::Display) -> BackendError {
    BackendError::new(ErrorCode::InvalidInput, error.to_string())
}

pub(super) fn broken(error: std::io::Error) -> BackendError {
    BackendError::new(ErrorCode::Failed, format!("the serving worker: {error}"))
}

struct Host {
    tokenizer: Arc<Tokenizer>,
    template: ChatTemplate,
    /// Made when somebody first needs it: it takes a while.
    constraints: Option<ConstraintFactory>,
    runner: Runner,
    writer: Arc<Mutex<UnixStream>>,
    /// The scheduler's names of requests.
    open: HashMap<u64, RequestId>,
}

impl Host {
    fn listen(&mut self, mut channel: UnixStream) -> std::io::Result<()> {
        while let Some(frame) = Frame::read(&mut channel)? {
            match frame.parse()? {
                Call::Forget { id } => {
                    if let Some(request) = self.open.remove(&id) {
                        self.runner.cancel(request);
                    }
                }
                Call::Embed { id, .. } => {
                    let message = "this model embeds no texts; embeddings come from encoders".to_owned();
                    tell(&self.writer, &Reply::Failed { id, trouble: Trouble::Invalid(message) });
                }
                Call::Ask { id, ask } => match self.request(&ask) {
                    Ok(request) => self.submit(id, request, ask.tools.is_some()),
                    Err(message) => {
                        tell(&self.writer, &Reply::Failed { id, trouble: Trouble::Invalid(message) });
                    }
                },
            }
            // Names of requests that have ended are only kept so long.
            if self.open.len() > 4096 {
                self.open.clear();
            }
        }
        Ok(())
    }

    fn submit(&mut self, id: u64, request: Request, tools: bool) {
        let reader = CallReader::new(self.template.dialect());
        let readers = if tools { vec![reader; request.choices as usize] } else { Vec::new() };
        let mut teller = Teller { id, tokenizer: self.tokenizer.clone(), readers };
        let writer = self.writer.clone();
        let sink = Box::new(move |event: Event| {
            let mut writer = lock(&writer);
            teller.replies(event).iter().all(|reply| put(&mut writer, reply))
        });
        // Nothing of this request may be told before it is accepted.
        let mut held = lock(&self.writer);
        let answer = match self.runner.submit(request, sink) {
            Ok(request) => {
                self.open.insert(id, request);
                Reply::Accepted { id }
            }
            Err(refused) => Reply::Failed { id, trouble: trouble(&refused) },
        };
        put(&mut held, &answer);
    }

    /// What the scheduler is asked; an error says what makes no sense.
    fn request(&mut self, ask: &Ask) -> std::result::Result<Request, String> {
        let prompt = self.prompt(ask)?;
        let constraint = match (&ask.json_schema, &ask.tools) {
            (Some(_), Some(_)) => return Err("an answer has a schema or tools, not both".to_owned()),
            (Some(schema), None) => Some(self.constraint(&Grammar::JsonSchema(schema.clone()))?),
            (None, Some(tools)) => Some(self.calls(tools)?),
            (None, None) => None,
        };
        Ok(Request {
            sampling: SamplingParameters {
                temperature: ask.temperature,
                top_k: ask.top_k,
                top_p: ask.top_p,
                min_p: ask.min_p,
                repetition_penalty: ask.repetition_penalty,
                presence_penalty: ask.presence_penalty,
                frequency_penalty: ask.frequency_penalty,
                logit_bias: ask.logit_bias.clone(),
                top_logprobs: ask.top_logprobs,
                ..SamplingParameters::default()
            },
            seed: ask.seed.unwrap_or_else(chance),
            max_tokens: ask.max_tokens,
            stop: ask.stop.clone(),
            constraint,
            choices: ask.choices,
            flow: ask.flow,
            ..Request::new(prompt)
        })
    }

    fn prompt(&self, ask: &Ask) -> std::result::Result<Vec<u32>, String> {
        let encode =
            |text: &str, framed| self.tokenizer.encode(text, framed).map_err(|error| error.to_string());
        match &ask.prompt {
            Prompt::Tokens(tokens) => Ok(tokens.clone()),
            Prompt::Text(text) => encode(text, true),
            Prompt::Chat { messages } => {
                let seconds = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
                let list = ask.tools.as_ref().map_or(&[][..], |tools| &tools.list);
                let in_template = self.template.dialect().in_template();
                let told = (!in_template).then(|| Dialect::tell(messages, list));
                let tools =
                    (in_template && !list.is_empty()).then(|| serde_json::Value::Array(list.to_vec()));
                let conversation = Conversation {
                    messages: told.as_deref().unwrap_or(messages),
                    tools: tools.as_ref(),
                    add_generation_prompt: true,
                    now: Some(CivilTime::from_unix_seconds(seconds as i64)),
                    ..Conversation::default()
                };
                encode(&self.template.render(&conversation).map_err(|error| error.to_string())?, false)
            }
        }
    }

    /// Keeps calls to the tools' schemas; schemas that no grammar can express only count where a tool insists on them.
    fn calls(&mut self, tools: &Tools) -> std::result::Result<Constraint, String> {
        let dialect = self.template.dialect();
        let grammar =
            |exact| tools.grammar(dialect, exact).map(Grammar::Lark).map_err(|error| error.to_string());
        let strict = tools.list.iter().any(|tool| tool["function"]["strict"] == true);
        match self.constraint(&grammar(true)?) {
            Err(_) if !strict => self.constraint(&grammar(false)?),
            compiled => compiled,
        }
    }

    fn constraint(&mut self, grammar: &Grammar) -> std::result::Result<Constraint, String> {
        if self.constraints.is_none() {
            self.constraints =
                Some(ConstraintFactory::new(&self.tokenizer).map_err(|error| error.to_string())?);
        }
        let Some(factory) = &self.constraints else { return Err("constraints cannot be had".to_owned()) };
        factory.compile(grammar).map_err(|error| error.to_string())
    }
}

/// Tells the daemon what happens to one request.
struct Teller {
    id: u64,
    tokenizer: Arc<Tokenizer>,
    /// One for each answer, where the model may call tools.
    readers: Vec<CallReader>,
}

impl Teller {
    fn replies(&mut self, event: Event) -> Vec<Reply> {
        let (id, choice) = (self.id, event.choice);
        match event.kind {
            EventKind::Started { .. } => vec![Reply::Started { id }],
            EventKind::Token { text, token, logprobs } => {
                let logprobs = logprobs.map(|found| logprobs_of(token, &found, &self.tokenizer));
                let (text, calls) = self.read(choice, text, false);
                std::iter::once(Reply::Token { id, choice, text, logprobs }).chain(calls).collect()
            }
            EventKind::Finished { text, reason, usage, .. } => {
                let (text, mut replies) = self.read(choice, text, true);
                let called = self.readers.get(choice as usize).is_some_and(CallReader::called);
                replies.push(Reply::Finished {
                    id,
                    choice,
                    text,
                    reason: if called { "tool_calls" } else { reason.word() }.to_owned(),
                    usage: Usage {
                        prompt_tokens: usage.prompt_tokens.into(),
                        cached_tokens: usage.reused_tokens.into(),
                        completion_tokens: usage.completion_tokens.into(),
                    },
                });
                replies
            }
            EventKind::Failed(error) => {
                vec![Reply::Failed { id, trouble: Trouble::Broke(error.to_string()) }]
            }
        }
    }

    /// Text that is no call, and the calls.
    fn read(&mut self, choice: u32, text: String, last: bool) -> (String, Vec<Reply>) {
        let id = self.id;
        let Some(reader) = self.readers.get_mut(choice as usize) else { return (text, Vec::new()) };
        let mut pieces = reader.push(&text);
        if last {
            pieces.extend(reader.finish());
        }
        let mut plain = String::new();
        let mut calls = Vec::new();
        for piece in pieces {
            match piece {
                Piece::Text(text) => plain.push_str(&text),
                Piece::Call { name, arguments } => calls.push(Reply::Called { id, choice, name, arguments }),
            }
        }
        (plain, calls)
    }
}

fn logprobs_of(token: u32, found: &TokenLogprobs, tokenizer: &Tokenizer) -> Logprobs {
    let one = |token: u32, logprob: f32| TokenLogprob {
        bytes: tokenizer.token_bytes(token).to_vec(),
        logprob: f64::from(logprob),
    };
    Logprobs {
        chosen: one(token, found.logprob),
        top: found.top.iter().map(|&(token, logprob)| one(token, logprob)).collect(),
    }
}

fn trouble(refused: &Refused) -> Trouble {
    let message = refused.to_string();
    match refused {
        Refused::QueueFull { retry_after, .. } => {
            Trouble::Busy { message, retry_after_seconds: retry_after.as_secs().max(1) }
        }
        Refused::Draining => Trouble::Busy { message, retry_after_seconds: 1 },
        _ => Trouble::Invalid(message),
    }
}

/// A seed nobody chose.
fn chance() -> u64 {
    use std::hash::{BuildHasher as _, Hasher as _};
    std::collections::hash_map::RandomState::new().build_hasher().finish()
}

fn lock(writer: &Mutex<UnixStream>) -> MutexGuard<'_, UnixStream> {
    writer.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Whether the reply could be told.
fn tell(writer: &Mutex<UnixStream>, reply: &Reply) -> bool {
    put(&mut lock(writer), reply)
}

fn put(writer: &mut UnixStream, reply: &Reply) -> bool {
    Frame::document(reply).and_then(|frame| frame.write(writer)).is_ok()
}
