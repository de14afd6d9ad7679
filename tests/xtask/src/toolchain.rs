//! What compiling llama.cpp needs beyond Rust and a C++ compiler: cmake, and libclang for its bindings.
//!
//! What is installed is used. What is missing comes as Python packages into a cache directory outside the repository, and
//! cargo's child processes are told of it through their environment; nothing of the system is changed. Variables that are
//! set already are left alone.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use anyhow::{Context, Result, ensure};

use crate::shell;

/// Python packages with what is missing, in versions that build the pinned llama.cpp.
const CMAKE: &str = "cmake>=3.28,<5";
const NINJA: &str = "ninja>=1.11,<2";
const LIBCLANG: &str = "libclang>=16,<19";

/// Variables for cargo's child processes. A tool that cannot be provided is told of once and left out: the compiler's own
/// message then says what it misses.
pub(crate) fn environment() -> &'static [(&'static str, OsString)] {
    static FOUND: OnceLock<Vec<(&'static str, OsString)>> = OnceLock::new();
    FOUND.get_or_init(|| {
        provide().unwrap_or_else(|error| {
            eprintln!("tools for compiling llama.cpp could not be provided: {error:#}");
            Vec::new()
        })
    })
}

fn provide() -> Result<Vec<(&'static str, OsString)>> {
    let tools = crate::fetch::cache("tools")?;
    let mut variables = Vec::new();
    if !shell::available(Command::new("cmake").arg("--version")) {
        install(&tools, "cmake/data/bin/cmake", &[CMAKE, NINJA])?;
        let own = [tools.join("cmake/data/bin"), tools.join("bin")];
        let path = std::env::var_os("PATH").unwrap_or_default();
        let joined = std::env::join_paths(own.into_iter().chain(std::env::split_paths(&path)))?;
        variables.push(("PATH", joined));
        set(&mut variables, "CMAKE_GENERATOR", || Some("Ninja".into()));
    }
    if std::env::var_os("LIBCLANG_PATH").is_none() && !has_libclang() {
        install(&tools, "clang/native", &[LIBCLANG])?;
        variables.push(("LIBCLANG_PATH", tools.join("clang/native").into()));
        // That package has no headers of the compiler's own (stddef.h): those of the C compiler serve.
        set(&mut variables, "BINDGEN_EXTRA_CLANG_ARGS", compiler_headers);
    }
    if shell::available(Command::new("ccache").arg("--version")) {
        set(&mut variables, "CMAKE_C_COMPILER_LAUNCHER", || Some("ccache".into()));
        set(&mut variables, "CMAKE_CXX_COMPILER_LAUNCHER", || Some("ccache".into()));
    }
    Ok(variables)
}

/// Adds a variable that is not set already.
fn set(
    variables: &mut Vec<(&'static str, OsString)>,
    name: &'static str,
    value: impl FnOnce() -> Option<OsString>,
) {
    if std::env::var_os(name).is_none()
        && let Some(value) = value()
    {
        variables.push((name, value));
    }
}

/// Installs Python packages into `tools`, unless `wanted` is there.
fn install(tools: &Path, wanted: &str, requirements: &[&str]) -> Result<()> {
    let wanted = tools.join(wanted);
    if wanted.exists() {
        return Ok(());
    }
    eprintln!("installing {} into {} (nothing else is changed)", requirements.join(", "), tools.display());
    std::fs::create_dir_all(tools)?;
    shell::run(
        Command::new("python3")
            .args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--upgrade", "--target"])
            .arg(tools)
            .args(requirements),
    )?;
    ensure!(wanted.exists(), "{} is not in the packages {}", wanted.display(), requirements.join(", "));
    Ok(())
}

/// Whether a libclang lies where its bindings look for one.
fn has_libclang() -> bool {
    let holds = |directory: PathBuf| {
        let names = std::fs::read_dir(directory).into_iter().flatten().flatten();
        names.into_iter().any(|entry| {
            let name = entry.file_name().to_string_lossy().into_owned();
            // `libclang-cpp` is another library.
            let versioned =
                name.strip_prefix("libclang-").is_some_and(|rest| rest.starts_with(char::is_numeric));
            name == "libclang.so" || versioned || name == "libclang.dylib"
        })
    };
    let versions = std::fs::read_dir("/usr/lib").into_iter().flatten().flatten();
    let llvm = versions.filter(|entry| entry.file_name().to_string_lossy().starts_with("llvm"));
    llvm.map(|entry| entry.path().join("lib"))
        .chain(
            ["/usr/lib64", "/usr/lib", "/usr/local/lib", "/Library/Developer/CommandLineTools/usr/lib"]
                .map(PathBuf::from),
        )
        .any(holds)
}

/// `-I` with the C compiler's own headers.
fn compiler_headers() -> Option<OsString> {
    let output = Command::new("cc").arg("-print-file-name=include").output().context("cc").ok()?;
    let path = String::from_utf8(output.stdout).ok()?;
    output.status.success().then(|| format!("-I{}", path.trim()).into())
}
