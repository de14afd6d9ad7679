//! What Linux tells of processors beside the CPU, and of power, as files below `/sys/class`: AMD's and Intel's graphics processors
//! (`drm`), neural processors (`accel`), and what processor packages take (`powercap`). NVIDIA's cards have a library: see
//! [`nvidia`](super::nvidia).
//!
//! The files are those that the kernel documents (`Documentation/ABI`, `Documentation/gpu`); whatever is missing, or may not be read,
//! is not told. Other systems have no such directory, and so no such processors here.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use drophammer_client::api::Accelerator;

const AMD: &str = "0x1002";
const INTEL: &str = "0x8086";

/// The files, and what counters among them said before.
#[derive(Debug)]
pub(super) struct Sysfs {
    classes: PathBuf,
    counters: HashMap<PathBuf, u64>,
}

impl Sysfs {
    /// Of this machine.
    pub(super) fn new() -> Self {
        Self::at(PathBuf::from("/sys/class"))
    }

    fn at(classes: PathBuf) -> Self {
        Self { classes, counters: HashMap::new() }
    }

    /// AMD's and Intel's graphics processors, `seconds` after the last sample.
    pub(super) fn gpus(&mut self, seconds: Option<f64>) -> Vec<Accelerator> {
        let cards = numbered(&self.classes.join("drm"), "card");
        cards.into_iter().filter_map(|card| self.gpu(&card, seconds)).collect()
    }

    fn gpu(&mut self, card: &Path, seconds: Option<f64>) -> Option<Accelerator> {
        let device = card.join("device");
        let all = device.join("hwmon");
        let sensors = numbered(&all, "hwmon").into_iter().next().unwrap_or(all);
        let common = Accelerator {
            temperature_celsius: number(&sensors.join("temp1_input")).map(|thousandths| thousandths / 1e3),
            ..Accelerator::default()
        };
        match text(&device.join("vendor"))?.as_str() {
            AMD => {
                let power =
                    ["power1_average", "power1_input"].iter().find_map(|file| number(&sensors.join(file)));
                Some(Accelerator {
                    name: text(&device.join("product_name")).unwrap_or_else(|| named("AMD GPU", &device)),
                    vendor: "amd".to_owned(),
                    percent: number(&device.join("gpu_busy_percent")),
                    memory_total_bytes: whole(&device.join("mem_info_vram_total")),
                    memory_used_bytes: whole(&device.join("mem_info_vram_used")),
                    mhz: whole(&sensors.join("freq1_input")).map(|hertz| hertz / 1_000_000),
                    power_watts: power.map(|millionths| millionths / 1e6),
                    ..common
                })
            }
            INTEL => {
                // Of the two drivers `xe` has these in the device, `i915` in the card; both count how long nothing was on.
                let idle =
                    [device.join("tile0/gt0/gtidle/idle_residency_ms"), card.join("gt/gt0/rc6_residency_ms")];
                let clock = [device.join("tile0/gt0/freq0/act_freq"), card.join("gt_act_freq_mhz")];
                let idle = idle.iter().find_map(|file| self.rate(file, seconds));
                Some(Accelerator {
                    name: named("Intel GPU", &device),
                    vendor: "intel".to_owned(),
                    percent: idle.map(|milliseconds| (100.0 - milliseconds / 10.0).clamp(0.0, 100.0)),
                    mhz: clock.iter().find_map(|file| whole(file)),
                    power_watts: self
                        .rate(&sensors.join("energy1_input"), seconds)
                        .map(|joules| joules / 1e6),
                    ..common
                })
            }
            _ => None,
        }
    }

