//! What a session promises whatever the batch.

use anyhow::{Result, bail, ensure};
use drophammer_sdk::{Batch, ErrorCode, Session};

use crate::models::{difference, tokens, trained};
use crate::subject::{Subject, forward, told};

/// Token ids of the trained model.
const VOCABULARY: u32 = 2048;

/// A session of the trained model; its files live as long as this.
struct Loaded {
    session: Box<dyn Session>,
    _staging: tempfile::TempDir,
}

fn load(subject: &Subject, sequences: u32) -> Result<Loaded> {
    let staging = tempfile::tempdir()?;
    let path = subject.make(&trained(), staging.path()).map_err(told)?;
    Ok(Loaded { session: subject.load(&path, sequences).map_err(told)?, _staging: staging })
}

fn feed(session: &mut dyn Session, sequence: u32, from: u32, tokens: &[u32]) -> Result<Vec<Vec<f32>>> {
    let batch: Vec<_> = tokens.iter().zip(from..).map(|(&token, at)| (token, at, sequence)).collect();
    forward(session, &batch)
}

fn clear(session: &mut dyn Session, sequences: u32) -> Result<()> {
    (0..sequences).try_for_each(|sequence| session.remove(sequence, 0, u32::MAX)).map_err(told)
}

pub(super) fn chunks(subject: &Subject) -> Result<String> {
    let mut loaded = load(subject, 1)?;
    let session = loaded.session.as_mut();
    let prompt = tokens(1, 150, VOCABULARY);
    let whole = feed(session, 0, 0, &prompt)?;
    let mut most = 0.0_f32;
    for cuts in [&[1][..], &[7, 1, 33], &[64, 1, 1, 2], &[149]] {
        clear(session, 1)?;
        let (mut rows, mut done, mut sizes) = (Vec::new(), 0, cuts.iter().cycle());
        while done < prompt.len() {
            let end = (done + sizes.next().unwrap_or(&1)).min(prompt.len());
            rows.extend(feed(session, 0, done as u32, &prompt[done..end])?);
            done = end;
        }
        most = most.max(difference(&rows, &whole));
        ensure!(most <= subject.exceptions.consistency, "chunks of {cuts:?}: largest difference {most}");
    }
    Ok(format!("largest difference {most:.1e}"))
}

pub(super) fn batching(subject: &Subject) -> Result<String> {
    let mut loaded = load(subject, 3)?;
    let session = loaded.session.as_mut();
    let mut most = 0.0_f32;
    for (seed, lengths) in [(2, [5, 5, 5]), (3, [1, 40, 17]), (4, [90, 1, 2])] {
        let prompts: Vec<Vec<u32>> =
            (0..).zip(lengths).map(|(i, length)| tokens(seed * 10 + i, length, VOCABULARY)).collect();
        let mut alone = Vec::new();
        for (prompt, sequence) in prompts.iter().zip(0..) {
            alone.push(feed(session, sequence, 0, prompt)?);
        }
        clear(session, 3)?;
        // Interleaved by position, as a scheduler's batches are.
        let mut batch: Vec<(u32, u32, u32)> = prompts
            .iter()
            .zip(0..)
            .flat_map(|(prompt, sequence)| {
                prompt.iter().zip(0..).map(move |(&token, at)| (token, at, sequence))
            })
            .collect();
        batch.sort_by_key(|&(_, position, sequence)| (position, sequence));
        let together = forward(session, &batch)?;
        for (row, &(_, position, sequence)) in together.iter().zip(&batch) {
            let due = &alone[sequence as usize][position as usize];
            most = most.max(difference(std::slice::from_ref(row), std::slice::from_ref(due)));
        }
        ensure!(most <= subject.exceptions.consistency, "lengths {lengths:?}: largest difference {most}");
        clear(session, 3)?;
    }
    Ok(format!("largest difference {most:.1e}"))
}

