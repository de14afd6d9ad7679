//! The dashboard, over a daemon that is started if none runs.

use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use drophammer_client::{Client, ClientError, Endpoint};
use drophammer_tui::{TuiConfig, TuiOptions};

use super::wait;
use crate::arguments::Dashboard;
use crate::failure::{Exit, Failure, Result};

/// How long a daemon may take to answer after its start.
const START: Duration = Duration::from_secs(10);

/// The dashboard of the daemon of this home, which is started if none runs; or of another daemon, which is not.
pub(super) fn run(dashboard: Dashboard) -> Result<()> {
    let home = drophammer_daemon::home::find()?;
    // Read first: what is wrong with it is better said before a terminal is taken over.
    let config = TuiConfig::read(drophammer_daemon::Config::load(&home)?.tui)?;
    let endpoint = if let Some(endpoint) = dashboard.daemon.connect {
        endpoint
    } else {
        let endpoint = Endpoint::in_home(&home);
        wait(ensure_daemon(&home, endpoint.clone()))?;
        endpoint
    };
    let options = TuiOptions { endpoint, key: None, config, theme: dashboard.theme };
    Ok(drophammer_tui::run(options)?)
}

/// Starts a daemon of its own session, which stays when the dashboard is left, and waits until it answers.
async fn ensure_daemon(home: &Path, endpoint: Endpoint) -> Result<()> {
    let client = Client::new(endpoint);
    match client.status().await {
        Err(ClientError::NoDaemon { .. }) => {}
        Err(error) => return Err(error.into()),
        Ok(_) => return Ok(()),
    }
    std::fs::create_dir_all(home).map_err(|error| Failure::io(home, &error))?;
    let log_path = home.join("daemon.log");
    let log = std::fs::File::create(&log_path).map_err(|error| Failure::io(&log_path, &error))?;
    let program = std::env::current_exe().map_err(|error| Failure::io("drophammer".as_ref(), &error))?;
    let mut daemon = Command::new(&program)
        .arg("daemon")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(log)
        .process_group(0)
        .spawn()
        .map_err(|error| Failure::io(&program, &error))?;
    let deadline = Instant::now() + START;
    while client.status().await.is_err() {
        let ended = daemon.try_wait().ok().flatten().is_some();
        if ended || Instant::now() > deadline {
            let message = format!("the daemon {}", if ended { "ended at once" } else { "does not answer" });
            let help = format!("see {}, or run `drophammer daemon`", log_path.display());
            return Err(Failure::new(Exit::Failed, message, help));
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    Ok(())
}
