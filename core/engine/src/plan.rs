//! Which targets can be made of a source here, by whom, and at what cost.
//!
//! Targets are data (`config/targets/*.toml`); what a backend can do is its own answer to a probe. Nothing here knows
//! a backend by name.

use serde::{Deserialize, Serialize};

use crate::admission::Resources;
use crate::identify::Identity;
use crate::words::size;

/// Something a model can be turned into.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Target {
    /// What people call it, such as `gguf-q4_k_m`.
    pub name: String,
    /// The file format.
    pub format: String,
    /// The number scheme of that format.
    pub scheme: String,
    /// Only this backend may make it.
    #[serde(default)]
    pub backend: Option<String>,
    /// The device it is for.
    #[serde(default)]
    pub device: Option<String>,
    /// Whether statistics of the model's activations are collected first, for its maker to weigh errors by: the fewer bits,
    /// the more that brings.
    #[serde(default)]
    pub calibrate: bool,
    /// Options of the scheme, passed on as they are.
    #[serde(default)]
    pub options: serde_json::Map<String, serde_json::Value>,
    /// Whether every dropped model gets it.
    #[serde(default)]
    pub default: bool,
    /// Whether it is for graphs that no tokens go through, rather than for language models.
    #[serde(default)]
    pub plain: bool,
}

/// What one backend says about one target.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Offer {
    /// The backend.
    pub backend: String,
    /// Higher is preferred.
    pub rank: i32,
    /// Whether it can.
    pub supported: bool,
    /// Why it cannot, or what the user should know.
    pub reason: Option<String>,
    /// What the user can do when it cannot.
    pub help: Option<String>,
    /// The steps in order.
    pub steps: Vec<String>,
    /// Bytes of the result.
    pub bytes: u64,
    /// Peak memory of the work.
    pub peak_memory: u64,
    /// Seconds of the work.
    pub seconds: f64,
}

/// What making one target takes, or why it cannot be made.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Planned {
    /// The target.
    pub target: Target,
    /// Who would make it; empty when nobody can.
    pub backend: String,
    /// Whether it can be made here.
    pub supported: bool,
    /// Why so, one sentence each.
    pub reasons: Vec<String>,
    /// What the user can do when it cannot.
    pub help: Option<String>,
    /// The steps in order.
    pub steps: Vec<String>,
    /// Bytes of the result.
    pub bytes: u64,
    /// What the work needs.
    pub needs: Resources,
    /// Seconds of the work.
    pub seconds: f64,
    /// Nothing is gained by it over the source as it is: a dropped model goes without it.
    #[serde(default)]
    pub spare: bool,
}

/// What the machine lets a job take.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Machine {
    /// All that jobs may take together.
    pub capacity: Resources,
    /// Cores one job is given.
    pub cores_per_job: u32,
    /// Memory a worker takes whatever it does.
    pub worker_memory: u64,
}

impl Machine {
    /// Cores that one job takes.
    fn cores(&self) -> u32 {
        self.cores_per_job.clamp(1, self.capacity.cores.max(1))
    }
}

/// Plans one target of a source: the most preferred backend that supports it makes it; otherwise the most preferred
/// one's reason is the reason.
pub fn plan(source: &Identity, target: &Target, offers: &[Offer], machine: &Machine) -> Planned {
    let mut offers: Vec<&Offer> = offers
        .iter()
        .filter(|offer| target.backend.as_ref().is_none_or(|wanted| *wanted == offer.backend))
        .collect();
    offers.sort_by(|a, b| {
        b.supported.cmp(&a.supported).then(b.rank.cmp(&a.rank)).then_with(|| a.backend.cmp(&b.backend))
    });
    let Some(offer) = offers.first() else {
        let (reason, help) = match &target.backend {
            Some(backend) => (
                format!("the plugin {backend} is not installed or does not work"),
                format!("`drophammer plugin info {backend}` tells more"),
            ),
            None => (
                format!("no installed plugin makes {}", target.format),
                "`drophammer plugin list` shows what each plugin needs".to_owned(),
            ),
        };
        return Planned {
            target: target.clone(),
            reasons: vec![reason],
            help: Some(help),
            ..Planned::default()
        };
    };
    let needs = Resources {
        memory: offer.peak_memory.saturating_add(machine.worker_memory),
        cores: machine.cores(),
        disk: disk_needed(offer.bytes),
    };
    let mut planned = Planned {
        target: target.clone(),
        backend: offer.backend.clone(),
        supported: offer.supported,
        reasons: offer.reason.iter().cloned().collect(),
        help: offer.help.clone(),
        steps: offer.steps.clone(),
        bytes: offer.bytes,
        needs,
        seconds: if offer.seconds.is_finite() { offer.seconds.max(0.0) } else { 0.0 },
        spare: offer.supported && gains_nothing(source, target, offer.bytes),
    };
    if planned.spare {
        let Identity { format, scheme, .. } = source;
        planned.reasons.push(format!(
            "nothing is gained over the source, {} of {format} ({scheme}): dropped models go without it",
            size(source.bytes)
        ));
    }
    if planned.supported && machine.capacity.memory < needs.memory {
        planned.supported = false;
        planned.reasons.insert(
            0,
            format!(
                "needs {} of memory, jobs may take {} here",
                size(needs.memory),
                size(machine.capacity.memory)
            ),
        );
        planned.help =
            Some("raise `limits.memory` in the configuration, or choose a smaller target".to_owned());
    }
    planned
}

/// Whether a result of `bytes` is of the source's own format and hardly smaller: it cannot be closer to the source than
/// the source is. Sources that no tokens go through answer nobody, whatever their size.
fn gains_nothing(source: &Identity, target: &Target, bytes: u64) -> bool {
    !source.plain && source.format == target.format && bytes >= source.bytes - source.bytes / 20
}

