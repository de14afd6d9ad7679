//! A session in another worker: how an artifact is compared with its source across backends.
//!
//! The measuring worker holds a [`Borrowed`] session; the worker that loaded the reference answers with [`lend`]. Both
//! work in lockstep, batch by batch, so neither side ever holds more logits than one batch and nothing is written to
//! disk. This is the only place where logits cross processes.

use std::io;
use std::os::unix::net::UnixStream;

use drophammer_sdk::{BackendError, Batch, ErrorCode, Limits, OutputKind, Result, Session};
use serde::{Deserialize, Serialize};

use super::protocol::Frame;

/// Floats per frame of rows.
const PIECE: usize = 1 << 20;

/// Borrower to lender.
#[derive(Debug, Serialize, Deserialize)]
enum Ask {
    Forward { tokens: Vec<u32>, positions: Vec<u32>, sequences: Vec<u32>, outputs: Vec<u32> },
    Keep { sequence: u32, from: u32, to: u32 },
    Remove { sequence: u32, from: u32, to: u32 },
    Copy { source: u32, target: u32, from: u32, to: u32 },
}

/// Lender to borrower; after a forward pass that is done, its rows follow.
#[derive(Debug, Serialize, Deserialize)]
enum Reply {
    Loaded { context: u32, max_sequences: u32, max_batch: u32, output_width: u32, hidden: bool },
    Done,
    Failed { code: String, message: String, help: String },
}

/// Answers for a session until the borrower hangs up.
///
/// # Errors
/// When the channel breaks or the borrower sends nonsense.
pub(super) fn lend(session: &mut dyn Session, channel: &mut UnixStream) -> Result<()> {
    answer(session, channel).map_err(|error| broken("the measuring worker", &error))
}

fn answer(session: &mut dyn Session, channel: &mut UnixStream) -> io::Result<()> {
    let limits = session.limits();
    let loaded = Reply::Loaded {
        context: limits.context,
        max_sequences: limits.max_sequences,
        max_batch: limits.max_batch,
        output_width: limits.output_width,
        hidden: limits.output_kind == OutputKind::Hidden,
    };
    Frame::document(&loaded)?.write(channel)?;
    let mut rows = Vec::new();
    while let Some(frame) = Frame::read(channel)? {
        rows.clear();
        let done = match frame.parse()? {
            Ask::Forward { tokens, positions, sequences, outputs } => {
                // The session checks the batch itself; this only keeps a nonsensical one from being allocated for.
                let wanted = outputs.len().min(limits.max_batch as usize);
                rows.resize(wanted * limits.output_width as usize, 0.0);
                let batch = Batch {
                    tokens: &tokens,
                    positions: &positions,
                    sequences: &sequences,
                    outputs: &outputs,
                };
                session.forward(batch, &mut rows)
            }
            Ask::Keep { sequence, from, to } => session.keep(sequence, from, to),
            Ask::Remove { sequence, from, to } => session.remove(sequence, from, to),
            Ask::Copy { source, target, from, to } => session.copy(source, target, from, to),
        };
        match done {
            Ok(()) => {
                Frame::document(&Reply::Done)?.write(channel)?;
                for piece in rows.chunks(PIECE) {
                    Frame::Rows(piece.to_vec()).write(channel)?;
                }
            }
            Err(BackendError { code, message, help }) => {
                let reply = Reply::Failed { code: code.word().to_owned(), message, help };
                Frame::document(&reply)?.write(channel)?;
            }
        }
    }
    Ok(())
}

/// A session that another worker holds.
pub(super) struct Borrowed {
    channel: UnixStream,
    limits: Limits,
}

impl Borrowed {
    /// Waits until the other worker has loaded its model.
    ///
    /// # Errors
    /// When it ends before that.
    pub(super) fn wait(mut channel: UnixStream) -> Result<Self> {
        match receive(&mut channel)? {
            Reply::Loaded { context, max_sequences, max_batch, output_width, hidden } => {
                let output_kind = if hidden { OutputKind::Hidden } else { OutputKind::Logits };
                let limits = Limits { context, max_sequences, max_batch, output_width, output_kind };
                Ok(Self { channel, limits })
            }
            Reply::Done | Reply::Failed { .. } => Err(nonsense()),
        }
    }

    fn ask(&mut self, ask: &Ask) -> Result<()> {
        Frame::document(ask)
            .and_then(|frame| frame.write(&mut self.channel))
            .map_err(|error| broken("the reference worker", &error))?;
        match receive(&mut self.channel)? {
            Reply::Done => Ok(()),
            Reply::Failed { code, message, help } => {
                let message = format!("the reference: {message}");
                Err(BackendError::new(ErrorCode::from_word(&code), message).with_help(help))
            }
            Reply::Loaded { .. } => Err(nonsense()),
        }
    }
}

