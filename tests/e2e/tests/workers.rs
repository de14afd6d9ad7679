//! A plugin may do its worst: its worker alone pays, the user reads what happened, and nothing half-done is left.

// Helpers of tests fail as tests do.
#![allow(clippy::unwrap_used)]

#[cfg(target_os = "linux")]
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use drophammer_e2e::{Answer, Home, copy_plugin, fixture};

/// Short patience, so that hanging is noticed within a test.
const IMPATIENT: &str =
    "[workers]\ncancel_grace_seconds = 0.5\nheartbeat_timeout_seconds = 2.0\nstall_timeout_seconds = 2.0\n";

/// What one misbehaviour must come to.
struct Case {
    scheme: &'static str,
    code: i32,
    says: &'static [&'static str],
}

fn forge(home: &Home, scheme: &str, more: &[&str]) -> (Answer, PathBuf) {
    let output = home.path().join("out/made.faulty");
    let source = fixture("shakespeare-llama");
    let (source, out) = (source.to_string_lossy(), output.to_string_lossy());
    let arguments = ["convert", &source, "--to", "faulty", "--scheme", scheme, "-o", &out, "-v"];
    (home.run(&[&arguments[..], more].concat()).unwrap(), output)
}

/// Runs each case and proves that its failure is told and nothing is left behind.
fn fails(configuration: &str, cases: &[Case], more: &[&str]) {
    let home = Home::faulty(configuration).unwrap();
    for Case { scheme, code, says } in cases {
        let (answer, output) = forge(&home, scheme, more);
        assert_eq!(answer.code, *code, "{scheme}: {answer:?}");
        for expected in *says {
            assert!(
                answer.stderr.contains(expected),
                "{scheme} does not say {expected:?}: {}",
                answer.stderr
            );
        }
        let left: Vec<_> = std::fs::read_dir(output.parent().unwrap()).unwrap().collect();
        assert!(left.is_empty(), "{scheme} left {left:?}");
    }
}

#[test]
fn an_obedient_plugin_publishes_its_artifact() {
    let home = Home::faulty("").unwrap();
    let (answer, output) = forge(&home, "obey", &[]);
    assert_eq!(answer.code, 0, "{answer:?}");
    assert_eq!(std::fs::read_to_string(&output).unwrap(), "obey");
    assert_eq!(std::fs::read_dir(output.parent().unwrap()).unwrap().count(), 1);
}

#[test]
fn a_crash_names_its_signal_its_place_and_the_last_words() {
    fails(
        "",
        &[
            Case {
                scheme: "segfault",
                code: 1,
                says: &["SIGSEGV", "plugin faulty", "stage forge", "the.tensor", "| about to fault"],
            },
            Case { scheme: "abort", code: 1, says: &["SIGABRT", "the.tensor", "| about to abort"] },
            Case { scheme: "overflow_stack", code: 1, says: &["SIGABRT", "stack"] },
            Case {
                scheme: "panic_uncaught",
                code: 1,
                says: &["without a result", "a panic across the boundary"],
            },
            Case { scheme: "exit", code: 1, says: &["code 0 without a result", "the.tensor"] },
        ],
        &[],
    );
}

#[test]
fn errors_and_panics_reach_the_user_as_the_plugin_said_them() {
    fails(
        "",
        &[
            Case {
                scheme: "refuse",
                code: 3,
                says: &["the faulty plugin refuses this", "help: ask for `obey`"],
            },
            Case { scheme: "panic", code: 1, says: &["panicked: a panic on request", "help: "] },
            Case { scheme: "full_disk", code: 1, says: &["/dev/full", "help: free some space"] },
            Case { scheme: "unheard_of", code: 3, says: &["cannot be made into faulty unheard_of"] },
        ],
        &[],
    );
}

#[test]
fn answers_that_are_not_what_they_should_be_are_refused() {
    fails(
        "",
        &[
            Case { scheme: "garbage", code: 1, says: &["unreadable document at the plugin boundary"] },
            Case { scheme: "wrong_shape", code: 1, says: &["unreadable document at the plugin boundary"] },
            Case { scheme: "huge_report", code: 1, says: &["the result cannot be sent", "limit"] },
            Case { scheme: "escape", code: 1, says: &["outside its staging directory"] },
        ],
        &[],
    );
}

