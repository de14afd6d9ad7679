//! The library: published artifacts, `library/<model>/<artifact>/`, each with its `manifest.json`.
//!
//! An artifact appears by one rename, complete and on disk, or not at all. The manifests are the only record of what
//! is there: at its start the daemon reads them all.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs::File;
use std::io;
use std::ops::ControlFlow;
use std::path::{Component, Path, PathBuf};

use drophammer_client::api;
use drophammer_engine::identify::Identity;
use drophammer_engine::plan::Target;
use drophammer_formats::digest::{self, Digest};
use drophammer_sdk::ForgeReport;
use serde::{Deserialize, Serialize};

use crate::moment::now;

/// The file that makes a directory an artifact.
pub const MANIFEST_FILE: &str = "manifest.json";
/// Far larger than any manifest.
const MANIFEST_LIMIT: u64 = 16 << 20;

/// What an artifact is, where it comes from, how it was made, and how good it is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    /// Version of this document.
    pub schema: u32,
    /// Named by content: model, target and the digests of all files.
    pub id: String,
    /// The model's name.
    pub model: String,
    /// What was asked for: format, scheme and its options.
    pub target: Target,
    /// What it was made from.
    pub source: SourceRecord,
    /// Who made it.
    pub maker: Maker,
    /// The file to load, relative to the artifact; `.` for the directory.
    pub entry: PathBuf,
    /// All files.
    pub files: Vec<FileRecord>,
    /// Bits per weight.
    pub bits_per_weight: f64,
    /// How many weights.
    pub parameters: u64,
    /// Tensors by storage type.
    pub types: BTreeMap<String, u64>,
    /// What the user should know.
    pub notes: Vec<String>,
    /// How good and how fast it is.
    pub measurements: api::Measurements,
    /// Who was measured to run it fastest; its maker where nobody was.
    #[serde(default)]
    pub runner: Option<String>,
    /// When it was published, Unix seconds.
    pub created: f64,
}

/// The source in a manifest.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SourceRecord {
    /// SHA-256 over the names and digests of all its files.
    pub digest: String,
    /// Where it was.
    pub path: String,
    /// What it is.
    pub identity: Identity,
}

/// The maker in a manifest.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Maker {
    /// The plugin.
    pub backend: String,
    /// Its version.
    pub version: String,
    /// The version of the runtime behind it.
    pub runtime_version: Option<String>,
    /// The version of Drophammer.
    pub drophammer: String,
}

/// A file in a manifest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileRecord {
    /// Relative to the artifact.
    pub path: PathBuf,
    /// Its size.
    pub bytes: u64,
    /// SHA-256, hexadecimal.
    pub sha256: Digest,
}

impl Manifest {
    /// Size of all files.
    pub fn bytes(&self) -> u64 {
        self.files.iter().map(|file| file.bytes).fold(0, u64::saturating_add)
    }

    /// Who runs it, where it can.
    pub fn runner(&self) -> &str {
        self.runner.as_ref().unwrap_or(&self.maker.backend)
    }

    /// The `model` value that means exactly this artifact.
    pub fn api_name(&self) -> String {
        format!("{}:{}", self.model, self.target.name)
    }

    /// The source as the control API shows it.
    pub fn source_info(&self) -> api::SourceInfo {
        let identity = Some(&self.source.identity);
        crate::ledger::source_info(self.source.path.clone(), identity, self.source.identity.bytes)
    }
}

/// An artifact in the library.
#[derive(Debug, Clone, PartialEq)]
pub struct Published {
    /// What it is.
    pub manifest: Manifest,
    /// Where it is.
    pub directory: PathBuf,
}

impl Published {
    /// What a backend loads.
    pub fn entry(&self) -> PathBuf {
        if self.manifest.entry == Path::new(".") {
            self.directory.clone()
        } else {
            self.directory.join(&self.manifest.entry)
        }
    }

    /// The artifact as the control API shows it.
    pub fn document(&self, best: bool) -> api::Artifact {
        let manifest = &self.manifest;
        api::Artifact {
            id: manifest.id.clone(),
            model: manifest.model.clone(),
            target: manifest.target.name.clone(),
            api_name: manifest.api_name(),
            path: self.entry().display().to_string(),
            backend: manifest.runner().to_owned(),
            device: manifest.target.device.clone(),
            format: manifest.target.format.clone(),
            scheme: manifest.target.scheme.clone(),
            bytes: manifest.bytes(),
            bits_per_weight: Some(manifest.bits_per_weight).filter(|bits| *bits > 0.0),
            measurements: manifest.measurements,
            best,
            created: manifest.created,
        }
    }
}

