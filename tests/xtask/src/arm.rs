//! `cargo xtask arm`: the native engine's kernels on emulated Arm processors, one for each set of them.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

use crate::shell::{self, available, cargo, target};

const TARGET: &str = "aarch64-unknown-linux-gnu";
const LINKER: &str = "aarch64-linux-gnu-gcc";
const EMULATOR: &str = "qemu-aarch64";

/// Where distributions put their compiler, beside which they can put the standard library of any architecture.
const USUAL: &str = "/usr/bin/rustc";

/// Processors, and the sets of kernels that each has to run. (An emulator that knew less would test less, and not tell.)
const PROCESSORS: [(&str, &str); 3] = [
    ("cortex-a53", "portable, NEON"),
    ("neoverse-n1", "portable, NEON, NEON dotprod"),
    ("max", "portable, NEON, NEON dotprod, NEON i8mm"),
];

/// What takes minutes in an emulator and says nothing about kernels: limits of the machine.
const LEFT_OUT: &str = "kernels::limits";

/// Options of the task.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// A compiler that has the target's standard library, if neither this toolchain's nor the system's has.
    #[arg(long)]
    rustc: Option<PathBuf>,
    /// Only tests whose names contain this.
    filter: Option<String>,
}

/// Compiles the engine's unit tests and runs them on every processor.
pub(crate) fn run(options: &Options) -> Result<()> {
    let compilers = match &options.rustc {
        Some(rustc) => vec![rustc.clone()],
        None => vec!["rustc".into(), USUAL.into()],
    };
    let rustc = compilers.iter().find(|rustc| has_target(rustc));
    let libraries = libraries();
    let emulator = available(Command::new(EMULATOR).arg("--version"));
    let mut missing = Vec::new();
    if rustc.is_none() {
        let asked = compilers.iter().map(|rustc| rustc.display().to_string()).collect::<Vec<_>>().join(", ");
        missing.push(format!(
            "the standard library for {TARGET} of one of these compilers: {asked}\n    `rustup target add {TARGET}`, or on Debian \
             `dpkg --add-architecture arm64`, `apt-get update`, `apt-get install rustc-web libstd-rust-web-dev:arm64`"
        ));
    }
    if libraries.is_none() {
        missing.push(format!(
            "{LINKER} with the target's C library\n    on Debian `apt-get install gcc-aarch64-linux-gnu`"
        ));
    }
    if !emulator {
        missing.push(format!("{EMULATOR}\n    on Debian `apt-get install qemu-user`"));
    }
    let (Some(rustc), Some(libraries), true) = (rustc, libraries, emulator) else {
        bail!("kernels cannot be run for Arm here. Missing:\n  {}", missing.join("\n  "));
    };
    for (processor, paths) in PROCESSORS {
        println!("\n{processor}: {paths}");
        let mut tests = cargo(&["test", "--package", "drophammer-native", "--lib", "--target", TARGET]);
        tests
            .args(["--", "--skip", LEFT_OUT])
            .args(&options.filter)
            .env("RUSTC", rustc)
            // Of its own, since it may be another compiler.
            .env("CARGO_TARGET_DIR", target().join("arm"))
            .env("CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER", LINKER)
            .env(
                "CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_RUNNER",
                format!("{EMULATOR} -cpu {processor} -L {}", libraries.display()),
            )
            .env("DROPHAMMER_TEST_PATHS", paths);
        shell::run(&mut tests)?;
    }
    Ok(())
}

/// Whether a compiler has the target's standard library.
fn has_target(rustc: &Path) -> bool {
    let found = || -> Result<()> {
        let place = said(Command::new(rustc).args(["--print", "target-libdir", "--target", TARGET]))?;
        let mut files = std::fs::read_dir(place)?.flatten();
        ensure!(files.any(|file| file.file_name().to_string_lossy().starts_with("libstd-")), "no libstd");
        Ok(())
    };
    found().is_ok()
}

/// Where the linker's C library lies, as a root that programs find their interpreter below.
fn libraries() -> Option<PathBuf> {
    let interpreter =
        PathBuf::from(said(Command::new(LINKER).arg("-print-file-name=ld-linux-aarch64.so.1")).ok()?);
    // A name that the linker does not find it gives back as it is.
    let interpreter = interpreter.is_absolute().then(|| interpreter.parent()?.canonicalize().ok())??;
    interpreter.parent().map(Path::to_path_buf)
}

/// What a command prints, in one line.
fn said(command: &mut Command) -> Result<String> {
    let output = command.output().context("cannot be started")?;
    ensure!(output.status.success(), "ended with {}", output.status);
    Ok(String::from_utf8(output.stdout)?.trim().to_owned())
}
