//! The plugin's side of `tests/peers/mlx`: makes a directory, goes on from a prompt, measures speed; one JSON line each.
//!
//! ```text
//! peer forge SOURCE SCHEME OUT
//! peer greedy DIRECTORY COUNT ID…
//! peer speed DIRECTORY PROMPT COUNT
//! ```
#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};
use std::time::Instant;

use drophammer_mlx::Mlx;
use drophammer_sdk::{Backend, Batch, ForgeRequest, Goal, HostInfo, LoadRequest, Session, Unwatched};

const JOB: Unwatched = Unwatched { threads: 2 };

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match words.as_slice() {
        ["forge", source, scheme, out] => forge(source.as_ref(), scheme, out.as_ref()),
        ["greedy", directory, count, ids @ ..] => {
            let ids: Vec<u32> = ids.iter().map(|id| id.parse().unwrap()).collect();
            greedy(directory.as_ref(), count.parse().unwrap(), &ids);
        }
        ["speed", directory, prompt, count] => {
            speed(directory.as_ref(), prompt.parse().unwrap(), count.parse().unwrap());
        }
        _ => eprintln!(
            "peer forge SOURCE SCHEME OUT | greedy DIRECTORY COUNT ID… | speed DIRECTORY PROMPT COUNT"
        ),
    }
}

fn forge(source: &Path, scheme: &str, out: &Path) {
    std::fs::create_dir_all(out).unwrap();
    let request = ForgeRequest {
        source: source.to_owned(),
        goal: Goal { format: "mlx".into(), scheme: scheme.into(), ..Goal::default() },
        staging: out.to_owned(),
        name: "model".into(),
        no_tokenizer: true,
        ..ForgeRequest::default()
    };
    let begin = Instant::now();
    let report = Mlx::open(HostInfo::default()).unwrap().quantize(&request, &JOB).unwrap();
    let (seconds, bytes) = (begin.elapsed().as_secs_f64(), report.bytes);
    println!("{{\"seconds\": {seconds:.3}, \"bytes\": {bytes}, \"peak_bytes\": {}}}", peak());
}

/// The most memory this process had resident, in bytes.
fn peak() -> u64 {
    let text = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap_or("0 kB");
    line.split_whitespace().next().unwrap().parse::<u64>().unwrap() * 1024
}

fn load(directory: &Path) -> Box<dyn Session> {
    let request =
        LoadRequest { path: PathBuf::from(directory), context: Some(2048), ..LoadRequest::default() };
    Mlx::open(HostInfo::default()).unwrap().load(&request, Box::new(JOB)).unwrap()
}

/// Feeds tokens from `position` on; gives the most likely next one.
fn next(session: &mut dyn Session, position: u32, ids: &[u32], row: &mut [f32]) -> u32 {
    let positions: Vec<u32> = (position..).take(ids.len()).collect();
    let sequences = vec![0; ids.len()];
    let batch =
        Batch { tokens: ids, positions: &positions, sequences: &sequences, outputs: &[ids.len() as u32 - 1] };
    session.forward(batch, row).unwrap();
    let best = row.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1).then(b.0.cmp(&a.0)));
    best.map_or(0, |(id, _)| id as u32)
}

fn greedy(directory: &Path, count: usize, ids: &[u32]) {
    let mut session = load(directory);
    let mut row = vec![0.0; session.limits().output_width as usize];
    let mut made = vec![next(session.as_mut(), 0, ids, &mut row)];
    while made.len() < count {
        let position = (ids.len() + made.len() - 1) as u32;
        let last = made[made.len() - 1];
        made.push(next(session.as_mut(), position, &[last], &mut row));
    }
    println!("{made:?}");
}

fn speed(directory: &Path, prompt: usize, count: usize) {
    let mut session = load(directory);
    let vocabulary = session.limits().output_width;
    let mut row = vec![0.0; vocabulary as usize];
    let ids: Vec<u32> = (0..prompt as u32).map(|i| (i * 37 + 11) % vocabulary.min(2000)).collect();
    next(session.as_mut(), 0, &ids, &mut row); // the first run pays for memory
    session.remove(0, 0, u32::MAX).unwrap();
    let begin = Instant::now();
    let mut last = next(session.as_mut(), 0, &ids, &mut row);
    let prefill = prompt as f64 / begin.elapsed().as_secs_f64();
    // The usual token's time: a disturbed one does not count.
    let mut times: Vec<f64> = (0..count)
        .map(|i| {
            let begin = Instant::now();
            last = next(session.as_mut(), (prompt + i) as u32, &[last], &mut row);
            begin.elapsed().as_secs_f64()
        })
        .collect();
    times.sort_by(f64::total_cmp);
    let decode = 1.0 / times[count / 2];
    println!("{{\"prefill\": {prefill:.2}, \"decode\": {decode:.2}}}");
}
