//! Talking to an artifact or a source, or to two of them side by side.

use std::borrow::Cow;

use drophammer_client::api::{
    ChatChunk, ChatMessage, ChatRequest, ChatRole, ErrorReport, ServedState, Usage,
};
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Modifier, Style};
use ratatui::text::{Line, Span};

use super::vocabulary::error_lines;
use super::{Ask, Outbox, View};
use crate::actions::Action;
use crate::canvas::{Canvas, Pane, Spot};
use crate::keys::Chord;
use crate::message::{ChatPiece, Effect};
use crate::mirror::{Mirror, Voice};
use crate::overlays::chat_settings::ChatSettings;
use crate::overlays::picker::Picker;
use crate::theme::Theme;
use crate::units;
use crate::widgets::input::Input;
use crate::widgets::wrap::wrap;

/// Marks where two answers part.
const PARTING: char = '⑂';

/// How answers are sampled; what is `None` is left to the server.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Settings {
    pub(crate) system: String,
    pub(crate) temperature: Option<f64>,
    pub(crate) top_p: Option<f64>,
    pub(crate) max_tokens: Option<u32>,
    pub(crate) seed: Option<u64>,
}

#[derive(Debug)]
enum Progress {
    Waiting,
    Streaming,
    Done(String),
    Failed(ErrorReport),
}

#[derive(Debug)]
struct Turn {
    question: String,
    answer: String,
    progress: Progress,
    first_token: Option<f64>,
    seconds: f64,
    /// Pieces received, until the server counts tokens.
    tokens: u64,
}

#[derive(Debug, Default)]
struct Column {
    /// The id of what is talked to.
    voice: Option<String>,
    turns: Vec<Turn>,
    /// Number of the last question; pieces of earlier ones are dropped.
    turn: u64,
}

pub(crate) struct Chat {
    columns: Vec<Column>,
    input: Input,
    writing: bool,
    settings: Settings,
    /// Lines away from the end.
    scrolled: u16,
}

impl Default for Chat {
    fn default() -> Self {
        Self {
            columns: vec![Column::default()],
            input: Input::default(),
            writing: false,
            settings: Settings::default(),
            scrolled: 0,
        }
    }
}

impl Column {
    fn is_running(&self) -> bool {
        self.turns.last().is_some_and(|turn| matches!(turn.progress, Progress::Waiting | Progress::Streaming))
    }

    fn ask(&mut self, question: &str, model: &str, settings: &Settings) -> ChatRequest {
        let say = |role, content: &str| ChatMessage { role, content: content.to_owned() };
        let mut messages = Vec::new();
        if !settings.system.is_empty() {
            messages.push(say(ChatRole::System, &settings.system));
        }
        for turn in self.turns.iter().filter(|turn| !turn.answer.is_empty()) {
            messages.push(say(ChatRole::User, &turn.question));
            messages.push(say(ChatRole::Assistant, &turn.answer));
        }
        messages.push(say(ChatRole::User, question));
        self.turn += 1;
        self.turns.push(Turn {
            question: question.to_owned(),
            answer: String::new(),
            progress: Progress::Waiting,
            first_token: None,
            seconds: 0.0,
            tokens: 0,
        });
        ChatRequest {
            model: model.to_owned(),
            messages,
            max_tokens: settings.max_tokens,
            temperature: settings.temperature,
            top_p: settings.top_p,
            top_k: None,
            seed: settings.seed,
        }
    }
}

impl Turn {
    fn receive(&mut self, seconds: f64, piece: ChatPiece) {
        self.seconds = seconds;
        match piece {
            ChatPiece::Chunk(ChatChunk::Text(text)) => {
                self.first_token.get_or_insert(seconds);
                self.tokens += 1;
                self.answer.push_str(&text);
                self.progress = Progress::Streaming;
            }
            ChatPiece::Chunk(ChatChunk::Finished(reason)) => self.progress = Progress::Done(reason),
            ChatPiece::Chunk(ChatChunk::Usage(Usage { completion_tokens, .. })) => {
                self.tokens = completion_tokens;
            }
            ChatPiece::Failed(error) => self.progress = Progress::Failed(error),
            ChatPiece::Ended => {
                if matches!(self.progress, Progress::Waiting | Progress::Streaming) {
                    self.progress = Progress::Done("ended".to_owned());
                }
            }
        }
    }

