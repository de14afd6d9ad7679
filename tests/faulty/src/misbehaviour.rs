//! The ways to go wrong.

// A segmentation fault cannot be had in safe Rust.
#![allow(unsafe_code)]

use std::io::Write;
use std::path::Path;
use std::time::Duration;

use drophammer_sdk::{BackendError, ErrorCode, JobContext, LogLevel, Result};

macro_rules! misbehaviours {
    ($($(#[$doc:meta])* $variant:ident = $name:literal,)*) => {
        /// One way to go wrong.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub(crate) enum Misbehaviour { $($(#[$doc])* $variant,)* }

        impl Misbehaviour {
            pub(crate) const ALL: &[Self] = &[$(Self::$variant,)*];

            pub(crate) fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)* }
            }
        }
    };
}

misbehaviours! {
    /// None: does as it is told.
    Obey = "obey",
    /// An honest error.
    Refuse = "refuse",
    /// An honest error once the source is gone.
    RefuseLater = "refuse_later",
    /// A panic, which the SDK turns into an error.
    Panic = "panic",
    /// A panic that crosses the boundary.
    PanicUncaught = "panic_uncaught",
    /// `abort()`.
    Abort = "abort",
    /// Writes to address zero.
    Segfault = "segfault",
    /// Recurses without end.
    OverflowStack = "overflow_stack",
    /// Exits as if all were well.
    Exit = "exit",
    /// Exits, leaving a process behind that holds the pipes.
    Orphan = "orphan",
    /// Never comes back and hears nobody.
    Hang = "hang",
    /// Never comes back until it is cancelled.
    Patient = "patient",
    /// Stops its whole process.
    Stop = "stop",
    /// Takes memory without end.
    Allocate = "allocate",
    /// Takes memory in one impossible piece.
    AllocateAtOnce = "allocate_at_once",
    /// Writes to the staging directory without end.
    FillDisk = "fill_disk",
    /// Writes to a full device.
    FullDisk = "full_disk",
    /// Prints on standard output and error, then does as it is told.
    Print = "print",
    /// Prints a lot, without line ends, with terminal escapes.
    Flood = "flood",
    /// Logs and reports progress a hundred thousand times.
    Chatter = "chatter",
    /// Claims impossible progress.
    Nonsense = "nonsense",
    /// Answers with something that is not JSON.
    Garbage = "garbage",
    /// Answers with JSON of another shape.
    WrongShape = "wrong_shape",
    /// Answers with a document beyond all limits.
    HugeReport = "huge_report",
    /// Names files that it did not write, outside the staging directory.
    Escape = "escape",
}

impl Misbehaviour {
    pub(crate) fn named(name: &str) -> Result<Self> {
        Self::ALL.iter().copied().find(|known| known.name() == name).ok_or_else(|| {
            BackendError::new(
                ErrorCode::UnsupportedInput,
                format!("the faulty plugin does not know how to {name}"),
            )
        })
    }

    /// Notes of the report that follows.
    pub(crate) fn notes(self) -> Vec<String> {
        match self {
            Self::HugeReport => vec!["x".repeat(80 << 20)],
            _ => Vec::new(),
        }
    }

    /// Misbehaves; comes back where that is part of it.
    pub(crate) fn perform(self, job: Option<&dyn JobContext>, staging: &Path) -> Result<()> {
        match self {
            Self::Refuse => {
                Err(BackendError::new(ErrorCode::UnsupportedInput, "the faulty plugin refuses this")
                    .with_help("ask for `obey`"))
            }
            Self::Panic => panic!("a panic on request"),
            Self::Abort => {
                eprintln!("about to abort");
                std::process::abort()
            }
            Self::Segfault => {
                eprintln!("about to fault");
                // SAFETY: none; the fault is the purpose.
                unsafe { std::ptr::null_mut::<u8>().write_volatile(1) };
                Ok(())
            }
            Self::OverflowStack => {
                println!("{}", overflow(1));
                Ok(())
            }
            Self::Exit => std::process::exit(0),
            Self::Orphan => {
                let child = std::process::Command::new("sleep").arg("3600").spawn();
                println!("orphan {}", child.map_or(0, |child| child.id()));
                std::process::exit(3)
            }
            Self::Hang => loop {
                std::thread::sleep(Duration::MAX);
            },
            Self::Patient => loop {
                if let Some(job) = job {
                    job.check()?;
                }
                std::thread::sleep(Duration::from_millis(5));
            },
            Self::Stop => {
                let stop = std::process::Command::new("kill")
                    .args(["-STOP", &std::process::id().to_string()])
                    .status();
                stop.map(drop).map_err(|error| BackendError::new(ErrorCode::Failed, error.to_string()))
            }
            Self::Allocate => allocate(),
            Self::AllocateAtOnce => {
                let impossible = vec![1u8; 1 << 46];
                println!("{}", impossible.len());
                Ok(())
            }
            Self::FillDisk => fill(&staging.join("fill")),
            Self::FullDisk => fill(Path::new("/dev/full")),
            Self::Print => {
                println!("a line on standard output");
                eprintln!("a line on standard error");
                Ok(())
            }
            Self::Flood => {
                let piece = "\x1b[2Jflood".repeat(1 << 16);
                (0..64).for_each(|_| print!("{piece}"));
                println!();
                Ok(())
            }
            Self::Chatter => {
                for n in 0..100_000u64 {
                    if let Some(job) = job {
                        job.progress("chatter", "", n, 100_000);
                        job.log(LogLevel::Debug, "chatter");
                    }
                }
                Ok(())
            }
            Self::Nonsense => {
                if let Some(job) = job {
                    job.progress("\x1b[2Jnonsense\n", &"t".repeat(1 << 20), u64::MAX, 0);
                    job.log(LogLevel::Error, "\x1b]0;owned\x07two\nlines");
                }
                Ok(())
            }
            Self::Obey
            | Self::RefuseLater
            | Self::PanicUncaught
            | Self::Garbage
            | Self::WrongShape
            | Self::HugeReport
            | Self::Escape => Ok(()),
        }
    }
}

/// Works until its source is gone, then fails over that.
pub(crate) fn wait_for_the_end_of(source: &Path, job: &dyn JobContext) -> Result<()> {
    loop {
        job.check()?;
        if let Err(error) = std::fs::metadata(source) {
            let message = format!("{}: {error}", source.display());
            return Err(BackendError::new(ErrorCode::InvalidInput, message));
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[allow(unconditional_recursion)]
fn overflow(depth: u64) -> u64 {
    let frame = std::hint::black_box([depth; 1024]);
    overflow(depth + 1) + frame[0]
}

fn allocate() -> Result<()> {
    let mut held = Vec::new();
    loop {
        held.push(vec![1u8; 16 << 20]);
        std::hint::black_box(&held);
    }
}

fn fill(path: &Path) -> Result<()> {
    let failed = |error: std::io::Error| {
        BackendError::new(ErrorCode::OutOfResources, format!("{}: {error}", path.display()))
            .with_help("free some space on this disk")
    };
    let mut file = std::fs::OpenOptions::new().create(true).append(true).open(path).map_err(failed)?;
    let block = vec![0u8; 1 << 20];
    loop {
        file.write_all(&block).map_err(failed)?;
        std::thread::sleep(Duration::from_millis(1));
    }
}
