//! Disks that are full, fill up or cannot be written, and weights that are no numbers.

// Whatever goes wrong in a test's own steps is its failure.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::fs;
use std::path::Path;

use drophammer_e2e::daemon::{Daemon, misbehaving_home, write_model};
use drophammer_e2e::{Home, fixture};
use serde_json::Value;

/// Staging directory and library on the disk of [`Daemon::on_a_disk`], all of which may be used.
const ON_THE_DISK: &str =
    "staging = \"disk/staging\"\nlibrary = \"disk/library\"\n[limits]\ndisk_reserve_bytes = 0\n";

fn text<'a>(document: &'a Value, pointer: &str) -> &'a str {
    document.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
}

/// A daemon on a disk of its own, or a word why there is none.
fn on_a_disk(schemes: &[&str], prepare: &str) -> Option<Daemon> {
    let home = misbehaving_home(schemes, ON_THE_DISK).unwrap();
    // For whoever asks for it.
    let obey = "[[target]]\nname = \"obey\"\nformat = \"faulty\"\nscheme = \"obey\"\n";
    fs::write(home.path().join("targets/obey.toml"), obey).unwrap();
    let daemon = Daemon::on_a_disk(home, prepare).unwrap();
    if daemon.is_none() {
        eprintln!("skipped: no file system can be mounted here (it takes `unshare --mount --map-root-user`)");
    }
    daemon
}

#[cfg(target_os = "linux")]
#[test]
fn a_disk_that_fills_midway_blocks_the_job_until_there_is_space_and_nothing_else_is_lost() {
    let Some(mut daemon) = on_a_disk(&["fill_disk"], "mount -t tmpfs -o size=6m tmpfs $DISK") else { return };
    write_model(&daemon.models().join("tiny")).unwrap();
    let job = daemon.wait_for_job(Some("faulty-fill_disk"), &["blocked", "failed", "succeeded"]).unwrap();
    assert_eq!(job["state"], "blocked", "{job:#}");
    assert!(text(&job, "/error/message").contains("No space left on device"), "{job:#}");
    assert!(text(&job, "/error/help").contains("free some space"), "{job:#}");
    assert!(daemon.is_alive());
    assert!(daemon.home.json(&["models"]).unwrap()["models"][0]["artifacts"].as_array().unwrap().is_empty());
    // What it had written goes with it, and the next job has the disk to itself.
    assert_eq!(daemon.home.run(&["cancel", text(&job, "/id")]).unwrap().code, 0);
    daemon.wait_for_job(Some("faulty-fill_disk"), &["cancelled"]).unwrap();
    let forged = daemon.home.run(&["forge", "tiny", "--target", "obey"]).unwrap();
    assert_eq!(forged.code, 0, "{forged:?}");
    daemon.wait_for_job(Some("obey"), &["succeeded"]).unwrap();
}

#[cfg(target_os = "linux")]
#[test]
fn a_disk_that_cannot_be_written_blocks_the_job_and_says_which() {
    let read_only = "mount -t tmpfs -o size=8m tmpfs $DISK; mkdir $DISK/staging $DISK/library; \
                     mount -o remount,ro tmpfs $DISK";
    let Some(mut daemon) = on_a_disk(&["obey"], read_only) else { return };
    write_model(&daemon.models().join("tiny")).unwrap();
    let job = daemon.wait_for_job(Some("faulty-obey"), &["blocked", "failed", "succeeded"]).unwrap();
    assert_eq!((text(&job, "/state"), text(&job, "/error/code")), ("blocked", "read_only"), "{job:#}");
    assert!(text(&job, "/error/message").contains("disk/staging"), "{job:#}");
    assert!(daemon.is_alive());
}

#[test]
fn a_home_that_cannot_be_made_is_named_and_commands_without_a_daemon_work_all_the_same() {
    let home = Home::new(&[], "").unwrap();
    let fixture = fixture("shakespeare-llama");
    // Nobody makes directories there, not even root.
    let elsewhere = |arguments: &[&str]| {
        let output = home.command(arguments).env("DROPHAMMER_HOME", "/proc/drophammer").output().unwrap();
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let (code, said) = elsewhere(&["daemon"]);
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("/proc/drophammer") && said.contains("DROPHAMMER_HOME"), "{said}");
    for command in ["inspect", "plan"] {
        let (code, said) = elsewhere(&[command, &fixture.to_string_lossy()]);
        assert_eq!(code, Some(0), "{command}: {said}");
    }
}

/// Puts these bytes over the first weights of a tensor.
fn overwrite(model: &Path, tensor: &str, bytes: &[u8]) {
    let path = model.join("model.safetensors");
    let mut file = fs::read(&path).unwrap();
    let length = u64::from_le_bytes(file[..8].try_into().unwrap()) as usize;
    let header: Value = serde_json::from_slice(&file[8..8 + length]).unwrap();
    let at = 8 + length + header[tensor]["data_offsets"][0].as_u64().unwrap() as usize;
    file[at..at + bytes.len()].copy_from_slice(bytes);
    fs::write(&path, file).unwrap();
}

#[test]
fn weights_that_are_no_numbers_are_told_with_their_tensor_and_nothing_is_published() {
    let outside = tempfile::tempdir().unwrap();
    let settings = "[serve]\nport = 0\n[measure]\nenabled = false\n[targets]\ndefault = [\"gguf-q8_0\"]\n";
    let mut daemon = Daemon::start(Home::new(&[], settings).unwrap()).unwrap();
    // All ones is not a number in every floating-point format; 0x7f80 is infinity in two.
    for (name, bytes) in [("nan", [0xff; 4]), ("infinite", [0x80, 0x7f, 0x80, 0x7f])] {
        let model = outside.path().join(name);
        write_model(&model).unwrap();
        overwrite(&model, "model.layers.1.mlp.down_proj.weight", &bytes);
        daemon.drop_in(&model, name).unwrap();
        let job = daemon
            .wait(&["jobs"], |jobs| {
                let jobs = jobs["jobs"].as_array()?;
                let job = jobs.iter().find(|job| job["model"] == name && job["target"] == "gguf-q8_0")?;
                ["failed", "succeeded", "blocked"].contains(&text(job, "/state")).then(|| job.clone())
            })
            .unwrap();
        assert_eq!(job["state"], "failed", "{job:#}");
        let message = text(&job, "/error/message");
        assert!(
            message.contains("blk.1.ffn_down") || message.contains("layers.1.mlp.down_proj"),
            "{message}"
        );
        assert!(!text(&job, "/error/help").is_empty(), "{job:#}");
    }
    assert!(daemon.is_alive() && daemon.library().unwrap().is_empty());
}