    /// Tokens per second after the first.
    fn speed(&self) -> Option<f64> {
        let generating = self.seconds - self.first_token?;
        (self.tokens > 1 && generating > 0.0).then(|| (self.tokens - 1) as f64 / generating)
    }

    fn numbers(&self) -> String {
        let mut parts = Vec::new();
        match (&self.progress, self.first_token) {
            (Progress::Waiting, _) => parts.push("waiting for the first token …".to_owned()),
            (_, Some(first)) => {
                parts.push(format!("{} tokens", self.tokens));
                parts.push(format!("first {}", units::seconds(first)));
            }
            _ => {}
        }
        parts.extend(self.speed().map(|tps| format!("{} tok/s", units::speed(tps))));
        if let Progress::Done(reason) = &self.progress {
            parts.push(reason.clone());
        }
        parts.join(" · ")
    }
}

impl Chat {
    /// Talks to another one from now on; `None` dismisses the second column.
    pub(crate) fn talk_to(&mut self, column: usize, voice: Option<String>, out: &mut Outbox) {
        match voice {
            None if column > 0 => {
                self.columns.truncate(column);
                out.effect(Effect::StopChat(column));
            }
            voice => {
                while self.columns.len() <= column {
                    self.columns.push(Column::default());
                }
                self.columns[column].voice = voice;
                self.writing = true;
            }
        }
    }

    pub(crate) fn set(&mut self, settings: Settings) {
        self.settings = settings;
    }

    /// Takes a piece of an answer.
    pub(crate) fn receive(&mut self, column: usize, turn: u64, seconds: f64, piece: ChatPiece) {
        if let Some(column) = self.columns.get_mut(column)
            && column.turn == turn
            && let Some(last) = column.turns.last_mut()
        {
            last.receive(seconds, piece);
        }
    }

    fn voice<'a>(&self, column: usize, mirror: &'a Mirror) -> Option<Voice<'a>> {
        mirror.voice(self.columns.get(column)?.voice.as_deref()?)
    }

    fn send(&mut self, mirror: &Mirror, out: &mut Outbox) {
        if self.input.text().trim().is_empty() {
            return;
        }
        if self.columns.iter().any(Column::is_running) {
            out.notice("an answer is still being generated; ctrl+x stops it");
            return;
        }
        let names: Vec<Option<String>> = (0..self.columns.len())
            .map(|column| self.voice(column, mirror).map(|voice| voice.api_name.to_owned()))
            .collect();
        if names.iter().any(Option::is_none) {
            Self::pick(0, mirror, out);
            return;
        }
        let question = self.input.take();
        for (at, (column, name)) in self.columns.iter_mut().zip(names.into_iter().flatten()).enumerate() {
            let request = Box::new(column.ask(&question, &name, &self.settings));
            out.effect(Effect::Chat { column: at, turn: column.turn, request });
        }
        self.scrolled = 0;
    }

    fn pick(column: usize, mirror: &Mirror, out: &mut Outbox) {
        if mirror.voices().next().is_none() {
            out.notice("nothing can be talked to yet: no model is there");
        } else {
            out.overlay(Picker::new(column, mirror));
        }
    }

    fn stop(&mut self, out: &mut Outbox) {
        for (at, column) in self.columns.iter_mut().enumerate() {
            if column.is_running() {
                out.effect(Effect::StopChat(at));
                // What still arrives of it is dropped.
                column.turn += 1;
                if let Some(turn) = column.turns.last_mut() {
                    turn.progress = Progress::Done("stopped".to_owned());
                }
            }
        }
    }
}

impl View for Chat {
    fn actions(&self, _mirror: &Mirror) -> Vec<Action> {
        let mut actions = if self.writing { vec![Action::Send, Action::Back] } else { vec![Action::Write] };
        if self.columns.iter().any(Column::is_running) {
            actions.push(Action::StopAnswer);
        }
        actions.push(Action::NewChat);
        if !self.writing {
            actions.extend([Action::PickModel, Action::PickSecond, Action::ChatSettings, Action::Copy]);
            actions.extend([Action::Top, Action::Bottom, Action::Open]);
        }
        actions.extend([Action::Up, Action::Down, Action::PageUp, Action::PageDown, Action::NextPane]);
        actions
    }

