//! A plugin whose job is to misbehave: each scheme of its format `faulty` is one way to go wrong.
//!
//! What to do comes from the goal's scheme (`convert --to faulty --scheme segfault`), and for the other entries from
//! the plugin's configuration (`on_open`, `on_probe`) or the artifact itself (see [`session`]). The host must survive
//! all of it, keep everybody else's work, and say what happened.

mod misbehaviour;
mod raw;
mod session;

use std::path::PathBuf;

use drophammer_sdk::{
    Backend, BackendError, ErrorCode, Estimate, ForgeReport, ForgeRequest, FormatSupport, HostInfo,
    JobContext, LoadRequest, ProbeReport, ProbeRequest, Result, Session,
};

use misbehaviour::Misbehaviour;

/// The backend behind the raw wrapping of [`raw`].
struct Faulty {
    on_probe: Option<Misbehaviour>,
}

impl Faulty {
    fn new(host: HostInfo) -> Result<Self> {
        let configured = |key: &str| {
            host.config.get(key).and_then(|value| value.as_str()).map(Misbehaviour::named).transpose()
        };
        if let Some(misbehaviour) = configured("on_open")? {
            misbehaviour.perform(None, &PathBuf::from("/nonexistent"))?;
        }
        Ok(Self { on_probe: configured("on_probe")? })
    }
}

impl Backend for Faulty {
    fn probe(&self, request: &ProbeRequest) -> Result<ProbeReport> {
        if let Some(misbehaviour) = self.on_probe {
            misbehaviour.perform(None, &PathBuf::from("/nonexistent"))?;
        }
        let schemes: Vec<String> = Misbehaviour::ALL.iter().map(|m| m.name().to_owned()).collect();
        let estimate = |goal: &drophammer_sdk::Goal| Estimate {
            format: goal.format.clone(),
            scheme: goal.scheme.clone(),
            supported: schemes.contains(&goal.scheme),
            steps: vec![goal.scheme.clone()],
            bytes: 1024,
            peak_memory_bytes: 1 << 20,
            seconds: 0.1,
            ..Estimate::default()
        };
        Ok(ProbeReport {
            estimates: request.goals.iter().map(estimate).collect(),
            formats: vec![FormatSupport { format: "faulty".into(), schemes, make: true, run: true }],
            ..ProbeReport::default()
        })
    }

    fn convert(&self, request: &ForgeRequest, job: &dyn JobContext) -> Result<ForgeReport> {
        let file = PathBuf::from(format!("{}.faulty", request.name));
        let path = request.staging.join(&file);
        let failed = |error: std::io::Error| {
            BackendError::new(ErrorCode::Failed, format!("{}: {error}", path.display()))
        };
        std::fs::write(&path, b"half of it").map_err(failed)?;
        job.progress("forge", "the.tensor", 1, 2);
        let scheme = Misbehaviour::named(&request.goal.scheme)?;
        if scheme == Misbehaviour::RefuseLater {
            misbehaviour::wait_for_the_end_of(&request.source, job)?;
        }
        scheme.perform(Some(job), &request.staging)?;
        let artifact = request.goal.options.get("artifact").and_then(|value| value.as_str());
        std::fs::write(&path, artifact.unwrap_or("obey")).map_err(failed)?;
        job.progress("forge", "the.tensor", 2, 2);
        Ok(ForgeReport {
            files: vec![file],
            bytes: artifact.unwrap_or("obey").len() as u64,
            bits_per_weight: 8.0,
            parameters: 1,
            notes: scheme.notes(),
            ..ForgeReport::default()
        })
    }

    fn quantize(&self, request: &ForgeRequest, job: &dyn JobContext) -> Result<ForgeReport> {
        self.convert(request, job)
    }

    fn load(&self, request: &LoadRequest, _: Box<dyn JobContext>) -> Result<Box<dyn Session>> {
        session::load(request)
    }
}

drophammer_sdk::abi::export_module!(raw::open);
