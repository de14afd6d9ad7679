//! The program's surroundings: terminal, clock, daemon. Turns what happens into messages, carries
//! effects out, and draws when something changed.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::Context as _;
use crossterm::event::{Event as TerminalEvent, EventStream};
use drophammer_client::api::{AddModel, ChatRequest, ForgeModel};
use drophammer_client::{Client, ClientError, Endpoint, Update};
use futures::StreamExt as _;
use tokio::sync::mpsc;
use tokio::task::AbortHandle;

use crate::app::App;
use crate::config::TuiConfig;
use crate::keys::Keymap;
use crate::message::{ChatPiece, Effect, Loaded, Message};
use crate::terminal::{self, Taken, capture_mouse, copy};

/// News of the daemon is drawn at most this often; keys are answered at once.
const NEWS_PAUSE: Duration = Duration::from_millis(50);

/// How to run the dashboard.
#[derive(Debug, Clone)]
pub struct TuiOptions {
    /// Where the daemon is.
    pub endpoint: Endpoint,
    /// An API key for daemons that ask for one.
    pub key: Option<String>,
    /// The `[tui]` table of the configuration.
    pub config: TuiConfig,
    /// A theme's name or file, above that of the configuration.
    pub theme: Option<String>,
}

/// Runs the dashboard until it is left. Must not be called from inside a Tokio runtime.
///
/// # Errors
/// When the configuration is wrong or the terminal cannot be used. A daemon that is away is no error:
/// the dashboard says so and keeps trying.
pub fn run(options: TuiOptions) -> anyhow::Result<()> {
    let theme = options.config.theme(options.theme.as_deref()).map_err(anyhow::Error::msg)?;
    let keymap =
        Keymap::with(&options.config.keys).map_err(anyhow::Error::msg).context("key table of [tui]")?;
    let app = App::new(theme, keymap, options.config.mouse, crate::config::utc_offset());
    let mut client = Client::new(options.endpoint);
    if let Some(key) = options.key {
        client = client.with_key(key);
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let terminal = Taken::take(options.config.mouse)?;
    let result = runtime.block_on(Program::new(app, client, terminal).run());
    // Answers still being read must not keep anybody waiting.
    runtime.shutdown_background();
    result
}

struct Program {
    app: App,
    client: Client,
    terminal: Taken,
    messages: mpsc::UnboundedSender<Message>,
    inbox: mpsc::UnboundedReceiver<Message>,
    /// Answers being received, by chat column.
    chats: [Option<AbortHandle>; 2],
    leaving: bool,
}

impl Program {
    fn new(app: App, client: Client, terminal: Taken) -> Self {
        let (messages, inbox) = mpsc::unbounded_channel();
        Self { app, client, terminal, messages, inbox, chats: [None, None], leaving: false }
    }

    async fn run(mut self) -> anyhow::Result<()> {
        let mut keys = EventStream::new();
        let mut events = self.client.events();
        let mut clock = tokio::time::interval(Duration::from_millis(500));
        clock.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
        let mut leave = Box::pin(asked_to_leave());
        let mut drawn = Instant::now().checked_sub(NEWS_PAUSE).unwrap_or_else(Instant::now);
        self.handle(Message::Tick(now()));
        while !self.leaving {
            let due = drawn + NEWS_PAUSE;
            let waits = self.app.is_dirty();
            tokio::select! {
                biased;
                () = &mut leave => break,
                key = keys.next() => {
                    match key {
                        None => break,
                        Some(event) => self.terminal_event(event.context("the terminal went away")?),
                    }
                    // A key is answered at once.
                    if self.app.is_dirty() {
                        self.draw()?;
                        drawn = Instant::now();
                    }
                }
                () = tokio::time::sleep_until(due.into()), if waits => {
                    self.draw()?;
                    drawn = Instant::now();
                }
                Some(message) = self.inbox.recv() => self.handle(message),
                Some(update) = events.next() => self.handle(message_of(update)),
                _ = clock.tick() => self.handle(Message::Tick(now())),
            }
        }
        Ok(())
    }

    fn terminal_event(&mut self, event: TerminalEvent) {
        let message = match event {
            TerminalEvent::Key(key) => Message::Key(key),
            TerminalEvent::Mouse(mouse) => Message::Mouse(mouse),
            TerminalEvent::Paste(text) => Message::Paste(text),
            TerminalEvent::Resize(..) => Message::Resized,
            TerminalEvent::FocusGained | TerminalEvent::FocusLost => return,
        };
        self.handle(message);
    }

    fn handle(&mut self, message: Message) {
        for effect in self.app.update(message) {
            self.carry_out(effect);
        }
    }

    fn draw(&mut self) -> anyhow::Result<()> {
        // A panic in a task or thread has given the terminal back already.
        anyhow::ensure!(
            terminal::is_taken(),
            "a part of the dashboard failed; please report the message above"
        );
        for effect in self.app.prepare() {
            self.carry_out(effect);
        }
        let app = &mut self.app;
        self.terminal.screen.draw(|frame| app.draw(frame.area(), frame.buffer_mut()))?;
        Ok(())
    }

    fn carry_out(&mut self, effect: Effect) {
        let client = self.client.clone();
        match effect {
            Effect::Quit => self.leaving = true,
            Effect::Redraw => {
                // A screen that cannot be cleared shows itself at the next drawing.
                let _ = terminal::clear(&mut self.terminal.screen);
            }
            Effect::Mouse(on) => {
                let _ = capture_mouse(on);
            }
            Effect::Copy(text) => {
                let _ = copy(&text);
            }
            Effect::Load => self.spawn(async move { load(&client).await }),
            Effect::JobLog(id) => self.spawn(async move {
                let log = client.job_log(&id).await;
                Message::JobLog(id, log.map_err(|error| error.report()))
            }),
            Effect::PluginLog(id) => self.spawn(async move {
                let log = client.plugin_log(&id).await;
                Message::PluginLog(id, log.map_err(|error| error.report()))
            }),
            Effect::Plan(model) => self.spawn(async move {
                let plan = client.model_plan(&model).await;
                Message::Plan(model, plan.map_err(|error| error.report()))
            }),
            Effect::Forge(model, targets) => self.ask(async move {
                let jobs = client.forge_model(&model, &ForgeModel { targets }).await?.jobs.len();
                Ok(format!("{jobs} jobs queued for {model}"))
            }),
            Effect::Add(path) => self.ask(async move {
                let model = client.add_model(&AddModel { path, name: None }).await?;
                Ok(format!("{} is on its way", model.name))
            }),
            Effect::Cancel(id) => self.ask(async move {
                let job = client.cancel_job(&id).await?;
                Ok(format!("job {id} of {} is being stopped", job.model))
            }),
            Effect::Retry(id) => self.ask(async move {
                let job = client.retry_job(&id).await?;
                Ok(format!("job {} of {} is queued again", job.id, job.model))
            }),
            Effect::Serve(id) => self.ask(async move {
                let served = client.serve_artifact(&id).await?;
                Ok(format!("{} is {}", served.name, served.state))
            }),
            Effect::Unserve(id) => self.ask(async move {
                client.unserve_artifact(&id).await?;
                Ok("unloaded".to_owned())
            }),
            Effect::Pin(id) => self.ask(async move {
                let served = client.pin_artifact(&id).await?;
                Ok(format!("{} stays loaded", served.name))
            }),
            Effect::Unpin(id) => self.ask(async move {
                client.unpin_artifact(&id).await?;
                Ok("it may be unloaded again".to_owned())
            }),
            Effect::Delete(id) => self.ask(async move {
                client.delete_artifact(&id).await?;
                Ok("removed from the library".to_owned())
            }),
            Effect::Reload(id) => self.ask(async move {
                let plugin = client.reload_plugin(&id).await?;
                Ok(format!("plugin {id} is {}", plugin.state))
            }),
            Effect::Chat { column, turn, request } => self.chat(column, turn, request),
            Effect::StopChat(column) => self.stop_chat(column),
        }
    }

    fn spawn(&self, work: impl Future<Output = Message> + Send + 'static) {
        let messages = self.messages.clone();
        tokio::spawn(async move {
            // Nobody reads any more once the dashboard is left.
            let _ = messages.send(work.await);
        });
    }

    fn ask(&self, work: impl Future<Output = Result<String, ClientError>> + Send + 'static) {
        self.spawn(async move { Message::Done(work.await.map_err(|error| error.report())) });
    }

    fn stop_chat(&mut self, column: usize) {
        if let Some(task) = self.chats.get_mut(column).and_then(Option::take) {
            task.abort();
        }
    }

    fn chat(&mut self, column: usize, turn: u64, request: Box<ChatRequest>) {
        self.stop_chat(column);
        let (client, messages) = (self.client.clone(), self.messages.clone());
        let task = tokio::spawn(async move {
            let start = Instant::now();
            let send = |piece| {
                let seconds = start.elapsed().as_secs_f64();
                let _ = messages.send(Message::Chat { column, turn, seconds, piece });
            };
            match client.chat(&request).await {
                Err(error) => send(ChatPiece::Failed(error.report())),
                Ok(answer) => {
                    let mut answer = Box::pin(answer);
                    while let Some(chunk) = answer.next().await {
                        send(match chunk {
                            Ok(chunk) => ChatPiece::Chunk(chunk),
                            Err(error) => ChatPiece::Failed(error.report()),
                        });
                    }
                    send(ChatPiece::Ended);
                }
            }
        });
        if let Some(place) = self.chats.get_mut(column) {
            *place = Some(task.abort_handle());
        }
    }
}

/// Reads everything. Parts a daemon does not offer are left out.
async fn load(client: &Client) -> Message {
    let (status, jobs, models, plugins, served, hardware, requests) = tokio::join!(
        client.status(),
        client.jobs(),
        client.models(),
        client.plugins(),
        client.served(),
        client.hardware(),
        client.requests(),
    );
    match (status, jobs, models) {
        (Ok(status), Ok(jobs), Ok(models)) => Message::Loaded(Box::new(Loaded {
            status: Some(status),
            jobs: jobs.jobs,
            models: models.models,
            plugins: plugins.map(|plugins| plugins.plugins).unwrap_or_default(),
            served: served.map(|served| served.models).unwrap_or_default(),
            hardware: hardware.ok(),
            requests: requests.ok(),
        })),
        (Err(error), ..) | (_, Err(error), _) | (.., Err(error)) => Message::LoadFailed(error.report()),
    }
}

fn message_of(update: Update) -> Message {
    match update {
        Update::Connected => Message::Connected,
        Update::Event(event) => Message::Event(Box::new(event)),
        Update::Disconnected { error, retry_in } => {
            Message::Disconnected { error: error.report(), retry_in: retry_in.as_secs_f64() }
        }
    }
}

/// Returns when the system asks this process to end.
async fn asked_to_leave() {
    use tokio::signal::unix::{SignalKind, signal};
    let (Ok(mut terminate), Ok(mut hangup), Ok(mut interrupt)) =
        (signal(SignalKind::terminate()), signal(SignalKind::hangup()), signal(SignalKind::interrupt()))
    else {
        return std::future::pending().await;
    };
    tokio::select! {
        _ = terminate.recv() => {}
        _ = hangup.recv() => {}
        _ = interrupt.recv() => {}
    }
}

fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64())
}
