//! The machine.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{Problem, Worker};

/// One sample of the machine. What cannot be read is `null`, never zero.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Hardware {
    /// When, Unix seconds.
    pub time: f64,
    /// Processors.
    pub cpu: Cpu,
    /// Memory and swap.
    pub memory: Memory,
    /// Disks that matter to the daemon, the one with its home first.
    pub disks: Vec<Disk>,
    /// All network interfaces together.
    pub network: Network,
    /// Graphics processors.
    pub gpus: Vec<Accelerator>,
    /// Neural processors.
    pub npus: Vec<Accelerator>,
    /// The whole machine or processor package, watts.
    pub power_watts: Option<f64>,
    /// Worker processes.
    pub workers: Vec<Worker>,
    /// The daemon itself.
    pub daemon: ProcessUse,
    /// Why something cannot be read, and how to change that.
    pub problems: Vec<Problem>,
}

/// Processors.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Cpu {
    /// What the maker calls it.
    pub name: String,
    /// All cores together, 0 to 100.
    pub percent: f64,
    /// Each logical core.
    pub cores: Vec<Core>,
    /// Hottest reading of the package, °C.
    pub temperature_celsius: Option<f64>,
}

/// One logical core.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Core {
    /// 0 to 100.
    pub percent: f64,
    /// Its clock now.
    pub mhz: Option<u64>,
    /// Its own reading, °C.
    pub temperature_celsius: Option<f64>,
}

/// Memory and swap.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Memory {
    /// In all (a container's limit, where there is one).
    pub total_bytes: u64,
    /// Taken by processes.
    pub used_bytes: u64,
    /// What the daemon may still hand to jobs.
    pub available_bytes: u64,
    /// Swap in all.
    pub swap_total_bytes: u64,
    /// Swap taken.
    pub swap_used_bytes: u64,
}

/// One disk.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Disk {
    /// Where it is mounted.
    pub mount: String,
    /// In all.
    pub total_bytes: u64,
    /// Free for the daemon.
    pub free_bytes: u64,
    /// Read per second.
    pub read_bytes_per_second: Option<f64>,
    /// Written per second.
    pub write_bytes_per_second: Option<f64>,
}

/// Network traffic.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Network {
    /// Received per second.
    pub received_bytes_per_second: f64,
    /// Sent per second.
    pub sent_bytes_per_second: f64,
}

/// A graphics or neural processor.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Accelerator {
    /// What the maker calls it.
    pub name: String,
    /// Such as `nvidia`.
    pub vendor: String,
    /// 0 to 100.
    pub percent: Option<f64>,
    /// Its memory.
    pub memory_total_bytes: Option<u64>,
    /// Taken.
    pub memory_used_bytes: Option<u64>,
    /// °C.
    pub temperature_celsius: Option<f64>,
    /// Its clock now.
    pub mhz: Option<u64>,
    /// Its power now.
    pub power_watts: Option<f64>,
}

/// What one process takes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ProcessUse {
    /// Of one core: two busy cores are 200.
    pub cpu_percent: f64,
    /// Resident memory.
    pub memory_bytes: u64,
}
