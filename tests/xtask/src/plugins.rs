//! `cargo xtask plugins`: builds the plugin crates and packages each into an installable directory.
//!
//! `plugins/*` go to `target/<profile>/plugins/<id>/`, where the `drophammer` binary beside it finds them; the plugin
//! that misbehaves goes to `target/<profile>/test-plugins/faulty/`, where only tests look.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use drophammer_sdk::manifest::{MANIFEST_FILE, package_into};
use serde_json::Value;

use crate::runtimes;
use crate::shell::{self, cargo, equipped_cargo, root, target};

/// Options of the task.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// Optimized.
    #[arg(long)]
    release: bool,
    /// llama.cpp with kernels for every kind of processor, the best chosen when it is opened. Takes long to compile, and no
    /// test covers it yet.
    #[arg(long)]
    every_processor: bool,
    /// llama.cpp with an accelerator of this kind, used where one is found (may be given several times): cuda needs NVIDIA's
    /// toolkit, vulkan its headers, those of SPIR-V and glslc. Brings kernels for every kind of processor with it.
    #[arg(long, value_parser = ["cuda", "hip", "metal", "mkl", "opencl", "vulkan"])]
    accelerator: Vec<String>,
    /// Only these plugins, by folder name; all by default.
    names: Vec<String>,
}

/// The task.
pub(crate) fn run(options: &Options) -> Result<()> {
    build_with(options.release, &features(options.every_processor, &options.accelerator), &options.names)
}

/// Features of llama.cpp's crate. An accelerator's kernels are a library of their own, so that the plugin also works where its
/// driver is missing; that library is linked against NVIDIA's shared ones instead of holding a copy of them.
fn features(every_processor: bool, accelerators: &[String]) -> Vec<String> {
    let mut features: Vec<_> =
        accelerators.iter().map(|name| format!("drophammer-llama-cpp/{name}")).collect();
    if every_processor || !features.is_empty() {
        features.push("drophammer-llama-cpp/dynamic".to_owned());
    }
    features
}

/// Builds the `drophammer` binary and the plugins (all, where no names are given), and packages the plugins.
pub(crate) fn build(release: bool, names: &[String]) -> Result<()> {
    build_with(release, &[], names)
}

/// The same with features of the plugins' crates.
fn build_with(release: bool, features: &[String], names: &[String]) -> Result<()> {
    let sources = sources(names)?;
    // Its session half is built against the runtime's headers. Without them it is built all the same, and says so.
    if sources.iter().any(|source| source.ends_with("plugins/mlx"))
        && let Err(error) = runtimes::provide_these(&["mlx"])
    {
        eprintln!("the MLX plugin will run no models: {error:#}");
    }
    let arguments = ["build", "--message-format", "json-render-diagnostics", "--package", "drophammer-cli"];
    let llama = sources.iter().any(|source| source.ends_with("plugins/llama-cpp"));
    let mut build = if llama { equipped_cargo(&arguments) } else { cargo(&arguments) };
    for source in &sources {
        build.args(["--package", &crate_name(source)?]);
    }
    if release {
        build.arg("--release");
    }
    for feature in features {
        build.args(["--features", feature]);
    }
    if cfg!(target_arch = "x86_64") && features.iter().any(|feature| feature.ends_with("/dynamic")) {
        let own = std::env::var("CXXFLAGS").unwrap_or_default();
        build.env("CXXFLAGS", format!("{own} {KEEP_STORES}"));
    }
    let messages = shell::read(&mut build)?;
    let built = target().join(if release { "release" } else { "debug" });
    for source in &sources {
        let place = if source.starts_with(root().join("plugins")) { "plugins" } else { "test-plugins" };
        let name = source.file_name().context("a plugin's folder has a name")?;
        let dylib = built.join(library_name(&crate_name(source)?));
        let directory = built.join(place).join(name);
        let companions = companions(&messages, &crate_name(source)?)?;
        let manifest = package_into(&dylib, &source.join(MANIFEST_FILE), &companions, |_| directory.clone())
            .with_context(|| format!("packaging {}", source.display()))?;
        println!("{} {} → {}", manifest.id, manifest.version, directory.display());
    }
    Ok(())
}

/// GCC knows of the 64 bytes that AMX tiles are configured by only that an instruction reads the first eight, and drops llama.cpp's
/// stores of the others: its kernels for Sapphire Rapids then end with an illegal instruction at their first tile (seen with GCC
/// 12.2; ggml-org/llama.cpp#26954). Without these two passes they work.
const KEEP_STORES: &str = "-fno-tree-dse -fno-dse";

/// Files that a crate's build script left in `companions` of its directory, among cargo's messages: they go beside the dylib.
fn companions(messages: &str, package: &str) -> Result<Vec<PathBuf>> {
    let messages = messages.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let out = messages.filter(|message| message["reason"] == "build-script-executed").find(|message| {
        message["package_id"].as_str().is_some_and(|id| id.contains(&format!("#{package}@")))
    });
    let Some(out) = out.as_ref().and_then(|message| message["out_dir"].as_str()) else {
        return Ok(Vec::new());
    };
    let directory = Path::new(out).join("companions");
    if !directory.is_dir() {
        return Ok(Vec::new());
    }
    let mut files = Vec::new();
    for entry in std::fs::read_dir(&directory).with_context(|| directory.display().to_string())? {
        files.push(entry?.path());
    }
    files.sort();
    Ok(files)
}

/// Folders that hold a plugin's crate.
fn sources(names: &[String]) -> Result<Vec<PathBuf>> {
    let mut folders = vec![root().join("tests/faulty")];
    for entry in std::fs::read_dir(root().join("plugins"))? {
        folders.push(entry?.path());
    }
    folders.retain(|folder| folder.join(MANIFEST_FILE).is_file());
    // Nobody wants it installed; `drophammer plugin new` writes it.
    folders.retain(|folder| !folder.ends_with("template"));
    folders.retain(|folder| names.is_empty() || names.iter().any(|name| folder.ends_with(name)));
    folders.sort();
    Ok(folders)
}

/// Name of the package that makes a folder's dylib: the folder's own, or that of its `dylib`, where others link the library too.
fn crate_name(folder: &Path) -> Result<String> {
    let [own, apart] = ["Cargo.toml", "dylib/Cargo.toml"].map(|file| folder.join(file));
    let path = if apart.is_file() { apart } else { own };
    let text = std::fs::read_to_string(&path).with_context(|| path.display().to_string())?;
    let name = text.lines().find_map(|line| line.strip_prefix("name = "));
    Ok(name.with_context(|| format!("{} has no name", path.display()))?.trim_matches('"').to_owned())
}

/// File name of a crate's dylib on this system.
fn library_name(package: &str) -> String {
    let (prefix, suffix) = (std::env::consts::DLL_PREFIX, std::env::consts::DLL_SUFFIX);
    format!("{prefix}{}{suffix}", package.replace('-', "_"))
}

#[cfg(test)]
mod tests {
    use super::features;

    #[test]
    fn an_accelerator_is_a_library_beside_the_plugin() {
        let told = |every, names: &[&str]| {
            let names: Vec<_> = names.iter().map(|name| (*name).to_owned()).collect();
            features(every, &names).join(" ").replace("drophammer-llama-cpp/", "")
        };
        assert_eq!(told(false, &[]), "");
        assert_eq!(told(true, &[]), "dynamic");
        assert_eq!(told(true, &["cuda"]), "cuda dynamic");
        assert_eq!(told(false, &["cuda", "vulkan"]), "cuda vulkan dynamic");
    }
}
