//! The daemon under bad luck: killed, crowded, starved, fed with rubbish. What it must keep is always the same: it
//! lives, it says what is wrong with which file and what to do, and the library never shows anything unfinished.

// Whatever goes wrong in a test's own steps is its failure.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::fs;
use std::path::Path;
use std::time::Duration;

use drophammer_e2e::daemon::{Daemon, FAULTY, write_model};
use drophammer_e2e::{Home, fixture};
use serde_json::Value;

fn text<'a>(document: &'a Value, pointer: &str) -> &'a str {
    document.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
}

/// Everything that a published artifact promises.
fn check_artifact(directory: &Path) {
    let manifest: Value =
        serde_json::from_slice(&fs::read(directory.join("manifest.json")).expect("a manifest"))
            .expect("JSON");
    let files = manifest["files"].as_array().expect("files");
    assert!(!files.is_empty());
    for file in files {
        let path = directory.join(file["path"].as_str().expect("a path"));
        assert_eq!(fs::metadata(&path).expect("the file").len(), file["bytes"].as_u64().expect("a size"));
    }
}

#[test]
fn a_dropped_model_becomes_an_artifact_and_the_users_files_stay_as_they_were() {
    let daemon = Daemon::misbehaving(&["obey"], "").unwrap();
    let model = daemon.models().join("tiny");
    write_model(&model).unwrap();
    let before = fs::read(model.join("model.safetensors")).unwrap();
    let job = daemon.wait_for_job(Some("faulty-obey"), &["succeeded", "failed", "blocked"]).unwrap();
    assert_eq!(job["state"], "succeeded", "{job:#}");
    let model_entry = daemon.wait_for_model("tiny", "ready").unwrap();
    assert_eq!(text(&model_entry, "/source/architecture"), "llama");
    let library = daemon.library().unwrap();
    assert_eq!(library.len(), 1);
    check_artifact(&library[0]);
    assert_eq!(fs::read(model.join("model.safetensors")).unwrap(), before);
    assert_eq!(fs::read_dir(daemon.home.path().join("staging")).unwrap().count(), 0, "leftovers");
}

#[test]
fn a_second_daemon_is_told_who_holds_the_home() {
    let daemon = Daemon::misbehaving(&["obey"], "").unwrap();
    let second = daemon.home.run(&["daemon"]).unwrap();
    assert_ne!(second.code, 0);
    assert!(second.stderr.contains(&format!("pid {}", daemon.pid())), "{}", second.stderr);
    assert!(second.stderr.contains("control.sock"), "{}", second.stderr);
}

#[test]
fn it_stops_when_told_and_goes_on_with_its_jobs_when_started_again() {
    let mut daemon = Daemon::misbehaving(&["patient"], "").unwrap();
    write_model(&daemon.models().join("tiny")).unwrap();
    let job = daemon.wait_for_job(Some("faulty-patient"), &["running"]).unwrap();
    let stopped = daemon.home.run(&["stop"]).unwrap();
    assert_eq!(stopped.code, 0, "{}", stopped.stderr);
    assert!(stopped.stdout.contains(&daemon.pid().to_string()), "{}", stopped.stdout);
    let again = daemon.home.run(&["stop"]).unwrap();
    assert_eq!(again.code, 1);
    assert!(again.stderr.contains("no daemon is running"), "{}", again.stderr);
    assert!(!daemon.is_alive());
    daemon.kill_and_restart().unwrap();
    let resumed = daemon.wait_for_job(Some("faulty-patient"), &["running"]).unwrap();
    assert_eq!(resumed["id"], job["id"]);
}

