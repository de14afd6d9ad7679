//! Schemes: which number format each weight gets.
//!
//! The defaults are NNCF's, so that artifacts compare: an int4 scheme leaves embeddings, the head and everything whose
//! shape the runtime cannot keep in four bits to the backup format.

use std::collections::BTreeMap;

use drophammer_formats::openvino::Element;
use drophammer_models::weight::Role;
use drophammer_models::{WeightId, WeightShape};
use drophammer_quant::grouped::{Format, Levels, ScaleType};
use drophammer_sdk::{BackendError, ErrorCode, Goal, Result};

/// How one weight is stored.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Storage {
    /// As floats.
    Plain(Element),
    /// As codes with scales.
    Grouped(Format),
}

impl Storage {
    /// The type of its elements in the file.
    pub(crate) fn element(self) -> Element {
        match self {
            Storage::Plain(element) => element,
            Storage::Grouped(format) => match format.levels {
                Levels::Signed { bits: 4 } => Element::I4,
                Levels::Signed { .. } => Element::I8,
                Levels::ZeroPoint { bits: 4 } | Levels::Affine { bits: 4 } => Element::U4,
                Levels::Nf4 => Element::Nf4,
                Levels::E2m1 => Element::F4E2M1,
                Levels::E4m3 => Element::F8E4M3,
                _ => Element::U8,
            },
        }
    }
}

/// A family of schemes; the group is told apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Float(Element),
    Grouped { levels: Levels, scale: ScaleType, group: Option<u32> },
}

const KINDS: &[(&str, Kind)] = &[
    ("fp32", Kind::Float(Element::F32)),
    ("fp16", Kind::Float(Element::F16)),
    ("bf16", Kind::Float(Element::BF16)),
    ("int8_sym", Kind::Grouped { levels: Levels::Signed { bits: 8 }, scale: ScaleType::F16, group: None }),
    (
        "int8_asym",
        Kind::Grouped { levels: Levels::ZeroPoint { bits: 8 }, scale: ScaleType::F16, group: None },
    ),
    (
        "int4_sym",
        Kind::Grouped { levels: Levels::Signed { bits: 4 }, scale: ScaleType::F16, group: Some(128) },
    ),
    (
        "int4_asym",
        Kind::Grouped { levels: Levels::ZeroPoint { bits: 4 }, scale: ScaleType::F16, group: Some(128) },
    ),
    ("nf4", Kind::Grouped { levels: Levels::Nf4, scale: ScaleType::F16, group: Some(128) }),
    ("mxfp4", Kind::Grouped { levels: Levels::E2m1, scale: ScaleType::E8M0, group: Some(32) }),
    ("fp8", Kind::Grouped { levels: Levels::E4m3, scale: ScaleType::F16, group: None }),
];

/// Groups that a scheme's name may end with.
const GROUPS: [u32; 3] = [32, 64, 128];

/// A scheme with its options.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Scheme {
    /// Its name as given.
    pub(crate) name: String,
    kind: Kind,
    group: Option<u32>,
    backup: Kind,
    /// Precision of keys and values that the runtime is told to keep.
    pub(crate) kv_cache: Option<String>,
    /// Group of activations that the runtime is told to quantize by.
    pub(crate) dynamic_group: Option<u64>,
}

/// Names of all schemes with their usual groups, and those with a group that differs.
pub(crate) fn names() -> Vec<String> {
    let mut names = Vec::new();
    for (name, kind) in KINDS {
        names.push((*name).to_owned());
        if let Kind::Grouped { levels, group: Some(usual), .. } = kind
            && *levels != Levels::E2m1
        {
            names.extend(
                GROUPS.iter().filter(|group| *group != usual).map(|group| format!("{name}_g{group}")),
            );
            names.push(format!("{name}_channel"));
        }
    }
    names
}

fn invalid(message: String, help: &str) -> BackendError {
    BackendError::new(ErrorCode::UnsupportedInput, message).with_help(help)
}

fn kind(name: &str) -> Option<Kind> {
    KINDS.iter().find(|(known, _)| *known == name).map(|(_, kind)| *kind)
}

impl Scheme {
    /// Reads a goal: `int4_asym`, `int4_asym_g64`, `int4_sym_channel`; without a scheme fp16.
    ///
    /// # Errors
    /// What is unknown.
    pub(crate) fn of(goal: &Goal) -> Result<Self> {
        if goal.format != "openvino" {
            return Err(invalid(
                format!("the openvino backend makes openvino directories, not {}", goal.format),
                "Choose the format openvino, or a target of another backend.",
            ));
        }
        let name = if goal.scheme.is_empty() { "fp16" } else { goal.scheme.as_str() };
        let unknown = || {
            invalid(
                format!("there is no openvino scheme {name:?}"),
                &format!("Choose one of: {}.", names().join(", ")),
            )
        };
        let (base, group) = match name.rsplit_once('_') {
            _ if kind(name).is_some() => (name, None),
            Some((base, "channel")) => (base, Some(None)),
            Some((base, suffix)) => {
                let group = suffix.strip_prefix('g').and_then(|group| group.parse::<u32>().ok());
                (base, Some(Some(group.filter(|group| *group >= 8).ok_or_else(unknown)?)))
            }
            None => (name, None),
        };
        let kind = kind(base).ok_or_else(unknown)?;
        let usual = match kind {
            Kind::Grouped { group, .. } => group,
            Kind::Float(_) if group.is_some() => return Err(unknown()),
            Kind::Float(_) => None,
        };
        let text = |key: &str| goal.options.get(key).and_then(serde_json::Value::as_str);
        let backup = match text("backup") {
            None => self::kind("int8_asym"),
            Some("none") => Some(Kind::Float(Element::F16)),
            Some(name) => self::kind(name),
        };
        let backup = backup.ok_or_else(|| {
            invalid("option `backup` names no scheme".into(), "Use int8_asym, int8_sym, fp16 or none.")
        })?;
        Ok(Self {
            name: name.to_owned(),
            kind,
            group: group.unwrap_or(usual),
            backup,
            kv_cache: text("kv_cache").map(str::to_owned),
            dynamic_group: goal.options.get("dynamic_quantization_group").and_then(serde_json::Value::as_u64),
        })
    }