#[test]
fn a_plugin_that_hangs_or_stops_is_noticed_and_killed() {
    let started = Instant::now();
    fails(
        IMPATIENT,
        &[
            Case { scheme: "hang", code: 1, says: &["no progress for 2 s", "the.tensor"] },
            Case { scheme: "stop", code: 1, says: &["no sign of life for 2 s", "the.tensor"] },
        ],
        &[],
    );
    assert!(started.elapsed() < Duration::from_mins(2), "it took {:?}", started.elapsed());
}

#[cfg(target_os = "linux")]
#[test]
fn a_plugin_that_allocates_without_end_costs_only_its_own_worker() {
    let budget = ["--memory", "256M"];
    fails(
        "",
        &[
            Case { scheme: "allocate", code: 1, says: &["memory budget of 268435456 bytes", "help: raise"] },
            Case { scheme: "allocate_at_once", code: 1, says: &["SIGABRT", "memory allocation of"] },
        ],
        &budget,
    );
}

#[test]
fn noisy_plugins_neither_block_nor_reach_the_terminal_with_escapes() {
    let home = Home::faulty("").unwrap();
    for (scheme, expected) in [
        ("print", "a line on standard output"),
        ("flood", "[2Jflood"),
        ("chatter", "chatter"),
        ("nonsense", "two"),
    ] {
        let (answer, output) = forge(&home, scheme, &[]);
        assert_eq!(answer.code, 0, "{scheme}: {}", answer.stderr);
        assert!(answer.stderr.contains(expected), "{scheme}: {}", answer.stderr);
        assert!(!answer.stderr.contains('\u{1b}'), "{scheme} reached the terminal");
        assert!(output.exists(), "{scheme}");
    }
}

#[cfg(target_os = "linux")]
#[test]
fn what_a_worker_started_ends_with_it() {
    let home = Home::faulty("").unwrap();
    let (answer, _) = forge(&home, "orphan", &[]);
    assert_eq!(answer.code, 1, "{answer:?}");
    let pid = answer.stderr.lines().find_map(|line| line.trim_start_matches("  | ").strip_prefix("orphan "));
    let process = Path::new("/proc").join(pid.unwrap_or_else(|| panic!("{}", answer.stderr)));
    assert!(gone(&process), "{} still runs", process.display());
}

#[cfg(target_os = "linux")]
#[test]
fn workers_die_with_the_program_that_started_them() {
    for scheme in ["hang", "patient"] {
        let home = Home::faulty("").unwrap();
        let mut forge = Forge::start(&home, scheme);
        let worker = forge.worker();
        forge.child.kill().unwrap();
        forge.child.wait().unwrap();
        assert!(gone(&worker), "{} outlived its supervisor ({scheme})", worker.display());
    }
}

#[cfg(target_os = "linux")]
#[test]
fn interrupting_asks_first_kills_next_and_leaves_nothing() {
    for scheme in ["patient", "hang"] {
        let home = Home::faulty("[workers]\ncancel_grace_seconds = 0.5\n").unwrap();
        let mut forge = Forge::start(&home, scheme);
        let worker = forge.worker();
        let pid = forge.child.id().to_string();
        let interrupted = std::process::Command::new("kill").args(["-INT", &pid]).status();
        assert!(interrupted.unwrap().success());
        let mut said = String::new();
        forge.lines.read_to_string(&mut said).unwrap();
        assert_eq!(forge.child.wait().unwrap().code(), Some(1), "{scheme}: {said}");
        assert!(said.contains("cancelled"), "{scheme}: {said}");
        assert!(gone(&worker), "{scheme}");
        assert_eq!(std::fs::read_dir(home.path().join("out")).unwrap().count(), 0, "{scheme} left something");
    }
}

