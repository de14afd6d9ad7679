//! Who takes part in the next batch, with how many tokens.

/// What a running text would like to read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Wish {
    /// Tokens it has not read.
    pub(super) unread: usize,
    /// Whether it is past its prompt.
    pub(super) decoding: bool,
}

/// Shares of a batch, one per wish, by their order. Texts being generated come first (from `turn` on, in a circle, where
/// the batch is too small for all); prompts share the rest max-min fairly, at most `prefill` tokens where somebody
/// generates.
pub(super) fn shares(wishes: &[Wish], batch: usize, prefill: usize, turn: usize) -> Vec<usize> {
    let count = wishes.len();
    let mut shares = vec![0; count];
    let mut left = batch;
    let order = || (0..count).map(|i| (i + turn) % count);
    for index in order().filter(|&i| wishes[i].decoding) {
        shares[index] = wishes[index].unread.min(left);
        left -= shares[index];
    }
    let somebody_generates = left < batch;
    if somebody_generates {
        left = left.min(prefill.max(1));
    }
    let mut prompts: Vec<usize> = order().filter(|&i| !wishes[i].decoding).collect();
    // Stable: among equals the turn decides.
    prompts.sort_by_key(|&i| wishes[i].unread);
    let mut waiting = prompts.len();
    for index in prompts {
        // Rounded up, so that a batch smaller than the number of prompts still moves somebody on.
        shares[index] = wishes[index].unread.min(left.div_ceil(waiting.max(1))).min(left);
        left -= shares[index];
        waiting -= 1;
    }
    shares
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn prompt(unread: usize) -> Wish {
        Wish { unread, decoding: false }
    }

    const TEXT: Wish = Wish { unread: 1, decoding: true };

    #[test]
    fn texts_come_first_and_prompts_share_the_rest() {
        for (wishes, batch, prefill, turn, expected) in [
            (vec![prompt(100), TEXT, prompt(100)], 65, 64, 0, vec![32, 1, 32]),
            (vec![prompt(1000), prompt(10)], 100, 50, 0, vec![90, 10]),
            (vec![prompt(1000), TEXT], 100, 50, 0, vec![50, 1]),
            (vec![TEXT, TEXT, TEXT], 2, 64, 0, vec![1, 1, 0]),
            (vec![TEXT, TEXT, TEXT], 2, 64, 2, vec![1, 0, 1]),
            (vec![prompt(5), prompt(5), prompt(5)], 2, 64, 1, vec![0, 1, 1]),
            (vec![], 10, 10, 3, vec![]),
        ] {
            assert_eq!(shares(&wishes, batch, prefill, turn), expected, "{wishes:?}");
        }
    }

    proptest! {
        #[test]
        fn a_batch_is_never_too_large_nor_empty_and_nobody_starves(
            wishes in proptest::collection::vec(
                prop_oneof![Just(TEXT), (1usize..300).prop_map(prompt)], 1..20),
            batch in 1usize..64, prefill in 1usize..64,
        ) {
            let mut moved = vec![false; wishes.len()];
            for turn in 0..wishes.len() {
                let shares = shares(&wishes, batch, prefill, turn);
                prop_assert!((1..=batch).contains(&shares.iter().sum::<usize>()));
                for (index, share) in shares.iter().enumerate() {
                    prop_assert!(*share <= wishes[index].unread);
                    moved[index] |= *share > 0;
                }
            }
            // Prompts may have to wait for texts that fill the batch alone, and for shorter prompts; texts wait for
            // nobody longer than a round.
            let all_texts = wishes.iter().zip(&moved).all(|(wish, moved)| !wish.decoding || *moved);
            prop_assert!(all_texts);
        }
    }
}
