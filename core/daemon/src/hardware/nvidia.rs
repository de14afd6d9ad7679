//! NVIDIA's graphics processors, as the driver's own management library tells of them. It is looked for when sampling begins,
//! and only there where the driver is.

use drophammer_client::api;
use nvml_wrapper::Nvml;
use nvml_wrapper::enum_wrappers::device::{Clock, TemperatureSensor};
use nvml_wrapper::error::NvmlError;

/// The open library; holding it costs nothing between samples.
#[derive(Debug)]
pub(super) struct Nvidia(Result<Nvml, NvmlError>);

impl Nvidia {
    /// Looks for the library.
    pub(super) fn find() -> Self {
        Self(Nvml::init())
    }

    /// The processors now, in the driver's order.
    pub(super) fn sample(&self) -> Vec<api::Accelerator> {
        let Ok(library) = &self.0 else { return Vec::new() };
        let count = library.device_count().unwrap_or(0);
        (0..count)
            .filter_map(|index| library.device_by_index(index).ok())
            .map(|device| read(&device))
            .collect()
    }

    /// Why nothing can be read although the library is there.
    pub(super) fn problem(&self) -> Option<api::Problem> {
        problem(self.0.as_ref().err()?)
    }
}

/// What one card tells: not every card or partition of one tells everything.
fn read(device: &nvml_wrapper::Device<'_>) -> api::Accelerator {
    let memory = device.memory_info().ok();
    api::Accelerator {
        name: device.name().unwrap_or_else(|_| "NVIDIA".to_owned()),
        vendor: "nvidia".to_owned(),
        percent: device.utilization_rates().ok().map(|rates| f64::from(rates.gpu)),
        memory_total_bytes: memory.as_ref().map(|memory| memory.total),
        memory_used_bytes: memory.as_ref().map(|memory| memory.used),
        temperature_celsius: device.temperature(TemperatureSensor::Gpu).ok().map(f64::from),
        mhz: device.clock_info(Clock::SM).ok().map(u64::from),
        power_watts: device.power_usage().ok().map(|milliwatts| f64::from(milliwatts) / 1000.0),
    }
}

fn problem(error: &NvmlError) -> Option<api::Problem> {
    let help = match error {
        // No library, no such card: that is no problem.
        NvmlError::LibloadingError(_) => return None,
        NvmlError::LibRmVersionMismatch => "restart the machine: its driver was updated while it ran",
        NvmlError::DriverNotLoaded => "load NVIDIA's driver, or give this container its devices",
        NvmlError::NoPermission => "let this user read /dev/nvidiactl",
        _ => "see what `nvidia-smi` says",
    };
    Some(api::Problem {
        message: format!("NVIDIA's cards cannot be watched: {error}"),
        help: Some(help.to_owned()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_library_that_cannot_work_is_told_with_what_to_do() {
        let table = [
            (NvmlError::LibRmVersionMismatch, "restart"),
            (NvmlError::DriverNotLoaded, "driver"),
            (NvmlError::NoPermission, "/dev/nvidiactl"),
            (NvmlError::Unknown, "nvidia-smi"),
        ];
        for (error, expected) in table {
            let help = problem(&error).unwrap().help.unwrap();
            assert!(help.contains(expected), "{error}: {help}");
        }
    }

    #[test]
    fn a_machine_without_the_library_has_no_cards_and_no_problem() {
        let found = Nvidia(Nvml::builder().lib_path("no-such-library.so".as_ref()).init());
        assert_eq!((found.sample(), found.problem()), (Vec::new(), None));
    }
}
