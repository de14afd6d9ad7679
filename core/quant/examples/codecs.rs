//! Throughput and error of every block codec, beside the format owner's encoder where one is given.
//!
//! ```text
//! cargo run --release -p drophammer-quant --example codecs -- [--owner PROGRAM] [--only NAME,…] [--rounds N] [--importance]
//! ```
//! `PROGRAM` is what `tests/peers/codecs/build.sh` builds. Both encode the same values on one thread; rounds alternate and the
//! fastest of each counts, so that a busy machine disturbs both alike.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use drophammer_formats::DType;
use drophammer_quant::metrics::ErrorSums;

const COLUMNS: usize = 2048;
const ROWS: usize = 256;

struct Options {
    owner: Option<PathBuf>,
    only: Option<Vec<String>>,
    rounds: usize,
    importance: bool,
}

fn options() -> Result<Options> {
    let mut options = Options { owner: None, only: None, rounds: 5, importance: false };
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        let mut value = || arguments.next().with_context(|| format!("{argument} needs a value"));
        match argument.as_str() {
            "--owner" => options.owner = Some(value()?.into()),
            "--only" => options.only = Some(value()?.split(',').map(str::to_owned).collect()),
            "--rounds" => options.rounds = value()?.parse()?,
            "--importance" => options.importance = true,
            other => bail!("unknown option {other}"),
        }
    }
    Ok(options)
}

/// Bell-shaped rows of varying width, as weight matrices are, with a few outlier columns.
fn rows() -> Vec<f32> {
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    let mut uniform = move || {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (state >> 40) as f32 / (1u64 << 24) as f32 - 0.5
    };
    let mut values = Vec::with_capacity(ROWS * COLUMNS);
    for row in 0..ROWS {
        let width = 0.02 * (1.0 + (row % 7) as f32 / 5.0);
        for column in 0..COLUMNS {
            let bell: f32 = (0..6).map(|_| uniform()).sum();
            let outlier = if column % 211 == 17 { 4.0 } else { 1.0 };
            values.push(bell * width * outlier);
        }
    }
    values
}

/// Mean squares of activations: most alike, some far larger.
fn importance() -> Vec<f32> {
    (0..COLUMNS).map(|j| ((j * 2654435761 % 1000) as f32 / 250.0 - 2.0).exp()).collect()
}

fn owner_encodes(program: &Path, dtype: DType, folder: &Path, weighted: bool) -> Result<f64> {
    let number = dtype.ggml_id().context("not a GGUF type")?;
    let weights = if weighted { folder.join("importance") } else { "-".into() };
    let output = Command::new(program)
        .arg(number.to_string())
        .arg(folder.join("rows"))
        .arg(COLUMNS.to_string())
        .arg(weights)
        .arg("1")
        .arg(folder.join("bytes"))
        .arg(folder.join("floats"))
        .output()?;
    ensure!(output.status.success(), "owner failed: {}", String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8(output.stdout)?.trim().parse()?)
}

fn write_floats(path: &Path, values: &[f32]) -> Result<()> {
    let bytes: Vec<u8> = values.iter().flat_map(|x| x.to_le_bytes()).collect();
    std::fs::write(path, bytes).with_context(|| format!("writing {}", path.display()))
}

fn main() -> Result<()> {
    let options = options()?;
    let (values, weights) = (rows(), importance());
    let weights = options.importance.then_some(weights.as_slice());
    let folder = std::env::temp_dir().join(format!("drophammer-codecs-{}", std::process::id()));
    std::fs::create_dir_all(&folder)?;
    write_floats(&folder.join("rows"), &values)?;
    write_floats(&folder.join("importance"), &importance())?;

    println!(
        "{} weights in rows of {COLUMNS}, one thread, {}",
        values.len(),
        drophammer_quant::simd::level().name()
    );
    println!(
        "{:8} {:>9} {:>9} {:>7} {:>11} {:>11} {:>9} {:>9}",
        "type", "ours M/s", "owner M/s", "×", "our error", "owner's", "ratio", "decode"
    );
    for dtype in DType::ALL.iter().copied().filter(|dtype| dtype.is_block()) {
        let Some(codec) = drophammer_quant::codec(dtype) else { continue };
        if options.only.as_ref().is_some_and(|only| !only.iter().any(|name| name == dtype.name())) {
            continue;
        }
        let size = dtype.bytes_for(values.len() as u64).context("whole blocks")? as usize;
        let mut bytes = vec![0u8; size];
        let mut back = vec![0.0f32; values.len()];
        let (mut ours, mut owner, mut decode) = (f64::INFINITY, f64::INFINITY, f64::INFINITY);
        for _ in 0..options.rounds {
            let start = Instant::now();
            for (row, out) in values.chunks_exact(COLUMNS).zip(bytes.chunks_exact_mut(size / ROWS)) {
                codec.encode(row, weights, out);
            }
            ours = ours.min(start.elapsed().as_secs_f64());
            let start = Instant::now();
            codec.decode(&bytes, &mut back);
            decode = decode.min(start.elapsed().as_secs_f64());
            if let Some(program) = &options.owner {
                owner = owner.min(owner_encodes(program, dtype, &folder, options.importance)?);
            }
        }
        let rate = |seconds: f64| values.len() as f64 / seconds / 1e6;
        let our_error = ErrorSums::between(&values, &back, weights).weighted_relative();
        print!("{:8} {:9.1}", dtype.name(), rate(ours));
        if options.owner.is_some() {
            let owners = std::fs::read(folder.join("floats"))?;
            let owners: Vec<f32> = owners.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect();
            let owner_error = ErrorSums::between(&values, &owners, weights).weighted_relative();
            codec.decode(&std::fs::read(folder.join("bytes"))?, &mut back);
            ensure!(
                back.iter().zip(&owners).all(|(a, b)| a.to_bits() == b.to_bits()),
                "{dtype}: the owner decodes its own bytes to other floats"
            );
            print!(
                " {:9.1} {:7.2} {:11.4e} {:11.4e} {:9.4}",
                rate(owner),
                owner / ours,
                our_error,
                owner_error,
                our_error / owner_error
            );
        } else {
            print!(" {:9} {:7} {:11.4e} {:11} {:9}", "", "", our_error, "", "");
        }
        println!(" {:9.0}", rate(decode));
    }
    std::fs::remove_dir_all(&folder)?;
    Ok(())
}
