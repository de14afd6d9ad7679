//! Talk with a model; the answer comes as it is generated.

use std::io::{BufRead, IsTerminal, Read, Write};

use drophammer_client::api::{ChatMessage, ChatRole};
use tokio::sync::mpsc;

use super::print;
use super::voice::{Manner, Turn, Voice};
use crate::arguments::Run;
use crate::failure::{Exit, Failure, Result};

/// The longest prompt that is read from standard input, bytes.
const PROMPT_LIMIT: u64 = 16 << 20;

pub(super) async fn run(arguments: Run) -> Result<()> {
    let manner = Manner::of(&arguments);
    let prompt = match &arguments.prompt {
        Some(prompt) => Some(prompt.clone()),
        None if std::io::stdin().is_terminal() => None,
        None => Some(piped()?),
    };
    let interrupted = || async {
        // Without a handler the signal ends the program, which is what is wanted.
        if tokio::signal::ctrl_c().await.is_err() {
            std::future::pending::<()>().await;
        }
    };
    let voice = tokio::select! {
        voice = Voice::of(&arguments) => voice?,
        () = interrupted() => return Err(stopped()),
    };
    let Some(prompt) = prompt else { return converse(&voice, manner, arguments.raw).await };
    let message = [ChatMessage { role: ChatRole::User, content: prompt.clone() }];
    let turn = if arguments.raw { Turn::Text(&prompt) } else { Turn::Chat(&message) };
    let mut hear = show;
    let said = tokio::select! {
        said = voice.say(turn, manner, &mut hear) => said,
        () = interrupted() => Err(stopped()),
    };
    print("\n");
    said
}

fn stopped() -> Failure {
    Failure::new(Exit::Failed, "stopped", "")
}

/// A conversation at a terminal: a line is a turn. It ends with the input, or with Ctrl-C while nothing is being said.
async fn converse(voice: &Voice, manner: Manner, raw: bool) -> Result<()> {
    eprintln!("{} · Ctrl-C stops an answer, Ctrl-D leaves", voice.name());
    let mut lines = lines();
    let mut messages = Vec::new();
    loop {
        eprint!("> ");
        let line = tokio::select! {
            line = lines.recv() => line,
            _ = tokio::signal::ctrl_c() => None,
        };
        let Some(line) = line else {
            eprintln!();
            return Ok(());
        };
        if line.trim().is_empty() {
            continue;
        }
        messages.push(ChatMessage { role: ChatRole::User, content: line.clone() });
        let turn = if raw { Turn::Text(&line) } else { Turn::Chat(&messages) };
        let mut answer = String::new();
        let mut hear = |text: &str| {
            answer.push_str(text);
            show(text);
        };
        tokio::select! {
            said = voice.say(turn, manner, &mut hear) => said?,
            _ = tokio::signal::ctrl_c() => print(" …"),
        }
        print("\n");
        messages.push(ChatMessage { role: ChatRole::Assistant, content: answer });
    }
}

/// Lines of standard input, read by a thread of their own: a wait for a line cannot be called off.
fn lines() -> mpsc::UnboundedReceiver<String> {
    let (sender, lines) = mpsc::unbounded_channel();
    std::thread::spawn(move || {
        for line in std::io::stdin().lock().lines().map_while(Result::ok) {
            if sender.send(line).is_err() {
                return;
            }
        }
    });
    lines
}

/// Shows a piece of an answer. A model may say anything; a terminal gets none of its escapes.
fn show(text: &str) {
    let mut out = std::io::stdout();
    if out.is_terminal() {
        print(&text.replace(|c: char| c.is_control() && c != '\n' && c != '\t', "�"));
    } else {
        print(text);
    }
    let _ = out.flush();
}

/// The prompt that is piped in.
fn piped() -> Result<String> {
    let mut prompt = String::new();
    std::io::stdin()
        .take(PROMPT_LIMIT)
        .read_to_string(&mut prompt)
        .map_err(|error| Failure::io("standard input".as_ref(), &error))?;
    if prompt.trim().is_empty() {
        return Err(Failure::new(Exit::Usage, "there is no prompt", "give one, or pipe one in"));
    }
    Ok(prompt)
}
