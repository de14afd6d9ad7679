//! Pictures and sounds that real networks are fed with.

use std::path::Path;

use super::{npy, numbers};

/// Five letters of five by seven dots, a row to a number.
const LETTERS: [[u8; 7]; 5] = [
    [0x1e, 0x11, 0x11, 0x1e, 0x14, 0x12, 0x11],
    [0x1f, 0x10, 0x10, 0x1e, 0x10, 0x10, 0x1f],
    [0x11, 0x11, 0x0a, 0x04, 0x04, 0x04, 0x04],
    [0x1f, 0x10, 0x10, 0x1e, 0x10, 0x10, 0x10],
    [0x10, 0x10, 0x10, 0x10, 0x10, 0x10, 0x1f],
];

/// Lines of letters as RapidOCR's classifier takes them, 3 channels of 48 by 192, every other one upside down.
pub(crate) fn lines(count: u64) -> Vec<f32> {
    let mut all = Vec::new();
    for line in 0..count {
        let shades = numbers(64, line + 1);
        let (paper, ink) = (0.6 + 0.4 * shades[0].abs(), -0.5 - 0.5 * shades[1].abs());
        let (dot, left, top) = (4 + line % 2, (line * 3) % 12, 4 + (line * 5) % 8);
        let dark = |x: u64, y: u64| {
            let (Some(x), Some(y)) = (x.checked_sub(left), y.checked_sub(top)) else { return false };
            let (column, row) = (x / dot, y / dot);
            let letter = LETTERS[((column / 6 * 7 + line) % 5) as usize];
            row < 7 && column % 6 < 5 && column / 6 < 6 && letter[row as usize] >> (4 - column % 6) & 1 == 1
        };
        for channel in 0..3 {
            for y in 0..48 {
                for x in 0..192 {
                    let (x, y) = if line % 2 == 0 { (x, y) } else { (191 - x, 47 - y) };
                    let grain = shades[((x * 7 + y * 13 + channel) % 64) as usize] * 0.05;
                    all.push(if dark(x, y) { ink } else { paper } + grain);
                }
            }
        }
    }
    all
}

/// Eight pieces of sound as Silero's network takes them, in a directory of their own: each 30 chunks of 576 numbers, with noise of
/// this strength.
pub(crate) fn pieces(directory: &Path, noise: f32) {
    // Voices: tones with their overtones, that come and go.
    let sound = |second: f32, voice: f32| {
        let swell = (second * 9.0).sin().max(0.0) * (second * 1.3).cos().max(0.0);
        (1..12).map(|k| (second * voice * k as f32 * std::f32::consts::TAU).sin() / k as f32).sum::<f32>()
            * swell
            * 0.2
    };
    let chunks: Vec<f32> = (0..240u32)
        .flat_map(|chunk| (0..576u32).map(move |at| (chunk * 512 + at, 100.0 + chunk as f32 / 2.0)))
        .map(|(at, voice)| sound(at as f32 / 16e3, voice))
        .collect();
    // The graph's first size is time: a file for each piece of sound.
    std::fs::create_dir(directory).unwrap();
    for (number, piece) in chunks.chunks(30 * 576).enumerate() {
        let noises = numbers(piece.len() as u64, number as u64 + 1);
        let piece: Vec<f32> = piece.iter().zip(noises).map(|(x, n)| x + n * noise).collect();
        archive(&directory.join(format!("{number}.npz")), &piece);
    }
}

/// One piece of sound with a state at rest, as an archive.
fn archive(path: &Path, piece: &[f32]) {
    use std::io::Write as _;
    let place = tempfile::tempdir().unwrap();
    let mut archive = zip::ZipWriter::new(std::fs::File::create(path).unwrap());
    let rest = vec![0.0; 128];
    for (name, shape, values) in
        [("input", vec![30, 576], piece), ("h", vec![1, 1, 128], &rest), ("c", vec![1, 1, 128], &rest)]
    {
        let file = place.path().join("a.npy");
        npy(&file, &shape, values);
        archive.start_file(format!("{name}.npy"), zip::write::SimpleFileOptions::default()).unwrap();
        archive.write_all(&std::fs::read(&file).unwrap()).unwrap();
    }
    archive.finish().unwrap();
}
