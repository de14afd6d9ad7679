//! Where a runtime lies on this machine.
//!
//! Places in this order: what the caller was told (`library` of the plugin's configuration), the home's runtimes, the
//! directory that `DROPHAMMER_RUNTIMES` names, the runtime's own environment variables, Python environments (the active
//! one, the user's, the system's), the system's library directories. The first library that is new enough is taken;
//! otherwise the most telling failure is told: broken before too old before missing.

use std::path::{Path, PathBuf};

use drophammer_sdk::{BackendError, ErrorCode, Problem};
use serde::Serialize;

use crate::install;
use crate::pins::Runtime;
use crate::version::Version;

/// Names a directory of installed runtimes besides the home's, for several homes to share.
pub const RUNTIMES_VARIABLE: &str = "DROPHAMMER_RUNTIMES";

/// A runtime's library.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// The library to open.
    pub library: PathBuf,
    /// Its version, where files tell it; otherwise only the opened library can.
    pub version: Option<Version>,
    /// Where it was found.
    pub place: Place,
    /// The tree of unpacked wheels it lies in, if it does: other files of the same runtime are found from here.
    pub tree: Option<PathBuf>,
}

/// A kind of place.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Place {
    /// Named by the plugin's configuration.
    Configuration,
    /// Installed by `drophammer runtime install`.
    Home,
    /// Named by an environment variable.
    Variable,
    /// A Python environment.
    Python,
    /// The system's library directories.
    System,
}

/// Why a runtime cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unavailable {
    /// It is nowhere.
    #[error("the {name} runtime is missing")]
    Missing {
        /// The runtime's name.
        name: String,
    },
    /// What was found is older than what works.
    #[error("the {name} runtime at {} is version {found}; at least {least} is needed", path.display())]
    TooOld {
        /// The runtime's name.
        name: String,
        /// Its library.
        path: PathBuf,
        /// Its version.
        found: String,
        /// The oldest that works.
        least: String,
    },
    /// It is there but cannot be what it should be.
    #[error("the {name} runtime at {} is broken: {why}", path.display())]
    Broken {
        /// The runtime's name.
        name: String,
        /// Its library or directory.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
}

impl Unavailable {
    /// What the user can do.
    pub fn help(&self) -> String {
        let (Self::Missing { name } | Self::TooOld { name, .. } | Self::Broken { name, .. }) = self;
        format!("`drophammer runtime install {name}`")
    }

    /// `missing`, `too_old` or `broken`.
    pub fn word(&self) -> &'static str {
        match self {
            Self::Missing { .. } => "missing",
            Self::TooOld { .. } => "too_old",
            Self::Broken { .. } => "broken",
        }
    }
}

impl From<Unavailable> for Problem {
    fn from(unavailable: Unavailable) -> Self {
        Self { message: unavailable.to_string(), help: unavailable.help() }
    }
}

impl From<Unavailable> for BackendError {
    fn from(unavailable: Unavailable) -> Self {
        let help = unavailable.help();
        Self::new(ErrorCode::MissingRuntime, unavailable.to_string()).with_help(help)
    }
}

impl Runtime {
    /// Finds this runtime's library. `home` is [`drophammer_sdk::HostInfo::runtimes`]; `configured` a library or
    /// directory that the user's configuration names, which is then the only place looked at.
    ///
    /// # Errors
    /// That it is missing, too old or broken.
    pub fn find(&self, home: &Path, configured: Option<&Path>) -> Result<Found, Unavailable> {
        self.find_in(&Surroundings::of_process(home, configured))
    }

    /// That an opened library's own version suffices.
    ///
    /// # Errors
    /// [`Unavailable::TooOld`]; [`Unavailable::Broken`] for a version that cannot be read.
    pub fn accept(&self, library: &Path, version: &str) -> Result<Version, Unavailable> {
        let found = Version::read(version)
            .ok_or_else(|| self.broken(library, format!("it says its version is \"{version}\"")))?;
        if Some(&found) < Version::read(&self.least).as_ref() {
            return Err(Unavailable::TooOld {
                name: self.name.clone(),
                path: library.to_path_buf(),
                found: version.to_owned(),
                least: self.least.clone(),
            });
        }
        Ok(found)
    }

    /// A library that does not behave: cannot be opened, lacks a function.
    pub fn broken(&self, path: &Path, why: impl Into<String>) -> Unavailable {
        Unavailable::Broken { name: self.name.clone(), path: path.to_path_buf(), why: why.into() }
    }

    fn find_in(&self, around: &Surroundings) -> Result<Found, Unavailable> {
        let mut failure = Unavailable::Missing { name: self.name.clone() };
        let severity = |failure: &Unavailable| match failure {
            Unavailable::Missing { .. } => 0,
            Unavailable::TooOld { .. } => 1,
            Unavailable::Broken { .. } => 2,
        };
        for candidate in self.candidates(around) {
            match candidate.and_then(|found| self.checked(found)) {
                Ok(found) => return Ok(found),
                Err(worse) if severity(&worse) > severity(&failure) => failure = worse,
                Err(_) => {}
            }
        }
        Err(failure)
    }

