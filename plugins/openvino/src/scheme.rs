//! Schemes: which number format each weight gets.
//!
//! The defaults are NNCF's, so that artifacts compare: an int4 scheme leaves embeddings, the head and everything whose
//! shape the runtime cannot keep in four bits to the backup format. A ratio below one leaves more to it: see
//! [`mixture`](crate::mixture).

use std::collections::BTreeMap;

use drophammer_formats::openvino::Element;
use drophammer_models::weight::Role;
use drophammer_models::{WeightId, WeightShape};
use drophammer_quant::grouped::{Format, Levels, ScaleType};
use drophammer_sdk::{BackendError, ErrorCode, Goal, Result};
use regex::Regex;

use crate::statistics::names_of;

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

/// A kind with the group that its rows are cut into.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Form {
    kind: Kind,
    group: Option<u32>,
}

impl Form {
    /// `int4_asym`, `int4_asym_g64`, `int4_sym_channel`; `none` and `fp16` are the same.
    fn of(name: &str) -> Option<Self> {
        let kind = |name: &str| KINDS.iter().find(|(known, _)| *known == name).map(|(_, kind)| *kind);
        let usual = |kind: Kind| match kind {
            Kind::Grouped { group, .. } => group,
            Kind::Float(_) => None,
        };
        if let Some(kind) = kind(if name == "none" { "fp16" } else { name }) {
            return Some(Self { kind, group: usual(kind) });
        }
        let (base, suffix) = name.rsplit_once('_')?;
        let kind = kind(base).filter(|kind| matches!(kind, Kind::Grouped { .. }))?;
        let group = match suffix.strip_prefix('g') {
            Some(number) => Some(number.parse().ok().filter(|group| *group >= 8)?),
            None if suffix == "channel" => None,
            None => return None,
        };
        Some(Self { kind, group })
    }

    fn bits(self) -> u32 {
        match self.kind {
            Kind::Float(element) => element.bits() as u32,
            Kind::Grouped { levels, .. } => levels.bits(),
        }
    }
}

/// A scheme with its options.
#[derive(Debug, Clone)]
pub(crate) struct Scheme {
    /// Its name as given.
    pub(crate) name: String,
    usual: Form,
    backup: Form,
    /// What the backup is called.
    pub(crate) backup_name: String,
    /// How much of the weights that may have four bits has them, at most.
    pub(crate) ratio: f64,
    /// Forms of weights whose GGUF name matches, first ones first.
    overrides: Vec<(Regex, Form)>,
    /// Precision of keys and values that the runtime is told to keep.
    pub(crate) kv_cache: Option<String>,
    /// Group of activations that the runtime is told to quantize by.
    pub(crate) dynamic_group: Option<u64>,
}

/// Ratios that are listed; others can be asked for.
const LISTED_RATIO: u32 = 80;

/// Names of all schemes with their usual groups, those with a group that differs, and those that leave a part of the weights
/// to the backup.
pub(crate) fn names() -> Vec<String> {
    let mut names = Vec::new();
    for (name, kind) in KINDS {
        names.push((*name).to_owned());
        if let Kind::Grouped { levels, group: Some(usual), .. } = kind
            && *levels != Levels::E2m1
        {
            let others = GROUPS.iter().filter(|group| *group != usual);
            let mut forms: Vec<String> = others.map(|group| format!("{name}_g{group}")).collect();
            forms.push(format!("{name}_channel"));
            let mixed = std::iter::once(*name).chain(forms.iter().map(String::as_str));
            let mixed: Vec<String> = mixed.map(|form| format!("{form}_r{LISTED_RATIO}")).collect();
            names.extend(forms.into_iter().chain(mixed));
        }
    }
    names
}

fn invalid(message: String, help: &str) -> BackendError {
    BackendError::new(ErrorCode::UnsupportedInput, message).with_help(help)
}

/// A scheme's name without `_rNN`, and NN hundredths.
fn split_ratio(name: &str) -> (&str, Option<f64>) {
    let split = name.rsplit_once("_r").and_then(|(form, percent)| {
        Some((form, percent.parse::<u32>().ok().filter(|percent| *percent <= 100)?))
    });
    split.map_or((name, None), |(form, percent)| (form, Some(f64::from(percent) / 100.0)))
}

