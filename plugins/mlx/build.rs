//! Builds the shim over libmlx's C++ interface, which the plugin carries inside and loads behind the library at run time.
//!
//! MLX's headers come from `DROPHAMMER_MLX_INCLUDE`, or from where `cargo xtask` puts the pinned package. Without them the
//! plugin is built without its session half, and says so when it is asked to run a model.

use std::path::{Path, PathBuf};
use std::{env, fs};

/// The version the shim is written for: another one's headers may differ.
const VERSION: &str = "0.32.4";
const INCLUDE: &str = "DROPHAMMER_MLX_INCLUDE";

fn main() {
    println!("cargo::rerun-if-changed=shim/shim.cpp");
    println!("cargo::rerun-if-env-changed={INCLUDE}");
    println!("cargo::rustc-env=DROPHAMMER_MLX_VERSION={VERSION}");
    println!("cargo::rustc-check-cfg=cfg(shim)");
    let Some(include) = include() else { return };
    println!("cargo::rerun-if-changed={}", include.join("mlx/version.h").display());
    if !include.join("mlx/mlx.h").is_file() {
        return;
    }
    match build(&include) {
        Ok(()) => println!("cargo::rustc-cfg=shim"),
        Err(problem) => println!("cargo::warning=the MLX plugin cannot run models: {problem}"),
    }
}

fn include() -> Option<PathBuf> {
    if let Some(given) = env::var_os(INCLUDE) {
        return Some(given.into());
    }
    let home = || env::var_os("HOME").map(|home| Path::new(&home).join(".cache"));
    let cache = env::var_os("XDG_CACHE_HOME").map(PathBuf::from).or_else(home)?;
    Some(cache.join("drophammer/runtimes/mlx").join(VERSION).join("mlx/include"))
}

fn build(include: &Path) -> Result<(), String> {
    let version = fs::read_to_string(include.join("mlx/version.h")).map_err(|error| error.to_string())?;
    let number = |name: &str| {
        let line =
            version.lines().find_map(|line| line.strip_prefix(&format!("#define MLX_VERSION_{name} ")));
        line.map_or("?", str::trim).to_owned()
    };
    let found = format!("{}.{}.{}", number("MAJOR"), number("MINOR"), number("PATCH"));
    if found != VERSION {
        return Err(format!("its shim is written for MLX {VERSION}, the headers are of {found}"));
    }
    let out = PathBuf::from(env::var_os("OUT_DIR").ok_or("OUT_DIR is not set")?);
    let mut compiler = cc::Build::new();
    compiler.cpp(true).std("c++20").opt_level(2).pic(true).warnings(false).cargo_warnings(false);
    let compiler = compiler.try_get_compiler().map_err(|error| error.to_string())?;
    let mut command = compiler.to_command();
    command.arg("-shared").arg("-I").arg(include).arg("shim/shim.cpp").arg("-o").arg(out.join("shim.bin"));
    if env::var("CARGO_CFG_TARGET_OS").is_ok_and(|os| os == "macos") {
        // Symbols of libmlx are found when the shim is loaded behind it.
        command.args(["-undefined", "dynamic_lookup"]);
    }
    let output = command.output().map_err(|error| format!("no C++ compiler: {error}"))?;
    if !output.status.success() {
        let words = String::from_utf8_lossy(&output.stderr);
        return Err(words
            .lines()
            .find(|line| line.contains("error"))
            .unwrap_or("the compiler failed")
            .to_owned());
    }
    Ok(())
}
