//! Sequences of keys and what they lead to.

use drophammer_client::api::{ChatChunk, Event, Job};

use super::{app, draw, fresh, press, recorded, text, write};
use crate::actions::{Action, EVERYWHERE};
use crate::app::App;
use crate::keys::Chord;
use crate::message::{ChatPiece, Effect, Message};

fn shows(app: &mut App, wanted: &str) {
    let shown = text(&draw(app, 120, 34));
    assert!(shown.contains(wanted), "`{wanted}` is not on\n{shown}");
}

#[test]
fn a_job_is_cancelled_and_a_failed_one_retried() {
    let mut app = app("dark");
    // The first model is open; its jobs follow it.
    assert_eq!(press(&mut app, "down down down x").last(), Some(&Effect::Cancel("9".into())));
    press(&mut app, "/");
    write(&mut app, "mlx");
    assert_eq!(press(&mut app, "enter end r").last(), Some(&Effect::Retry("6".into())));
}

#[test]
fn opening_a_job_reads_its_log_once_and_follows_its_lines() {
    let mut app = app("dark");
    let effects = press(&mut app, "down down down up down");
    let asked = effects.iter().filter(|effect| **effect == Effect::JobLog("9".into())).count();
    assert_eq!(asked, 1);
    let mut line = recorded().log.lines[0].clone();
    line.sequence = 99;
    line.message = "a line that came later".into();
    app.update(Message::Event(Box::new(Event::Log(line.clone()))));
    // The same line again, as after a reconnect, is not shown twice.
    app.update(Message::Event(Box::new(Event::Log(line))));
    let shown = text(&draw(&mut app, 120, 34));
    assert_eq!(shown.matches("a line that came later").count(), 1);
}

#[test]
fn what_is_selected_stays_selected_while_jobs_come_and_go() {
    let mut app = app("dark");
    press(&mut app, "down down down");
    shows(&mut app, "smollm2-135m · gguf q4_k_m");
    let mut new = recorded().jobs[0].clone();
    new.id = "99".into();
    new.model = "another".into();
    new.state = drophammer_client::api::JobState::Running;
    new.created += 5000.0;
    app.update(Message::Event(Box::new(Event::Job(Box::new(new)))));
    shows(&mut app, "smollm2-135m · gguf q4_k_m");
    shows(&mut app, "another");
    app.update(Message::Event(Box::new(Event::JobRemoved("99".into()))));
    shows(&mut app, "smollm2-135m · gguf q4_k_m");
}

#[test]
fn a_dropped_model_shows_up_without_a_key() {
    let mut app = fresh("dark");
    app.update(Message::Connected);
    app.update(Message::Loaded(Box::default()));
    shows(&mut app, "Nothing to forge yet.");
    let model = recorded().models[3].clone();
    app.update(Message::Event(Box::new(Event::Model(Box::new(model)))));
    shows(&mut app, "qwen3-4b");
}

#[test]
fn keys_alone_lead_from_a_model_to_a_chat() {
    let mut app = app("dark");
    press(&mut app, "2 o o o o o o c");
    write(&mut app, "hello you");
    let effects = press(&mut app, "enter");
    let Some(Effect::Chat { column: 0, turn: 1, request }) = effects.last() else { panic!("{effects:?}") };
    assert_eq!(request.messages[0].content, "hello you");
    assert!(request.model.contains(':'));
    let piece = ChatPiece::Chunk(ChatChunk::Text("Good day".into()));
    app.update(Message::Chat { column: 0, turn: 1, seconds: 0.2, piece });
    shows(&mut app, "Good day");
    // The next question carries the conversation.
    app.update(Message::Chat { column: 0, turn: 1, seconds: 0.3, piece: ChatPiece::Ended });
    write(&mut app, "and");
    let effects = press(&mut app, "enter");
    let Some(Effect::Chat { request, .. }) = effects.last() else { panic!("{effects:?}") };
    assert_eq!(request.messages.len(), 3);
}