    /// Whether weights lose bits that a float would keep.
    pub(crate) fn quantizes(&self) -> bool {
        matches!(self.kind, Kind::Grouped { .. })
    }

    /// What a weight is stored as, and which group took the place of the wanted one.
    pub(crate) fn storage(&self, weight: &WeightShape) -> (Storage, Option<(u32, u32)>) {
        let id = weight.id;
        let [.., rows, columns] = weight.shape.as_slice() else {
            return (Storage::Plain(Element::F32), None);
        };
        if id.is_vector() {
            return (Storage::Plain(Element::F32), None);
        }
        let (float, compressed) = match self.kind {
            Kind::Float(element) => (element, false),
            Kind::Grouped { .. } => (Element::F16, true),
        };
        if !compressed || is_small(id, *rows, *columns) {
            return (Storage::Plain(float), None);
        }
        let ends = matches!(id.role, Role::Head | Role::TokenEmbedding);
        let four_bits = matches!(self.kind, Kind::Grouped { levels, .. } if levels.bits() == 4);
        let (kind, group) =
            if ends && four_bits { (self.backup, usual_group(self.backup)) } else { (self.kind, self.group) };
        match kind {
            Kind::Float(element) => (Storage::Plain(element), None),
            Kind::Grouped { levels, scale, .. } => {
                let used = group.map(|group| dividing_group(group, *columns as u32));
                let fallback = group.zip(used).filter(|(wanted, used)| wanted != used);
                (
                    Storage::Grouped(Format {
                        levels,
                        group: used.filter(|&used| u64::from(used) < *columns),
                        scale,
                    }),
                    fallback,
                )
            }
        }
    }
}

fn usual_group(kind: Kind) -> Option<u32> {
    match kind {
        Kind::Grouped { group, .. } => group,
        Kind::Float(_) => None,
    }
}

/// Matrices that gain nothing, or that runtimes do not keep compressed: position and segment tables, routers, single rows.
fn is_small(id: WeightId, rows: u64, columns: u64) -> bool {
    matches!(id.role, Role::PositionEmbedding | Role::TokenTypeEmbedding | Role::Router | Role::SharedScore)
        || rows < 2
        || columns < 8
}

/// The largest group up to `wanted` that divides rows of `columns`: in steps of 16, as kernels want it, where there is one.
fn dividing_group(wanted: u32, columns: u32) -> u32 {
    let divides = |group: &u32| columns.is_multiple_of(*group);
    let fine = (1..=wanted.min(columns)).rev();
    fine.clone()
        .filter(|group| group % 16 == 0)
        .find(divides)
        .or_else(|| fine.clone().find(divides))
        .unwrap_or(1)
}

/// Groups that took the place of others, in words.
pub(crate) fn say_fallbacks(counts: &BTreeMap<(u32, u32, u64), u32>) -> Vec<String> {
    let say = |((wanted, used, columns), count): (&(u32, u32, u64), &u32)| {
        format!(
            "{count} weights have groups of {used}, because {wanted} does not divide their rows of {columns}"
        )
    };
    counts.iter().map(say).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scheme(name: &str) -> Result<Scheme> {
        Scheme::of(&Goal { format: "openvino".into(), scheme: name.into(), ..Goal::default() })
    }

    #[test]
    fn every_listed_name_is_understood_and_others_are_refused() {
        for name in names() {
            scheme(&name).unwrap();
        }
        for name in ["int3", "fp16_g64", "int4_sym_g0", "int4_sym_gx", "_", "int4_sym_g"] {
            let error = scheme(name).unwrap_err();
            assert!(error.message.contains(name) && error.help.contains("int4_asym_g64"), "{error}");
        }
    }

    #[test]
    fn groups_that_do_not_divide_fall_back_to_the_largest_that_does() {
        for (wanted, columns, used) in
            [(128, 576, 96), (64, 576, 64), (128, 1536, 128), (128, 100, 100), (32, 36, 18)]
        {
            assert_eq!(dividing_group(wanted, columns), used, "{wanted} in {columns}");
        }
    }

    #[test]
    fn embeddings_heads_and_vectors_are_not_stored_in_four_bits() {
        let scheme = scheme("int4_asym").unwrap();
        let stored = |role: Role, shape: &[u64]| {
            let weight = WeightShape { id: role.global(), shape: shape.to_vec() };
            scheme.storage(&weight).0.element()
        };
        assert_eq!(stored(Role::TokenEmbedding, &[100, 64]), Element::U8);
        assert_eq!(stored(Role::Head, &[100, 64]), Element::U8);
        assert_eq!(stored(Role::Query, &[64, 64]), Element::U4);
        assert_eq!(stored(Role::Router, &[8, 64]), Element::F16);
        assert_eq!(stored(Role::FinalNorm, &[64]), Element::F32);
    }
}
