//! Pins the ABI: every type of this crate that crosses the boundary, with its size, its fields and its functions, as text
//! in `snapshots/`. The test fails when anybody changes any of it.
//!
//! Before 1.0 a deliberate change is accepted with `cargo insta accept` and a new version of this crate; after it, a
//! change here means that every plugin ever built stops loading: grow through `extension(id)` instead.

#![allow(clippy::format_push_string)] // a report of a few lines, built once

use std::collections::{BTreeSet, HashSet};

use abi_stable::StableAbi;
use abi_stable::type_layout::{TLData, TypeLayout};
use drophammer_abi::types::RBox;
use drophammer_abi::{Backend_TO, BackendModuleRef, Extension_TO, JobContext_TO, Session_TO};

#[test]
fn the_layout_of_the_abi_is_the_pinned_one() {
    let mut pinned = Pinned::default();
    for root in [
        <BackendModuleRef as StableAbi>::LAYOUT,
        <Backend_TO<'static, RBox<()>> as StableAbi>::LAYOUT,
        <Session_TO<'static, RBox<()>> as StableAbi>::LAYOUT,
        <JobContext_TO<'static, RBox<()>> as StableAbi>::LAYOUT,
        <Extension_TO<'static, RBox<()>> as StableAbi>::LAYOUT,
    ] {
        pinned.visit(root);
    }
    let text: Vec<&str> = pinned.texts.iter().map(String::as_str).collect();
    insta::assert_snapshot!("layout", text.join("\n"));
}

#[derive(Default)]
struct Pinned {
    seen: HashSet<*const TypeLayout>,
    texts: BTreeSet<String>,
}

impl Pinned {
    /// Describes a type if it is one of ours, and all types it mentions.
    fn visit(&mut self, layout: &'static TypeLayout) {
        if !self.seen.insert(layout) {
            return;
        }
        if is_ours(layout) {
            self.texts.insert(describe(layout));
        }
        for other in layout.shared_vars().type_layouts() {
            self.visit(other());
        }
    }
}

fn is_ours(layout: &TypeLayout) -> bool {
    layout.package().as_str() == env!("CARGO_PKG_NAME")
}

fn describe(layout: &'static TypeLayout) -> String {
    let mut text = format!(
        "{}::{}: {} bytes, aligned to {}, {:?} {:?}\n",
        layout.mod_path(),
        layout.name(),
        layout.size(),
        layout.alignment(),
        layout.repr_attr(),
        layout.data_discriminant()
    );
    if let TLData::PrefixType(prefix) = layout.data() {
        text += &format!("  fixed fields: {}\n", prefix.first_suffix_field);
    }
    let fields = layout.get_fields().map(|fields| fields.to_vec()).unwrap_or_default();
    for field in fields.into_iter().chain(layout.phantom_fields().to_vec()) {
        text += &format!("  {}: {}\n", field.name(), spell(field.layout(), 3));
        for function in field.function_range() {
            let parameters = function.param_type_layouts.iter().map(|parameter| spell(parameter(), 3));
            let result = function.return_type_layout().map_or("()".to_owned(), |result| spell(result(), 3));
            text += &format!("    ({}) -> {result}\n", parameters.collect::<Vec<_>>().join(", "));
        }
    }
    text
}

/// A type as text: one of ours by its name, one of another crate with the types it is made of.
fn spell(layout: &'static TypeLayout, depth: usize) -> String {
    let name = layout.full_type().to_string();
    let inner = layout.shared_vars().type_layouts();
    if is_ours(layout) || inner.is_empty() || depth == 0 {
        return name;
    }
    let inner: Vec<String> = inner.iter().map(|other| spell(other(), depth - 1)).collect();
    format!("{name}[{}]", inner.join(", "))
}
