//! Tokens per second of several sequences, one by one and together: `together DIR [SEQUENCES] [STEPS] [PROMPT] [THREADS]`.

use std::path::PathBuf;
use std::time::Instant;

use drophammer_openvino::OpenVino;
use drophammer_sdk::{Backend, Batch, HostInfo, LoadRequest, Session, Unwatched};

/// One token at a position for each of these sequences.
fn step(
    session: &mut dyn Session,
    sequences: &[u32],
    position: u32,
    out: &mut [f32],
) -> drophammer_sdk::Result<()> {
    let tokens: Vec<u32> = sequences.iter().map(|s| (position * 31 + s * 7) % 1999 + 5).collect();
    let outputs: Vec<u32> = (0..sequences.len() as u32).collect();
    let positions = vec![position; sequences.len()];
    let batch = Batch { tokens: &tokens, positions: &positions, sequences, outputs: &outputs };
    session.forward(batch, out)
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let path =
        PathBuf::from(arguments.next().ok_or("usage: together DIR [SEQUENCES] [STEPS] [PROMPT] [THREADS]")?);
    let mut number = |usual: u32| arguments.next().map_or(Ok(usual), |word| word.parse());
    let (sequences, steps, prompt, threads) = (number(8)?, number(32)?, number(32)?, number(2)?);
    let request = LoadRequest {
        path,
        context: Some(prompt + 6 * steps + 1),
        max_sequences: sequences,
        ..LoadRequest::default()
    };
    let mut session = OpenVino::open(HostInfo::default())?.load(&request, Box::new(Unwatched { threads }))?;
    let session = session.as_mut();
    let width = session.limits().output_width as usize;
    let mut out = vec![0.0; width * sequences as usize];
    let all: Vec<u32> = (0..sequences).collect();
    for &sequence in &all {
        let (tokens, positions): (Vec<u32>, Vec<u32>) =
            (0..prompt).map(|i| (i * 31 % 1999 + 5 + sequence, i)).unzip();
        let owner = vec![sequence; tokens.len()];
        let batch =
            Batch { tokens: &tokens, positions: &positions, sequences: &owner, outputs: &[prompt - 1] };
        session.forward(batch, &mut out[..width])?;
    }
    let mut position = prompt;
    for _ in 0..3 {
        let mut seconds = [0.0; 2];
        for (together, seconds) in [false, true].into_iter().zip(&mut seconds) {
            let begun = Instant::now();
            for _ in 0..steps {
                if together {
                    step(session, &all, position, &mut out)?;
                } else {
                    all.iter().try_for_each(|s| step(session, &[*s], position, &mut out[..width]))?;
                }
                position += 1;
            }
            *seconds = begun.elapsed().as_secs_f64();
        }
        let [alone, together] = seconds.map(|seconds| f64::from(sequences * steps) / seconds);
        println!("one by one {alone:.1} tok/s, together {together:.1} tok/s: {:.2} times", together / alone);
    }
    Ok(())
}
