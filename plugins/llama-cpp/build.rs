//! Gathers the libraries that the plugin's own needs beside it, where kernels are chosen when it is opened.
//!
//! They go to `companions` in this crate's build directory, from where packaging takes them.
#![allow(clippy::expect_used)]

use std::path::{Path, PathBuf};

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    if std::env::var_os("CARGO_FEATURE_DYNAMIC").is_none() {
        return;
    }
    // Where the plugin's libraries lie, and those that they need in turn: in its own directory.
    match std::env::var("CARGO_CFG_TARGET_OS").as_deref() {
        Ok("macos") => println!("cargo:rustc-cdylib-link-arg=-Wl,-rpath,@loader_path"),
        Ok("windows") => {}
        _ => println!("cargo:rustc-cdylib-link-arg=-Wl,--disable-new-dtags,-rpath,$ORIGIN"),
    }
    let kernels = PathBuf::from(
        std::env::var_os("DEP_LLAMA_BACKENDS_DIR").expect("llama.cpp tells where its kernels are"),
    );
    let built = kernels.parent().expect("they lie in its build directory");
    let out =
        PathBuf::from(std::env::var_os("OUT_DIR").expect("cargo names the directory")).join("companions");
    // What an earlier build left there may be gone by now.
    let _ = std::fs::remove_dir_all(&out);
    std::fs::create_dir_all(&out).expect("the build directory can be written");
    let folder = if cfg!(windows) { "bin" } else { "lib" };
    for directory in [kernels.as_path(), &built.join(folder)] {
        for entry in std::fs::read_dir(directory).expect("llama.cpp was built").flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            if needed(&name, directory == kernels) {
                std::fs::copy(entry.path(), out.join(&name)).expect("the build directory can be written");
            }
        }
    }
}

/// Whether a file is opened by this name: kernels by their own, libraries by that which is written into those that need
/// them (`libggml.so.0`, not `libggml.so` nor `libggml.so.0.15.3`).
fn needed(name: &str, kernels: bool) -> bool {
    let path = Path::new(name);
    let ends = |extension: &str| path.extension().is_some_and(|found| found == extension);
    if kernels || ends("dll") {
        return ends("so") || ends("dll") || ends("dylib");
    }
    match name.split_once(".so.") {
        Some((_, version)) => !version.contains('.'),
        None => ends("dylib") && name.matches('.').count() == 2,
    }
}