    fn checked(&self, found: Found) -> Result<Found, Unavailable> {
        let size = found.library.metadata().map(|metadata| metadata.len());
        if !matches!(size, Ok(1..)) {
            return Err(self.broken(&found.library, "the library is empty or cannot be read"));
        }
        if let Some(version) = &found.version {
            self.accept(&found.library, &version.to_string())?;
        }
        Ok(found)
    }

    /// Every library of this name in the places, in order, and installations of ours that are damaged.
    fn candidates(&self, around: &Surroundings) -> Vec<Result<Found, Unavailable>> {
        if let Some(named) = &around.configured {
            let library = if named.is_dir() { self.library_in(named) } else { Some(named.clone()) };
            let found = library.map(|library| self.found(library, Place::Configuration, None));
            return vec![found.ok_or_else(|| self.broken(named, "it holds no such library"))];
        }
        let mut found = Vec::new();
        for runtimes in &around.homes {
            let tree = install::tree(runtimes, self);
            if tree.exists() {
                found.push(match install::check(&tree) {
                    Ok(()) => self
                        .in_tree(&tree, Place::Home)
                        .ok_or_else(|| self.broken(&tree, "its library is gone")),
                    Err(why) => Err(self.broken(&tree, why)),
                });
            }
        }
        for (variable, directory) in &around.variables {
            if self.variables.contains(variable) {
                let places = self.installation.iter().map(|place| directory.join(place));
                found.extend(
                    places
                        .filter_map(|place| self.library_in(&place))
                        .map(|library| Ok(self.found(library, Place::Variable, None))),
                );
            }
        }
        found
            .extend(around.site_packages.iter().filter_map(|tree| self.in_tree(tree, Place::Python)).map(Ok));
        let system = around.system.iter().filter_map(|directory| self.library_in(directory));
        found.extend(system.map(|library| Ok(self.found(library, Place::System, None))));
        found
    }

    fn in_tree(&self, tree: &Path, place: Place) -> Option<Found> {
        let library = self.directories.iter().find_map(|directory| self.library_in(&tree.join(directory)))?;
        Some(self.found(library, place, Some(tree)))
    }

    fn found(&self, library: PathBuf, place: Place, tree: Option<&Path>) -> Found {
        let version = match (place, tree) {
            (Place::Home, _) => Version::read(&self.version),
            (_, Some(tree)) => self.distributed_version(tree),
            _ => None,
        };
        Found { library, version, place, tree: tree.map(Path::to_path_buf) }
    }

    /// The version that a Python environment's metadata tells.
    fn distributed_version(&self, site_packages: &Path) -> Option<Version> {
        let prefix = format!("{}-", self.distribution);
        names(site_packages)
            .iter()
            .find_map(|name| Version::read(name.strip_suffix(".dist-info")?.strip_prefix(&prefix)?))
    }

    /// The library in a directory; of several versions the name that sorts last.
    fn library_in(&self, directory: &Path) -> Option<PathBuf> {
        let name = names(directory).into_iter().filter(|name| is_library(name, &self.library)).max()?;
        Some(directory.join(name))
    }
}

/// Names in a directory; none if it cannot be read.
fn names(directory: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().into_string().ok()).collect()
}

/// Whether a file is the library `stem` in any system's spelling: `libx.so.1.2`, `libx.1.2.dylib`, `x.dll`.
fn is_library(name: &str, stem: &str) -> bool {
    let bare = name.strip_prefix("lib").unwrap_or(name);
    let Some(rest) = bare.strip_prefix(stem) else { return false };
    let version = |text: &str| text.bytes().all(|b| b.is_ascii_digit() || b == b'.');
    match rest.strip_prefix(".so") {
        Some(after) => version(after),
        None => rest == ".dll" || rest.strip_suffix(".dylib").is_some_and(version),
    }
}

/// What is around: read from the process once, so that finding is a function of it.
#[derive(Debug, Default)]
struct Surroundings {
    configured: Option<PathBuf>,
    homes: Vec<PathBuf>,
    variables: Vec<(String, PathBuf)>,
    site_packages: Vec<PathBuf>,
    system: Vec<PathBuf>,
}

impl Surroundings {
    fn of_process(home: &Path, configured: Option<&Path>) -> Self {
        let path = |name: &str| std::env::var_os(name).map(PathBuf::from);
        let mut homes = vec![home.to_path_buf()];
        homes.extend(path(RUNTIMES_VARIABLE));
        let mut prefixes: Vec<PathBuf> =
            ["VIRTUAL_ENV", "CONDA_PREFIX"].into_iter().filter_map(path).collect();
        prefixes.extend(interpreter_prefix());
        prefixes.extend(path("HOME").map(|home| home.join(".local")));
        prefixes.extend(["/usr/local", "/usr"].map(PathBuf::from));
        let listed =
            |name| std::env::var_os(name).map(|list| std::env::split_paths(&list).collect::<Vec<_>>());
        let mut system =
            listed("LD_LIBRARY_PATH").or_else(|| listed("DYLD_LIBRARY_PATH")).unwrap_or_default();
        let architecture = std::env::consts::ARCH;
        system.extend(
            [
                "/usr/local/lib".to_owned(),
                "/usr/lib".to_owned(),
                "/usr/lib64".to_owned(),
                format!("/usr/lib/{architecture}-linux-gnu"),
                "/opt/homebrew/lib".to_owned(),
                "/opt/intel/openvino/runtime/lib/intel64".to_owned(),
            ]
            .map(PathBuf::from),
        );
        let variables = std::env::vars_os()
            .filter_map(|(name, value)| Some((name.into_string().ok()?, PathBuf::from(value))))
            .collect();
        Self {
            configured: configured.map(Path::to_path_buf),
            homes,
            variables,
            site_packages: prefixes.iter().flat_map(|prefix| site_packages(prefix)).collect(),
            system,
        }
    }
}

