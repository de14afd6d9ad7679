//! Tiles that are kept between loads: the same logits, whatever lies where they are kept.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use drophammer_native::Native;
use drophammer_sdk::{Backend, Budgets, HostInfo, JobContext, LoadRequest, LogLevel, Session};

use crate::fixture::{forward, mixture, quantized};

/// A job whose log is kept.
#[derive(Clone, Default)]
struct Told(Arc<Mutex<String>>);

impl JobContext for Told {
    fn progress(&self, _stage: &str, _tensor: &str, _done: u64, _total: u64) {}

    fn log(&self, _level: LogLevel, message: &str) {
        self.0.lock().unwrap().push_str(message);
    }

    fn cancelled(&self) -> bool {
        false
    }

    fn budgets(&self) -> Budgets {
        Budgets { threads: 2, memory_bytes: 0, disk_bytes: 0 }
    }
}

/// A host that lets this much be kept in a directory.
fn host(cache: &Path, bytes: u64) -> HostInfo {
    let mut host = HostInfo { cache: cache.to_owned(), ..HostInfo::default() };
    host.config.insert("cache_bytes".into(), bytes.into());
    host
}

/// Logits of a model, and what its load told.
fn logits(host: &HostInfo, model: &Path) -> (Vec<f32>, String) {
    let told = Told::default();
    let request = LoadRequest { path: model.to_owned(), ..LoadRequest::default() };
    let mut session: Box<dyn Session> =
        Native::open(host.clone()).unwrap().load(&request, Box::new(told.clone())).unwrap();
    let logits = forward(session.as_mut(), &[(0..40).map(|i| i * 31 % 2048).collect()]);
    let told = told.0.lock().unwrap().clone();
    (logits, told)
}

fn files(place: &Path) -> Vec<PathBuf> {
    let all = std::fs::read_dir(place.join("tiles")).into_iter().flatten();
    all.map(|entry| entry.unwrap().path()).collect()
}

const MAPPED: &str = "weights are mapped";
const KEEPS: &str = "for the next start";

#[test]
fn a_second_load_maps_what_the_first_kept_and_says_the_same() {
    let models = ["q4_0", "q4_k_m", "q6_k", "f16", "bf16"].map(quantized);
    for model in models.into_iter().chain([mixture(2, "q4_0")]) {
        let place = tempfile::tempdir().unwrap();
        let (due, told) = logits(&host(place.path(), 0), model);
        assert!(files(place.path()).is_empty() && !told.contains(KEEPS), "nothing is kept unasked: {told}");
        let host = host(place.path(), 1 << 30);
        let (first, told) = logits(&host, model);
        assert!(told.contains(KEEPS) && files(place.path()).len() == 1, "{told}");
        let (second, told) = logits(&host, model);
        assert!(told.contains(MAPPED) && !told.contains(KEEPS), "{told}");
        assert!(first == due && second == due, "{}", model.display());
    }
}

#[test]
fn what_was_damaged_is_not_used_and_made_again() {
    let place = tempfile::tempdir().unwrap();
    let host = host(place.path(), 1 << 30);
    let model = quantized("q4_k_m");
    let (due, _) = logits(&host, model);
    let path = files(place.path()).remove(0);
    let whole = std::fs::read(&path).unwrap();
    let damages: [&dyn Fn(); 5] = [
        &|| File::options().write(true).open(&path).unwrap().set_len(whole.len() as u64 - 1).unwrap(),
        &|| File::create(&path).unwrap().write_all_at(&whole[..4096], 0).unwrap(),
        &|| drop(File::create(&path).unwrap()),
        &|| std::fs::write(&path, [&whole[..], &[0]].concat()).unwrap(),
        &|| {
            // Any byte, here of the last matrix.
            let at = whole.len() - 1000;
            let file = File::options().write(true).open(&path).unwrap();
            file.write_all_at(&[whole[at] ^ 1], at as u64).unwrap();
        },
    ];
    for (number, damage) in damages.iter().enumerate() {
        damage();
        let (now, told) = logits(&host, model);
        assert!(told.contains("damaged") && told.contains(KEEPS), "damage {number}: {told}");
        assert!(now == due && std::fs::read(&path).unwrap() == whole, "damage {number}");
    }
    assert!(logits(&host, model).1.contains(MAPPED));
}

#[test]
fn a_changed_model_is_another() {
    let (place, models) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let host = host(place.path(), 1 << 30);
    let model = models.path().join("model.gguf");
    let load_changed = |bytes: &[u8]| {
        std::fs::write(&model, bytes).unwrap();
        let later = SystemTime::now() + Duration::from_secs(files(place.path()).len() as u64);
        File::options().write(true).open(&model).unwrap().set_modified(later).unwrap();
        logits(&host, &model)
    };
    let mut bytes = std::fs::read(quantized("q8_0")).unwrap();
    let (before, _) = load_changed(&bytes);
    let at = bytes.len() - 100_000;
    bytes[at..at + 50_000].fill(1);
    let (after, told) = load_changed(&bytes);
    assert!(told.contains(KEEPS) && !told.contains(MAPPED), "{told}");
    assert!(before != after && files(place.path()).len() == 2);
    assert!(logits(&host, &model).0 == after);
}

#[test]
fn a_folder_that_moves_brings_what_was_kept_along() {
    let (place, models) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let host = host(place.path(), 1 << 30);
    let [staging, library] = ["staging", "library"].map(|name| models.path().join(name));
    std::fs::create_dir(&staging).unwrap();
    std::fs::copy(quantized("q4_0"), staging.join("model.gguf")).unwrap();
    let (due, _) = logits(&host, &staging.join("model.gguf"));
    std::fs::rename(&staging, &library).unwrap();
    let (now, told) = logits(&host, &library.join("model.gguf"));
    assert!(told.contains(MAPPED) && now == due, "{told}");
}

#[test]
fn where_nothing_can_be_kept_a_load_goes_on_and_says_so() {
    let place = tempfile::tempdir().unwrap();
    let model = quantized("q4_0");
    let (due, told) = logits(&host(place.path(), 1000), model);
    assert!(told.contains("more than cache_bytes") && files(place.path()).is_empty(), "{told}");
    // A place that is no directory, as one that cannot be written to.
    let no_place = place.path().join("file");
    std::fs::write(&no_place, "").unwrap();
    let (now, told) = logits(&host(&no_place, 1 << 30), model);
    assert!(told.contains("weights are not kept") && now == due, "{told}");
}
