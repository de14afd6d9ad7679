//! What this process uses, and the watchdog that ends it above its budget.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::protocol::Limits;

/// How often memory is looked at: at a few GB/s of page faults, some hundred MB of overshoot at worst.
const MEMORY_PERIOD: Duration = Duration::from_millis(25);
/// How often the staging directory is looked at.
const DISK_PERIOD: Duration = Duration::from_millis(500);

/// A budget that was exceeded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Exceeded {
    /// Resident memory, with the bytes seen.
    Memory(u64),
    /// The staging directory, with the bytes seen.
    Disk(u64),
}

/// Looks at memory and staging until one is over its budget, then says so once.
pub(super) fn watch(limits: Limits, staging: Option<PathBuf>, report: impl FnOnce(Exceeded)) {
    let mut disk_at = Instant::now();
    loop {
        std::thread::sleep(MEMORY_PERIOD);
        if limits.memory_bytes > 0
            && let Some(used) = private_memory().filter(|used| *used > limits.memory_bytes)
        {
            return report(Exceeded::Memory(used));
        }
        if limits.disk_bytes > 0 && disk_at.elapsed() >= DISK_PERIOD {
            disk_at = Instant::now();
            if let Some(used) =
                staging.as_deref().map(directory_bytes).filter(|used| *used > limits.disk_bytes)
            {
                return report(Exceeded::Disk(used));
            }
        }
    }
}

/// Resident bytes of this process without pages of mapped files, which the system can take back at will.
fn private_memory() -> Option<u64> {
    let statm = std::fs::read_to_string("/proc/self/statm").ok()?;
    let mut pages = statm.split(' ').skip(1).map(str::parse::<u64>);
    let (resident, shared) = (pages.next()?.ok()?, pages.next()?.ok()?);
    Some(resident.saturating_sub(shared) * rustix::param::page_size() as u64)
}

/// Peak resident bytes of this process so far, mapped files included (`VmHWM`); `None` where the system does not say.
pub(super) fn peak_memory() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kilobytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kilobytes * 1024)
}

/// Bytes of all files below a directory; what cannot be read counts as nothing. Links are not followed.
fn directory_bytes(directory: &Path) -> u64 {
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
    entries
        .map(|entry| match entry.metadata() {
            Ok(meta) if meta.is_dir() => directory_bytes(&entry.path()),
            Ok(meta) => meta.len(),
            Err(_) => 0,
        })
        .fold(0, u64::saturating_add)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_weighs_what_its_files_weigh() {
        let home = tempfile::tempdir().unwrap();
        std::fs::create_dir(home.path().join("inner")).unwrap();
        std::fs::write(home.path().join("a"), [0; 10]).unwrap();
        std::fs::write(home.path().join("inner/b"), [0; 7]).unwrap();
        assert_eq!(directory_bytes(home.path()), 17);
        assert_eq!(directory_bytes(&home.path().join("absent")), 0);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn the_system_says_what_this_process_uses() {
        assert!(private_memory().unwrap() > 0);
        assert!(peak_memory().unwrap() >= private_memory().unwrap());
    }
}
