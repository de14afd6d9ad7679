//! `plugin.toml`: what a plugin says of itself before its code runs.

use std::collections::BTreeMap;
use std::io::Read;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::error::{BackendError, ErrorCode, Result};

/// File name of the manifest in a plugin's directory.
pub const MANIFEST_FILE: &str = "plugin.toml";

/// The largest manifest that is read.
const MANIFEST_LIMIT: u64 = 1 << 20;

/// A plugin's manifest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// Short name, also the backend's name everywhere: lower-case letters, digits and `-`.
    pub id: String,
    /// Version of the plugin.
    pub version: String,
    /// ABI version it was built against (`major.minor.patch`).
    pub abi: String,
    /// One line for people.
    #[serde(default)]
    pub description: String,
    /// SPDX licence expression of the plugin.
    #[serde(default)]
    pub licence: String,
    /// Formats the backend deals with; shown before the plugin was ever started.
    #[serde(default)]
    pub capabilities: Vec<String>,
    /// Whether a row of output is bit for bit the same whatever else is in its batch. The host then lets texts that repeat
    /// themselves read guessed tokens along, several at a time.
    #[serde(default)]
    pub steady_batches: bool,
    /// Rank among backends that can run the same artifact: higher is preferred. The built-in native engine has 50.
    #[serde(default = "default_rank")]
    pub rank: i32,
    /// File name of the dylib beside the manifest; filled in when the plugin is packaged.
    #[serde(default)]
    pub library: String,
    /// Lower-case hexadecimal SHA-256 of the dylib; filled in when the plugin is packaged.
    #[serde(default)]
    pub sha256: String,
    /// Files that the dylib needs beside it, and their SHA-256; filled in when the plugin is packaged.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub companions: BTreeMap<String, String>,
}

fn default_rank() -> i32 {
    10
}

impl Manifest {
    /// Reads and checks `plugin.toml` of a plugin's directory.
    ///
    /// # Errors
    /// [`ErrorCode::InvalidInput`] naming the file and the key, [`ErrorCode::UnsupportedInput`] for another ABI.
    pub fn read(directory: &Path) -> Result<Self> {
        let path = directory.join(MANIFEST_FILE);
        let invalid = |what: String| {
            BackendError::new(ErrorCode::InvalidInput, format!("{}: {what}", path.display()))
                .with_help("see the template plugin for a complete plugin.toml")
        };
        let mut text = String::new();
        std::fs::File::open(&path)
            .and_then(|file| file.take(MANIFEST_LIMIT).read_to_string(&mut text))
            .map_err(|error| invalid(error.to_string()))?;
        let manifest: Self = toml::from_str(&text).map_err(|error| invalid(error.to_string()))?;
        if !is_id(&manifest.id) {
            return Err(invalid(format!("id {:?} must be lower-case letters, digits and '-'", manifest.id)));
        }
        let plain = |name: &str| Path::new(name).file_name().is_some_and(|file| file == name);
        if !plain(&manifest.library) {
            return Err(invalid(format!("library {:?} must be a plain file name", manifest.library)));
        }
        if let Some(name) = manifest.companions.keys().find(|name| !plain(name)) {
            return Err(invalid(format!("companion {name:?} must be a plain file name")));
        }
        if !compatible(&manifest.abi) {
            return Err(BackendError::new(
                ErrorCode::UnsupportedInput,
                format!(
                    "plugin {} {} was built for ABI {}, this host speaks {}",
                    manifest.id,
                    manifest.version,
                    manifest.abi,
                    drophammer_abi::ABI_VERSION
                ),
            )
            .with_help("install a build of the plugin for this host"));
        }
        Ok(manifest)
    }

    /// The dylib's path, after its digest and those of its companions were compared with the manifest's.
    ///
    /// # Errors
    /// [`ErrorCode::InvalidInput`] when a file is missing or was changed.
    pub fn verified_library(&self, directory: &Path) -> Result<PathBuf> {
        for (name, due) in self.companions.iter().chain([(&self.library, &self.sha256)]) {
            let path = directory.join(name);
            let digest = sha256_file(&path).map_err(|error| {
                BackendError::new(ErrorCode::InvalidInput, format!("{}: {error}", path.display()))
                    .with_help("install the plugin again")
            })?;
            if digest != due.to_ascii_lowercase() {
                return Err(BackendError::new(
                    ErrorCode::InvalidInput,
                    format!("{} has SHA-256 {digest}, its plugin.toml says {due:?}", path.display()),
                )
                .with_help(
                    "the file was changed or damaged: install the plugin again, or package your own build anew",
                ));
            }
        }
        Ok(directory.join(&self.library))
    }
}