/// The prefix of the `python3` that the user's shell would start.
fn interpreter_prefix() -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    let python = std::env::split_paths(&path)
        .map(|directory| directory.join("python3"))
        .find(|file| file.is_file())?;
    // A virtual environment's interpreter is a link out of it: its own directory comes first.
    let prefix = |file: &Path| file.parent()?.parent().map(Path::to_path_buf);
    if site_packages(&prefix(&python)?).is_empty() {
        prefix(&python.canonicalize().ok()?)
    } else {
        prefix(&python)
    }
}

/// Directories of packages below an environment's prefix.
fn site_packages(prefix: &Path) -> Vec<PathBuf> {
    let lib = prefix.join("lib");
    let mut versions: Vec<String> =
        names(&lib).into_iter().filter(|name| name.starts_with("python3")).collect();
    versions.sort();
    let below =
        |version: &String| ["site-packages", "dist-packages"].map(|leaf| lib.join(version).join(leaf));
    let mut directories: Vec<PathBuf> = versions.iter().rev().flat_map(below).collect();
    directories.push(prefix.join("Lib").join("site-packages"));
    directories.retain(|directory| directory.is_dir());
    directories
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime;

    fn file(path: &Path) {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, b"library").unwrap();
    }

    #[test]
    fn names_of_libraries_on_every_system() {
        for (name, is) in [
            ("libopenvino_c.so", true),
            ("libopenvino_c.so.2641", true),
            ("libopenvino_c.2641.dylib", true),
            ("openvino_c.dll", true),
            ("libopenvino_core.so", false),
            ("libopenvino_c.so.txt", false),
            ("libopenvino_c_extra.so", false),
        ] {
            assert_eq!(is_library(name, "openvino_c"), is, "{name}");
        }
    }

    #[test]
    fn a_python_environment_and_an_own_installation_are_found_and_old_ones_named() {
        let openvino = runtime("openvino").unwrap();
        let place = tempfile::tempdir().unwrap();
        let missing = openvino.find_in(&Surroundings::default()).unwrap_err();
        assert_eq!(missing, Unavailable::Missing { name: "openvino".into() });
        assert_eq!(missing.help(), "`drophammer runtime install openvino`");

        let old = place.path().join("old");
        file(&old.join("openvino/libs/libopenvino_c.so.2400"));
        std::fs::create_dir(old.join("openvino-2024.0.0.dist-info")).unwrap();
        let mut around = Surroundings { site_packages: vec![old.clone()], ..Surroundings::default() };
        let failure = openvino.find_in(&around).unwrap_err();
        assert!(matches!(failure, Unavailable::TooOld { .. }), "{failure}");
        assert!(failure.to_string().contains("2024.0.0") && failure.to_string().contains(&openvino.least));

        let new = place.path().join("new");
        file(&new.join("openvino/libs/libopenvino_c.so.2641"));
        std::fs::create_dir(new.join("openvino-2026.4.1.dist-info")).unwrap();
        around.site_packages.push(new.clone());
        let found = openvino.find_in(&around).unwrap();
        assert_eq!(found.library, new.join("openvino/libs/libopenvino_c.so.2641"));
        assert_eq!((found.place, found.version), (Place::Python, Version::read("2026.4.1")));

        let own = place.path().join("own");
        file(&own.join("runtime/lib/intel64/libopenvino_c.so"));
        around.variables.push(("OPENVINO_INSTALL_DIR".into(), own.clone()));
        assert_eq!(openvino.find_in(&around).unwrap().place, Place::Variable);

        around.configured = Some(place.path().join("nowhere"));
        assert!(matches!(openvino.find_in(&around).unwrap_err(), Unavailable::Broken { .. }));
    }

    #[test]
    fn an_opened_library_has_the_last_word_on_its_version() {
        let openvino = runtime("openvino").unwrap();
        let library = Path::new("/x/libopenvino_c.so");
        assert!(openvino.accept(library, "2026.4.1-22982-e213a147257").is_ok());
        assert!(matches!(openvino.accept(library, "2023.1.0"), Err(Unavailable::TooOld { .. })));
        assert!(matches!(openvino.accept(library, "custom"), Err(Unavailable::Broken { .. })));
    }
}