pub(super) fn sequences(subject: &Subject) -> Result<String> {
    let mut loaded = load(subject, 3)?;
    let session = loaded.session.as_mut();
    let mut most = 0.0_f32;
    let mut same = |what: &str, found: &[Vec<f32>], due: &[Vec<f32>]| {
        let largest = difference(found, due);
        most = most.max(largest);
        ensure!(largest <= subject.exceptions.consistency, "{what}: largest difference {largest}");
        Ok(())
    };
    for (seed, length, kept) in [(5, 40, 40_u32), (6, 90, 33), (7, 12, 1)] {
        let (prompt, more) = (tokens(seed, length, VOCABULARY), tokens(seed + 10, 20, VOCABULARY));
        let direct = [&prompt[..kept as usize], &more].concat();
        let due = feed(session, 2, 0, &direct)?[kept as usize..].to_vec();
        feed(session, 0, 0, &prompt)?;
        // The target held something else before.
        feed(session, 1, 0, &more)?;
        session.copy(0, 1, 0, kept).map_err(told)?;
        same("a copied sequence", &feed(session, 1, kept, &more)?, &due)?;
        session.remove(0, kept, u32::MAX).map_err(told)?;
        same("a sequence whose tail was removed", &feed(session, 0, kept, &more)?, &due)?;
        // The copy is not disturbed by what its source went on with.
        session.remove(1, kept, u32::MAX).map_err(told)?;
        same("a copy after its source went on", &feed(session, 1, kept, &more)?, &due)?;
        session.keep(2, 0, kept).map_err(told)?;
        same("a sequence of which a beginning was kept", &feed(session, 2, kept, &more)?, &due)?;
        clear(session, 3)?;
    }
    Ok(format!("largest difference {most:.1e}"))
}

/// What, tokens, positions, sequences, outputs, floats in the buffer.
type Refused<'a> = (&'a str, &'a [u32], &'a [u32], &'a [u32], &'a [u32], usize);

pub(super) fn limits(subject: &Subject) -> Result<String> {
    let mut loaded = load(subject, 2)?;
    let session = loaded.session.as_mut();
    let limits = session.limits();
    ensure!(limits.output_width == VOCABULARY, "rows of {} floats, not {VOCABULARY}", limits.output_width);
    ensure!(limits.context == 256 && limits.max_sequences == 2, "limits are not those asked for: {limits:?}");
    let prompt = tokens(8, 20, VOCABULARY);
    let due = feed(session, 0, 0, &prompt)?;
    let width = limits.output_width as usize;
    let many = vec![0; limits.max_batch as usize + 1];
    let refused: [Refused<'_>; 8] = [
        ("no tokens", &[], &[], &[], &[], 0),
        ("a position beyond the context", &[1], &[limits.context], &[0], &[0], width),
        ("a sequence beyond the limit", &[1], &[20], &[2], &[0], width),
        ("a token beyond the vocabulary", &[VOCABULARY], &[20], &[0], &[0], width),
        ("an output beyond the batch", &[1], &[20], &[0], &[1], width),
        ("a buffer too short", &[1], &[20], &[0], &[0], width - 1),
        ("columns of different lengths", &[1, 2], &[20], &[0], &[0], width),
        ("more tokens than a batch takes", &many, &many, &many, &[], 0),
    ];
    for (what, tokens, positions, sequences, outputs, room) in refused {
        let mut out = vec![0.0; room];
        match session.forward(Batch { tokens, positions, sequences, outputs }, &mut out) {
            Ok(()) => bail!("{what} is accepted"),
            Err(error) if error.code == ErrorCode::InvalidRequest => {}
            Err(error) => bail!("{what} is refused as {}: {error}", error.code.word()),
        }
    }
    for result in
        [session.copy(0, 2, 0, 1), session.copy(2, 0, 0, 1), session.remove(2, 0, 1), session.keep(2, 0, 1)]
    {
        ensure!(
            result.as_ref().is_err_and(|error| error.code == ErrorCode::InvalidRequest),
            "an operation on a sequence beyond the limit gives {result:?}"
        );
    }
    // All that changed nothing.
    let more = tokens(9, 5, VOCABULARY);
    let after = feed(session, 0, 20, &more)?;
    clear(session, 1)?;
    let whole = feed(session, 0, 0, &[prompt, more].concat())?;
    let most = difference(&after, &whole[20..]).max(difference(&due, &whole[..20]));
    ensure!(most <= subject.exceptions.consistency, "refused batches changed something: {most}");
    Ok(format!("{} kinds of bad batch refused", refused.len() + 4))
}
