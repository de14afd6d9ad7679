//! A session small enough to reason about: its logits are a hash of everything its cache holds for a sequence, so a
//! token that is missing, doubled or in the wrong place changes every output after it. It checks what it is asked.

use drophammer_sdk::{BackendError, Batch, ErrorCode, Limits, OutputKind, Result, Session, most_likely};

/// The session.
#[derive(Debug)]
pub(crate) struct HashSession {
    pub(crate) limits: Limits,
    pub(crate) sequences: Vec<Vec<u32>>,
    /// Tokens of each batch.
    pub(crate) batches: Vec<usize>,
    /// The next forward call fails.
    pub(crate) fail: bool,
    /// Whether `copy` works.
    pub(crate) copies: bool,
    /// Added to every logit by this much times a hash: a model that is slightly another one.
    pub(crate) noise: f32,
    /// How many of the last tokens its logits depend on: few make texts that repeat themselves.
    pub(crate) memory: usize,
}

impl HashSession {
    pub(crate) fn new(vocabulary: u32, context: u32, max_sequences: u32, max_batch: u32) -> Self {
        Self {
            limits: Limits {
                context,
                max_sequences,
                max_batch,
                output_width: vocabulary,
                output_kind: OutputKind::Logits,
            },
            sequences: vec![Vec::new(); max_sequences as usize],
            batches: Vec::new(),
            fail: false,
            copies: true,
            noise: 0.0,
            memory: usize::MAX,
        }
    }

    /// What follows `tokens`, as logits.
    pub(crate) fn row(tokens: &[u32], vocabulary: u32, noise: f32) -> Vec<f32> {
        let mix = |h: u64, x: u32| (h ^ u64::from(x)).wrapping_mul(0x0100_0000_01b3).rotate_left(29);
        let state = tokens.iter().fold(0xcbf2_9ce4_8422_2325, |h, &t| mix(h, t));
        let unit = |h: u64| {
            let h = (h ^ (h >> 31)).wrapping_mul(0x9E37_79B9_7F4A_7C15);
            ((h ^ (h >> 29)).wrapping_mul(0xBF58_476D_1CE4_E5B9) >> 40) as f32 / (1u32 << 24) as f32
        };
        (0..vocabulary).map(|v| 8.0 * unit(mix(state, v)) + noise * unit(mix(!state, v))).collect()
    }

    fn row_after(&self, tokens: &[u32]) -> Vec<f32> {
        let seen = &tokens[tokens.len().saturating_sub(self.memory)..];
        Self::row(seen, self.limits.output_width, self.noise)
    }

    /// What greedy generation gives, computed without any batching.
    pub(crate) fn greedy(&self, prompt: &[u32], count: usize) -> Vec<u32> {
        let mut tokens = prompt.to_vec();
        for _ in 0..count {
            let row = self.row_after(&tokens);
            tokens.push(most_likely(&row).unwrap() as u32);
        }
        tokens.split_off(prompt.len())
    }
}

impl Session for HashSession {
    fn limits(&self) -> Limits {
        self.limits
    }

    fn forward(&mut self, batch: Batch<'_>, output: &mut [f32]) -> Result<()> {
        batch.validate(&self.limits, output.len())?;
        if std::mem::take(&mut self.fail) {
            return Err(
                BackendError::new(ErrorCode::OutOfResources, "no memory").with_help("close something")
            );
        }
        self.batches.push(batch.tokens.len());
        let width = self.limits.output_width as usize;
        let mut rows = output.chunks_mut(width);
        for index in 0..batch.tokens.len() {
            let number = batch.sequences[index] as usize;
            assert_eq!(
                self.sequences[number].len(),
                batch.positions[index] as usize,
                "positions continue the cache"
            );
            self.sequences[number].push(batch.tokens[index]);
            if batch.outputs.contains(&(index as u32)) {
                let row = self.row_after(&self.sequences[number]);
                rows.next().unwrap().copy_from_slice(&row);
            }
        }
        Ok(())
    }

    fn keep(&mut self, sequence: u32, from: u32, to: u32) -> Result<()> {
        assert_eq!(from, 0, "this cache cannot drop a prefix");
        self.sequences[sequence as usize].truncate(to as usize);
        Ok(())
    }

    fn remove(&mut self, sequence: u32, from: u32, to: u32) -> Result<()> {
        assert_eq!(to, u32::MAX, "only tails are removed");
        self.sequences[sequence as usize].truncate(from as usize);
        Ok(())
    }

    fn copy(&mut self, source: u32, target: u32, from: u32, to: u32) -> Result<()> {
        if !self.copies {
            return Err(BackendError::new(ErrorCode::UnsupportedInput, "no copies"));
        }
        assert_eq!(from, 0);
        self.sequences[target as usize] = self.sequences[source as usize][..to as usize].to_vec();
        Ok(())
    }
}

/// A session that a test can look into while a scheduler owns it.
#[derive(Debug, Clone)]
pub(crate) struct Shared(pub(crate) std::sync::Arc<std::sync::Mutex<HashSession>>);

impl Shared {
    pub(crate) fn new(session: HashSession) -> Self {
        Self(std::sync::Arc::new(std::sync::Mutex::new(session)))
    }

    pub(crate) fn with<T>(&self, look: impl FnOnce(&mut HashSession) -> T) -> T {
        look(&mut self.0.lock().unwrap())
    }
}

impl Session for Shared {
    fn limits(&self) -> Limits {
        self.with(|session| session.limits())
    }

    fn forward(&mut self, batch: Batch<'_>, output: &mut [f32]) -> Result<()> {
        self.with(|session| session.forward(batch, output))
    }

    fn keep(&mut self, sequence: u32, from: u32, to: u32) -> Result<()> {
        self.with(|session| session.keep(sequence, from, to))
    }

    fn remove(&mut self, sequence: u32, from: u32, to: u32) -> Result<()> {
        self.with(|session| session.remove(sequence, from, to))
    }

    fn copy(&mut self, source: u32, target: u32, from: u32, to: u32) -> Result<()> {
        self.with(|session| session.copy(source, target, from, to))
    }
}

/// A text of a model that knows nothing, whose tokens the constraint alone makes sensible.
pub(crate) fn constrained_text(
    tokenizer: &crate::Tokenizer,
    mut constraint: crate::constrain::Constraint,
    seed: u64,
) -> String {
    let mut sampler =
        crate::sampler::Sampler::new(crate::sampler::SamplingParameters::default(), seed, &[]).unwrap();
    let mut ids = Vec::new();
    for step in 0..2000u32 {
        if constraint.is_complete() {
            return tokenizer.decode(&ids);
        }
        // Texts end: what ends them becomes likelier from step to step.
        let mut logits: Vec<f32> = (0..tokenizer.len() as u32)
            .map(|id| {
                let closes = tokenizer.token_bytes(id).iter().any(|b| b"\"]}".contains(b));
                if closes || tokenizer.ends_generation(id) { step as f32 * 0.2 } else { 0.0 }
            })
            .collect();
        let mask = constraint.mask().unwrap();
        let token = sampler.choose(&mut logits, Some(&mask)).unwrap().token;
        constraint.accept(token).unwrap();
        ids.push(token);
    }
    panic!("no end: {}", tokenizer.decode(&ids));
}

/// The trained model's tokenizer.
pub(crate) fn tokenizer() -> crate::Tokenizer {
    let fixture =
        std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/shakespeare-llama");
    crate::Tokenizer::from_directory(&fixture).unwrap()
}
