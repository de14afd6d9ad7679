//! A result on its way to where the user wants it: made beside that place, moved there in one step when it is whole.

use std::fs::File;
use std::path::{Component, Path, PathBuf};

use drophammer_sdk::ForgeReport;
use tempfile::TempDir;

use crate::failure::{Exit, Failure, Result};

/// A directory beside `OUT` for work in progress; it goes away unless the result is published.
pub(crate) struct Staging {
    directory: TempDir,
    output: PathBuf,
}

impl Staging {
    /// Prepares to make `output`: a file or a directory that is empty or does not exist yet.
    ///
    /// # Errors
    /// When `output` is a directory with something in it, or its place cannot be written.
    pub(crate) fn beside(output: &Path) -> Result<Self> {
        let output = std::path::absolute(output).map_err(|error| Failure::io(output, &error))?;
        if output.is_dir() && std::fs::read_dir(&output).is_ok_and(|mut entries| entries.next().is_some()) {
            let message = format!("{} is a directory with something in it", output.display());
            return Err(Failure::new(
                Exit::Usage,
                message,
                "name a file or a directory that does not exist yet",
            ));
        }
        let parent = output.parent().unwrap_or(Path::new("/"));
        std::fs::create_dir_all(parent).map_err(|error| Failure::io(parent, &error))?;
        // As any directory would have been made: it may become the result.
        let usual = std::os::unix::fs::PermissionsExt::from_mode(0o777);
        let directory = tempfile::Builder::new()
            .permissions(usual)
            .prefix(".drophammer-")
            .tempdir_in(parent)
            .map_err(|error| Failure::io(parent, &error))?;
        Ok(Self { directory, output })
    }

    /// Where to work.
    pub(crate) fn path(&self) -> &Path {
        self.directory.path()
    }

    /// Base name for the files inside.
    pub(crate) fn name(&self) -> String {
        self.output.file_stem().unwrap_or_default().to_string_lossy().into_owned()
    }

    /// Moves what the report names to the output: one file as that file, several as a directory.
    ///
    /// # Errors
    /// When the report names what is not there, or the move fails; then nothing is at the output.
    pub(crate) fn publish(self, report: &ForgeReport) -> Result<PathBuf> {
        let files: Vec<PathBuf> = report.files.iter().map(|file| self.own(file)).collect::<Result<_>>()?;
        match files.as_slice() {
            [] => return Err(broken("reported no file")),
            [file] if file.is_file() => {
                sync(file)?;
                self.replace(file)?;
            }
            _ => {
                sync_all(self.path())?;
                self.replace(self.path())?;
            }
        }
        let parent = self.output.parent().unwrap_or(Path::new("/"));
        sync(parent)?;
        Ok(self.output.clone())
    }

    /// A reported file, if it is one of ours.
    fn own(&self, file: &Path) -> Result<PathBuf> {
        let inside = file.components().all(|part| matches!(part, Component::Normal(_) | Component::CurDir));
        let path = self.path().join(file);
        if !inside {
            return Err(broken(&format!(
                "reported a file outside its staging directory: {}",
                file.display()
            )));
        }
        if !path.exists() {
            return Err(broken(&format!("reported a file it did not write: {}", file.display())));
        }
        Ok(path)
    }

    fn replace(&self, made: &Path) -> Result<()> {
        if self.output.is_dir() {
            std::fs::remove_dir(&self.output).map_err(|error| Failure::io(&self.output, &error))?;
        }
        std::fs::rename(made, &self.output).map_err(|error| Failure::io(&self.output, &error))
    }
}

fn broken(what: &str) -> Failure {
    Failure::new(Exit::Failed, format!("the plugin {what}"), "this is a defect of the plugin; update it")
}

fn sync(path: &Path) -> Result<()> {
    File::open(path).and_then(|file| file.sync_all()).map_err(|error| Failure::io(path, &error))
}

fn sync_all(directory: &Path) -> Result<()> {
    for entry in std::fs::read_dir(directory).map_err(|error| Failure::io(directory, &error))?.flatten() {
        let path = entry.path();
        if path.is_dir() { sync_all(&path)? } else { sync(&path)? }
    }
    sync(directory)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(files: &[&str]) -> ForgeReport {
        ForgeReport { files: files.iter().map(PathBuf::from).collect(), ..ForgeReport::default() }
    }

    #[test]
    fn a_result_appears_whole_or_not_at_all() {
        let home = tempfile::tempdir().unwrap();
        let output = home.path().join("deep/model.gguf");
        for (files, expected) in [
            (&[][..], "no file"),
            (&["absent"][..], "did not write"),
            (&["../model.gguf"][..], "outside"),
            (&["/etc/hostname"][..], "outside"),
        ] {
            let staging = Staging::beside(&output).unwrap();
            std::fs::write(staging.path().join("x"), "half").unwrap();
            let failure = staging.publish(&report(files)).unwrap_err();
            assert!(format!("{failure:?}").contains(expected), "{failure:?}");
            assert_eq!(std::fs::read_dir(home.path().join("deep")).unwrap().count(), 0);
        }
        let staging = Staging::beside(&output).unwrap();
        assert_eq!(staging.name(), "model");
        std::fs::write(staging.path().join("x"), "whole").unwrap();
        assert_eq!(staging.publish(&report(&["x"])).unwrap(), output);
        assert_eq!(std::fs::read_to_string(&output).unwrap(), "whole");
        assert_eq!(std::fs::read_dir(home.path().join("deep")).unwrap().count(), 1);
    }

    #[test]
    fn several_files_become_a_directory_and_nobody_elses_directory_is_replaced() {
        let home = tempfile::tempdir().unwrap();
        let output = home.path().join("out");
        let staging = Staging::beside(&output).unwrap();
        std::fs::write(staging.path().join("a"), "1").unwrap();
        std::fs::write(staging.path().join("b"), "2").unwrap();
        staging.publish(&report(&["a", "b"])).unwrap();
        assert_eq!(std::fs::read_to_string(output.join("b")).unwrap(), "2");
        assert!(Staging::beside(&output).is_err());
    }
}
