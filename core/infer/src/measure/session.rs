//! Rows from a session in this process.

use drophammer_sdk::{Batch, OutputKind, Session};

use super::source::{LogitSource, MeasureError};

/// Reads each chunk in sequence 0 of a session.
pub struct SessionSource<'s> {
    session: &'s mut dyn Session,
    width: usize,
    chunk: Vec<u32>,
    position: usize,
}

impl<'s> SessionSource<'s> {
    /// Takes a session over.
    ///
    /// # Errors
    /// [`MeasureError::NoLogits`] for an encoder.
    pub fn new(session: &'s mut dyn Session) -> Result<Self, MeasureError> {
        let limits = session.limits();
        if limits.output_kind != OutputKind::Logits || limits.output_width == 0 {
            return Err(MeasureError::NoLogits);
        }
        Ok(Self { session, width: limits.output_width as usize, chunk: Vec::new(), position: 0 })
    }
}

impl LogitSource for SessionSource<'_> {
    fn width(&self) -> usize {
        self.width
    }

    fn begin(&mut self, tokens: &[u32]) -> Result<(), MeasureError> {
        let context = self.session.limits().context as usize;
        if tokens.len() > context {
            let limit = format!("the model's context of {context}");
            return Err(MeasureError::Chunk { chunk: tokens.len(), limit });
        }
        self.session.remove(0, 0, u32::MAX)?;
        self.chunk.clear();
        self.chunk.extend_from_slice(tokens);
        self.position = 0;
        Ok(())
    }

    fn next_rows(&mut self, rows: &mut [f32]) -> Result<(), MeasureError> {
        let most = self.session.limits().max_batch.max(1) as usize;
        for rows in rows.chunks_mut(most * self.width) {
            let count = rows.len() / self.width;
            let end = self.position + count;
            let tokens = self.chunk.get(self.position..end).ok_or(MeasureError::OutOfStep {
                found: (self.chunk.len() - self.position) * self.width,
                expected: rows.len(),
            })?;
            let positions: Vec<u32> = (self.position as u32..end as u32).collect();
            let outputs: Vec<u32> = (0..count as u32).collect();
            let batch =
                Batch { tokens, positions: &positions, sequences: &vec![0; count], outputs: &outputs };
            self.session.forward(batch, rows)?;
            self.position = end;
        }
        Ok(())
    }
}
