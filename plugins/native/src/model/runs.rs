//! Rows of a batch that are worked on together.

use std::ops::Range;

use super::execute::Token;
use crate::kernels::Path;
use crate::kernels::activation::MANY_TOKENS;
use crate::kernels::attention::QUERIES;

/// Neighbouring rows, of tokens of one sequence, whose queries are worked on together.
#[derive(Clone, Copy)]
pub(super) struct Run {
    pub(super) begin: usize,
    pub(super) len: usize,
    pub(super) sequence: u32,
}

/// Finds the runs of rows that are these tokens'.
pub(super) fn find_runs<'a>(tokens: impl IntoIterator<Item = &'a Token>, runs: &mut Vec<Run>) {
    runs.clear();
    for (row, token) in tokens.into_iter().enumerate() {
        match runs.last_mut() {
            Some(run) if run.sequence == token.sequence && run.len < QUERIES => run.len += 1,
            _ => runs.push(Run { begin: row, len: 1, sequence: token.sequence }),
        }
    }
}

/// Neighbouring rows that matrices are multiplied by at once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Span {
    pub(super) rows: Range<usize>,
    /// Whether as those of many tokens. That depends on how many rows of its own sequence a row has beside it, and on nothing else in the
    /// batch: so a row's numbers, which are rounded otherwise then, do not either.
    pub(super) many: bool,
}

/// Finds the spans of rows that are these tokens'.
pub(super) fn find_spans<'a>(tokens: impl IntoIterator<Item = &'a Token>, path: Path, spans: &mut Vec<Span>) {
    spans.clear();
    let mut tokens = tokens.into_iter().peekable();
    let mut begin = 0;
    while let Some(first) = tokens.next() {
        let mut end = begin + 1;
        while tokens.next_if(|token| token.sequence == first.sequence).is_some() {
            end += 1;
        }
        let many = (path.has_tiles() || path.prefers_floats()) && end - begin >= MANY_TOKENS;
        match spans.last_mut() {
            Some(span) if span.many == many => span.rows.end = end,
            _ => spans.push(Span { rows: begin..end, many }),
        }
        begin = end;
    }
}

#[cfg(all(test, target_arch = "x86_64"))]
mod tests {
    use super::*;

    #[test]
    fn only_a_sequences_own_tokens_make_its_rows_many() {
        let (few, many) = (MANY_TOKENS - 1, MANY_TOKENS);
        for (lengths, expected) in [
            (&[many][..], &[(many, true)][..]),
            (&[few, few], &[(2 * few, false)]),
            (&[1, 1, many, many, 1], &[(2, false), (2 * many, true), (1, false)]),
            (&[], &[]),
        ] {
            let token = |sequence| Token { id: 0, position: 0, sequence };
            let tokens: Vec<Token> =
                (0..).zip(lengths).flat_map(|(sequence, len)| vec![token(sequence); *len]).collect();
            for path in [Path::Amx, Path::Avx512] {
                let mut found = Vec::new();
                find_spans(&tokens, path, &mut found);
                let found: Vec<_> = found.into_iter().map(|span| (span.rows.len(), span.many)).collect();
                assert_eq!(found, expected);
            }
            let mut found = Vec::new();
            find_spans(&tokens, Path::Avx512Vnni, &mut found);
            assert!(found.iter().all(|span| *span == Span { rows: 0..tokens.len(), many: false }));
        }
    }
}