/// Whether this may be a plugin's id: lower-case letters, digits and `-`.
pub fn is_id(id: &str) -> bool {
    !id.is_empty() && id.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-')
}

/// Whether a plugin built against ABI `version` can be loaded: same major version, and before 1.0 the same minor.
fn compatible(version: &str) -> bool {
    fn parts(version: &str) -> Option<(u64, u64)> {
        let mut numbers = version.split('.').map(str::parse::<u64>);
        Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
    }
    match (parts(version), parts(drophammer_abi::ABI_VERSION)) {
        (Some((0, minor)), Some((0, ours))) => minor == ours,
        (Some((major, _)), Some((ours, _))) => major == ours && major != 0,
        _ => false,
    }
}

/// Assembles an installable plugin directory from a built dylib and the manifest in its source: copies the dylib and
/// writes `plugin.toml` with the library's name, digest and this SDK's ABI version.
///
/// # Errors
/// When a file cannot be read or written, or the manifest is not valid.
pub fn package(dylib: &Path, manifest: &Path, directory: &Path) -> Result<Manifest> {
    package_into(dylib, manifest, &[], |_| directory.to_owned())
}

/// As [`package`], into a directory that is chosen once the plugin's id is known, with files that the dylib needs beside it:
/// these, and those beside the dylib that the manifest names already.
///
/// # Errors
/// As for [`package`].
pub fn package_into(
    dylib: &Path,
    manifest: &Path,
    companions: &[PathBuf],
    place: impl FnOnce(&str) -> PathBuf,
) -> Result<Manifest> {
    let failed = |path: &Path, error: &dyn std::fmt::Display| {
        BackendError::new(ErrorCode::Failed, format!("{}: {error}", path.display()))
    };
    let text = std::fs::read_to_string(manifest).map_err(|error| failed(manifest, &error))?;
    let mut filled: Manifest = toml::from_str(&text).map_err(|error| failed(manifest, &error))?;
    if !is_id(&filled.id) {
        return Err(failed(
            manifest,
            &format!("id {:?} must be lower-case letters, digits and '-'", filled.id),
        ));
    }
    let name = |path: &Path| match path.file_name() {
        Some(name) => Ok(name.to_string_lossy().into_owned()),
        None => Err(failed(path, &"not a file")),
    };
    let digest = |path: &Path| sha256_file(path).map_err(|error| failed(path, &error));
    filled.library = name(dylib)?;
    filled.abi = drophammer_abi::ABI_VERSION.to_owned();
    filled.sha256 = digest(dylib)?;
    let named = std::mem::take(&mut filled.companions).into_keys();
    let beside: Vec<PathBuf> = named.map(|name| dylib.with_file_name(name)).collect();
    for companion in beside.iter().chain(companions) {
        filled.companions.insert(name(companion)?, digest(companion)?);
    }
    let directory = &place(&filled.id);
    std::fs::create_dir_all(directory).map_err(|error| failed(directory, &error))?;
    for file in beside.iter().chain(companions).map(PathBuf::as_path).chain([dylib]) {
        // Replace, never overwrite: a running worker may have the old one mapped.
        let target = directory.join(name(file)?);
        let staged = directory.join(format!(".{}.new", name(file)?));
        std::fs::copy(file, &staged).map_err(|error| failed(file, &error))?;
        std::fs::rename(&staged, &target).map_err(|error| failed(&target, &error))?;
    }
    let document = toml::to_string(&filled).map_err(|error| failed(manifest, &error))?;
    let path = directory.join(MANIFEST_FILE);
    std::fs::write(&path, document).map_err(|error| failed(&path, &error))?;
    Manifest::read(directory)
}