/// Why something could not be published.
#[derive(Debug, thiserror::Error)]
pub enum PublishError {
    /// The file system refused.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// The plugin named a file that is not in its staging directory.
    #[error("the plugin names `{}` among its results, which is not a file in its staging directory", .0.display())]
    NotAResult(PathBuf),
    /// The plugin made nothing.
    #[error("the plugin names no file as its result")]
    Nothing,
}

fn io_error(path: &Path) -> impl FnOnce(io::Error) -> PublishError + '_ {
    move |source| PublishError::Io { path: path.to_owned(), source }
}

/// A forged artifact whose files still lie where the plugin wrote them. [`Staged::gather`] consumes it.
#[derive(Debug)]
pub struct Staged {
    /// Where the plugin wrote.
    pub work: PathBuf,
    /// Where it is put together; on the same file system as the library.
    pub bundle: PathBuf,
    /// What the plugin says it made.
    pub report: ForgeReport,
    /// The model.
    pub model: String,
    /// What was asked for.
    pub target: Target,
    /// What it was made from.
    pub source: SourceRecord,
    /// Who made it.
    pub maker: Maker,
    /// How good it is.
    pub measurements: api::Measurements,
    /// Who runs it fastest.
    pub runner: Option<String>,
}

impl Staged {
    /// Puts the artifact together under its final name, which nobody sees yet. May be called again after it was
    /// interrupted at any point. `progress` hears bytes digested, of all bytes.
    ///
    /// # Errors
    /// [`PublishError`].
    pub fn gather(self, progress: &mut dyn FnMut(u64, u64)) -> Result<Complete, PublishError> {
        std::fs::create_dir_all(&self.bundle).map_err(io_error(&self.bundle))?;
        let entry = self.report.files.first().cloned().ok_or(PublishError::Nothing)?;
        self.move_results()?;
        let files = self.digests(progress)?;
        let bundle = self.bundle.clone();
        let manifest = self.manifest(entry, files);
        let path = bundle.join(MANIFEST_FILE);
        let text = serde_json::to_vec_pretty(&manifest).map_err(io::Error::from).map_err(io_error(&path))?;
        std::fs::write(&path, text).map_err(io_error(&path))?;
        sync_tree(&bundle)?;
        Ok(Complete { bundle, manifest })
    }

    /// Moves every result from where the plugin wrote it into the bundle.
    fn move_results(&self) -> Result<(), PublishError> {
        for file in &self.report.files {
            let not_a_result = || PublishError::NotAResult(file.clone());
            if file == Path::new(".") {
                for entry in std::fs::read_dir(&self.work).map_err(io_error(&self.work))? {
                    let name = entry.map_err(io_error(&self.work))?.file_name();
                    move_into(&self.work.join(&name), &self.bundle.join(&name))?;
                }
                continue;
            }
            if !file.components().all(|part| matches!(part, Component::Normal(_))) {
                return Err(not_a_result());
            }
            let (from, to) = (self.work.join(file), self.bundle.join(file));
            if to.exists() && !from.exists() {
                continue;
            }
            if !std::fs::symlink_metadata(&from).is_ok_and(|found| found.is_file()) {
                return Err(not_a_result());
            }
            move_into(&from, &to)?;
        }
        Ok(())
    }

    fn digests(&self, progress: &mut dyn FnMut(u64, u64)) -> Result<Vec<FileRecord>, PublishError> {
        let mut files = Vec::new();
        walk(&self.bundle, &mut files).map_err(io_error(&self.bundle))?;
        files.sort();
        files.retain(|path| path != &self.bundle.join(MANIFEST_FILE));
        if files.is_empty() {
            return Err(PublishError::Nothing);
        }
        let size = |path: &Path| std::fs::metadata(path).map(|found| found.len()).map_err(io_error(path));
        let mut sizes = Vec::with_capacity(files.len());
        for path in &files {
            sizes.push(size(path)?);
        }
        let total = sizes.iter().sum();
        let mut done = 0;
        let mut records = Vec::with_capacity(files.len());
        for (path, bytes) in files.iter().zip(sizes) {
            let sha256 = digest::file(path, &mut |read| {
                done += read;
                progress(done, total);
                ControlFlow::Continue(())
            })
            .map_err(|error| PublishError::Io { path: path.clone(), source: io::Error::other(error) })?;
            let path = path.strip_prefix(&self.bundle).unwrap_or(path).to_owned();
            records.push(FileRecord { path, bytes, sha256 });
        }
        Ok(records)
    }

