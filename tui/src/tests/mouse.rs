//! What is under the mouse is what was drawn there.

use crossterm::event::{MouseButton, MouseEventKind};

use super::{app, draw, mouse, press, text};
use crate::actions::Action;
use crate::app::App;
use crate::canvas::{Pane, Spot};
use crate::message::Effect;

const LEFT: MouseEventKind = MouseEventKind::Down(MouseButton::Left);

fn click(app: &mut App, spot: Spot) -> Vec<Effect> {
    draw(app, 120, 34);
    let area = app.spots().find(spot).unwrap_or_else(|| panic!("{spot:?} is nowhere"));
    mouse(app, LEFT, area.x + area.width / 2, area.y)
}

#[test]
fn tabs_rows_heads_and_hints_can_be_clicked() {
    let mut app = app("dark");
    click(&mut app, Spot::Row(Pane::List, 3));
    assert!(text(&draw(&mut app, 120, 34)).contains("smollm2-135m · gguf q4_k_m"));
    assert_eq!(click(&mut app, Spot::Act(Action::CancelJob)), [Effect::Cancel("9".into())]);
    click(&mut app, Spot::Act(Action::GoModels));
    let before = text(&draw(&mut app, 120, 34));
    click(&mut app, Spot::Column(4));
    assert_ne!(text(&draw(&mut app, 120, 34)), before);
    assert_eq!(click(&mut app, Spot::Act(Action::Quit)), [Effect::Quit]);
}

#[test]
fn clicking_a_model_twice_folds_it() {
    let mut app = app("dark");
    click(&mut app, Spot::Row(Pane::List, 0));
    let folded = text(&draw(&mut app, 120, 34));
    assert!(folded.contains("▸ smollm2-135m"), "{folded}");
}

#[test]
fn a_click_outside_closes_an_overlay_and_one_inside_does_not() {
    let mut app = app("dark");
    press(&mut app, "?");
    draw(&mut app, 120, 34);
    let inside = app.spots().find(Spot::Row(Pane::Overlay, 5)).unwrap();
    mouse(&mut app, LEFT, inside.x + 3, inside.y);
    assert!(text(&draw(&mut app, 120, 34)).contains("Help: every key"));
    mouse(&mut app, LEFT, 1, 20);
    assert!(!text(&draw(&mut app, 120, 34)).contains("Help: every key"));
}

#[test]
fn what_lies_under_an_overlay_cannot_be_clicked() {
    let mut app = app("dark");
    press(&mut app, "2 D");
    draw(&mut app, 120, 34);
    let hint = app.spots().find(Spot::Act(Action::Confirm)).unwrap();
    assert!(matches!(mouse(&mut app, LEFT, hint.x, hint.y)[..], [Effect::Delete(_)]));
}

#[test]
fn the_wheel_moves_the_pane_under_it() {
    let mut app = app("dark");
    draw(&mut app, 120, 34);
    let list = app.spots().find(Spot::Row(Pane::List, 0)).unwrap();
    mouse(&mut app, MouseEventKind::ScrollDown, list.x + 2, list.y);
    assert!(text(&draw(&mut app, 120, 34)).contains("smollm2-135m · gguf q4_k_m"));
    mouse(&mut app, MouseEventKind::ScrollUp, list.x + 2, list.y);
    assert!(text(&draw(&mut app, 120, 34)).contains("state   forging"));
}

#[test]
fn every_hint_on_the_screen_does_what_its_key_does() {
    for place in ["1", "2", "4", "5"] {
        let mut app = app("dark");
        press(&mut app, place);
        draw(&mut app, 200, 50);
        let offered = app.offered();
        for y in 0..50 {
            for x in 0..200 {
                if let Some(Spot::Act(action)) = app.spots().at(x, y) {
                    assert!(offered.contains(&action), "{action:?} at {x},{y} is not offered");
                }
            }
        }
    }
}
