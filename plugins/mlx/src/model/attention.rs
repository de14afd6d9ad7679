//! Attention: each sequence's queries over its own keys and values.

use drophammer_models::graph::AttentionSpec;
use drophammer_sdk::Result;

use super::cache::Store;
use super::step::{Step, Value, softcap};
use crate::runtime::{Array, Quantized};

/// Which keys a query sees.
enum Seen {
    All,
    /// Those up to its own, keys and queries ending together.
    Earlier,
    /// Those where the mask holds, `[queries, keys]`.
    Masked(Array),
}

impl Step<'_> {
    pub(super) fn attend(&mut self, q: &Value, k: &Value, v: &Value, spec: &AttentionSpec) -> Result<Value> {
        let q = self.heads(q, spec.heads, spec.key_width)?;
        let k = self.heads(k, spec.kv_heads, spec.key_width)?;
        let v = self.heads(v, spec.kv_heads, spec.value_width)?;
        let mut parts = Vec::with_capacity(self.segments.len());
        for number in 0..self.segments.len() {
            let [q, k, v] = [&q, &k, &v].map(|all| self.part(all, number));
            let (q, k, v) = (q?, k?, v?);
            let seen = self.seen(number, spec)?;
            let (keys, values) = if self.encoder {
                (Store::Plain(k), Store::Plain(v))
            } else {
                let sequence = &mut self.sequences[self.segments[number].sequence as usize];
                let (keys, values) =
                    sequence.append(self.arrays, spec, (&k, &v), (self.kept, self.weights.kind))?;
                // Keys and values are needed whatever is asked for: a processor computes them while the rest is built.
                if self.ahead {
                    self.arrays.start(keys.arrays().chain(values.arrays()))?;
                }
                (keys, values)
            };
            parts.push(self.attend_one(&q, &keys, &values, &seen, spec)?);
        }
        let joined = self.arrays.concatenate(&parts, 2)?;
        let whole = match self.order()? {
            Some(order) => joined.take(&order, 2)?,
            None => joined,
        };
        Ok(Self::of_heads(whole, spec.heads, spec.value_width))
    }

    /// One sequence's tokens of `[1, heads, tokens, width]`.
    fn part(&self, all: &Array, number: usize) -> Result<Array> {
        let rows = &self.segments[number].rows;
        let (first, count) = (rows[0], rows.len() as i32);
        if count == self.count() {
            return Ok(all.clone());
        }
        if rows[rows.len() - 1] - first + 1 == count {
            return all.slice(2, first, first + count);
        }
        all.take(&self.arrays.integers(rows, &[count])?, 2)
    }

    /// From sequence after sequence back to the step's order; `None` where they are the same.
    fn order(&self) -> Result<Option<Array>> {
        let rows: Vec<i32> = self.segments.iter().flat_map(|segment| segment.rows.iter().copied()).collect();
        if (0..).zip(&rows).all(|(due, row)| due == *row) {
            return Ok(None);
        }
        let mut order = vec![0; rows.len()];
        for (place, row) in (0..).zip(&rows) {
            order[*row as usize] = place;
        }
        self.arrays.integers(&order, &[order.len() as i32]).map(Some)
    }

    /// Which keys this step's queries of a sequence see; masks are made once for all layers alike.
    fn seen(&mut self, number: usize, spec: &AttentionSpec) -> Result<Seen> {
        let segment = &self.segments[number];
        let (queries, held) = (&segment.positions, self.sequences[segment.sequence as usize].positions());
        let keys = || if self.encoder { &[][..] } else { held }.iter().chain(queries).copied();
        if spec.causal {
            let first = queries.first().copied().unwrap_or(0);
            let last = queries.last().copied().unwrap_or(0);
            let in_line = (first..).zip(queries).all(|(due, position)| due == *position);
            let earlier = held.iter().all(|position| *position < first);
            let near = spec.window.is_none_or(|window| keys().all(|key| last < key.saturating_add(window)));
            if in_line && earlier && near {
                return Ok(if queries.len() == 1 { Seen::All } else { Seen::Earlier });
            }
        } else if spec.window.is_none() {
            return Ok(Seen::All);
        }
        let known = self.masks.iter().find(|(other, window, _)| *other == number && *window == spec.window);
        if let Some((.., mask)) = known {
            return Ok(Seen::Masked(mask.clone()));
        }
        let sees = |query: u32, key: u32| {
            if spec.causal {
                key <= query && spec.window.is_none_or(|window| query < key.saturating_add(window))
            } else {
                spec.window.is_none_or(|window| query.abs_diff(key) <= window / 2)
            }
        };
        let all: Vec<u32> = keys().collect();
        let cells = queries.iter().flat_map(|query| all.iter().map(move |key| (*query, *key)));
        let mask = self.arrays.booleans(
            cells.map(|(query, key)| sees(query, key)),
            &[queries.len() as i32, all.len() as i32],
        )?;
        self.masks.push((number, spec.window, mask.clone()));
        Ok(Seen::Masked(mask))
    }

    fn attend_one(
        &self,
        q: &Array,
        keys: &Store,
        values: &Store,
        seen: &Seen,
        spec: &AttentionSpec,
    ) -> Result<Array> {
        let sinks = spec.sinks.map(|sinks| self.weights.vector(sinks)).transpose()?;
        if let (Store::Plain(keys), Store::Plain(values), None) = (keys, values, spec.softcap) {
            let (causal, mask) = match seen {
                Seen::All => (false, None),
                Seen::Earlier => (true, None),
                Seen::Masked(mask) => (false, Some(mask)),
            };
            return q.attention(keys, values, spec.scale, causal, mask, sinks);
        }
        self.spelled_out(q, keys, values, seen, sinks, spec)
    }

    /// Attention in single operations, for packed caches and bounded scores.
    fn spelled_out(
        &self,
        q: &Array,
        keys: &Store,
        values: &Store,
        seen: &Seen,
        sinks: Option<&Array>,
        spec: &AttentionSpec,
    ) -> Result<Array> {
        let (heads, groups) = (spec.heads as i32, spec.kv_heads as i32);
        let shared = heads / groups;
        let queries = q.dims()[2];
        // Query heads that share keys side by side: [1, kv heads, shared, queries, width].
        let q = q.scale(spec.scale)?.reshape(&[1, groups, shared, queries, spec.key_width as i32])?;
        let spread = |array: &Array| {
            let dims = array.dims();
            array.reshape(&[dims[0], dims[1], 1, dims[2], dims[3]])
        };
        let mut scores = match keys {
            Store::Plain(keys) => q.matmul(&spread(keys)?.transpose(&[0, 1, 2, 4, 3])?)?,
            Store::Packed(keys) => q.quantized_matmul(&spread_packed(keys, spread)?, true)?,
        };
        if let Some(cap) = spec.softcap {
            scores = softcap(&scores, cap)?;
        }
        let count = scores.dims()[4];
        let mask = match seen {
            Seen::All => None,
            Seen::Masked(mask) => Some(mask.clone()),
            Seen::Earlier => {
                let lines =
                    (0..queries).flat_map(|query| (0..count).map(move |key| key <= count - queries + query));
                Some(self.arrays.booleans(lines, &[queries, count])?)
            }
        };
        if let Some(mask) = mask {
            scores = scores.only_where(&mask, scores.lowest())?;
        }
        let weights = match sinks {
            None => scores.softmax()?,
            Some(sinks) => {
                // One more logit per head takes part in the sum alone.
                let ones = self.arrays.zeros(&[1, groups, shared, queries, 1], self.weights.kind)?;
                let column = ones.add(&sinks.reshape(&[1, groups, shared, 1, 1])?)?;
                self.arrays.concatenate(&[scores, column], 4)?.softmax()?.slice(4, 0, count)?
            }
        };
        let out = match values {
            Store::Plain(values) => weights.matmul(&spread(values)?)?,
            Store::Packed(values) => weights.quantized_matmul(&spread_packed(values, spread)?, false)?,
        };
        out.reshape(&[1, heads, queries, spec.value_width as i32])
    }
}

fn spread_packed(packed: &Quantized, spread: impl Fn(&Array) -> Result<Array>) -> Result<Quantized> {
    packed.each(spread)
}