    /// Neural processors, `seconds` after the last sample. AMD's driver tells no load.
    pub(super) fn npus(&mut self, seconds: Option<f64>) -> Vec<Accelerator> {
        let all = numbered(&self.classes.join("accel"), "accel");
        all.into_iter()
            .filter_map(|accelerator| {
                let device = accelerator.join("device");
                let (vendor, kind) = match text(&device.join("vendor"))?.as_str() {
                    INTEL => ("intel", "Intel NPU"),
                    AMD | "0x1022" => ("amd", "AMD NPU"),
                    _ => return None,
                };
                let busy = self.rate(&device.join("npu_busy_time_us"), seconds);
                let clock = ["freq/current_freq", "npu_current_frequency_mhz"];
                Some(Accelerator {
                    name: text(&device.join("vbnv")).unwrap_or_else(|| named(kind, &device)),
                    vendor: vendor.to_owned(),
                    percent: busy.map(|microseconds| (microseconds / 1e4).min(100.0)),
                    memory_used_bytes: whole(&device.join("npu_memory_utilization")),
                    // It is 0 while nothing runs.
                    mhz: clock.iter().find_map(|file| whole(&device.join(file))).filter(|mhz| *mhz > 0),
                    ..Accelerator::default()
                })
            })
            .collect()
    }

    /// What all processor packages took since the last sample, in watts. Most systems let only root read it.
    pub(super) fn power(&mut self, seconds: Option<f64>) -> Option<f64> {
        let zones = numbered(&self.classes.join("powercap"), "intel-rapl:");
        let packages = zones
            .into_iter()
            .filter(|zone| text(&zone.join("name")).is_some_and(|name| name.starts_with("package")));
        let watts = packages.filter_map(|zone| self.rate(&zone.join("energy_uj"), seconds));
        watts.map(|microjoules| microjoules / 1e6).reduce(|a, b| a + b)
    }

    /// How much a counter grew in a second; nothing at first, or when it began anew.
    fn rate(&mut self, file: &Path, seconds: Option<f64>) -> Option<f64> {
        let now = whole(file)?;
        let before = self.counters.insert(file.to_owned(), now)?;
        Some(now.checked_sub(before)? as f64 / seconds?)
    }
}

/// The directories called `name` and a number, in the order of these. (`card0-HDMI-A-1` is none of them.)
fn numbered(directory: &Path, name: &str) -> Vec<PathBuf> {
    let number = |path: &PathBuf| path.file_name()?.to_str()?.strip_prefix(name)?.parse::<u32>().ok();
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten().map(|entry| entry.path());
    let mut found: Vec<(u32, PathBuf)> = entries.filter_map(|path| Some((number(&path)?, path))).collect();
    found.sort_unstable();
    found.into_iter().map(|(_, path)| path).collect()
}

/// What a device is called whose driver knows no name: its kind and its number among its maker's.
fn named(kind: &str, device: &Path) -> String {
    let number = text(&device.join("device"));
    number.map_or_else(|| kind.to_owned(), |number| format!("{kind} {}", number.trim_start_matches("0x")))
}

fn text(file: &Path) -> Option<String> {
    let text = std::fs::read_to_string(file).ok()?;
    Some(text.trim().to_owned()).filter(|text| !text.is_empty())
}

fn whole(file: &Path) -> Option<u64> {
    text(file)?.parse().ok()
}