/// The plan for a source that some targets gain nothing over: as the target of this name `backend` measures it as it is.
pub fn as_it_is(
    source: &Identity,
    name: &str,
    backend: String,
    spared: &[Planned],
    machine: &Machine,
) -> Planned {
    let names: Vec<&str> = spared.iter().map(|planned| planned.target.name.as_str()).collect();
    Planned {
        target: Target {
            name: name.to_owned(),
            format: source.format.clone(),
            scheme: source.scheme.clone(),
            ..Target::default()
        },
        backend,
        supported: true,
        reasons: vec![format!("answers as it is: {} would be no smaller", names.join(" and "))],
        steps: vec!["measure it as it is".to_owned()],
        bytes: source.bytes,
        needs: Resources {
            memory: source.bytes.saturating_add(machine.worker_memory),
            cores: machine.cores(),
            disk: 0,
        },
        ..Planned::default()
    }
}

/// Disk to keep free for a result of `bytes`: its files, and room for its manifest and the file system's own books.
pub fn disk_needed(bytes: u64) -> u64 {
    bytes.saturating_add(bytes / 50).saturating_add(4 << 20)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn target() -> Target {
        Target { name: "gguf-q8_0".into(), format: "gguf".into(), scheme: "q8_0".into(), ..Target::default() }
    }

    fn source() -> Identity {
        Identity {
            format: "safetensors".into(),
            scheme: "bf16".into(),
            bytes: 2 << 20,
            ..Identity::default()
        }
    }

    fn offer(backend: &str, rank: i32, supported: bool) -> Offer {
        Offer {
            backend: backend.into(),
            rank,
            supported,
            reason: (!supported).then(|| format!("{backend} cannot")),
            bytes: 1 << 20,
            peak_memory: 1 << 20,
            seconds: 1.5,
            ..Offer::default()
        }
    }

    const MACHINE: Machine = Machine {
        capacity: Resources { memory: 1 << 30, cores: 2, disk: 1 << 30 },
        cores_per_job: 8,
        worker_memory: 1 << 20,
    };

    #[test]
    fn the_most_preferred_backend_that_can_makes_it() {
        for (offers, backend, supported) in [
            (vec![offer("a", 10, true), offer("b", 50, true)], "b", true),
            (vec![offer("a", 10, true), offer("b", 50, false)], "a", true),
            (vec![offer("a", 10, false), offer("b", 50, false)], "b", false),
            (vec![offer("b", 10, true), offer("a", 10, true)], "a", true),
        ] {
            let planned = plan(&source(), &target(), &offers, &MACHINE);
            assert_eq!((planned.backend.as_str(), planned.supported), (backend, supported));
            assert_eq!(planned.reasons.is_empty(), supported);
        }
    }

    #[test]
    fn a_target_of_one_backend_is_left_to_it() {
        let target = Target { backend: Some("a".into()), ..target() };
        let planned = plan(&source(), &target, &[offer("a", 1, false), offer("b", 99, true)], &MACHINE);
        assert_eq!((planned.backend.as_str(), planned.supported), ("a", false));
        let planned = plan(&source(), &target, &[offer("b", 99, true)], &MACHINE);
        assert!(!planned.supported && planned.help.is_some());
    }

    #[test]
    fn a_target_nobody_makes_says_so_with_a_next_step() {
        let planned = plan(&source(), &target(), &[], &MACHINE);
        assert_eq!(planned.reasons, ["no installed plugin makes gguf"]);
        assert!(planned.help.is_some());
    }

    #[test]
    fn work_too_large_for_the_machine_is_refused_before_it_starts() {
        let giant = Offer { peak_memory: 1 << 40, ..offer("a", 1, true) };
        let planned = plan(&source(), &target(), &[giant], &MACHINE);
        assert!(!planned.supported && planned.reasons[0].contains("memory"), "{planned:?}");
    }

    #[test]
    fn a_job_asks_for_no_more_cores_than_there_are() {
        assert_eq!(plan(&source(), &target(), &[offer("a", 1, true)], &MACHINE).needs.cores, 2);
    }

    #[test]
    fn what_is_no_smaller_than_a_source_of_its_own_format_is_spare() {
        let gguf = |bytes| Identity { format: "gguf".into(), bytes, ..source() };
        for (source, spare) in [
            (gguf(2 << 20), false),
            (gguf(1 << 20), true),
            // A twentieth is a difference; less is metadata.
            (gguf((1 << 20) * 22 / 20), false),
            (gguf((1 << 20) * 41 / 40), true),
            (Identity { bytes: 1, ..source() }, false),
            (Identity { plain: true, ..gguf(1 << 20) }, false),
        ] {
            let planned = plan(&source, &target(), &[offer("a", 1, true)], &MACHINE);
            assert_eq!((planned.supported, planned.spare), (true, spare), "{source:?}");
            assert_eq!(planned.reasons.len(), usize::from(spare));
            let refused = plan(&source, &target(), &[offer("a", 1, false)], &MACHINE);
            assert!(!refused.spare);
        }
    }

    #[test]
    fn a_source_that_answers_as_it_is_says_what_it_stands_for() {
        let source = Identity { bytes: 1 << 20, ..source() };
        let spared = [Planned { target: target(), ..Planned::default() }];
        let planned = as_it_is(&source, "source", "a".into(), &spared, &MACHINE);
        assert_eq!(planned.target.name, "source");
        assert!(planned.supported && planned.reasons[0].contains("gguf-q8_0"), "{planned:?}");
        assert_eq!(planned.needs, Resources { memory: 2 << 20, cores: 2, disk: 0 });
    }
}
