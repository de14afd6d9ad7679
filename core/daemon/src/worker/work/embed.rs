//! A loaded encoder that embeds texts until nobody can ask any more.

use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::Arc;

use drophammer_infer::Tokenizer;
use drophammer_models::Checkpoint;
use drophammer_models::graph::Pooling;
use drophammer_sdk::{Batch, Limits, Session};

use super::serve::broken;
use crate::serving::wire::{Call, Reply, Trouble};
use crate::serving::{Embedded, Prompt};
use crate::worker::protocol::Frame;

/// An encoder at work.
pub(super) struct Encoder {
    session: Box<dyn Session>,
    tokenizer: Arc<Tokenizer>,
    pooling: Pooling,
}

impl Encoder {
    /// Pools as the first of `places` that says how; the mean is usual.
    pub(super) fn new(session: Box<dyn Session>, tokenizer: Arc<Tokenizer>, places: &[PathBuf]) -> Self {
        let mut told = places.iter().filter_map(|place| Checkpoint::open(place).ok());
        let pooling = told.find_map(|checkpoint| checkpoint.description().pooling);
        Self { session, tokenizer, pooling: pooling.unwrap_or(Pooling::Mean) }
    }

    /// Answers over `channel` until the other end is closed.
    pub(super) fn listen(&mut self, mut channel: UnixStream) -> drophammer_sdk::Result<()> {
        while let Some(frame) = Frame::read(&mut channel).map_err(broken)? {
            let reply = match frame.parse().map_err(broken)? {
                Call::Forget { .. } => continue,
                Call::Ask { id, .. } => {
                    let message = "this model writes no text; ask it for embeddings".to_owned();
                    Reply::Failed { id, trouble: Trouble::Invalid(message) }
                }
                Call::Embed { id, texts, truncate } => {
                    send(&mut channel, &Reply::Accepted { id })?;
                    match self.embed(&texts, truncate) {
                        Ok(embedded) => Reply::Embedded { id, embedded },
                        Err(trouble) => Reply::Failed { id, trouble },
                    }
                }
            };
            send(&mut channel, &reply)?;
        }
        Ok(())
    }

    fn embed(&mut self, texts: &[Prompt], truncate: bool) -> Result<Embedded, Trouble> {
        let limits = self.session.limits();
        let longest = limits.context.min(limits.max_batch) as usize;
        let mut rows = Vec::with_capacity(texts.len());
        for text in texts {
            let mut tokens = match text {
                Prompt::Text(text) => {
                    self.tokenizer.encode(text, true).map_err(|error| Trouble::Invalid(error.to_string()))?
                }
                Prompt::Tokens(tokens) => tokens.clone(),
                Prompt::Chat { .. } => {
                    return Err(Trouble::Invalid("texts are embedded, not conversations".to_owned()));
                }
            };
            if tokens.len() > longest {
                if !truncate {
                    let message =
                        format!("a text of {} tokens; this model reads {longest} at most", tokens.len());
                    return Err(Trouble::Invalid(message));
                }
                // The last token closes the text.
                let last = tokens.last().copied();
                tokens.truncate(longest - 1);
                tokens.extend(last);
            }
            if tokens.is_empty() {
                return Err(Trouble::Invalid("an empty text has no embedding".to_owned()));
            }
            rows.push(tokens);
        }
        let mut vectors = Vec::with_capacity(rows.len());
        let mut rest = rows.as_slice();
        while !rest.is_empty() {
            let (now, later) = rest.split_at(together(rest, &limits));
            vectors.extend(self.forward(now, &limits).map_err(|error| Trouble::Broke(error.to_string()))?);
            rest = later;
        }
        Ok(Embedded { vectors, tokens: rows.iter().map(|row| row.len() as u64).sum() })
    }

    /// Several whole texts in one batch; one vector of unit length for each.
    fn forward(&mut self, rows: &[Vec<u32>], limits: &Limits) -> drophammer_sdk::Result<Vec<Vec<f32>>> {
        let width = limits.output_width as usize;
        let tokens: Vec<u32> = rows.concat();
        let positions: Vec<u32> = rows.iter().flat_map(|row| 0..row.len() as u32).collect();
        let sequences: Vec<u32> = (0..).zip(rows).flat_map(|(at, row)| vec![at; row.len()]).collect();
        let outputs: Vec<u32> = (0..tokens.len() as u32).collect();
        let mut hidden = vec![0.0; tokens.len() * width];
        let batch =
            Batch { tokens: &tokens, positions: &positions, sequences: &sequences, outputs: &outputs };
        for sequence in 0..rows.len() as u32 {
            self.session.remove(sequence, 0, u32::MAX)?;
        }
        self.session.forward(batch, &mut hidden)?;
        let mut hidden = hidden.as_slice();
        let mut vectors = Vec::with_capacity(rows.len());
        for row in rows {
            let (own, others) = hidden.split_at(row.len() * width);
            vectors.push(unit(pool(own, width, self.pooling)));
            hidden = others;
        }
        Ok(vectors)
    }
}

/// How many of these texts fit into one batch: one at least.
fn together(rows: &[Vec<u32>], limits: &Limits) -> usize {
    let mut tokens = 0;
    let fit = rows.iter().take(limits.max_sequences.max(1) as usize).take_while(|row| {
        tokens += row.len();
        tokens <= limits.max_batch as usize
    });
    fit.count().max(1)
}

/// One vector of `width` from those of a text's tokens.
fn pool(hidden: &[f32], width: usize, pooling: Pooling) -> Vec<f32> {
    match pooling {
        Pooling::First => hidden[..width].to_vec(),
        Pooling::Last => hidden[hidden.len() - width..].to_vec(),
        Pooling::Mean => {
            let count = (hidden.len() / width) as f64;
            let column =
                |at: usize| hidden.iter().skip(at).step_by(width).map(|x| f64::from(*x)).sum::<f64>();
            (0..width).map(|at| (column(at) / count) as f32).collect()
        }
    }
}

fn unit(mut vector: Vec<f32>) -> Vec<f32> {
    let length = vector.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>().sqrt();
    if length > 0.0 {
        for x in &mut vector {
            *x = (f64::from(*x) / length) as f32;
        }
    }
    vector
}

fn send(channel: &mut UnixStream, reply: &Reply) -> drophammer_sdk::Result<()> {
    Frame::document(reply).and_then(|frame| frame.write(channel)).map_err(broken)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_pooled_to_vectors_of_unit_length() {
        let hidden = [1.0, 2.0, 3.0, 4.0, 5.0, 9.0];
        for (pooling, expected) in
            [(Pooling::Mean, [3.0, 5.0]), (Pooling::First, [1.0, 2.0]), (Pooling::Last, [5.0, 9.0])]
        {
            assert_eq!(pool(&hidden, 2, pooling), expected);
        }
        assert_eq!(unit(vec![3.0, 4.0]), [0.6, 0.8]);
        assert_eq!(unit(vec![0.0]), [0.0]);
    }

    #[test]
    fn as_many_texts_go_together_as_the_session_takes() {
        let limits = Limits {
            context: 8,
            max_sequences: 3,
            max_batch: 8,
            output_width: 1,
            output_kind: drophammer_sdk::OutputKind::Hidden,
        };
        let rows = |lengths: &[usize]| lengths.iter().map(|&length| vec![0; length]).collect::<Vec<_>>();
        for (lengths, expected) in [(&[3, 3, 3][..], 2), (&[1, 1, 1, 1], 3), (&[9], 1), (&[8, 1], 1)] {
            assert_eq!(together(&rows(lengths), &limits), expected, "{lengths:?}");
        }
    }
}
