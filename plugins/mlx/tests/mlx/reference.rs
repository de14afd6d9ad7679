//! Logits and hidden states against independent float32 implementations.

use drophammer_sdk::{ForgeRequest, Goal};

use crate::fixture::{
    JOB, can_run, fixture, fixtures, forge, forward, largest_difference, load, order, reference,
    relative_error, request,
};

#[test]
fn every_architecture_gives_its_reference_output() {
    if !can_run() {
        return;
    }
    let mut failures = Vec::new();
    for directory in fixtures("arch").into_iter().chain([fixture("shakespeare-llama")]) {
        let (rows, due) = reference(&directory);
        let mut session = load(&order(&directory, true, rows.len() as u32));
        let difference = largest_difference(&forward(session.as_mut(), &rows), &due);
        if difference.is_nan() || difference > 2e-3 {
            failures.push(format!("{}: largest difference {difference}", directory.display()));
        }
    }
    assert!(failures.is_empty(), "{failures:#?}");
}

#[test]
fn every_architecture_runs_from_the_directory_made_of_it() {
    if !can_run() {
        return;
    }
    for directory in fixtures("arch") {
        let staging = tempfile::tempdir().unwrap();
        forge(&directory, "f32", staging.path());
        let (rows, due) = reference(&directory);
        let mut session = load(&order(staging.path(), true, rows.len() as u32));
        let difference = largest_difference(&forward(session.as_mut(), &rows), &due);
        assert!(difference <= 2e-3, "{}: largest difference {difference}", directory.display());
    }
}

#[test]
fn packed_sources_give_the_output_of_what_they_stand_for() {
    if !can_run() {
        return;
    }
    for directory in fixtures("packed") {
        if directory.ends_with("lora") {
            continue;
        }
        let (rows, due) = reference(&directory);
        let mut session = load(&order(&directory, true, rows.len() as u32));
        let difference = largest_difference(&forward(session.as_mut(), &rows), &due);
        assert!(difference <= 2e-3, "{}: largest difference {difference}", directory.display());
    }
}

#[test]
fn quantized_directories_stay_near_the_source() {
    if !can_run() {
        return;
    }
    let source = fixture("shakespeare-llama");
    let (mut rows, due) = reference(&source);
    // libmlx multiplies packed matrices slowly on processors: a few tokens tell enough.
    rows[0].truncate(16);
    for (scheme, most) in [
        ("bf16", 0.001),
        ("affine_8_g32", 0.01),
        ("affine_4_g64", 0.15),
        ("mixed_3_6", 0.3),
        ("mxfp8", 0.08),
        ("nvfp4", 0.25),
        ("mxfp4", 0.3),
    ] {
        let staging = tempfile::tempdir().unwrap();
        forge(&source, scheme, staging.path());
        let exact = forward(load(&order(staging.path(), true, 1)).as_mut(), &rows);
        let error = relative_error(&exact, &due[..exact.len()]);
        assert!(error < most, "{scheme}: {error} from the source");
        let quick = forward(load(&order(staging.path(), false, 1)).as_mut(), &rows);
        let error = relative_error(&quick, &exact);
        assert!(error < 0.03, "{scheme}: in bfloat16 {error} from float32");
    }
}

#[test]
fn a_model_in_another_format_made_of_an_mlx_directory_gives_the_same_output() {
    if !can_run() {
        return;
    }
    let source = fixture("packed/mlx-4bit");
    let (rows, due) = reference(&source);
    let staging = tempfile::tempdir().unwrap();
    let goal = Goal { format: "gguf".into(), scheme: "f32".into(), ..Goal::default() };
    let order_of_gguf = ForgeRequest { goal, ..request(&source, "", staging.path()) };
    let made = drophammer_forge::gguf::convert(&order_of_gguf, &JOB).unwrap();
    let path = staging.path().join(&made.files[0]);
    let mut session = load(&order(&path, true, rows.len() as u32));
    let difference = largest_difference(&forward(session.as_mut(), &rows), &due);
    assert!(difference <= 2e-3, "largest difference {difference}");
}

/// libmlx compiles fused functions with the machine's C++ compiler where it is asked to; nobody's machine needs to have one.
#[test]
fn models_run_where_there_is_no_compiler() {
    if !can_run() {
        return;
    }
    let empty = tempfile::tempdir().unwrap();
    let test = "reference::quantized_directories_stay_near_the_source";
    let output = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", test, "--nocapture"])
        .env("PATH", empty.path())
        .env_remove("CXX")
        .output()
        .unwrap();
    let words = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && words.contains("1 passed"), "{words}");
    assert!(!String::from_utf8_lossy(&output.stderr).contains("not run"));
}
