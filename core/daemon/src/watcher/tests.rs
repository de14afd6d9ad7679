use std::fs;
use std::sync::Mutex;

use super::*;
use crate::config::Poll;

/// Writes down what it hears.
#[derive(Default)]
struct Ear {
    heard: Mutex<Vec<String>>,
    known: Vec<PathBuf>,
}

impl Ear {
    fn hear(&self, what: &str, path: &Path) {
        let name = path.file_name().unwrap().to_string_lossy();
        self.heard.lock().unwrap().push(format!("{what} {name}"));
    }

    async fn wait_for(&self, expected: &str) {
        for _ in 0..1000 {
            if self.heard.lock().unwrap().iter().any(|heard| heard == expected) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("never heard {expected:?}, only {:?}", self.heard.lock().unwrap());
    }

    fn count(&self, what: &str) -> usize {
        self.heard.lock().unwrap().iter().filter(|heard| *heard == what).count()
    }
}

impl Listener for Ear {
    fn settling(&self, path: &Path, waits_for: Option<String>) {
        if let Some(what) = waits_for {
            self.hear("waits", path);
            self.heard.lock().unwrap().push(what);
        }
    }

    fn settled(&self, path: &Path, _: &Seen) {
        self.hear("settled", path);
    }

    fn gone(&self, path: &Path) {
        self.hear("gone", path);
    }

    fn known(&self) -> Vec<PathBuf> {
        self.known.clone()
    }
}

fn settings(poll: Poll) -> Watch {
    Watch { quiet_seconds: 0.05, poll, poll_seconds: 0.05 }
}

/// A small sound safetensors file.
fn weights() -> Vec<u8> {
    let header = br#"{"w":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}"#;
    [&(header.len() as u64).to_le_bytes()[..], header, &[0; 8]].concat()
}

#[tokio::test]
async fn what_is_dropped_changed_and_removed_is_told_with_and_without_the_systems_help() {
    for poll in [Poll::Never, Poll::Always] {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("early.safetensors"), weights()).unwrap();
        let ear = Arc::new(Ear { known: vec![folder.path().join("old")], ..Ear::default() });
        let stop = CancellationToken::new();
        let task = tokio::spawn(watch(folder.path().into(), settings(poll), ear.clone(), stop.clone()));
        ear.wait_for("gone old").await;
        ear.wait_for("settled early.safetensors").await;

        fs::write(folder.path().join("late.safetensors"), weights()).unwrap();
        ear.wait_for("settled late.safetensors").await;

        fs::write(folder.path().join("late.safetensors"), [weights(), vec![1]].concat()).unwrap();
        while ear.count("settled late.safetensors") < 2 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }

        fs::remove_file(folder.path().join("late.safetensors")).unwrap();
        ear.wait_for("gone late.safetensors").await;
        assert_eq!(ear.count("settled early.safetensors"), 1, "{poll:?}: an untouched path settles once");
        stop.cancel();
        task.await.unwrap();
    }
}

#[tokio::test]
async fn a_cut_file_and_a_missing_shard_are_waited_for_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let ear = Arc::new(Ear::default());
    tokio::spawn(watch(folder.path().into(), settings(Poll::Auto), ear.clone(), CancellationToken::new()));
    let whole = weights();
    fs::write(folder.path().join("cut.safetensors"), &whole[..whole.len() - 3]).unwrap();
    let model = folder.path().join("sharded");
    fs::create_dir(&model).unwrap();
    fs::write(model.join("config.json"), "{}").unwrap();
    let index = r#"{"weight_map":{"w":"a.safetensors","v":"b.safetensors"}}"#;
    fs::write(model.join("model.safetensors.index.json"), index).unwrap();
    fs::write(model.join("a.safetensors"), weights()).unwrap();
    ear.wait_for("waits cut.safetensors").await;
    ear.wait_for("waits sharded").await;
    ear.wait_for("b.safetensors is missing").await;
    fs::write(folder.path().join("cut.safetensors"), &whole).unwrap();
    fs::write(model.join("b.safetensors"), &whole).unwrap();
    ear.wait_for("settled cut.safetensors").await;
    ear.wait_for("settled sharded").await;
}

#[tokio::test]
async fn a_folder_that_vanishes_and_comes_back_is_watched_again() {
    let parent = tempfile::tempdir().unwrap();
    let folder = parent.path().join("models");
    fs::create_dir(&folder).unwrap();
    fs::write(folder.join("a.safetensors"), weights()).unwrap();
    let ear = Arc::new(Ear::default());
    tokio::spawn(watch(folder.clone(), settings(Poll::Auto), ear.clone(), CancellationToken::new()));
    ear.wait_for("settled a.safetensors").await;
    fs::remove_dir_all(&folder).unwrap();
    ear.wait_for("gone a.safetensors").await;
    fs::create_dir(&folder).unwrap();
    fs::write(folder.join("b.safetensors"), weights()).unwrap();
    ear.wait_for("settled b.safetensors").await;
}

#[test]
fn parts_of_a_split_model_stand_for_their_first_and_hidden_files_for_nothing() {
    for (entry, expected) in [
        ("m/a.gguf", Some("m/a.gguf")),
        ("m/a-00003-of-00003.gguf", Some("m/a-00001-of-00003.gguf")),
        ("m/.hidden", None),
        ("m/dir", Some("m/dir")),
    ] {
        assert_eq!(candidate(Path::new(entry)), expected.map(PathBuf::from));
    }
}