#[test]
fn a_stopped_answer_takes_no_more_pieces() {
    let mut app = app("dark");
    press(&mut app, "5 i");
    write(&mut app, "hi");
    press(&mut app, "enter");
    assert_eq!(press(&mut app, "ctrl+x"), [Effect::StopChat(0)]);
    let piece = ChatPiece::Chunk(ChatChunk::Text("too late".into()));
    app.update(Message::Chat { column: 0, turn: 1, seconds: 0.2, piece });
    assert!(!text(&draw(&mut app, 120, 34)).contains("too late"));
}

#[test]
fn sampling_settings_travel_with_the_question() {
    let mut app = app("dark");
    press(&mut app, "5 o");
    write(&mut app, "be brief");
    press(&mut app, "down");
    write(&mut app, "0");
    press(&mut app, "enter i");
    write(&mut app, "hi");
    let effects = press(&mut app, "enter");
    let Some(Effect::Chat { request, .. }) = effects.last() else { panic!("{effects:?}") };
    assert_eq!((request.messages[0].content.as_str(), request.temperature), ("be brief", Some(0.0)));
}

#[test]
fn a_pin_is_set_and_taken_back_and_shown() {
    let mut app = app("dark");
    let mut served = recorded().served;
    assert_eq!(press(&mut app, "2 /"), []);
    write(&mut app, "mistral");
    press(&mut app, "enter");
    let effects = press(&mut app, "p");
    let Some(Effect::Pin(artifact)) = effects.last() else { panic!("{effects:?}") };
    served[0].artifact.clone_from(artifact);
    served[0].pinned = true;
    let told = Event::Served(drophammer_client::api::Served { models: served });
    app.update(Message::Event(Box::new(told)));
    shows(&mut app, "●pinned");
    assert_eq!(press(&mut app, "p").last(), Some(&Effect::Unpin(artifact.clone())));
}

#[test]
fn a_source_is_talked_to_by_its_own_name() {
    let mut app = app("dark");
    press(&mut app, "5 m");
    write(&mut app, "smollm2 source");
    shows(&mut app, "q4_1");
    press(&mut app, "enter");
    shows(&mut app, "smollm2-135m · gguf q4_1 (source)");
    write(&mut app, "hi");
    let effects = press(&mut app, "enter");
    let Some(Effect::Chat { request, .. }) = effects.last() else { panic!("{effects:?}") };
    assert_eq!(request.model, "smollm2-135m:source");
}

#[test]
fn deleting_asks_first() {
    let mut app = app("dark");
    assert_eq!(press(&mut app, "2 D esc"), []);
    assert!(matches!(press(&mut app, "D y")[..], [Effect::Delete(_)]));
}

#[test]
fn a_source_that_answers_as_it_is_stands_among_artifacts_but_is_not_ours_to_delete() {
    let mut app = app("dark");
    let mut model = recorded().models.into_iter().find(|model| model.source.api_name.is_some()).unwrap();
    let mut source = model.artifacts[0].clone();
    source.id = format!("{}:source:0", model.name);
    source.api_name = model.source.api_name.clone().unwrap();
    source.scheme = "as dropped".into();
    let own_name = source.api_name.clone();
    model.artifacts = vec![source];
    app.update(Message::Event(Box::new(Event::Model(Box::new(model)))));
    press(&mut app, "2 /");
    write(&mut app, "as dropped");
    press(&mut app, "enter");
    shows(&mut app, "the source itself");
    shows(&mut app, &own_name);
    assert!(matches!(press(&mut app, "D y")[..], [Effect::Copy(_)]), "y answers no question");
    assert_eq!(app.mirror.voices().filter(|voice| voice.api_name == own_name).count(), 1);
}

#[test]
fn the_job_of_a_source_shows_the_stages_that_it_goes_through() {
    let mut app = app("dark");
    let mut job = recorded().jobs.into_iter().find(|job| job.id == "9").unwrap();
    job.target = Some(drophammer_client::api::SOURCE_TARGET.into());
    job.stage = drophammer_client::api::Stage::Measure;
    app.update(Message::Event(Box::new(Event::Job(Box::new(job)))));
    press(&mut app, "down down down");
    shows(&mut app, "(source)");
    shows(&mut app, "✓ identify ─ ✓ plan ─ ▶ measure");
}

#[test]
fn targets_are_marked_and_forged_and_what_cannot_be_made_is_not() {
    let mut app = app("dark");
    let effects = press(&mut app, "f space down space end space enter");
    let wanted = vec!["gguf-q4_k_m".to_owned(), "gguf-q8_0".to_owned()];
    assert_eq!(effects.last(), Some(&Effect::Forge("smollm2-135m".into(), wanted)));
}