impl Session for Borrowed {
    fn limits(&self) -> Limits {
        self.limits
    }

    fn forward(&mut self, batch: Batch<'_>, output: &mut [f32]) -> Result<()> {
        batch.validate(&self.limits, output.len())?;
        self.ask(&Ask::Forward {
            tokens: batch.tokens.to_vec(),
            positions: batch.positions.to_vec(),
            sequences: batch.sequences.to_vec(),
            outputs: batch.outputs.to_vec(),
        })?;
        for piece in output.chunks_mut(PIECE) {
            let frame =
                Frame::read(&mut self.channel).map_err(|error| broken("the reference worker", &error))?;
            match frame {
                Some(Frame::Rows(rows)) if rows.len() == piece.len() => piece.copy_from_slice(&rows),
                None => return Err(gone()),
                Some(_) => return Err(nonsense()),
            }
        }
        Ok(())
    }

    fn keep(&mut self, sequence: u32, from: u32, to: u32) -> Result<()> {
        self.ask(&Ask::Keep { sequence, from, to })
    }

    fn remove(&mut self, sequence: u32, from: u32, to: u32) -> Result<()> {
        self.ask(&Ask::Remove { sequence, from, to })
    }

    fn copy(&mut self, source: u32, target: u32, from: u32, to: u32) -> Result<()> {
        self.ask(&Ask::Copy { source, target, from, to })
    }
}

fn receive(channel: &mut UnixStream) -> Result<Reply> {
    let frame = Frame::read(channel).map_err(|error| broken("the reference worker", &error))?;
    frame.ok_or_else(gone)?.parse().map_err(|_| nonsense())
}

fn broken(who: &str, error: &io::Error) -> BackendError {
    BackendError::new(ErrorCode::WorkerDied, format!("the connection with {who} broke: {error}"))
}

fn gone() -> BackendError {
    BackendError::new(ErrorCode::WorkerDied, "the reference worker ended before the measurement did")
}

fn nonsense() -> BackendError {
    BackendError::new(
        ErrorCode::Failed,
        "the reference worker answered with something else than was asked for",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Rows that tell which token they belong to; refuses token 9.
    struct Plain;

    impl Session for Plain {
        fn limits(&self) -> Limits {
            let output_kind = OutputKind::Logits;
            Limits { context: 64, max_sequences: 2, max_batch: 8, output_width: 300_000, output_kind }
        }

        fn forward(&mut self, batch: Batch<'_>, output: &mut [f32]) -> Result<()> {
            batch.validate(&self.limits(), output.len())?;
            if batch.tokens.contains(&9) {
                return Err(BackendError::new(ErrorCode::InvalidInput, "token 9").with_help("another token"));
            }
            for (row, &index) in output.chunks_exact_mut(300_000).zip(batch.outputs) {
                row.fill(batch.tokens[index as usize] as f32);
            }
            Ok(())
        }

        fn keep(&mut self, _: u32, _: u32, _: u32) -> Result<()> {
            Ok(())
        }

        fn remove(&mut self, _: u32, _: u32, _: u32) -> Result<()> {
            Ok(())
        }

        fn copy(&mut self, _: u32, _: u32, _: u32, _: u32) -> Result<()> {
            Ok(())
        }
    }

    fn batch(tokens: &[u32]) -> Batch<'_> {
        Batch { tokens, positions: &[0, 1, 2, 3, 4], sequences: &[0, 0, 0, 0, 0], outputs: &[0, 1, 3, 4] }
    }

    #[test]
    fn a_borrowed_session_answers_as_the_lent_one() {
        let (mut ours, theirs) = UnixStream::pair().unwrap();
        let lender = std::thread::spawn(move || lend(&mut Plain, &mut ours));
        let mut borrowed = Borrowed::wait(theirs).unwrap();
        assert_eq!(borrowed.limits(), Plain.limits());
        let mut rows = vec![0.0; 4 * 300_000];
        borrowed.forward(batch(&[5, 6, 7, 8, 1]), &mut rows).unwrap();
        let firsts: Vec<f32> = rows.chunks_exact(300_000).map(|row| row[299_999]).collect();
        assert_eq!(firsts, [5.0, 6.0, 8.0, 1.0]);
        let error = borrowed.forward(batch(&[5, 6, 9, 8, 1]), &mut rows).unwrap_err();
        assert_eq!((error.code, error.message.as_str()), (ErrorCode::InvalidInput, "the reference: token 9"));
        borrowed.remove(0, 0, u32::MAX).unwrap();
        drop(borrowed);
        lender.join().unwrap().unwrap();
    }

    #[test]
    fn a_reference_that_ends_early_is_told_from_a_slow_one() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        drop(ours);
        assert_eq!(Borrowed::wait(theirs).err().unwrap().code, ErrorCode::WorkerDied);
    }
}
