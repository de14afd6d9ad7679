//! The machine: sampled about once a second while somebody watches, and not at all otherwise.

mod nvidia;
mod sysfs;

use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use drophammer_client::api;
use sysinfo::{
    Components, CpuRefreshKind, Disks, MemoryRefreshKind, Networks, Pid, ProcessRefreshKind,
    ProcessesToUpdate, System,
};

use crate::board::Board;
use crate::moment::now;
use nvidia::Nvidia;
use sysfs::Sysfs;

/// A sample younger than this is given again.
const FRESH: Duration = Duration::from_millis(500);
/// A sampler that nobody asked for this long is put away with all its memory.
const FORGET: Duration = Duration::from_secs(15);

/// The sampler.
#[derive(Debug)]
pub struct Hardware {
    home: PathBuf,
    board: Board,
    sampler: Mutex<Option<Sampler>>,
}

#[derive(Debug)]
struct Sampler {
    system: System,
    disks: Disks,
    networks: Networks,
    components: Components,
    nvidia: Nvidia,
    sysfs: Sysfs,
    taken: Instant,
    last: api::Hardware,
}

impl Hardware {
    /// Samples for a daemon whose home lies at `home`.
    pub fn new(home: PathBuf, board: Board) -> Self {
        Self { home, board, sampler: Mutex::new(None) }
    }

    /// The machine now. The first of a series of samples cannot know rates.
    pub fn sample(&self) -> api::Hardware {
        let mut sampler = self.sampler.lock().unwrap_or_else(PoisonError::into_inner);
        let sampler = sampler.get_or_insert_with(Sampler::new);
        if sampler.last.time == 0.0 || sampler.taken.elapsed() >= FRESH {
            sampler.take(&self.home, &self.board);
        }
        sampler.last.clone()
    }

    /// Puts the sampler away if nobody asked for a while.
    pub fn forget_if_unused(&self) {
        let mut sampler = self.sampler.lock().unwrap_or_else(PoisonError::into_inner);
        if sampler.as_ref().is_some_and(|sampler| sampler.taken.elapsed() > FORGET) {
            *sampler = None;
        }
    }
}

impl Sampler {
    fn new() -> Self {
        let mut system = System::new();
        system.refresh_cpu_specifics(CpuRefreshKind::everything());
        Self {
            system,
            disks: Disks::new_with_refreshed_list(),
            networks: Networks::new_with_refreshed_list(),
            components: Components::new_with_refreshed_list(),
            nvidia: Nvidia::find(),
            sysfs: Sysfs::new(),
            taken: Instant::now(),
            last: api::Hardware::default(),
        }
    }

    fn take(&mut self, home: &Path, board: &Board) {
        let elapsed = self.taken.elapsed().as_secs_f64();
        let seconds = (self.last.time > 0.0).then_some(elapsed).filter(|seconds| *seconds > 0.0);
        self.taken = Instant::now();
        self.system.refresh_cpu_specifics(CpuRefreshKind::everything());
        self.system.refresh_memory_specifics(MemoryRefreshKind::everything());
        self.disks.refresh(true);
        self.networks.refresh(true);
        self.components.refresh(true);
        let workers = board.workers();
        let own = Pid::from_u32(std::process::id());
        let mut pids: Vec<Pid> = workers.iter().map(|worker| Pid::from_u32(worker.pid)).collect();
        pids.push(own);
        pids.sort_unstable();
        pids.dedup();
        let wanted = ProcessRefreshKind::nothing().with_cpu().with_memory();
        self.system.refresh_processes_specifics(ProcessesToUpdate::Some(&pids), true, wanted);
        self.last = api::Hardware {
            time: now(),
            cpu: self.cpu(),
            memory: self.memory(),
            disks: self.disks(home, seconds),
            network: self.network(seconds),
            gpus: [self.nvidia.sample(), self.sysfs.gpus(seconds)].concat(),
            npus: self.sysfs.npus(seconds),
            power_watts: self.sysfs.power(seconds),
            workers: workers.into_iter().map(|worker| self.worker(worker)).collect(),
            daemon: self.process(own),
            problems: self.nvidia.problem().into_iter().collect(),
        };
    }

    fn cpu(&self) -> api::Cpu {
        let cores = self.system.cpus().iter().map(|cpu| api::Core {
            percent: f64::from(cpu.cpu_usage()),
            mhz: Some(cpu.frequency()).filter(|mhz| *mhz > 0),
            temperature_celsius: None,
        });
        let name = self.system.cpus().first().map(|cpu| cpu.brand().trim().to_owned());
        let hottest = self.components.iter().filter_map(sysinfo::Component::temperature).map(f64::from);
        api::Cpu {
            name: name.unwrap_or_default(),
            percent: f64::from(self.system.global_cpu_usage()),
            cores: cores.collect(),
            temperature_celsius: hottest.filter(|degrees| degrees.is_finite()).reduce(f64::max),
        }
    }

