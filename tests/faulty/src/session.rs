//! A session over a vocabulary of 2048 (the fixture's) that misbehaves as its artifact says: the file's text is the name of a
//! misbehaviour, done on the third forward pass.

use drophammer_sdk::{BackendError, Batch, ErrorCode, Limits, LoadRequest, OutputKind, Result, Session};

use crate::misbehaviour::Misbehaviour;

const VOCABULARY: u32 = 2048;

struct FaultySession {
    misbehaviour: Misbehaviour,
    limits: Limits,
    passes: u32,
}

/// Loads an artifact this plugin made.
pub(crate) fn load(request: &LoadRequest) -> Result<Box<dyn Session>> {
    let text = std::fs::read_to_string(&request.path).map_err(|error| {
        BackendError::new(ErrorCode::InvalidInput, format!("{}: {error}", request.path.display()))
    })?;
    let misbehaviour = Misbehaviour::named(text.trim())?;
    let limits = Limits {
        context: request.context.unwrap_or(1024),
        max_sequences: request.max_sequences,
        max_batch: request.max_batch.unwrap_or(512),
        output_width: VOCABULARY,
        output_kind: OutputKind::Logits,
    };
    Ok(Box::new(FaultySession { misbehaviour, limits, passes: 0 }))
}

impl Session for FaultySession {
    fn limits(&self) -> Limits {
        self.limits
    }

    fn forward(&mut self, batch: Batch<'_>, output: &mut [f32]) -> Result<()> {
        batch.validate(&self.limits, output.len())?;
        self.passes += 1;
        if self.passes == 3 {
            self.misbehaviour.perform(None, std::path::Path::new("/nonexistent"))?;
        }
        // The next token is always the one after this one.
        for (row, &index) in output.chunks_exact_mut(VOCABULARY as usize).zip(batch.outputs) {
            row.fill(0.0);
            let next = (batch.tokens[index as usize] + 1) % VOCABULARY;
            row[next as usize] = 10.0;
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