/// Streamed SHA-256 of a file as lower-case hexadecimal.
fn sha256_file(path: &Path) -> std::io::Result<String> {
    let mut file = std::fs::File::open(path)?;
    let mut digest = Sha256::new();
    std::io::copy(&mut file, &mut digest)?;
    Ok(format!("{:x}", digest.finalize()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn packaged() -> tempfile::TempDir {
        let home = tempfile::tempdir().unwrap();
        let dylib = home.path().join("libsample.so");
        std::fs::write(&dylib, b"not really a dylib").unwrap();
        let manifest = home.path().join("source.toml");
        std::fs::write(&manifest, "id = \"sample\"\nversion = \"1.2.3\"\nabi = \"0.0.0\"\n").unwrap();
        package(&dylib, &manifest, &home.path().join("out")).unwrap();
        home
    }

    #[test]
    fn a_packaged_plugin_reads_back_and_verifies() {
        let home = packaged();
        let out = home.path().join("out");
        let manifest = Manifest::read(&out).unwrap();
        assert_eq!(manifest.library, "libsample.so");
        assert_eq!(manifest.verified_library(&out).unwrap(), out.join("libsample.so"));
    }

    #[test]
    fn a_changed_dylib_is_refused_before_it_is_opened() {
        let home = packaged();
        let out = home.path().join("out");
        std::fs::write(out.join("libsample.so"), b"tampered").unwrap();
        let error = crate::host::Plugin::open(&out, &crate::HostInfo::default()).unwrap_err();
        assert_eq!(error.code, ErrorCode::InvalidInput);
        assert!(error.message.contains("SHA-256"), "{error}");
    }

    #[test]
    fn companions_come_along_are_verified_and_are_found_again_beside_the_dylib() {
        let home = packaged();
        let kernels = home.path().join("libkernels.so");
        std::fs::write(&kernels, b"not really kernels").unwrap();
        let (first, second) = (home.path().join("first"), home.path().join("second"));
        let (dylib, manifest) = (home.path().join("libsample.so"), home.path().join("source.toml"));
        package_into(&dylib, &manifest, &[kernels], |_| first.clone()).unwrap();
        package(&first.join("libsample.so"), &first.join(MANIFEST_FILE), &second).unwrap();
        let manifest = Manifest::read(&second).unwrap();
        assert_eq!(manifest.companions.keys().collect::<Vec<_>>(), ["libkernels.so"]);
        manifest.verified_library(&second).unwrap();
        let path = second.join(MANIFEST_FILE);
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(text.contains("\"libkernels.so\" = "), "{text}");
        std::fs::write(&path, text.replace("\"libkernels.so\" = ", "\"../libkernels.so\" = ")).unwrap();
        assert!(Manifest::read(&second).unwrap_err().message.contains("companion"));
        std::fs::write(second.join("libkernels.so"), b"tampered").unwrap();
        let error = manifest.verified_library(&second).unwrap_err();
        assert!(error.message.contains("libkernels.so has SHA-256"), "{error}");
        std::fs::remove_file(second.join("libkernels.so")).unwrap();
        assert_eq!(manifest.verified_library(&second).unwrap_err().code, ErrorCode::InvalidInput);
    }

    #[test]
    fn manifests_with_bad_keys_are_refused_by_name() {
        for (from, to, expected) in [
            ("id = \"sample\"", "id = \"../up\"", "id"),
            ("library = \"libsample.so\"", "library = \"../libsample.so\"", "library"),
            ("version = \"1.2.3\"", "", "version"),
            ("id = \"sample\"", "id = 7", "id"),
        ] {
            let home = packaged();
            let path = home.path().join("out").join(MANIFEST_FILE);
            let text = std::fs::read_to_string(&path).unwrap();
            assert!(text.contains(from));
            std::fs::write(&path, text.replace(from, to)).unwrap();
            let error = Manifest::read(path.parent().unwrap()).unwrap_err();
            assert!(error.message.contains(expected), "{error}");
        }
    }

    #[test]
    fn another_abi_is_refused_with_both_versions_named() {
        let home = packaged();
        let path = home.path().join("out").join(MANIFEST_FILE);
        let text = std::fs::read_to_string(&path).unwrap();
        std::fs::write(&path, text.replace(drophammer_abi::ABI_VERSION, "7.3.0")).unwrap();
        let error = Manifest::read(path.parent().unwrap()).unwrap_err();
        assert_eq!(error.code, ErrorCode::UnsupportedInput);
        assert!(error.message.contains("7.3.0") && error.message.contains(drophammer_abi::ABI_VERSION));
    }
}
