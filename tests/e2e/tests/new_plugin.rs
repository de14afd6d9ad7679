//! A stranger's plugin, from nothing to an artifact that is measured: `plugin new`, a build, `plugin install`.

// Whatever goes wrong in a test's own steps is its failure.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::path::PathBuf;
use std::process::Command;

use drophammer_e2e::{Home, fixture, root};
use serde_json::json;

#[test]
fn what_plugin_new_writes_builds_loads_forges_and_runs() {
    let home = Home::new(&[], "").unwrap();
    let here = home.path().display().to_string();
    let sdk = root().join("core/sdk").display().to_string();
    let made = home.run(&["plugin", "new", "my-backend", "--into", &here, "--sdk", &sdk]).unwrap();
    assert_eq!(made.code, 0, "{made:?}");
    let directory = home.path().join("my-backend");
    // The versions that are at hand: nothing is downloaded, and what is built already is used.
    std::fs::copy(root().join("Cargo.lock"), directory.join("Cargo.lock")).unwrap();
    let target = std::env::var_os("CARGO_TARGET_DIR")
        .map_or_else(|| root().join("target"), PathBuf::from)
        .join("new-plugin");
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let build = Command::new(cargo)
        .args(["build", "--offline"])
        .current_dir(&directory)
        .env("CARGO_TARGET_DIR", &target)
        .output()
        .unwrap();
    assert!(build.status.success(), "{}", String::from_utf8_lossy(&build.stderr));
    let library = format!("{}my_backend{}", std::env::consts::DLL_PREFIX, std::env::consts::DLL_SUFFIX);
    let dylib = target.join("debug").join(library).display().to_string();
    let manifest = directory.join("plugin.toml").display().to_string();
    let installed = home.run(&["plugin", "install", &dylib, "--manifest", &manifest]).unwrap();
    assert_eq!(installed.code, 0, "{installed:?}");

    let place = home.path().join("plugins/my-backend").display().to_string();
    let checked = home.json(&["plugin", "check", &place]).unwrap();
    assert_eq!((&checked["id"], &checked["state"]), (&json!("my-backend"), &json!("ready")), "{checked:#}");
    let source = fixture("shakespeare-llama").display().to_string();
    let mut kl = Vec::new();
    for scheme in ["f32", "int8"] {
        let output = home.path().join(format!("{scheme}.my-backend")).display().to_string();
        let forged =
            home.run(&["convert", &source, "--to", "my-backend", "--scheme", scheme, "-o", &output]).unwrap();
        assert_eq!(forged.code, 0, "{forged:?}");
        let measured = home.json(&["eval", &output, "--reference", &source, "--tokens", "256"]).unwrap();
        assert_eq!(measured["backend"], "my-backend");
        kl.push(measured["kl_mean"].as_f64().unwrap());
    }
    // Without its layers it is far from the model, and eight bits change next to nothing about that.
    assert!(kl[0] > 0.5 && (kl[0] - kl[1]).abs() < 0.05, "{kl:?}");
    let unsuited =
        home.run(&["convert", &source, "--to", "my-backend", "--scheme", "q9", "-o", "x"]).unwrap();
    assert_eq!(unsuited.code, 3, "{unsuited:?}");
}