#[test]
fn the_control_socket_is_its_users_alone() {
    use std::os::unix::fs::PermissionsExt as _;
    let daemon = Daemon::misbehaving(&["obey"], "").unwrap();
    let mode = fs::metadata(daemon.home.path().join("control.sock")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
}

#[test]
fn a_plugin_that_goes_wrong_in_any_way_costs_its_own_job_only() {
    let ways = [
        "panic",
        "abort",
        "segfault",
        "exit",
        "stop",
        "hang",
        "allocate",
        "garbage",
        "escape",
        "full_disk",
        "refuse",
        "obey",
    ];
    let patience = "[workers]\nheartbeat_timeout_seconds = 3.0\nstall_timeout_seconds = 2.0\ncancel_grace_seconds = 0.5\n";
    let mut daemon = Daemon::misbehaving(&ways, patience).unwrap();
    write_model(&daemon.models().join("tiny")).unwrap();
    for way in ways {
        let target = format!("faulty-{way}");
        let job = daemon.wait_for_job(Some(&target), &["succeeded", "failed", "blocked"]).unwrap();
        if way == "obey" {
            assert_eq!(job["state"], "succeeded", "{job:#}");
            continue;
        }
        assert_ne!(job["state"], "succeeded", "{job:#}");
        assert!(!text(&job, "/error/message").is_empty(), "{way}: {job:#}");
        assert!(!text(&job, "/error/code").is_empty(), "{way}: {job:#}");
    }
    assert!(daemon.is_alive());
    let library = daemon.library().unwrap();
    assert_eq!(library.len(), 1, "{library:?}");
    check_artifact(&library[0]);
}

#[test]
fn a_daemon_killed_at_any_moment_finishes_its_work_when_it_comes_back() {
    let mut daemon = Daemon::misbehaving(&["obey", "print", "chatter"], "").unwrap();
    for round in 0..6u64 {
        let name = format!("tiny-{round}");
        write_model(&daemon.models().join(&name)).unwrap();
        // A different moment of the life of a dropped model each time; and again, in what the next daemon took up.
        for moment in [90 + 170 * round, 130] {
            std::thread::sleep(Duration::from_millis(moment));
            daemon.kill_and_restart().unwrap();
        }
        for artifact in daemon.library().unwrap() {
            check_artifact(&artifact);
        }
    }
    for round in 0..6 {
        let name = format!("tiny-{round}");
        let found = daemon.wait(&["models"], |models| {
            let model = models["models"].as_array()?.iter().find(|model| model["name"] == name.as_str())?;
            (model["artifacts"].as_array()?.len() == 3).then_some(())
        });
        found.unwrap();
    }
    daemon.library().unwrap().iter().for_each(|artifact| check_artifact(artifact));
    daemon
        .wait(&["status"], |status| {
            (status["jobs"]["running"] == 0 && status["jobs"]["queued"] == 0).then_some(())
        })
        .unwrap();
    assert_eq!(fs::read_dir(daemon.home.path().join("staging")).unwrap().count(), 0, "leftovers");
}

#[test]
fn a_killed_worker_is_tried_again_and_then_told() {
    let daemon = Daemon::misbehaving(&["hang"], "").unwrap();
    write_model(&daemon.models().join("tiny")).unwrap();
    for attempt in 1..=3 {
        let pid = daemon
            .wait(&["jobs"], |jobs| {
                let job = jobs["jobs"].as_array()?.iter().find(|job| job["target"] == "faulty-hang")?;
                (job["attempt"] == attempt).then(|| job["pid"].as_u64())?
            })
            .unwrap();
        let killed = std::process::Command::new("kill").args(["-9", &pid.to_string()]).status().unwrap();
        assert!(killed.success());
    }
    let job = daemon.wait_for_job(Some("faulty-hang"), &["failed"]).unwrap();
    assert!(text(&job, "/error/message").contains("SIGKILL"), "{job:#}");
    assert!(text(&job, "/error/help").contains("memory"), "{job:#}");
}

#[test]
fn a_hanging_job_is_cancelled_and_its_staging_goes() {
    let daemon = Daemon::misbehaving(&["hang"], "[workers]\ncancel_grace_seconds = 0.5\n").unwrap();
    write_model(&daemon.models().join("tiny")).unwrap();
    let job = daemon.wait_for_job(Some("faulty-hang"), &["running"]).unwrap();
    let id = text(&job, "/id").to_owned();
    assert_eq!(daemon.home.run(&["cancel", &id]).unwrap().code, 0);
    daemon.wait_for_job(Some("faulty-hang"), &["cancelled"]).unwrap();
    let gone = || fs::read_dir(daemon.home.path().join("staging")).unwrap().count() == 0;
    daemon.wait(&["status"], |_| gone().then_some(())).unwrap();
    assert_eq!(daemon.home.run(&["retry", &id]).unwrap().code, 0);
    daemon.wait_for_job(Some("faulty-hang"), &["running"]).unwrap();
}

#[test]
fn a_directory_removed_while_it_is_forged_ends_its_job_with_a_word_about_it() {
    // One waits to be asked, the other fails by itself before the watcher has seen what happened.
    let ways = ["patient", "refuse_later"];
    let mut daemon = Daemon::misbehaving(&ways, "[limits]\ncores = 2\ncores_per_job = 1\n").unwrap();
    let model = daemon.models().join("tiny");
    write_model(&model).unwrap();
    for way in ways {
        daemon.wait_for_job(Some(&format!("faulty-{way}")), &["running"]).unwrap();
    }
    fs::remove_dir_all(&model).unwrap();
    for way in ways {
        let job = daemon.wait_for_job(Some(&format!("faulty-{way}")), &["failed"]).unwrap();
        assert_eq!(text(&job, "/error/code"), "source_removed", "{job:#}");
        assert!(text(&job, "/error/message").contains("tiny"), "{job:#}");
    }
    assert!(daemon.is_alive());
}

#[test]
fn a_file_that_keeps_growing_is_waited_for_and_taken_when_it_is_whole() {
    let daemon = Daemon::misbehaving(&["obey"], "").unwrap();
    let model = daemon.models().join("tiny");
    write_model(&model).unwrap();
    let path = model.join("model.safetensors");
    let whole = fs::read(&path).unwrap();
    for part in [1, 2, 3, 4, 5] {
        fs::write(&path, &whole[..whole.len() * part / 6]).unwrap();
        std::thread::sleep(Duration::from_millis(120));
    }
    let settling = daemon.wait_for_model("tiny", "settling").unwrap();
    let waiting = daemon.wait(&["models"], |models| {
        models["models"].as_array()?.iter().find_map(|model| model["waits_for"].as_str().map(str::to_owned))
    });
    assert!(waiting.unwrap().contains("model.safetensors"), "{settling:#}");
    fs::write(&path, &whole).unwrap();
    daemon.wait_for_model("tiny", "ready").unwrap();
}

#[test]
fn a_work_that_does_not_fit_the_disk_is_refused_before_it_starts() {
    let reserve = format!("[limits]\ndisk_reserve_bytes = {}\n", u64::MAX / 2);
    let daemon = Daemon::misbehaving(&["obey"], &reserve).unwrap();
    write_model(&daemon.models().join("tiny")).unwrap();
    let job = daemon.wait_for_job(Some("faulty-obey"), &["blocked"]).unwrap();
    assert_eq!(text(&job, "/error/code"), "not_enough_disk");
    assert!(text(&job, "/error/help").contains("retry"));
}

#[test]
fn every_kind_of_rubbish_is_told_from_a_model_with_its_file_and_the_next_step() {
    type Spoil = fn(&Path);
    let cases: &[(&str, &str, Spoil)] = &[
        ("pickle", "pickle", |model| {
            fs::remove_file(model.join("model.safetensors")).unwrap();
            fs::write(model.join("pytorch_model.bin"), b"\x80\x02}q\x00.").unwrap();
        }),
        ("unknown", "architecture", |model| {
            let config = fs::read_to_string(model.join("config.json")).unwrap();
            fs::write(model.join("config.json"), config.replace("\"llama\"", "\"mamba9\"")).unwrap();
        }),
        ("tokenless", "tokenizer", |model| {
            fs::remove_file(model.join("tokenizer.json")).unwrap();
        }),
        ("truncated", "model.safetensors", |model| {
            let bytes = fs::read(model.join("model.safetensors")).unwrap();
            fs::write(model.join("model.safetensors"), &bytes[..bytes.len() / 2]).unwrap();
        }),
        ("shardless", "model-00002-of-00002.safetensors", |model| {
            let first = model.join("model-00001-of-00002.safetensors");
            fs::rename(model.join("model.safetensors"), &first).unwrap();
            let index = r#"{"weight_map": {"model.norm.weight": "model-00001-of-00002.safetensors",
                            "lm_head.weight": "model-00002-of-00002.safetensors"}}"#;
            fs::write(model.join("model.safetensors.index.json"), index).unwrap();
        }),
        ("overlong", "model.safetensors", |model| {
            fs::write(model.join("model.safetensors"), [&u64::MAX.to_le_bytes()[..], b"{}"].concat())
                .unwrap();
        }),
        ("twice", "model.safetensors", |model| {
            let json = r#"{"w":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"w":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}"#;
            let bytes = [&(json.len() as u64).to_le_bytes()[..], json.as_bytes(), &[0; 4]].concat();
            fs::write(model.join("model.safetensors"), bytes).unwrap();
        }),
        ("flipped", "model.safetensors", |model| {
            let mut bytes = fs::read(model.join("model.safetensors")).unwrap();
            bytes[9] ^= 0x40;
            fs::write(model.join("model.safetensors"), bytes).unwrap();
        }),
        ("incomplete", "lm_head", |model| {
            let mut bytes = fs::read(model.join("model.safetensors")).unwrap();
            let at = bytes.windows(7).position(|window| window == b"lm_head").unwrap();
            bytes[at + 6] = b'x';
            fs::write(model.join("model.safetensors"), bytes).unwrap();
        }),
        ("misshapen", "shape", |model| {
            let config = fs::read_to_string(model.join("config.json")).unwrap();
            let changed = config.replace("\"intermediate_size\": 768", "\"intermediate_size\": 512");
            assert_ne!(config, changed);
            fs::write(model.join("config.json"), changed).unwrap();
        }),
        ("broken-config", "config.json", |model| {
            fs::write(model.join("config.json"), b"[1, 2]").unwrap();
        }),
    ];
    let mut daemon = Daemon::misbehaving(&["obey"], "").unwrap();
    let outside = tempfile::tempdir().unwrap();
    for (name, _, spoil) in cases {
        let model = outside.path().join(name);
        write_model(&model).unwrap();
        spoil(&model);
        // Moved in whole, so that it is never seen half spoilt.
        daemon.drop_in(&model, name).unwrap();
    }
    fs::write(daemon.models().join("note.txt"), "not a model").unwrap();
    // 10^12 tensors, and more of both than there are bytes in the world.
    let trillion = [&b"GGUF\x03\0\0\0"[..], &1_000_000_000_000u64.to_le_bytes(), &[0; 8]].concat();
    fs::write(daemon.models().join("trillion.gguf"), trillion).unwrap();
    fs::write(daemon.models().join("tensors.gguf"), [&b"GGUF\x03\0\0\0"[..], &[255; 16]].concat()).unwrap();
    for (name, word, _) in cases.iter().copied().chain([
        ("note.txt", "not a model", (|_| ()) as Spoil),
        ("tensors", "tensors.gguf", |_| ()),
        ("trillion", "trillion.gguf", |_| ()),
    ]) {
        let model = daemon
            .wait(&["models"], |models| {
                let model = models["models"].as_array()?.iter().find(|model| model["name"] == name)?;
                (model["state"] == "failed" || model["waits_for"].is_string()).then(|| model.clone())
            })
            .unwrap();
        let told = model.to_string();
        assert!(told.contains(word), "{name}: {model:#}");
        if model["state"] == "failed" {
            assert!(!text(&model, "/error/help").is_empty(), "{name}: {model:#}");
        }
    }
    assert!(daemon.is_alive());
    assert!(daemon.library().unwrap().is_empty());
}

#[test]
fn what_the_last_daemon_published_is_there_for_the_next_one() {
    let mut daemon = Daemon::misbehaving(&["obey"], "").unwrap();
    write_model(&daemon.models().join("tiny")).unwrap();
    let before = daemon.wait_for_model("tiny", "ready").unwrap();
    fs::remove_file(daemon.home.path().join("drophammer.db")).unwrap();
    daemon.kill_and_restart().unwrap();
    let after = daemon.wait(&["models"], |models| {
        let model = models["models"].as_array()?.iter().find(|model| model["name"] == "tiny")?;
        model["artifacts"].as_array().filter(|artifacts| !artifacts.is_empty()).map(|_| model.clone())
    });
    assert_eq!(after.unwrap()["artifacts"][0]["id"], before["artifacts"][0]["id"]);
    let home = Home::new(&[], FAULTY).unwrap();
    assert!(Daemon::start(home).is_ok(), "a home without any plugin starts as well");
    assert!(fixture("shakespeare-llama").is_dir());
}