    fn act(&mut self, action: Action, mirror: &Mirror, out: &mut Outbox) {
        match action {
            Action::Send => self.send(mirror, out),
            Action::Back => self.writing = false,
            Action::Write | Action::Open => {
                self.writing = true;
                if self.columns[0].voice.is_none() {
                    Self::pick(0, mirror, out);
                }
            }
            Action::NextPane => self.writing = !self.writing,
            Action::StopAnswer => self.stop(out),
            Action::PickModel => Self::pick(0, mirror, out),
            Action::PickSecond if self.columns.len() > 1 => out.push(Ask::Chat { column: 1, artifact: None }),
            Action::PickSecond => Self::pick(1, mirror, out),
            Action::ChatSettings => out.overlay(ChatSettings::new(&self.settings)),
            Action::NewChat => {
                self.stop(out);
                for column in &mut self.columns {
                    column.turns.clear();
                }
                self.scrolled = 0;
            }
            Action::Copy => {
                if let Some(turn) = self.columns[0].turns.last() {
                    out.notice("copied the last answer");
                    out.effect(Effect::Copy(turn.answer.clone()));
                }
            }
            Action::Up => self.scrolled = self.scrolled.saturating_add(1),
            Action::Down => self.scrolled = self.scrolled.saturating_sub(1),
            Action::PageUp => self.scrolled = self.scrolled.saturating_add(10),
            Action::PageDown => self.scrolled = self.scrolled.saturating_sub(10),
            Action::Top => self.scrolled = u16::MAX,
            Action::Bottom => self.scrolled = 0,
            _ => {}
        }
    }

    fn typing(&self) -> bool {
        self.writing
    }

    fn key(&mut self, chord: Chord, _mirror: &Mirror, _out: &mut Outbox) {
        self.input.key(chord);
    }

    fn paste(&mut self, text: &str, _mirror: &Mirror, _out: &mut Outbox) {
        self.writing = true;
        self.input.insert(text);
    }

    fn click(&mut self, spot: Spot, mirror: &Mirror, out: &mut Outbox) {
        match spot {
            Spot::Pane(Pane::Input) => self.act(Action::Write, mirror, out),
            Spot::Pane(_) => self.writing = false,
            _ => {}
        }
    }

    fn wheel(&mut self, _pane: Pane, lines: isize, _mirror: &Mirror, _out: &mut Outbox) {
        let lines = lines.clamp(-100, 100) as i16;
        self.scrolled = self.scrolled.saturating_add_signed(-lines);
    }

    fn refresh(&mut self, mirror: &Mirror, _out: &mut Outbox) {
        // Whoever comes here without having chosen meets what is loaded, or else the best.
        let first = &mut self.columns[0].voice;
        if first.as_deref().is_none_or(|id| mirror.voice(id).is_none()) {
            let ready = |voice: &Voice<'_>| {
                voice.served(mirror).is_some_and(|served| served.state == ServedState::Ready)
            };
            let best = mirror.artifacts().filter(|it| it.best).max_by(|a, b| a.created.total_cmp(&b.created));
            let chosen = mirror.voices().find(ready);
            let chosen = chosen.or_else(|| mirror.voice(&best?.id)).or_else(|| mirror.voices().next());
            *first = chosen.map(|voice| voice.id.to_owned());
        }
    }

    fn draw(&self, canvas: &mut Canvas<'_>, area: Rect, mirror: &Mirror) {
        let [talk, input] = Layout::vertical([Constraint::Fill(1), Constraint::Length(3)]).areas(area);
        let parts = Layout::horizontal(vec![Constraint::Fill(1); self.columns.len()]).split(talk);
        for (at, (column, area)) in self.columns.iter().zip(parts.iter()).enumerate() {
            self.draw_column(canvas, *area, at, column, mirror);
        }
        let inside = canvas.pane(input, &self.describe_settings(), Pane::Input, self.writing);
        canvas.text(inside.x, inside.y, 2, "❯ ", canvas.theme.key);
        let line = Rect { x: inside.x + 2, width: inside.width.saturating_sub(2), ..inside };
        self.input.draw(canvas, line, self.writing, "write a message");
    }
}

impl Chat {
    fn describe_settings(&self) -> String {
        let settings = &self.settings;
        let mut parts = vec!["Message".to_owned()];
        parts.extend(settings.temperature.map(|value| format!("temperature {value}")));
        parts.extend(settings.top_p.map(|value| format!("top-p {value}")));
        parts.extend(settings.max_tokens.map(|value| format!("≤ {value} tokens")));
        parts.extend(settings.seed.map(|value| format!("seed {value}")));
        if !settings.system.is_empty() {
            parts.push("system prompt".to_owned());
        }
        parts.join(" · ")
    }

