//! `drophammer key`: keys to the daemon's API. A running daemon sees changes at the next request.

use drophammer_daemon::keys::{KeyRecord, Keys};

use super::{answer, print};
use crate::arguments::KeyCommand;
use crate::failure::{Exit, Failure, Result};

/// Does what was asked for.
pub(super) fn run(command: KeyCommand) -> Result<()> {
    let failed = |error: anyhow::Error| {
        Failure::new(
            Exit::Failed,
            format!("{error:#}"),
            "look at keys.json in the home; `drophammer status` names it",
        )
    };
    let root = drophammer_daemon::home::find().map_err(failed)?;
    std::fs::create_dir_all(&root).map_err(|error| Failure::io(&root, &error))?;
    let keys = Keys::of_home(&root);
    match command {
        KeyCommand::Add { name } => {
            let key = keys.add(&name).map_err(failed)?;
            eprintln!("Keep it: it cannot be shown again. Clients send it as `Authorization: Bearer KEY`.");
            print(&format!("{key}\n"));
            Ok(())
        }
        KeyCommand::List(output) => {
            let records = keys.all().map_err(failed)?;
            answer(output.json, records.as_ref(), |records: &Vec<KeyRecord>| {
                if records.is_empty() {
                    return "no keys: loopback is open\n".to_owned();
                }
                records.iter().fold(String::new(), |names, record| names + &record.name + "\n")
            })
        }
        KeyCommand::Remove { name } => {
            if keys.remove(&name).map_err(failed)? {
                return Ok(());
            }
            let help = "`drophammer key list` lists them";
            Err(Failure::new(Exit::Failed, format!("there is no key named `{name}`"), help))
        }
    }
}
