//! Who answers `run`: the daemon, or a model that a worker of this command has loaded.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use drophammer_client::Client;
use drophammer_client::api::{ChatChunk, ChatMessage, ChatRequest, CompletionRequest};
use drophammer_daemon::serving::{Ask, Hosted, Prompt, Said, ServeError};
use drophammer_daemon::worker::protocol::{ServeOrder, Work};
use drophammer_daemon::workers::{Supervisor, WorkerEvent};
use drophammer_sdk::LoadRequest;
use futures::StreamExt;

use crate::arguments::Run;
use crate::failure::{Exit, Failure, Result};
use crate::progress::Display;
use crate::workshop::{Workshop, absolute};

/// Of the tokens at hand only the likeliest are drawn from: so many, and as many as hold this much of the probability.
const TOP_K: u32 = 40;
const TOP_P: f32 = 0.95;

/// Who answers.
pub(super) enum Voice {
    /// The daemon, as this model.
    Served(Client, String),
    /// A worker of this command, which lives as long as its supervisor.
    Hosted { hosted: Hosted, _supervisor: Supervisor },
}

/// What is said to it.
#[derive(Clone, Copy)]
pub(super) enum Turn<'a> {
    /// A conversation, to be put into the model's own form.
    Chat(&'a [ChatMessage]),
    /// A text to continue.
    Text(&'a str),
}

/// How it is to answer.
#[derive(Clone, Copy)]
pub(super) struct Manner {
    tokens: Option<u32>,
    temperature: f32,
    seed: Option<u64>,
}

impl Manner {
    /// As the command line says.
    pub(super) fn of(arguments: &Run) -> Self {
        Self { tokens: arguments.tokens, temperature: arguments.temperature, seed: arguments.seed }
    }
}

impl Voice {
    /// Finds who answers for the model of the command line. What exists on disk is loaded here, and so is an artifact
    /// of the daemon that another backend is to run, or with an adapter or options; any other name is the daemon's.
    ///
    /// # Errors
    /// When nobody does.
    pub(super) async fn of(arguments: &Run) -> Result<Self> {
        let path = Path::new(&arguments.model);
        if path.exists() || arguments.model.contains(std::path::MAIN_SEPARATOR) {
            return Self::load(path, arguments).await;
        }
        let client = super::daemon::client(arguments.daemon.clone())?;
        if arguments.budget.backend.is_none() && arguments.extras.is_empty() && arguments.draft.is_none() {
            return Ok(Self::Served(client, arguments.model.clone()));
        }
        Self::load(&path_of(&client, &arguments.model).await?, arguments).await
    }

    /// Loads what lies at `path` in a worker.
    async fn load(path: &Path, Run { budget, extras, draft, .. }: &Run) -> Result<Self> {
        let path = absolute(path)?;
        let shop = Workshop::probed().await?;
        let runner = shop.runner(&path, budget.backend.as_deref())?;
        let mut order = ServeOrder::of(&path, shop.config.serve.context, 1, 1);
        order.load = LoadRequest { context: order.load.context, ..extras.load(&path)? };
        if let Some(draft) = draft {
            let (path, context) = (absolute(draft)?, order.load.context);
            order.draft = Some(LoadRequest { path, context, ..LoadRequest::default() });
        }
        let task = shop.task(runner, shop.limits(budget), Work::Serve(order));
        let (running, channel) = shop.supervisor.start_serving(task).await?;
        // The bar is for loading only; afterwards the terminal belongs to the answer.
        let display = Arc::new(Mutex::new(Some(Display::new(budget.verbose))));
        let (shown, verbose) = (display.clone(), budget.verbose);
        let show = move |event: WorkerEvent| match (
            &mut *shown.lock().unwrap_or_else(PoisonError::into_inner),
            event,
        ) {
            (Some(display), event) => display.show(event),
            (None, WorkerEvent::Log(_, line) | WorkerEvent::Output(_, line)) if verbose => {
                eprintln!("{line}");
            }
            (None, _) => {}
        };
        let hosted = Hosted::wait(running, channel, show).await;
        drop(display.lock().unwrap_or_else(PoisonError::into_inner).take());
        Ok(Self::Hosted { hosted: hosted?, _supervisor: shop.supervisor })
    }

    /// Who it is, for people.
    pub(super) fn name(&self) -> String {
        match self {
            Self::Served(_, model) => model.clone(),
            Self::Hosted { hosted, .. } => {
                format!("{}, a context of {} tokens", hosted.backend, hosted.context)
            }
        }
    }

    /// Says something and hears the answer piece by piece, to its end. Dropping the answer stops it.
    ///
    /// # Errors
    /// When it is refused or breaks.
    pub(super) async fn say(&self, turn: Turn<'_>, manner: Manner, hear: &mut dyn FnMut(&str)) -> Result<()> {
        match self {
            Self::Served(client, model) => served(client, model, turn, manner, hear).await,
            Self::Hosted { hosted, .. } => hosted_here(hosted, turn, manner, hear).await,
        }
    }
}

async fn served(
    client: &Client,
    model: &str,
    turn: Turn<'_>,
    manner: Manner,
    hear: &mut dyn FnMut(&str),
) -> Result<()> {
    let temperature = Some(f64::from(manner.temperature));
    let (top_p, top_k, seed) = (Some(f64::from(TOP_P)), Some(TOP_K), manner.seed);
    let mut answer = match turn {
        Turn::Chat(messages) => {
            let (model, messages) = (model.to_owned(), messages.to_owned());
            let request =
                ChatRequest { model, messages, max_tokens: manner.tokens, temperature, top_p, top_k, seed };
            client.chat(&request).await?.boxed()
        }
        Turn::Text(prompt) => {
            let (model, prompt) = (model.to_owned(), prompt.to_owned());
            // Left out, this older call means sixteen.
            let max_tokens = Some(manner.tokens.unwrap_or(u32::MAX));
            let request = CompletionRequest { model, prompt, max_tokens, temperature, top_p, top_k, seed };
            client.complete(&request).await?.boxed()
        }
    };
    while let Some(chunk) = answer.next().await {
        if let ChatChunk::Text(text) = chunk? {
            hear(&text);
        }
    }
    Ok(())
}

async fn hosted_here(
    hosted: &Hosted,
    turn: Turn<'_>,
    manner: Manner,
    hear: &mut dyn FnMut(&str),
) -> Result<()> {
    let prompt = match turn {
        Turn::Text(text) => Prompt::Text(text.to_owned()),
        Turn::Chat(messages) => Prompt::Chat {
            messages: messages
                .iter()
                .map(serde_json::to_value)
                .collect::<Result<_, _>>()
                .map_err(|error| Failure::new(Exit::Failed, error.to_string(), "report this"))?,
        },
    };
    let ask = Ask {
        max_tokens: manner.tokens,
        temperature: manner.temperature,
        top_p: TOP_P,
        top_k: TOP_K,
        seed: manner.seed,
        ..Ask::new(prompt)
    };
    let mut said = hosted.ask(ask).await?;
    while let Some(piece) = said.recv().await {
        match piece {
            // Only those who ask for tools or embeddings get any.
            Said::Started | Said::Call { .. } | Said::Embedded(_) => {}
            Said::Token { text, .. } => hear(&text),
            Said::Finished { text, .. } => {
                hear(&text);
                return Ok(());
            }
            Said::Failed(error) => return Err(error.into()),
        }
    }
    Err(ServeError::Broke("the model's worker went away".to_owned()).into())
}

/// Where the daemon has what a name means: a model's best artifact, or its source while there is none; or one artifact.
async fn path_of(client: &Client, name: &str) -> Result<PathBuf> {
    for model in client.models().await?.models {
        if let Some(artifact) = model.artifacts.iter().find(|it| it.api_name == name || it.id == name) {
            return Ok(artifact.path.clone().into());
        }
        if model.name == name {
            let best = model.artifacts.iter().find(|artifact| artifact.best);
            return Ok(best.map_or(model.source.path, |artifact| artifact.path.clone()).into());
        }
    }
    let message = format!("there is no model `{name}`");
    Err(Failure::new(Exit::Failed, message, "`drophammer models` lists what is there; or name a file"))
}