    fn memory(&self) -> api::Memory {
        let (total, available) = memory(&self.system);
        api::Memory {
            total_bytes: total,
            used_bytes: total.saturating_sub(available),
            available_bytes: available,
            swap_total_bytes: self.system.total_swap(),
            swap_used_bytes: self.system.used_swap(),
        }
    }

    /// The disk with the home: the longest mount point above it.
    fn disks(&self, home: &Path, seconds: Option<f64>) -> Vec<api::Disk> {
        let above = self.disks.list().iter().filter(|disk| home.starts_with(disk.mount_point()));
        let holds_home = above.max_by_key(|disk| disk.mount_point().as_os_str().len());
        let document = |disk: &sysinfo::Disk| {
            let used = disk.usage();
            api::Disk {
                mount: disk.mount_point().display().to_string(),
                total_bytes: disk.total_space(),
                free_bytes: disk.available_space(),
                read_bytes_per_second: seconds.map(|seconds| used.read_bytes as f64 / seconds),
                write_bytes_per_second: seconds.map(|seconds| used.written_bytes as f64 / seconds),
            }
        };
        holds_home.map(document).into_iter().collect()
    }

    fn network(&self, seconds: Option<f64>) -> api::Network {
        let sum = |of: fn(&sysinfo::NetworkData) -> u64| {
            self.networks.values().map(of).fold(0, u64::saturating_add) as f64
        };
        let Some(seconds) = seconds else { return api::Network::default() };
        api::Network {
            received_bytes_per_second: sum(sysinfo::NetworkData::received) / seconds,
            sent_bytes_per_second: sum(sysinfo::NetworkData::transmitted) / seconds,
        }
    }

    fn process(&self, pid: Pid) -> api::ProcessUse {
        self.system.process(pid).map_or_else(api::ProcessUse::default, |process| api::ProcessUse {
            cpu_percent: f64::from(process.cpu_usage()),
            memory_bytes: process.memory(),
        })
    }

    fn worker(&self, worker: api::Worker) -> api::Worker {
        let used = self.process(Pid::from_u32(worker.pid));
        api::Worker { cpu_percent: used.cpu_percent, memory_bytes: used.memory_bytes, ..worker }
    }
}

/// Memory in all and memory free, of the container where there is one.
fn memory(system: &System) -> (u64, u64) {
    let (total, available) = (system.total_memory(), system.available_memory());
    match system.cgroup_limits().filter(|limits| limits.total_memory > 0 && limits.total_memory < total) {
        Some(limits) => (limits.total_memory, limits.free_memory.min(available)),
        None => (total, available),
    }
}

/// Bytes free for this user on the disk a path is on; `None` where the system does not say.
pub fn free_disk(path: &std::path::Path) -> Option<u64> {
    rustix::fs::statvfs(path).ok().map(|found| found.f_bavail.saturating_mul(found.f_frsize))
}

/// Resident memory of a process; `None` once it is gone.
pub(crate) fn resident_memory(pid: u32) -> Option<u64> {
    let pid = Pid::from_u32(pid);
    let mut system = System::new();
    let wanted = ProcessRefreshKind::nothing().with_memory();
    system.refresh_processes_specifics(ProcessesToUpdate::Some(&[pid]), false, wanted);
    system.process(pid).map(sysinfo::Process::memory)
}

/// Memory in all, once.
pub(crate) fn total_memory() -> u64 {
    let mut system = System::new();
    system.refresh_memory();
    memory(&system).0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sample_shows_this_machine_and_this_process() {
        let board = Board::default();
        let _place = board.put(std::process::id(), api::WorkerRole::Probe, "p", |_| ());
        let hardware = Hardware::new(std::env::temp_dir(), board);
        let sample = hardware.sample();
        assert_eq!(sample.cpu.cores.len(), std::thread::available_parallelism().map_or(1, Into::into));
        assert!(sample.memory.total_bytes >= sample.memory.used_bytes && sample.memory.used_bytes > 0);
        assert!(sample.daemon.memory_bytes > 0 && sample.workers[0].memory_bytes > 0);
        assert_eq!(hardware.sample().time, sample.time, "a fresh sample is given again");
        assert!(resident_memory(std::process::id()).is_some_and(|bytes| bytes > 0));
        assert_eq!(resident_memory(u32::MAX), None);
    }
}
