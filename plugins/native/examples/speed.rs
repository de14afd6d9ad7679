//! Speed of reading a prompt and of generating from an empty cache, and resident memory of a model:
//! `speed MODEL [THREADS] [PREFILL] [DECODE] [SEQUENCES] [CACHE]`, where weights as they are laid out are kept in CACHE.

use std::path::PathBuf;
use std::time::Instant;

use drophammer_native::Native;
use drophammer_sdk::{Backend, Batch, HostInfo, LoadRequest, Unwatched};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let usage = "usage: speed MODEL [THREADS] [PREFILL] [DECODE] [SEQUENCES] [CACHE]";
    let path = PathBuf::from(arguments.next().ok_or(usage)?);
    let mut number = |usual: u32| arguments.next().map_or(Ok(usual), |word| word.parse());
    let (threads, prefill, decode, sequences) = (number(2)?, number(512)?, number(64)?, number(1)?);
    let mut host = HostInfo::default();
    if let Some(cache) = arguments.next() {
        host.cache = PathBuf::from(cache);
        host.config.insert("cache_bytes".into(), u64::MAX.into());
    }
    let begun = Instant::now();
    let request = LoadRequest {
        path,
        context: Some(prefill.max(decode)),
        max_sequences: sequences,
        ..LoadRequest::default()
    };
    let mut session = Native::open(host)?.load(&request, Box::new(Unwatched { threads }))?;
    let width = session.limits().output_width as usize;
    println!("load {:.3} s, {}", begun.elapsed().as_secs_f64(), resident());
    let tokens: Vec<u32> = (0..prefill).map(|i| i * 31 % 1999 + 5).collect();
    let positions: Vec<u32> = (0..prefill).collect();
    let mut out = vec![0.0; width * sequences as usize];
    let (mut reading, mut generating) = (Vec::new(), Vec::new());
    for _ in 0..5 {
        let mut seconds = 0.0;
        for sequence in 0..sequences {
            session.remove(sequence, 0, u32::MAX)?;
            let begun = Instant::now();
            let batch = Batch {
                tokens: &tokens,
                positions: &positions,
                sequences: &vec![sequence; tokens.len()],
                outputs: &[prefill - 1],
            };
            session.forward(batch, &mut out[..width])?;
            seconds += begun.elapsed().as_secs_f64();
        }
        reading.push(seconds);
        let ids: Vec<u32> = (0..sequences).collect();
        ids.iter().try_for_each(|&sequence| session.remove(sequence, 0, u32::MAX))?;
        let begun = Instant::now();
        for i in 0..decode {
            let (next, position) = (vec![i % 1000 + 7; ids.len()], vec![i; ids.len()]);
            let batch = Batch { tokens: &next, positions: &position, sequences: &ids, outputs: &ids };
            session.forward(batch, &mut out)?;
        }
        generating.push(begun.elapsed().as_secs_f64());
    }
    let rates = |tokens: u32, seconds: Vec<f64>| -> Vec<f64> {
        seconds.into_iter().map(|seconds| f64::from(tokens * sequences) / seconds).collect()
    };
    println!("{}", resident());
    println!("prefill {:.1?} decode {:.1?} tokens/s", rates(prefill, reading), rates(decode, generating));
    Ok(())
}

/// What the process holds in memory, as the system tells it; nothing where it does not.
fn resident() -> String {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let lines =
        status.lines().filter(|line| ["VmRSS", "RssAnon", "RssFile"].iter().any(|n| line.starts_with(n)));
    lines.map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect::<Vec<_>>().join(", ")
}