impl Scheme {
    /// Reads a goal: `int4_asym`, `int4_asym_g64`, `int4_sym_channel`, `int4_asym_g64_r80` (at least 20% of the weights in the
    /// backup format); without a scheme fp16. Options: `ratio`, `backup`, `overrides`, `kv_cache`,
    /// `dynamic_quantization_group`.
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
        let (form, ratio) = split_ratio(name);
        let usual = Form::of(form).filter(|_| form != "none").ok_or_else(unknown)?;
        if ratio.is_some() && usual.bits() != 4 {
            return Err(unknown());
        }
        let told = match goal.options.get("ratio") {
            None => None,
            Some(value) => {
                let ratio = value.as_f64().filter(|ratio| (0.0..=1.0).contains(ratio));
                Some(ratio.ok_or_else(|| {
                    invalid(format!("option `ratio` is {value}"), "It is a number between 0 and 1.")
                })?)
            }
        };
        let text = |key: &str| goal.options.get(key).and_then(serde_json::Value::as_str);
        let backup_name = text("backup").unwrap_or("int8_asym");
        let backup = Form::of(backup_name).ok_or_else(|| {
            invalid(
                format!("option `backup` names the unknown form {backup_name:?}"),
                "Use int8_asym, int8_sym or none.",
            )
        })?;
        Ok(Self {
            name: name.to_owned(),
            usual,
            backup,
            backup_name: backup_name.to_owned(),
            ratio: told.or(ratio).unwrap_or(1.0),
            overrides: overrides(goal)?,
            kv_cache: text("kv_cache").map(str::to_owned),
            dynamic_group: goal.options.get("dynamic_quantization_group").and_then(serde_json::Value::as_u64),
        })
    }

    /// Whether weights lose bits that a float would keep.
    pub(crate) fn quantizes(&self) -> bool {
        matches!(self.usual.kind, Kind::Grouped { .. })
    }

    /// The levels of eight bits per channel, where that is the scheme.
    pub(crate) fn channels(&self) -> Option<Levels> {
        match self.usual {
            Form { kind: Kind::Grouped { levels, scale: ScaleType::F16, .. }, group: None } => {
                matches!(levels, Levels::Signed { bits: 8 } | Levels::ZeroPoint { bits: 8 }).then_some(levels)
            }
            _ => None,
        }
    }

    /// Whether a part of the weights stays out of four bits by their sensitivity.
    pub(crate) fn is_mixed(&self) -> bool {
        self.usual.bits() == 4 && self.ratio < 1.0
    }

    /// What a weight is stored as in the scheme's own format and in the backup's, where its sensitivity may choose between them.
    pub(crate) fn choice(&self, weight: &WeightShape) -> Option<[Storage; 2]> {
        let open = self.form(weight, false)? == self.usual && self.form(weight, true)? == self.backup;
        open.then(|| [false, true].map(|sensitive| self.storage(weight, sensitive).0))
    }

    /// How a matrix is stored; `None` for what is never compressed.
    fn form(&self, weight: &WeightShape, sensitive: bool) -> Option<Form> {
        let id = weight.id;
        let [.., rows, columns] = weight.shape.as_slice() else { return None };
        if id.is_vector() || is_small(id, *rows, *columns) {
            return None;
        }
        if !self.overrides.is_empty() {
            let names: Vec<String> = names_of(id).collect();
            let forced =
                self.overrides.iter().find(|(pattern, _)| names.iter().any(|name| pattern.is_match(name)));
            if let Some((_, form)) = forced {
                return Some(*form);
            }
        }
        let ends = matches!(id.role, Role::Head | Role::TokenEmbedding);
        let backed_up = self.usual.bits() == 4 && self.quantizes() && (ends || sensitive);
        Some(if backed_up { self.backup } else { self.usual })
    }

    /// What a weight is stored as, and which group took the place of the wanted one. `sensitive` weights are left to the backup.
    pub(crate) fn storage(&self, weight: &WeightShape, sensitive: bool) -> (Storage, Option<(u32, u32)>) {
        let Some(form) = self.form(weight, sensitive) else {
            let vector = weight.id.is_vector() || weight.shape.len() < 2;
            let float = match self.usual.kind {
                _ if vector => Element::F32,
                Kind::Float(element) => element,
                Kind::Grouped { .. } => Element::F16,
            };
            return (Storage::Plain(float), None);
        };
        let columns = weight.shape.last().copied().unwrap_or(1);
        match form.kind {
            Kind::Float(element) => (Storage::Plain(element), None),
            Kind::Grouped { levels, scale, .. } => {
                let used = form.group.map(|group| dividing_group(group, columns as u32));
                let fallback = form.group.zip(used).filter(|(wanted, used)| wanted != used);
                let group = used.filter(|&used| u64::from(used) < columns);
                (Storage::Grouped(Format { levels, group, scale }), fallback)
            }
        }
    }
}

/// `overrides`: a list of `PATTERN=FORM`, such as `attn_v=int8_sym` or `blk.0.*=none`.
fn overrides(goal: &Goal) -> Result<Vec<(Regex, Form)>> {
    let Some(value) = goal.options.get("overrides") else { return Ok(Vec::new()) };
    let help = "Write PATTERN=FORM, such as attn_v=int8_asym or ffn_down=int4_sym_g32.";
    let list = value.as_array().ok_or_else(|| invalid("option `overrides` is no list".into(), help))?;
    list.iter()
        .map(|item| {
            let refused = |why: &str| invalid(format!("override {item}: {why}"), help);
            let text = item.as_str().unwrap_or_default();
            let (pattern, form) = text.rsplit_once('=').ok_or_else(|| refused("it names no form"))?;
            let form = Form::of(form.trim()).ok_or_else(|| refused("there is no such form"))?;
            let pattern = Regex::new(pattern.trim()).map_err(|error| refused(&error.to_string()))?;
            Ok((pattern, form))
        })
        .collect()
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
            scheme.storage(&weight, false).0.element()
        };
        assert_eq!(stored(Role::TokenEmbedding, &[100, 64]), Element::U8);
        assert_eq!(stored(Role::Head, &[100, 64]), Element::U8);
        assert_eq!(stored(Role::Query, &[64, 64]), Element::U4);
        assert_eq!(stored(Role::Router, &[8, 64]), Element::F16);
        assert_eq!(stored(Role::FinalNorm, &[64]), Element::F32);
    }
}
