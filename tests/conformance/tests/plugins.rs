//! The suite, for every plugin that is built; each case of each plugin in a process of its own.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::process::Command;

use drophammer_conformance::{CASES, root};

/// Runs a case for every plugin.
fn every_plugin(case: &str) {
    let mut failures = Vec::new();
    let mut plugins = 0;
    for entry in std::fs::read_dir(drophammer_e2e::built().join("plugins")).unwrap() {
        let directory = entry.unwrap().path();
        let source = root().join("plugins").join(directory.file_name().unwrap());
        // What an earlier checkout built is not this one's.
        if !source.join("plugin.toml").exists() {
            continue;
        }
        let output = Command::new(env!("CARGO_BIN_EXE_conformance"))
            .arg("--plugin")
            .arg(&directory)
            .arg("--source")
            .arg(&source)
            .args(["--case", case])
            .output()
            .unwrap();
        plugins += 1;
        let said = String::from_utf8_lossy(&output.stdout);
        print!("{said}");
        if !output.status.success() {
            let log = String::from_utf8_lossy(&output.stderr);
            failures.push(format!("{}: {}\n{said}{log}", directory.display(), output.status));
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
    assert!(plugins > 0, "no plugin is built");
}

macro_rules! cases {
    ($($name:ident),* $(,)?) => {
        $(#[test] fn $name() { every_plugin(&stringify!($name).replace('_', "-")); })*

        #[test]
        fn every_case_is_a_test() {
            let tests = [$(stringify!($name)),*].map(|name| name.replace('_', "-"));
            assert_eq!(tests.to_vec(), CASES.iter().map(|case| case.name).collect::<Vec<_>>());
        }
    };
}

cases!(
    trained_model,
    architectures,
    adapters,
    chunks,
    batching,
    sequences,
    limits,
    cancelling,
    reproducible,
    bad_input,
    memory_budget,
    unloading,
    workers,
);