    fn manifest(self, entry: PathBuf, files: Vec<FileRecord>) -> Manifest {
        let mut name = format!("{}\n{}\n", self.model, self.target.name);
        for file in &files {
            // Writing to a string cannot fail.
            let _ = writeln!(name, "{} {}", file.sha256, file.path.display());
        }
        let id: String = Digest::of(name.as_bytes()).to_string().chars().take(16).collect();
        Manifest {
            schema: 1,
            id,
            model: self.model,
            target: self.target,
            source: self.source,
            maker: self.maker,
            entry,
            files,
            bits_per_weight: self.report.bits_per_weight,
            parameters: self.report.parameters,
            types: self.report.types,
            notes: self.report.notes,
            measurements: self.measurements,
            runner: self.runner,
            created: now(),
        }
    }
}

/// An artifact that is complete and on disk. [`Complete::publish`] consumes it.
#[derive(Debug)]
pub struct Complete {
    bundle: PathBuf,
    manifest: Manifest,
}

impl Complete {
    /// Its id.
    pub fn id(&self) -> &str {
        &self.manifest.id
    }

    /// Shows the artifact in the library, by one rename. Where the same content was published before, that stands.
    ///
    /// # Errors
    /// [`PublishError`]; the library is unchanged then.
    pub fn publish(self, library: &Path) -> Result<Published, PublishError> {
        let shelf = library.join(&self.manifest.model);
        let directory = shelf.join(&self.manifest.id);
        if !directory.exists() {
            std::fs::create_dir_all(&shelf).map_err(io_error(&shelf))?;
            sync(library)?;
            std::fs::rename(&self.bundle, &directory).map_err(io_error(&directory))?;
            sync(&shelf)?;
        }
        Published::read(directory)
    }
}

impl Published {
    /// Reads an artifact's directory.
    ///
    /// # Errors
    /// When its manifest cannot be read.
    pub fn read(directory: PathBuf) -> Result<Self, PublishError> {
        let path = directory.join(MANIFEST_FILE);
        let read = || -> io::Result<Manifest> {
            let length = std::fs::metadata(&path)?.len();
            if length > MANIFEST_LIMIT {
                return Err(io::Error::other("too large for a manifest"));
            }
            Ok(serde_json::from_slice(&std::fs::read(&path)?)?)
        };
        let manifest = read().map_err(io_error(&path))?;
        Ok(Self { manifest, directory })
    }

    /// Takes the artifact out of the library: out of sight by one rename, then off the disk.
    ///
    /// # Errors
    /// When the file system refuses.
    pub fn delete(&self, staging: &Path) -> Result<(), PublishError> {
        let grave = staging.join(format!("deleted-{}", self.manifest.id));
        let _ = std::fs::remove_dir_all(&grave);
        std::fs::rename(&self.directory, &grave).map_err(io_error(&self.directory))?;
        if let Some(shelf) = self.directory.parent() {
            // Fails, as it should, when other artifacts are on it.
            let _ = std::fs::remove_dir(shelf);
        }
        std::fs::remove_dir_all(&grave).map_err(io_error(&grave))
    }
}

/// Every artifact of the library. What cannot be read is left alone and logged.
pub fn read_all(library: &Path) -> Vec<Published> {
    let children = |directory: &Path| -> Vec<PathBuf> {
        let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
        entries.map(|entry| entry.path()).filter(|path| path.is_dir()).collect()
    };
    let mut artifacts = Vec::new();
    for directory in children(library).iter().flat_map(|shelf| children(shelf)) {
        match Published::read(directory) {
            Ok(artifact) => artifacts.push(artifact),
            Err(error) => tracing::warn!(%error, "this is in the library but is no artifact"),
        }
    }
    artifacts
}

fn walk(directory: &Path, files: &mut Vec<PathBuf>) -> io::Result<()> {
    for entry in std::fs::read_dir(directory)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            walk(&entry.path(), files)?;
        } else {
            files.push(entry.path());
        }
    }
    Ok(())
}