    fn draw_column(&self, canvas: &mut Canvas<'_>, area: Rect, at: usize, column: &Column, mirror: &Mirror) {
        let voice = self.voice(at, mirror);
        let title = voice.map_or("Chat".to_owned(), |voice| voice.title());
        let inside = canvas.pane(area, &title, Pane::Talk, !self.writing && at == 0);
        if column.turns.is_empty() {
            draw_empty(canvas, inside, voice);
            return;
        }
        let mut lines = Vec::new();
        for (index, turn) in column.turns.iter().enumerate() {
            let other = self.columns.get(1 - at.min(1)).filter(|_| self.columns.len() > 1);
            let parting = other
                .and_then(|other| other.turns.get(index))
                .filter(|other| !other.answer.is_empty() && !turn.answer.is_empty())
                .map(|other| common_prefix(&turn.answer, &other.answer));
            draw_turn(&mut lines, turn, parting, canvas.theme, inside.width);
        }
        let height = usize::from(inside.height);
        let hidden = lines.len().saturating_sub(height);
        let top = hidden.saturating_sub(usize::from(self.scrolled));
        canvas.lines(inside, &lines[top..lines.len().min(top + height)]);
        crate::widgets::table::scroll_bar(
            canvas,
            Rect { width: inside.width + 1, ..inside },
            top,
            lines.len(),
        );
    }
}

fn draw_empty(canvas: &mut Canvas<'_>, area: Rect, voice: Option<Voice<'_>>) {
    match voice {
        Some(voice) => {
            let name = voice.title();
            canvas.empty(
                area,
                &[&name, "", "i writes, ⏎ sends, m chooses another,", "v puts a second beside it"],
            );
        }
        None => canvas.empty(
            area,
            &["Nothing can be talked to yet.", "Once a model is forged, its best artifact answers here."],
        ),
    }
}

/// Bytes that two answers share, cut at a character.
fn common_prefix(a: &str, b: &str) -> usize {
    let same = a.char_indices().zip(b.chars()).find(|((_, a), b)| a != b);
    same.map_or(a.len().min(b.len()), |((at, _), _)| at)
}

fn draw_turn(lines: &mut Vec<Line<'static>>, turn: &Turn, parting: Option<usize>, theme: &Theme, width: u16) {
    let width = usize::from(width.saturating_sub(3)).max(4);
    for (at, piece) in wrap(&turn.question, width).into_iter().enumerate() {
        let mark = if at == 0 { "❯ " } else { "  " };
        lines.push(Line::from(vec![Span::styled(mark, theme.user), Span::styled(piece, theme.user)]));
    }
    let mut answer = Cow::Borrowed(turn.answer.as_str());
    if let Some(at) = parting.filter(|at| *at < turn.answer.len()) {
        answer.to_mut().insert(at, PARTING);
    }
    let parted_style = theme.text.add_modifier(Modifier::UNDERLINED);
    let mut parted = false;
    for piece in wrap(&answer, width) {
        let (before, after) = if parted {
            (String::new(), piece)
        } else if let Some((before, after)) = piece.split_once(PARTING) {
            parted = true;
            (before.to_owned(), format!("{PARTING}{after}"))
        } else {
            (piece, String::new())
        };
        lines.push(Line::from(vec![
            Span::raw("  "),
            Span::styled(before, theme.text),
            Span::styled(after, parted_style),
        ]));
    }
    if let Progress::Failed(error) = &turn.progress {
        lines.extend(error_lines(error, width as u16, theme));
    }
    let mut numbers = turn.numbers();
    if let Some(at) = parting {
        let words = turn.answer[..at].split_whitespace().count();
        let note = if at == turn.answer.len() {
            "same so far".to_owned()
        } else {
            format!("{PARTING} parts after {words} words")
        };
        numbers = format!("{numbers} · {note}");
    }
    push_dim(lines, &numbers, theme.dim, width);
    lines.push(Line::default());
}

fn push_dim(lines: &mut Vec<Line<'static>>, text: &str, style: Style, width: usize) {
    for piece in wrap(text, width) {
        lines.push(Line::from(vec![Span::raw("  "), Span::styled(piece, style)]));
    }
}
