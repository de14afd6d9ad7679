//! The chips that contexts are compiled for: data of `config/targets/qnn.toml`.

use std::sync::OnceLock;

use drophammer_sdk::{BackendError, ErrorCode, Goal, Result};
use serde::Deserialize;

const TABLE: &str = include_str!("../../../config/targets/qnn.toml");

/// A chip.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Soc {
    /// Its part number in lower case.
    pub(crate) name: String,
    /// What people buy it as.
    pub(crate) sold_as: String,
    /// Generation of its NPU.
    pub(crate) htp_arch: u32,
    /// QNN's number for it.
    #[serde(rename = "soc_model")]
    pub(crate) model: u32,
}

/// All chips of the table, the usual one first.
pub(crate) fn all() -> &'static [Soc] {
    #[derive(Deserialize)]
    struct Table {
        device: Vec<Soc>,
    }
    static SOCS: OnceLock<Vec<Soc>> = OnceLock::new();
    SOCS.get_or_init(|| toml::from_str::<Table>(TABLE).map(|table| table.device).unwrap_or_default())
}

/// The chip that a goal names by its option `soc`, or the usual one.
///
/// # Errors
/// [`ErrorCode::InvalidRequest`] for one that the table does not have.
pub(crate) fn of(goal: &Goal) -> Result<&'static Soc> {
    let Some(named) = goal.options.get("soc") else {
        return all()
            .first()
            .ok_or_else(|| BackendError::new(ErrorCode::Failed, "the table of chips is empty"));
    };
    let name = named.as_str().unwrap_or_default().to_lowercase();
    all().iter().find(|soc| soc.name == name).ok_or_else(|| {
        let names: Vec<String> = all().iter().map(|soc| format!("{} ({})", soc.name, soc.sold_as)).collect();
        BackendError::new(ErrorCode::InvalidRequest, format!("option `soc`: there is no chip {named}"))
            .with_help(format!("Choose one of: {}.", names.join(", ")))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_sound_and_chips_are_found_by_name() {
        assert!(all().len() > 5);
        for soc in all() {
            assert!((68..=99).contains(&soc.htp_arch) && soc.model > 0, "{}", soc.name);
            assert_eq!(all().iter().filter(|other| other.name == soc.name).count(), 1);
        }
        let mut goal = Goal::default();
        assert_eq!(of(&goal).unwrap().name, "sm8650");
        goal.options.insert("soc".into(), "SC8380XP".into());
        assert_eq!(of(&goal).unwrap().model, 60);
        goal.options.insert("soc".into(), "sm1".into());
        let error = of(&goal).unwrap_err();
        assert!(error.help.contains("sm8650 (Snapdragon 8 Gen 3)"), "{error}");
    }
}
