//! Which loaded models give up their memory so that another can be loaded.

use crate::words::size;

/// A model that is loaded, being loaded, or on its way out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tenant {
    /// Memory it takes.
    pub bytes: u64,
    /// Never to be unloaded to make room.
    pub pinned: bool,
    /// Whether somebody waits for its answer.
    pub busy: bool,
    /// On its way out: it takes no new requests, and its memory is free soon.
    pub leaving: bool,
    /// When it was last used, on any scale that grows.
    pub used: u64,
}

/// What has to happen before a newcomer is loaded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// Nothing.
    Fits,
    /// This one has to leave, once it has answered what it was asked.
    Unload(usize),
    /// Those that leave have to be gone.
    Wait,
    /// It will never fit beside what must stay; the sentence says why.
    Never(String),
}

/// Judges whether a model of `bytes` fits into `budget` beside these tenants. Idle ones go first, the one unused
/// longest before the others; a busy one goes only when no idle one is left.
pub fn judge(budget: u64, bytes: u64, tenants: &[Tenant]) -> Verdict {
    let sum = |counts: fn(&Tenant) -> bool| {
        tenants.iter().filter(|tenant| counts(tenant)).fold(bytes, |sum, one| sum.saturating_add(one.bytes))
    };
    if bytes > budget {
        return Verdict::Never(format!(
            "it needs about {} of memory, and all served models together may take {} (`serve.memory_bytes`)",
            size(bytes),
            size(budget)
        ));
    }
    let staying = sum(|tenant| tenant.pinned && !tenant.leaving);
    if staying > budget {
        return Verdict::Never(format!(
            "it needs about {} of memory; of {} for served models (`serve.memory_bytes`), {} are kept by pinned ones",
            size(bytes),
            size(budget),
            size(staying - bytes)
        ));
    }
    if sum(|_| true) <= budget {
        return Verdict::Fits;
    }
    if sum(|tenant| !tenant.leaving) <= budget {
        return Verdict::Wait;
    }
    let able = tenants.iter().enumerate().filter(|(_, tenant)| !tenant.pinned && !tenant.leaving);
    let first = able.min_by_key(|(_, tenant)| (tenant.busy, tenant.used));
    first.map_or(Verdict::Wait, |(index, _)| Verdict::Unload(index))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const IDLE: Tenant = Tenant { bytes: 40, pinned: false, busy: false, leaving: false, used: 5 };

    #[test]
    fn idle_models_go_before_busy_ones_and_the_one_unused_longest_first() {
        let tenants = [Tenant { used: 7, ..IDLE }, Tenant { used: 3, busy: true, ..IDLE }, IDLE];
        assert_eq!(judge(160, 40, &tenants), Verdict::Fits);
        assert_eq!(judge(120, 40, &tenants), Verdict::Unload(2));
        assert_eq!(judge(120, 40, &tenants[..2]), Verdict::Fits);
        assert_eq!(judge(110, 40, &tenants[..2]), Verdict::Unload(0));
        assert_eq!(judge(70, 40, &tenants[1..2]), Verdict::Unload(0));
    }

    #[test]
    fn who_leaves_is_waited_for_before_another_is_sent_away() {
        let tenants = [Tenant { leaving: true, ..IDLE }, IDLE];
        assert_eq!(judge(100, 40, &tenants), Verdict::Wait);
        assert_eq!(judge(70, 40, &tenants), Verdict::Unload(1));
    }

    #[test]
    fn what_can_never_fit_is_told_with_the_figures() {
        let Verdict::Never(why) = judge(1_000_000, 2_000_000, &[]) else { panic!() };
        assert!(why.contains("2.0 MB") && why.contains("1.0 MB"), "{why}");
        let pinned = Tenant { bytes: 600_000, pinned: true, ..IDLE };
        let Verdict::Never(why) = judge(1_000_000, 500_000, &[pinned]) else { panic!() };
        assert!(why.contains("500 kB") && why.contains("600 kB") && why.contains("pinned"), "{why}");
    }

    fn tenant() -> impl Strategy<Value = Tenant> {
        (0..100u64, any::<[bool; 3]>(), 0..9u64).prop_map(|(bytes, [pinned, busy, leaving], used)| Tenant {
            bytes,
            pinned,
            busy,
            leaving,
            used,
        })
    }

    proptest! {
        /// Whatever is loaded: doing as one is told always ends, never touches what is pinned, and ends with a model
        /// that fits unless it was refused.
        #[test]
        fn obeying_ends_in_a_model_that_fits(
            mut tenants in prop::collection::vec(tenant(), 0..8),
            bytes in 0..150u64,
            budget in 0..300u64,
        ) {
            for _ in 0..=2 * 8 {
                match judge(budget, bytes, &tenants) {
                    Verdict::Fits => {
                        let all: u64 = tenants.iter().map(|tenant| tenant.bytes).sum();
                        prop_assert!(all + bytes <= budget);
                        return Ok(());
                    }
                    Verdict::Unload(index) => {
                        prop_assert!(!tenants[index].pinned && !tenants[index].leaving);
                        tenants[index].leaving = true;
                    }
                    Verdict::Wait => {
                        let before = tenants.len();
                        tenants.retain(|tenant| !tenant.leaving);
                        prop_assert!(tenants.len() < before, "waits for nobody");
                    }
                    Verdict::Never(_) => {
                        let kept: u64 =
                            tenants.iter().filter(|one| one.pinned && !one.leaving).map(|one| one.bytes).sum();
                        prop_assert!(kept + bytes > budget);
                        return Ok(());
                    }
                }
            }
            prop_assert!(false, "it never ends");
        }
    }
}