fn number(file: &Path) -> Option<f64> {
    text(file)?.parse().ok().filter(|number: &f64| number.is_finite())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `/sys/class` as a machine with these files has it.
    fn machine(files: &[(&str, &str)]) -> (tempfile::TempDir, Sysfs) {
        let classes = tempfile::tempdir().unwrap();
        let sysfs = Sysfs::at(classes.path().to_owned());
        for (file, text) in files {
            put(classes.path(), file, text);
        }
        (classes, sysfs)
    }

    fn put(classes: &Path, file: &str, text: &str) {
        let file = classes.join(file);
        std::fs::create_dir_all(file.parent().unwrap()).unwrap();
        std::fs::write(file, format!("{text}\n")).unwrap();
    }

    #[test]
    fn a_card_of_amd_tells_everything_at_once() {
        let (_classes, mut sysfs) = machine(&[
            ("drm/card0-DP-1/status", "connected"),
            ("drm/card1/device/vendor", "0x1002"),
            ("drm/card1/device/device", "0x73bf"),
            ("drm/card1/device/gpu_busy_percent", "37"),
            ("drm/card1/device/mem_info_vram_total", "17163091968"),
            ("drm/card1/device/mem_info_vram_used", "1073741824"),
            ("drm/card1/device/hwmon/hwmon3/temp1_input", "52000"),
            ("drm/card1/device/hwmon/hwmon3/freq1_input", "2475000000"),
            ("drm/card1/device/hwmon/hwmon3/power1_average", "203000000"),
            ("drm/card2/device/vendor", "0x10de"),
        ]);
        let card = Accelerator {
            name: "AMD GPU 73bf".to_owned(),
            vendor: "amd".to_owned(),
            percent: Some(37.0),
            memory_total_bytes: Some(17_163_091_968),
            memory_used_bytes: Some(1_073_741_824),
            temperature_celsius: Some(52.0),
            mhz: Some(2475),
            power_watts: Some(203.0),
        };
        assert_eq!(sysfs.gpus(None), [card], "NVIDIA's are told by its library");
        assert_eq!((sysfs.npus(None), sysfs.power(None)), (Vec::new(), None));
    }

    #[test]
    fn intels_count_and_tell_a_load_from_the_second_sample_on() {
        let (classes, mut sysfs) = machine(&[
            ("drm/card0/device/vendor", "0x8086"),
            ("drm/card0/gt/gt0/rc6_residency_ms", "1000"),
            ("drm/card0/gt_act_freq_mhz", "1300"),
            ("drm/card1/device/vendor", "0x8086"),
            ("drm/card1/device/tile0/gt0/gtidle/idle_residency_ms", "50"),
            ("drm/card1/device/tile0/gt0/freq0/act_freq", "2050"),
            ("drm/card1/device/hwmon/hwmon0/energy1_input", "5000000"),
            ("accel/accel0/device/vendor", "0x8086"),
            ("accel/accel0/device/npu_busy_time_us", "100"),
            ("accel/accel0/device/npu_memory_utilization", "4096"),
            ("accel/accel0/device/npu_current_frequency_mhz", "0"),
            ("powercap/intel-rapl:0/name", "package-0"),
            ("powercap/intel-rapl:0/energy_uj", "1000000"),
            ("powercap/intel-rapl:0:0/name", "core"),
            ("powercap/intel-rapl:0:0/energy_uj", "1"),
        ]);
        assert!(sysfs.gpus(None).iter().chain(&sysfs.npus(None)).all(|it| it.percent.is_none()));
        assert_eq!(sysfs.power(None), None);
        for (file, text) in [
            ("drm/card0/gt/gt0/rc6_residency_ms", "2500"),
            ("drm/card1/device/tile0/gt0/gtidle/idle_residency_ms", "40"),
            ("drm/card1/device/hwmon/hwmon0/energy1_input", "65000000"),
            ("accel/accel0/device/npu_busy_time_us", "1000100"),
            ("powercap/intel-rapl:0/energy_uj", "31000000"),
        ] {
            put(classes.path(), file, text);
        }
        let seconds = Some(2.0);
        let told: Vec<_> =
            sysfs.gpus(seconds).iter().map(|it| (it.percent, it.mhz, it.power_watts)).collect();
        // What counts less than before has begun anew.
        assert_eq!(told, [(Some(25.0), Some(1300), None), (None, Some(2050), Some(30.0))]);
        let npu = &sysfs.npus(seconds)[0];
        assert_eq!((npu.percent, npu.memory_used_bytes, npu.mhz), (Some(50.0), Some(4096), None));
        assert_eq!(sysfs.power(seconds), Some(15.0));
    }

    #[test]
    fn files_of_anything_are_told_as_nothing() {
        let (_classes, mut sysfs) = machine(&[
            ("drm/card0/device/vendor", "0x1002"),
            ("drm/card0/device/gpu_busy_percent", "NaN"),
            ("drm/card0/device/mem_info_vram_total", "-1"),
            ("drm/card9/device/vendor", ""),
            ("drm/cardinal/device/vendor", "0x1002"),
            ("accel/accel0/device/device", "0x17f0"),
        ]);
        let bare = Accelerator { name: "AMD GPU".into(), vendor: "amd".into(), ..Accelerator::default() };
        assert_eq!((sysfs.gpus(None), sysfs.npus(None)), (vec![bare], Vec::new()));
    }
}
