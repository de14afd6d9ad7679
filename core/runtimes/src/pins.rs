//! The table of runtimes: `config/runtimes.toml`, read once.

use std::sync::OnceLock;

use serde::Deserialize;

const TABLE: &str = include_str!("../../../config/runtimes.toml");

/// A runtime this project works with.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Runtime {
    /// Its name.
    pub name: String,
    /// The version that is installed.
    pub version: String,
    /// The oldest version that works.
    pub least: String,
    /// What it is for.
    pub summary: String,
    /// Its licence's name.
    pub licence: String,
    /// What the user must know and accept before it is installed, if anything.
    #[serde(default)]
    pub notice: Option<String>,
    /// Files of the wheels that say what is accepted.
    #[serde(default)]
    pub shown: Vec<String>,
    /// The library to open, without prefix and suffix.
    pub library: String,
    /// What a Python environment calls it (`<distribution>-<version>.dist-info`).
    pub distribution: String,
    /// Where the library lies in a tree of unpacked wheels.
    pub directories: Vec<String>,
    /// Environment variables that name a user's own installation.
    #[serde(default)]
    pub variables: Vec<String>,
    /// Where the library lies below what those name.
    #[serde(default)]
    pub installation: Vec<String>,
    /// What it is installed from.
    #[serde(rename = "wheel")]
    pub wheels: Vec<Wheel>,
}

/// A Python wheel: a zip file, one for each kind of system.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Wheel {
    /// Package and version as pip takes them, `name==version`.
    pub package: String,
    /// What is unpacked: paths that begin with one of these.
    pub take: Vec<String>,
    /// The file of each system.
    pub files: Vec<WheelFile>,
}

/// One wheel's file.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WheelFile {
    /// Which system it is for, as [`system`] names it.
    pub system: String,
    /// Its name.
    pub file: String,
    /// Its SHA-256 in lower-case hexadecimal.
    pub sha256: String,
}

impl WheelFile {
    /// The platform tag in the file's name, as pip's `--platform` takes it.
    pub fn platform(&self) -> &str {
        let stem = self.file.trim_end_matches(".whl");
        stem.rsplit_once('-').map_or(stem, |(_, platform)| platform)
    }
}

impl Runtime {
    /// The wheels of this system, each with its file; empty where the runtime does not exist.
    pub fn wheels_here(&self) -> Vec<(&Wheel, &WheelFile)> {
        let system = system();
        self.wheels
            .iter()
            .filter_map(|wheel| Some((wheel, wheel.files.iter().find(|file| file.system == system)?)))
            .collect()
    }
}

/// What kind of system this is: `linux-x86_64`, `macos-aarch64`, …
pub fn system() -> String {
    format!("{}-{}", std::env::consts::OS, std::env::consts::ARCH)
}

/// Every runtime.
pub fn runtimes() -> &'static [Runtime] {
    #[derive(Deserialize)]
    struct Table {
        runtime: Vec<Runtime>,
    }
    static RUNTIMES: OnceLock<Vec<Runtime>> = OnceLock::new();
    RUNTIMES.get_or_init(|| toml::from_str::<Table>(TABLE).map(|table| table.runtime).unwrap_or_default())
}

/// The runtime with this name, or that of its first package.
pub fn runtime(name: &str) -> Option<&'static Runtime> {
    let package = |runtime: &Runtime| {
        runtime.wheels.first().is_some_and(|wheel| wheel.package.split("==").next() == Some(name))
    };
    runtimes().iter().find(|runtime| runtime.name == name || package(runtime))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::version::Version;

    #[test]
    fn the_table_is_sound() {
        let table: Result<toml::Table, _> = toml::from_str(TABLE);
        assert!(table.is_ok(), "{table:?}");
        assert!(runtimes().len() >= 4);
        for runtime in runtimes() {
            assert!(Version::read(&runtime.version) >= Version::read(&runtime.least), "{}", runtime.name);
            assert_eq!(runtime.notice.is_some(), !runtime.shown.is_empty(), "{}", runtime.name);
            for wheel in &runtime.wheels {
                let (name, version) = wheel.package.split_once("==").unwrap();
                assert!(!wheel.take.is_empty(), "{name}");
                for file in &wheel.files {
                    assert_eq!(file.sha256.len(), 64, "{}", file.file);
                    assert!(file.sha256.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b)));
                    let expected = format!("{}-{version}-", name.replace('-', "_"));
                    assert!(file.file.starts_with(&expected), "{} is not {expected}…", file.file);
                    assert!(!file.platform().is_empty());
                }
            }
        }
    }

    #[test]
    fn runtimes_are_known_by_their_package_too() {
        assert_eq!(runtime("onnxruntime-qnn").unwrap().name, "qnn");
        assert_eq!(runtime("mlx").unwrap().version, "0.32.4");
        assert!(runtime("cuda").is_none());
    }
}
