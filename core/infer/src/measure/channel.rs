//! Rows from elsewhere, such as another worker: a bounded channel between whoever computes and whoever compares.

use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use super::quality::Protocol;
use super::source::{LogitSource, MeasureError};

/// The receiving end: rows in the order in which the protocol reads the text.
#[derive(Debug)]
pub struct ChannelSource {
    width: usize,
    receiver: Receiver<Vec<f32>>,
    /// The part of the last message that was not asked for yet.
    rest: Vec<f32>,
    taken: usize,
}

/// The sending end.
#[derive(Debug, Clone)]
pub struct RowSender(SyncSender<Vec<f32>>);

/// A channel for rows of `width` floats that holds `messages` of them before the sender waits.
pub fn rows_over_channel(width: usize, messages: usize) -> (RowSender, ChannelSource) {
    let (sender, receiver) = sync_channel(messages);
    (RowSender(sender), ChannelSource { width, receiver, rest: Vec::new(), taken: 0 })
}

impl RowSender {
    /// Sends some rows; waits while the channel is full.
    ///
    /// # Errors
    /// [`MeasureError::Disconnected`] when nobody listens any more.
    pub fn send(&self, rows: Vec<f32>) -> Result<(), MeasureError> {
        self.0.send(rows).map_err(|_| MeasureError::Disconnected)
    }
}

impl LogitSource for ChannelSource {
    fn width(&self) -> usize {
        self.width
    }

    fn begin(&mut self, _: &[u32]) -> Result<(), MeasureError> {
        match self.rest.len() - self.taken {
            0 => Ok(()),
            found => Err(MeasureError::OutOfStep { found, expected: 0 }),
        }
    }

    fn next_rows(&mut self, rows: &mut [f32]) -> Result<(), MeasureError> {
        let mut filled = 0;
        while filled < rows.len() {
            if self.taken == self.rest.len() {
                self.rest = self.receiver.recv().map_err(|_| MeasureError::Disconnected)?;
                self.taken = 0;
                if self.rest.is_empty() || !self.rest.len().is_multiple_of(self.width) {
                    return Err(MeasureError::OutOfStep { found: self.rest.len(), expected: self.width });
                }
            }
            let count = (rows.len() - filled).min(self.rest.len() - self.taken);
            rows[filled..filled + count].copy_from_slice(&self.rest[self.taken..self.taken + count]);
            filled += count;
            self.taken += count;
        }
        Ok(())
    }
}

/// Computes all rows that [`super::measure`] will ask for and gives them to `send`, a few at a time: the other end's
/// half of a measurement.
///
/// # Errors
/// As for [`super::measure`]; whatever `send` returns.
pub fn send_rows(
    source: &mut dyn LogitSource,
    tokens: &[u32],
    protocol: &Protocol,
    send: &mut dyn FnMut(&[f32]) -> Result<(), MeasureError>,
) -> Result<(), MeasureError> {
    let width = source.width();
    let mut buffer = vec![0.0; protocol.rows_at_once(width) * width];
    for chunk in protocol.chunks(tokens)? {
        source.begin(chunk)?;
        let mut due = (chunk.len() - 1) * width;
        while due > 0 {
            let rows = &mut buffer[..due.min(protocol.rows_at_once(width) * width)];
            source.next_rows(rows)?;
            send(rows)?;
            due -= rows.len();
        }
    }
    Ok(())
}
