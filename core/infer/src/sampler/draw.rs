//! Keeping a part of a distribution, and drawing from it. Probabilities are `f64`.

/// The logarithm of the sum of exponentials; minus infinity for a row of nothing else.
pub fn log_sum_exp(logits: &[f32]) -> f64 {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    if max.is_infinite() {
        return f64::from(max);
    }
    let max = f64::from(max);
    max + logits.iter().map(|&logit| (f64::from(logit) - max).exp()).sum::<f64>().ln()
}

/// The token with the highest logit, the lowest id among equals; none where nothing may come.
pub(super) fn most_likely(logits: &[f32]) -> Option<u32> {
    let mut best: Option<(u32, f32)> = None;
    for (token, &logit) in (0u32..).zip(logits) {
        if logit > best.map_or(f32::NEG_INFINITY, |(_, high)| high) {
            best = Some((token, logit));
        }
    }
    best.map(|(token, _)| token)
}

/// The tokens with the highest logits, highest first, lower ids first among equals.
pub(super) fn top(logits: &[f32], count: usize) -> Vec<u32> {
    let mut tokens: Vec<u32> = (0..logits.len() as u32).collect();
    let order = |a: &u32, b: &u32| logits[*b as usize].total_cmp(&logits[*a as usize]).then(a.cmp(b));
    partial_sort(&mut tokens, count, order);
    tokens.truncate(count);
    tokens
}

/// Puts the first `count` elements in their sorted places.
fn partial_sort<T>(items: &mut [T], count: usize, order: impl Fn(&T, &T) -> std::cmp::Ordering) {
    let count = count.min(items.len());
    if count == 0 {
        return;
    }
    if count < items.len() {
        items.select_nth_unstable_by(count - 1, &order);
    }
    items[..count].sort_unstable_by(&order);
}

#[derive(Debug, Clone, Copy)]
struct Candidate {
    token: u32,
    /// Relative to the most likely token: 1 for it.
    weight: f64,
}

/// Tokens that may still come, with weights that need not sum to one. Most likely first as far as `sorted` says.
#[derive(Debug)]
pub(super) struct Candidates {
    list: Vec<Candidate>,
    sorted: usize,
}

fn by_weight(a: &Candidate, b: &Candidate) -> std::cmp::Ordering {
    b.weight.total_cmp(&a.weight).then(a.token.cmp(&b.token))
}

impl Candidates {
    /// The `top_k` (0: all) most likely tokens at a temperature; none where nothing may come.
    pub(super) fn new(logits: &[f32], temperature: f32, top_k: u32) -> Option<Self> {
        let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        if max == f32::NEG_INFINITY {
            return None;
        }
        let inverse = 1.0 / f64::from(temperature);
        let weigh = |(token, &logit): (u32, &f32)| {
            // Where infinity meets infinity the token is the most likely one.
            let weight =
                if logit == max { 1.0 } else { ((f64::from(logit) - f64::from(max)) * inverse).exp() };
            Candidate { token, weight }
        };
        let list: Vec<_> = (0u32..).zip(logits).map(weigh).filter(|c| c.weight > 0.0).collect();
        let mut candidates = Self { list, sorted: 0 };
        if top_k > 0 {
            candidates.sort(top_k as usize);
            candidates.list.truncate(top_k as usize);
        }
        Some(candidates)
    }

    fn sort(&mut self, count: usize) {
        if self.sorted < count.min(self.list.len()) {
            partial_sort(&mut self.list, count, by_weight);
            self.sorted = count.min(self.list.len());
        }
    }

    fn total(&self) -> f64 {
        self.list.iter().map(|c| c.weight).sum()
    }

    /// Holtzman et al. 2020, <https://arxiv.org/abs/1904.09751>.
    pub(super) fn keep_top_p(&mut self, p: f32) {
        if p >= 1.0 {
            return;
        }
        let wanted = f64::from(p) * self.total();
        // Few tokens hold nearly everything: sort more only when they do not.
        let mut count = 64;
        loop {
            self.sort(count);
            let mut sum = 0.0;
            for (index, candidate) in self.list[..self.sorted].iter().enumerate() {
                sum += candidate.weight;
                if sum >= wanted {
                    self.list.truncate(index + 1);
                    self.sorted = index + 1;
                    return;
                }
            }
            if self.sorted == self.list.len() {
                return;
            }
            count *= 8;
        }
    }

    /// Nguyen et al. 2024, <https://arxiv.org/abs/2407.01082>.
    pub(super) fn keep_min_p(&mut self, p: f32) {
        if p <= 0.0 {
            return;
        }
        let high = self.list.iter().map(|c| c.weight).fold(0.0, f64::max);
        let least = high * f64::from(p);
        self.list.retain(|c| c.weight >= least);
        self.sorted = self.sorted.min(self.list.len());
    }

    /// Meister et al. 2023, <https://arxiv.org/abs/2202.00666>.
    pub(super) fn keep_typical(&mut self, p: f32) {
        if p >= 1.0 {
            return;
        }
        let total = self.total();
        let surprise = |c: &Candidate| -(c.weight / total).ln();
        let entropy: f64 = self.list.iter().map(|c| c.weight / total * surprise(c)).sum();
        let distance = |c: &Candidate| (surprise(c) - entropy).abs();
        self.list.sort_unstable_by(|a, b| distance(a).total_cmp(&distance(b)).then(a.token.cmp(&b.token)));
        let mut sum = 0.0;
        let enough = self.list.iter().position(|c| {
            sum += c.weight / total;
            sum >= f64::from(p)
        });
        self.list.truncate(enough.map_or(self.list.len(), |index| index + 1));
        self.sorted = 0;
    }

    /// The token at `unit` (0..1) of the cumulated weights.
    pub(super) fn pick(&self, unit: f64) -> Option<u32> {
        let mut rest = unit * self.total();
        for candidate in &self.list {
            rest -= candidate.weight;
            if rest < 0.0 {
                return Some(candidate.token);
            }
        }
        // Rounding may leave a sliver at the end.
        self.list.last().map(|c| c.token)
    }
}
