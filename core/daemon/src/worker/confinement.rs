//! What a worker gives up before any plugin code runs: outliving its daemon, core dumps, gaining privileges, and being
//! as important as the programs the user works with.

use rustix::process::{Resource, Rlimit, Signal};

use super::protocol::Limits;

/// Address-space slack above the memory budget for what is reserved without being used: stacks, allocator arenas.
#[cfg(target_os = "linux")]
const RESERVED_BYTES: u64 = 2 << 30;

/// Dies with the parent; no core files; no new privileges. To be called first of all, while there is one thread.
///
/// # Errors
/// The system's. A parent that is already gone shows as the end of the control socket.
pub(super) fn first(name: &std::ffi::CStr) -> std::io::Result<()> {
    #[cfg(target_os = "linux")]
    {
        rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
        rustix::thread::set_no_new_privs(true)?;
        // The process would be listed as `exe` otherwise, after the path it is started by.
        rustix::thread::set_name(name)?;
    }
    #[cfg(not(target_os = "linux"))]
    let _ = name;
    let none = Rlimit { current: Some(0), maximum: Some(0) };
    rustix::process::setrlimit(Resource::Core, none)?;
    Ok(())
}

/// Applies what the assignment says; still before other threads exist, so that all of them inherit it.
///
/// # Errors
/// The system's.
pub(super) fn second(limits: &Limits) -> std::io::Result<()> {
    if limits.nice > 0 {
        rustix::process::nice(limits.nice.min(19))?;
    }
    // The watchdog ends a worker at its budget and can say so. This is the hard stop behind it, for growth faster
    // than the watchdog looks: private writable memory only, so that mapped models do not count.
    #[cfg(target_os = "linux")]
    if limits.memory_bytes > 0 {
        let hard = limits.memory_bytes.saturating_add(limits.memory_bytes / 4).saturating_add(RESERVED_BYTES);
        rustix::process::setrlimit(Resource::Data, Rlimit { current: Some(hard), maximum: Some(hard) })?;
    }
    Ok(())
}

/// Ends this process and everything it started, at once: no destructors of native libraries, no handlers.
pub(super) fn end_group() -> ! {
    let _ = rustix::process::kill_current_process_group(Signal::KILL);
    std::process::abort();
}