fn move_into(from: &Path, to: &Path) -> Result<(), PublishError> {
    if let Some(parent) = to.parent() {
        std::fs::create_dir_all(parent).map_err(io_error(parent))?;
    }
    std::fs::rename(from, to).map_err(io_error(from))
}

fn sync(path: &Path) -> Result<(), PublishError> {
    File::open(path).and_then(|file| file.sync_all()).map_err(io_error(path))
}

fn sync_tree(directory: &Path) -> Result<(), PublishError> {
    for entry in std::fs::read_dir(directory).map_err(io_error(directory))? {
        let path = entry.map_err(io_error(directory))?.path();
        if path.is_dir() { sync_tree(&path)? } else { sync(&path)? }
    }
    sync(directory)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn staged(root: &Path, files: &[&str]) -> Staged {
        let work = root.join("staging/1/work");
        std::fs::create_dir_all(&work).unwrap();
        std::fs::create_dir_all(root.join("library")).unwrap();
        std::fs::write(work.join("m.gguf"), b"weights").unwrap();
        std::fs::write(work.join("resume.state"), b"not a result").unwrap();
        Staged {
            work,
            bundle: root.join("staging/1/bundle"),
            report: ForgeReport {
                files: files.iter().map(PathBuf::from).collect(),
                ..ForgeReport::default()
            },
            model: "m".into(),
            target: Target { name: "t".into(), ..Target::default() },
            source: SourceRecord::default(),
            maker: Maker::default(),
            measurements: api::Measurements { kl_mean: Some(0.5), ..api::Measurements::default() },
            runner: None,
        }
    }

    #[test]
    fn an_artifact_holds_its_results_and_a_manifest_with_their_digests_and_nothing_else() {
        let root = tempfile::tempdir().unwrap();
        let library = root.path().join("library");
        let published =
            staged(root.path(), &["m.gguf"]).gather(&mut |_, _| ()).unwrap().publish(&library).unwrap();
        let mut files = Vec::new();
        walk(&published.directory, &mut files).unwrap();
        assert_eq!(files.len(), 2);
        assert_eq!(published.manifest.files[0].sha256, Digest::of(b"weights"));
        assert_eq!(published.entry(), published.directory.join("m.gguf"));
        assert_eq!(read_all(&library), [published]);
    }

    #[test]
    fn publishing_resumes_wherever_it_was_interrupted() {
        let root = tempfile::tempdir().unwrap();
        let library = root.path().join("library");
        // Gathered, but not yet shown: the files are in the bundle and no more where the plugin wrote them.
        drop(staged(root.path(), &["m.gguf"]).gather(&mut |_, _| ()).unwrap());
        let again = staged(root.path(), &["m.gguf"]);
        std::fs::remove_file(again.work.join("m.gguf")).unwrap();
        let first = again.gather(&mut |_, _| ()).unwrap().publish(&library).unwrap();
        // The same content once more: the first manifest stands.
        let mut second = staged(root.path(), &["m.gguf"]);
        second.measurements.kl_mean = None;
        assert_eq!(second.gather(&mut |_, _| ()).unwrap().publish(&library).unwrap(), first);
    }

    #[test]
    fn results_outside_of_staging_are_refused() {
        let root = tempfile::tempdir().unwrap();
        std::fs::write(root.path().join("secret"), b"x").unwrap();
        std::os::unix::fs::symlink(root.path().join("secret"), root.path().join("link")).unwrap();
        for (file, expected) in
            [("../../secret", "not a file"), ("/etc/passwd", "not a file"), ("absent", "not a file")]
        {
            let result = staged(root.path(), &[file]).gather(&mut |_, _| ());
            assert!(result.unwrap_err().to_string().contains(expected));
        }
        assert!(read_all(&root.path().join("library")).is_empty());
    }

    #[test]
    fn a_deleted_artifact_leaves_nothing_behind() {
        let root = tempfile::tempdir().unwrap();
        let library = root.path().join("library");
        let published =
            staged(root.path(), &["."]).gather(&mut |_, _| ()).unwrap().publish(&library).unwrap();
        assert_eq!(published.entry(), published.directory);
        published.delete(&root.path().join("staging")).unwrap();
        assert!(std::fs::read_dir(&library).unwrap().next().is_none());
    }
}
