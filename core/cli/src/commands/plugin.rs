//! Plugins without a daemon: found here, probed in workers of this command.

use std::path::{Path, PathBuf};

use drophammer_client::api::{Plugin, PluginState, Plugins};
use drophammer_daemon::workers::Installed;
use drophammer_sdk::manifest::package_into;

use super::table::columns;
use super::{answer, print, runtime};
use crate::arguments::Output;
use crate::failure::{Exit, Failure, Result};
use crate::workshop::Workshop;

pub(super) async fn list(output: Output) -> Result<()> {
    let shop = Workshop::probed().await?;
    let plugins = Plugins { plugins: shop.catalog.plugins().iter().map(Installed::document).collect() };
    answer(output.json, &plugins, |plugins| table(&plugins.plugins))
}

pub(super) async fn info(id: String, output: Output) -> Result<()> {
    let shop = Workshop::open()?;
    let Some(plugin) = shop.catalog.get(&id) else {
        let places: Vec<_> = shop.home.plugins.iter().map(|place| place.display().to_string()).collect();
        let message = format!("there is no plugin {id} in {}", places.join(", "));
        return Err(Failure::new(
            Exit::Failed,
            message,
            "`drophammer plugin list` names those that are there",
        ));
    };
    answer(output.json, &probed(&shop, plugin.clone()).await, details)
}

/// Everything the daemon would check, on one plugin anywhere; fails unless it is ready.
pub(super) async fn check(path: PathBuf, output: Output) -> Result<()> {
    let shop = Workshop::open()?;
    let path = std::path::absolute(&path).map_err(|error| Failure::io(&path, &error))?;
    let directory = if path.is_dir() { path } else { path.parent().unwrap_or(&path).to_path_buf() };
    let plugin = probed(&shop, Installed::read(directory)).await;
    answer(output.json, &plugin, details)?;
    let exit = match plugin.state {
        PluginState::Ready | PluginState::Degraded => return Ok(()),
        PluginState::Unavailable => Exit::MissingRuntime,
        PluginState::Refused => Exit::Unsupported,
        PluginState::Crashed | PluginState::Probing => Exit::Failed,
    };
    let message = format!("the plugin {} is {}", plugin.id, plugin.state);
    Err(Failure::new(exit, message, "see its problems above"))
}

async fn probed(shop: &Workshop, mut plugin: Installed) -> Plugin {
    let host = shop.host(&plugin.id());
    plugin.examine(&shop.supervisor, host).await;
    plugin.document()
}

/// Packages a built plugin into a place where plugins are looked for.
pub(super) fn install(dylib: &Path, manifest: &Path, into: Option<PathBuf>) -> Result<()> {
    let root = drophammer_daemon::home::find()?;
    let place = into.unwrap_or_else(|| root.join("plugins"));
    let installed = package_into(dylib, manifest, &[], |id| place.join(id)).map_err(|error| {
        let help = "name the built dylib, and its plugin.toml with --manifest";
        Failure::new(
            Exit::Failed,
            error.message,
            Some(error.help).filter(|own| !own.is_empty()).unwrap_or(help.into()),
        )
    })?;
    let directory = place.join(&installed.id);
    print(&format!("{} {} is in {}\n", installed.id, installed.version, directory.display()));
    Ok(())
}

/// What works here, what does not, and what to do about it.
pub(super) async fn doctor(output: Output) -> Result<()> {
    let shop = Workshop::probed().await?;
    let plugins = Plugins { plugins: shop.catalog.plugins().iter().map(Installed::document).collect() };
    answer(output.json, &plugins, |plugins| {
        let mut text = format!("drophammer {}\n", env!("CARGO_PKG_VERSION"));
        text += &format!("home       {}\n", shop.home.root.display());
        for place in &shop.home.plugins {
            let there = if place.is_dir() { "" } else { " (not there)" };
            text += &format!("plugins in {}{there}\n", place.display());
        }
        if plugins.plugins.is_empty() {
            text += "\nno plugin is installed: nothing can be made or run\n  → put plugins into one of the places above\n";
        }
        for plugin in &plugins.plugins {
            text += &format!("\n{}", details(plugin));
        }
        text + &format!("\n{}", runtime::table(&runtime::survey(&shop.home.runtimes())))
    })
}

/// Plugins, one line each.
pub(super) fn table(plugins: &[Plugin]) -> String {
    let row = |plugin: &Plugin| {
        vec![
            plugin.id.clone(),
            plugin.version.clone(),
            plugin.state.to_string(),
            plugin.runtime_version.clone().unwrap_or_default(),
            plugin.devices.iter().map(|device| device.id.clone()).collect::<Vec<_>>().join(" "),
            plugin.formats.join(" "),
            plugin.problems.first().map(|problem| problem.message.clone()).unwrap_or_default(),
        ]
    };
    let rows: Vec<_> = plugins.iter().map(row).collect();
    columns(&["plugin", "version", "state", "runtime", "devices", "makes", "problem"], &rows)
}

fn details(plugin: &Plugin) -> String {
    let mut text = format!("{} {} is {}\n", plugin.id, plugin.version, plugin.state);
    for (name, value) in [
        ("library", plugin.path.clone()),
        ("abi", plugin.abi.clone()),
        ("licence", plugin.licence.clone().unwrap_or_default()),
        ("runtime", plugin.runtime_version.clone().unwrap_or_default()),
        ("makes", plugin.formats.join(" ")),
        ("schemes", plugin.schemes.join(" ")),
    ] {
        if !value.is_empty() {
            text += &format!("  {name:8} {value}\n");
        }
    }
    for device in &plugin.devices {
        text += &format!("  device   {} ({}, {})\n", device.id, device.kind, device.name);
    }
    for problem in &plugin.problems {
        text += &format!("  problem  {}\n", problem.message);
        if let Some(help) = &problem.help {
            text += &format!("           → {help}\n");
        }
    }
    text
}