#[test]
fn the_palette_finds_and_does() {
    let mut app = app("dark");
    press(&mut app, ":");
    write(&mut app, "backends");
    press(&mut app, "enter");
    shows(&mut app, "crashed");
}

#[test]
fn text_is_text_while_typing() {
    let mut app = app("dark");
    press(&mut app, "/");
    write(&mut app, "q2");
    shows(&mut app, "/q2");
    // Neither did q leave nor 2 change the view.
    shows(&mut app, "gguf q2_k");
    press(&mut app, "esc");
    assert_eq!(press(&mut app, "q"), [Effect::Quit]);
}

#[test]
fn ctrl_c_leaves_from_anywhere() {
    for keys in ["1", "2", "5 i", ":", "?", "a", "f", "2 D", "/"] {
        let mut app = app("dark");
        press(&mut app, keys);
        assert_eq!(press(&mut app, "ctrl+c"), [Effect::Quit], "after {keys}");
    }
}

#[test]
fn after_a_reconnect_everything_is_read_anew() {
    let mut app = app("dark");
    let error = drophammer_client::api::ErrorReport::new("no_daemon", "no daemon is running");
    app.update(Message::Disconnected { error, retry_in: 1.0 });
    shows(&mut app, "no daemon is running");
    assert_eq!(app.update(Message::Connected), []);
    assert_eq!(app.update(Message::Event(Box::new(Event::Resync))), [Effect::Load]);
    assert!(!text(&draw(&mut app, 120, 34)).contains("no daemon is running"));
}

#[test]
fn what_happens_while_everything_is_read_is_not_overwritten_by_it() {
    let mut app = app("dark");
    app.update(Message::Event(Box::new(Event::Resync)));
    let mut job = recorded().jobs[8].clone();
    job.progress = 0.99;
    app.update(Message::Event(Box::new(Event::Job(Box::new(job)))));
    app.update(Message::Loaded(Box::new(recorded().loaded())));
    shows(&mut app, "99%");
    // Only once: a later reading stands for itself.
    app.update(Message::Loaded(Box::new(recorded().loaded())));
    shows(&mut app, "81%");
}

/// Wherever one is: no key may mean two things, for one of them could never be reached.
#[test]
fn no_offered_action_hides_behind_anothers_key() {
    let places = [
        "1",
        "1 down down down",
        "1 tab",
        "2",
        "3",
        "4",
        "4 enter",
        "5",
        "6",
        "?",
        ":",
        "f down space",
        "2 D",
    ];
    for place in places {
        let mut app = app("dark");
        press(&mut app, place);
        let offered = app.offered();
        for action in &offered {
            let keys = action.entry().keys;
            let typing = app.is_typing();
            let reachable = keys.iter().any(|key| {
                let chord = Chord::parse(key).unwrap();
                (!typing || chord.types().is_none()) && app.keymap.action(chord, &offered) == Some(*action)
            });
            assert!(reachable || keys.is_empty(), "{} cannot be reached at {place}", action.entry().name);
        }
    }
}

#[test]
fn everything_the_program_offers_everywhere_does_something() {
    for action in EVERYWHERE.iter().filter(|action| !matches!(action, Action::GoForge)) {
        let mut app = app("dark");
        let before = text(&draw(&mut app, 120, 34));
        let key = action.entry().keys[0];
        let effects = press(&mut app, key);
        let after = text(&draw(&mut app, 120, 34));
        assert!(!effects.is_empty() || before != after, "{key} does nothing");
    }
}

#[test]
fn hostile_text_from_the_daemon_draws_no_control_characters() {
    let mut app = app("dark");
    let mut job: Job = recorded().jobs[8].clone();
    job.model = "evil\u{1b}[2J\u{7}".into();
    job.activity = Some("a\nb\tc\u{9b}31m".into());
    app.update(Message::Event(Box::new(Event::Job(Box::new(job)))));
    for c in text(&draw(&mut app, 120, 34)).chars() {
        assert!(!c.is_control() || c == '\n', "{c:?}");
    }
}
