//! Drawing and editing pieces that know nothing of models or jobs.

pub(crate) mod bar;
pub(crate) mod fuzzy;
pub(crate) mod graph;
pub(crate) mod input;
pub(crate) mod list;
pub(crate) mod scatter;
pub(crate) mod table;
pub(crate) mod wrap;
