//! How long a key takes to be answered, with 10 000 jobs and 1 000 artifacts listed.
//!
//! `cargo run --release -p drophammer-tui --example latency`

use std::time::{Duration, Instant};

use crossterm::event::{KeyCode, KeyEvent, KeyModifiers};
use drophammer_client::api::{Artifact, Event, Job, ModelEntry};
use drophammer_tui::app::App;
use drophammer_tui::keys::Keymap;
use drophammer_tui::message::{Loaded, Message};
use drophammer_tui::theme::Theme;
use ratatui::buffer::Buffer;
use ratatui::layout::Rect;
use serde::Deserialize;

const JOBS: usize = 10_000;
const ARTIFACTS: usize = 1_000;
const MODELS: usize = 100;

#[derive(Deserialize)]
struct Recorded {
    models: Vec<ModelEntry>,
    jobs: Vec<Job>,
}

/// The recorded jobs and artifacts, many times over.
fn many() -> Result<Loaded, serde_json::Error> {
    let recorded: Recorded = serde_json::from_str(include_str!("../fixtures/forge.json"))?;
    let artifacts: Vec<&Artifact> = recorded.models.iter().flat_map(|model| &model.artifacts).collect();
    let name = |at: usize| format!("model-{:03}", at % MODELS);
    let models = (0..MODELS).map(|at| {
        let mut model = recorded.models[0].clone();
        model.name = name(at);
        model.artifacts = (0..ARTIFACTS / MODELS)
            .map(|number| {
                let mut artifact = artifacts[number % artifacts.len()].clone();
                artifact.id = format!("{at}-{number}");
                artifact.model = name(at);
                artifact
            })
            .collect();
        model
    });
    let jobs = (0..JOBS).map(|at| {
        let mut job = recorded.jobs[at % recorded.jobs.len()].clone();
        job.id = at.to_string();
        job.model = name(at);
        job
    });
    Ok(Loaded { jobs: jobs.collect(), models: models.collect(), ..Loaded::default() })
}

struct Bench {
    app: App,
    area: Rect,
    buffer: Buffer,
}

impl Bench {
    /// A message until it is drawn.
    fn answer(&mut self, message: Message) -> Duration {
        let start = Instant::now();
        self.app.update(message);
        self.app.prepare();
        self.buffer.reset();
        self.app.draw(self.area, &mut self.buffer);
        start.elapsed()
    }

    fn key(&mut self, code: KeyCode) -> Duration {
        self.answer(Message::Key(KeyEvent::new(code, KeyModifiers::NONE)))
    }

    fn report(&mut self, what: &str, keys: &[KeyCode], repeat: usize) {
        let mut times: Vec<Duration> =
            (0..repeat).flat_map(|_| keys.to_vec()).map(|key| self.key(key)).collect();
        times.sort();
        let (median, worst) = (times[times.len() / 2], times[times.len() - 1]);
        println!("{what:<40} median {median:>9.1?}  worst {worst:>9.1?}");
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let area = Rect::new(0, 0, 200, 50);
    let app = App::new(Theme::named("dark")?, Keymap::default(), true, 0);
    let mut bench = Bench { app, area, buffer: Buffer::empty(area) };
    let loaded = many()?;
    let job = loaded.jobs[17].clone();
    println!("{JOBS} jobs, {ARTIFACTS} artifacts, 200 × 50 cells");
    println!("{:<40} {:>16.1?}", "reading everything", bench.answer(Message::Loaded(Box::new(loaded))));
    bench.report("forge: down", &[KeyCode::Down], 200);
    bench.report("forge: first and last line", &[KeyCode::End, KeyCode::Home], 50);
    bench.report("forge: a page", &[KeyCode::PageDown], 100);
    bench.report(
        "forge: filter, letter by letter",
        &"/q4_k".chars().map(KeyCode::Char).collect::<Vec<_>>(),
        1,
    );
    bench.key(KeyCode::Esc);
    let mut news: Vec<Duration> = (0..100)
        .map(|step| {
            let mut job = job.clone();
            job.progress = f64::from(step) / 100.0;
            bench.answer(Message::Event(Box::new(Event::Job(Box::new(job)))))
        })
        .collect();
    news.sort();
    println!("{:<40} median {:>9.1?}  worst {:>9.1?}", "a job's progress until drawn", news[50], news[99]);
    bench.report("models: open", &[KeyCode::Char('1'), KeyCode::Char('2')], 20);
    bench.report("models: down", &[KeyCode::Down], 200);
    bench.report("models: sort", &[KeyCode::Char('o')], 20);
    bench.report(
        "models: filter, letter by letter",
        &"/q4_k".chars().map(KeyCode::Char).collect::<Vec<_>>(),
        1,
    );
    Ok(())
}