#[test]
fn plugins_for_another_abi_damaged_ones_and_other_files_are_refused_before_they_run() {
    let home = Home::new(&[], "").unwrap();
    let check = |name: &str, change: &dyn Fn(&Path)| {
        let place = home.path().join(name);
        let plugin = copy_plugin("faulty", &place).unwrap();
        change(&plugin);
        home.run(&["plugin", "check", &plugin.to_string_lossy()]).unwrap()
    };
    let edit = |plugin: &Path, from: &str, to: &str| {
        let path = plugin.join("plugin.toml");
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(text.contains(from), "{text}");
        std::fs::write(path, text.replace(from, to)).unwrap();
    };
    let library = |plugin: &Path| {
        let mut entries = std::fs::read_dir(plugin).unwrap().flatten().map(|entry| entry.path());
        entries.find(|path| path.extension().is_some_and(|extension| extension != "toml")).unwrap()
    };

    let good = check("good", &|_| ());
    assert_eq!(good.code, 0, "{good:?}");
    let abi = check("abi", &|plugin| edit(plugin, "abi = \"0.", "abi = \"9."));
    assert_eq!(abi.code, 3, "{abi:?}");
    assert!(abi.stdout.contains("was built for ABI 9."), "{abi:?}");
    let damaged = check("damaged", &|plugin| {
        let path = library(plugin);
        let mut bytes = std::fs::read(&path).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        std::fs::write(path, bytes).unwrap();
    });
    assert_eq!(damaged.code, 3, "{damaged:?}");
    assert!(damaged.stdout.contains("SHA-256"), "{damaged:?}");
    let id = check("id", &|plugin| edit(plugin, "id = \"faulty\"", "id = \"../faulty\""));
    assert_eq!(id.code, 3, "{id:?}");
    let gone = check("gone", &|plugin| std::fs::remove_file(library(plugin)).unwrap());
    assert_eq!(gone.code, 3, "{gone:?}");
}

#[test]
fn a_plugin_that_fails_to_open_or_to_answer_spoils_no_list() {
    for (key, misbehaviour, state) in [
        ("on_open", "segfault", "crashed"),
        ("on_open", "panic", "crashed"),
        ("on_open", "refuse", "refused"),
        ("on_probe", "abort", "crashed"),
        ("on_probe", "hang", "crashed"),
        ("on_probe", "obey", "ready"),
    ] {
        let patience = "[workers]\nprobe_timeout_seconds = 2.0";
        let home = Home::faulty(&format!("{patience}\n[plugins.faulty]\n{key} = {misbehaviour:?}")).unwrap();
        let listed = home.json(&["plugin", "list"]).unwrap();
        let plugins = listed["plugins"].as_array().unwrap();
        let faulty = plugins.iter().find(|plugin| plugin["id"] == "faulty").unwrap();
        assert_eq!(faulty["state"], state, "{key} = {misbehaviour}: {faulty}");
        if state == "crashed" {
            assert!(faulty["problems"][0]["help"].is_string(), "{faulty}");
        }
    }
}

/// A one-shot forge under way.
#[cfg(target_os = "linux")]
struct Forge {
    child: std::process::Child,
    lines: BufReader<std::process::ChildStderr>,
}

#[cfg(target_os = "linux")]
impl Forge {
    /// Starts it and waits until the plugin works.
    fn start(home: &Home, scheme: &str) -> Self {
        let source = fixture("shakespeare-llama");
        let output = home.path().join("out/made.faulty");
        let (source, output) = (source.to_string_lossy(), output.to_string_lossy());
        let mut child = home
            .command(&["convert", &source, "--to", "faulty", "--scheme", scheme, "-o", &output])
            .stdout(std::process::Stdio::null())
            .stderr(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap());
        let mut line = String::new();
        while !line.starts_with("forge ") {
            line.clear();
            assert!(lines.read_line(&mut line).unwrap() > 0, "it ended before the plugin worked");
        }
        Self { child, lines }
    }

    /// The `/proc` entry of its only child.
    fn worker(&self) -> PathBuf {
        let parent = format!("PPid:\t{}\n", self.child.id());
        let is_child = |path: &PathBuf| {
            std::fs::read_to_string(path.join("status")).is_ok_and(|status| status.contains(&parent))
        };
        let processes = std::fs::read_dir("/proc").unwrap().flatten().map(|entry| entry.path());
        let children: Vec<_> = processes.filter(is_child).collect();
        assert_eq!(children.len(), 1, "{children:?}");
        children[0].clone()
    }
}

/// Whether a process ends within a moment (a zombie counts as ended).
#[cfg(target_os = "linux")]
fn gone(process: &Path) -> bool {
    let deadline = Instant::now() + Duration::from_secs(10);
    while Instant::now() < deadline {
        match std::fs::read_to_string(process.join("status")) {
            Ok(status) if !status.contains("State:\tZ") => std::thread::sleep(Duration::from_millis(20)),
            _ => return true,
        }
    }
    false
}
