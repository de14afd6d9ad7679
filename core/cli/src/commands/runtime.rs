//! The shared libraries that plugins need.

use std::io::IsTerminal;
use std::path::{Path, PathBuf};

use drophammer_daemon::{Config, Home};
use drophammer_runtimes::{InstallError, Installation, Place, Runtime};
use serde::Serialize;

use super::answer;
use super::table::columns;
use crate::arguments::Output;
use crate::failure::{Exit, Failure, Result};

/// Answer of `runtime list`.
#[derive(Debug, Serialize)]
pub(super) struct Runtimes {
    runtimes: Vec<Row>,
}

/// One runtime on this machine.
#[derive(Debug, Serialize)]
struct Row {
    name: String,
    /// `ready`; `found`, where no file tells its version, so that only who opens it can say more; `missing`, `too_old` or `broken`.
    state: &'static str,
    /// The version that would be installed.
    version: String,
    /// The version found, where files tell it.
    found_version: Option<String>,
    place: Option<Place>,
    path: Option<PathBuf>,
    /// Whether it can be installed on this system.
    installable: bool,
    licence: String,
    summary: String,
    message: Option<String>,
    help: Option<String>,
}

/// Where every runtime is, seen from a home's directory of runtimes.
pub(super) fn survey(runtimes: &Path) -> Runtimes {
    Runtimes {
        runtimes: drophammer_runtimes::runtimes().iter().map(|runtime| row(runtime, runtimes)).collect(),
    }
}

fn row(runtime: &Runtime, runtimes: &Path) -> Row {
    let found = runtime.find(runtimes, None);
    let installable = !runtime.wheels_here().is_empty();
    let mut row = Row {
        name: runtime.name.clone(),
        state: "ready",
        version: runtime.version.clone(),
        found_version: None,
        place: None,
        path: None,
        installable,
        licence: runtime.licence.clone(),
        summary: runtime.summary.clone(),
        message: None,
        help: None,
    };
    match found {
        Ok(found) => {
            row.found_version = found.version.map(|version| version.to_string());
            row.state = if row.found_version.is_some() { "ready" } else { "found" };
            row.place = Some(found.place);
            row.path = Some(found.library);
        }
        Err(unavailable) => {
            row.state = unavailable.word();
            row.message = Some(unavailable.to_string());
            row.help = Some(if installable {
                unavailable.help()
            } else {
                format!("it does not exist for {}", drophammer_runtimes::pins::system())
            });
        }
    }
    row
}

pub(super) fn table(survey: &Runtimes) -> String {
    let cells = |row: &Row| {
        let where_ = match &row.path {
            Some(path) => path.display().to_string(),
            None => row.help.clone().unwrap_or_default(),
        };
        let version = match (&row.found_version, &row.path) {
            (Some(found), _) => found.clone(),
            (None, Some(_)) => "unknown".to_owned(),
            (None, None) => row.version.clone(),
        };
        vec![row.name.clone(), version, row.state.to_owned(), where_]
    };
    let rows: Vec<_> = survey.runtimes.iter().map(cells).collect();
    columns(&["runtime", "version", "state", "where, or what to do"], &rows)
}

pub(super) fn list(output: Output) -> Result<()> {
    answer(output.json, &survey(&home()?.runtimes()), table)
}

/// Answer of `runtime install`.
#[derive(Debug, Serialize)]
struct Installed {
    name: String,
    version: String,
    path: PathBuf,
}

pub(super) fn install(name: &str, from: Vec<PathBuf>, accept_licence: bool, output: Output) -> Result<()> {
    let Some(runtime) = drophammer_runtimes::runtime(name) else {
        let names: Vec<_> =
            drophammer_runtimes::runtimes().iter().map(|runtime| runtime.name.as_str()).collect();
        let message = format!("there is no runtime {name}");
        return Err(Failure::new(Exit::Usage, message, format!("there are {}", names.join(", "))));
    };
    let accept_licence = accept_licence || drophammer_runtimes::accepted(&runtime.name);
    let mut how = Installation { from, accept_licence };
    let runtimes = home()?.runtimes();
    let install = |how: &Installation| runtime.install(&runtimes, how, &mut |step| eprintln!("{step}"));
    let path = match install(&how) {
        Err(InstallError::LicenceNotAccepted { notice, texts, .. }) if asked(&notice, &texts) => {
            how.accept_licence = true;
            install(&how)?
        }
        done => done?,
    };
    let installed = Installed { name: runtime.name.clone(), version: runtime.version.clone(), path };
    answer(output.json, &installed, |_| String::new())
}

/// Shows a licence to whoever sits at the terminal and asks; nobody there is no consent.
fn asked(notice: &str, texts: &[PathBuf]) -> bool {
    if !std::io::stdin().is_terminal() || !std::io::stderr().is_terminal() {
        return false;
    }
    for path in texts {
        match std::fs::read_to_string(path) {
            Ok(text) => eprintln!("--- {}\n{text}", path.display()),
            // A document of another form is opened by whoever reads it.
            Err(_) => eprintln!("--- {}", path.display()),
        }
    }
    eprint!("{notice}\nDo you accept the licences above? [y/N] ");
    let mut answer = String::new();
    std::io::stdin().read_line(&mut answer).is_ok() && matches!(answer.trim(), "y" | "Y" | "yes")
}

fn home() -> Result<Home> {
    let root = drophammer_daemon::home::find()?;
    Ok(Home::locate(&root, &Config::load(&root)?)?)
}

impl From<InstallError> for Failure {
    fn from(error: InstallError) -> Self {
        let exit = match &error {
            InstallError::NotForThisSystem { .. } => Exit::Unsupported,
            InstallError::LicenceNotAccepted { .. } | InstallError::NotAWheelOfIt { .. } => Exit::Usage,
            InstallError::NotFetched { .. } => Exit::MissingRuntime,
            _ => Exit::Failed,
        };
        Self::new(exit, error.to_string(), error.help())
    }
}
