//! Profile, an extension of sessions: where the time of forward passes goes, and what the machine could do at most.
//!
//! A session that can tell implements [`Profile`] and answers [`Session::extension`](crate::Session::extension) for [`ID`] with
//! [`export`]; the host asks with [`of`]. Payloads are JSON.
//!
//! (Rooflines: Williams, Waterman and Patterson, "Roofline: An Insightful Visual Performance Model for Multicore
//! Architectures", 2009.)

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::backend::{Extension, Session};
use crate::error::{BackendError, ErrorCode, Result};

/// The extension's id.
pub const ID: &str = "drophammer.profile.1";

/// What an operation multiplies with.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Arithmetic {
    /// Floating point.
    #[default]
    Float,
    /// Integers, with floats for their scales.
    Integer,
}

/// One kind of operation, over all layers and all passes that were recorded.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Operation {
    /// What it computes, in the field's words.
    pub name: String,
    /// How often it ran.
    pub calls: u64,
    /// Time it took, waiting for the slowest thread included.
    pub seconds: f64,
    /// Bytes of weights, keys and values it had to read.
    pub bytes: u64,
    /// Multiplications and additions it had to do.
    pub operations: u64,
    /// What it does them with.
    pub arithmetic: Arithmetic,
}

/// What the machine does at most with the session's threads, measured.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct MachineLimits {
    /// Bytes read from memory a second.
    pub read_bytes: f64,
    /// Multiplications and additions of floats a second.
    pub float_operations: f64,
    /// Multiplications and additions of integers a second, or of bfloat16 where processors multiply whole tiles of it faster.
    pub integer_operations: f64,
}

impl MachineLimits {
    /// The least seconds that so much work takes: reading and computing overlap, so it is the longer of the two.
    pub fn least_seconds(&self, operation: &Operation) -> f64 {
        let rate = match operation.arithmetic {
            Arithmetic::Float => self.float_operations,
            Arithmetic::Integer => self.integer_operations,
        };
        let at = |amount: u64, rate: f64| if rate > 0.0 { amount as f64 / rate } else { 0.0 };
        f64::max(at(operation.bytes, self.read_bytes), at(operation.operations, rate))
    }
}

/// What a session offers to whoever profiles it.
pub trait Profile: Send + Sync {
    /// From the next forward pass on operations are timed (from zero), or no longer.
    ///
    /// # Errors
    /// When the session cannot.
    fn record(&self, on: bool) -> Result<()>;

    /// What was timed, in the order of first execution.
    ///
    /// # Errors
    /// When the session cannot.
    fn recorded(&self) -> Result<Vec<Operation>>;

    /// Measures the machine; takes about a second, during which the session should rest.
    ///
    /// # Errors
    /// When there is no memory to read.
    fn limits(&self) -> Result<MachineLimits>;
}

/// The extension of a session that can be profiled.
pub fn export(profile: impl Profile + 'static) -> Box<dyn Extension> {
    Box::new(Exported(profile))
}

/// The session's profile, if it has one.
pub fn of(session: &dyn Session) -> Option<impl Profile + use<>> {
    session.extension(ID).map(Imported)
}

struct Exported<T>(T);

impl<T: Profile> Extension for Exported<T> {
    fn call(&self, method: &str, payload: &[u8]) -> Result<Vec<u8>> {
        match method {
            "record" => pack(&self.0.record(unpack(payload)?)?),
            "recorded" => pack(&self.0.recorded()?),
            "limits" => pack(&self.0.limits()?),
            other => {
                let message = format!("profile has no method {other}");
                Err(BackendError::new(ErrorCode::InvalidRequest, message))
            }
        }
    }
}

struct Imported(Box<dyn Extension>);

impl Profile for Imported {
    fn record(&self, on: bool) -> Result<()> {
        unpack(&self.0.call("record", &pack(&on)?)?)
    }

    fn recorded(&self) -> Result<Vec<Operation>> {
        unpack(&self.0.call("recorded", &[])?)
    }

    fn limits(&self) -> Result<MachineLimits> {
        unpack(&self.0.call("limits", &[])?)
    }
}

fn pack(document: &impl Serialize) -> Result<Vec<u8>> {
    serde_json::to_vec(document).map_err(|_| malformed())
}

fn unpack<T: DeserializeOwned>(bytes: &[u8]) -> Result<T> {
    serde_json::from_slice(bytes).map_err(|_| malformed())
}

fn malformed() -> BackendError {
    BackendError::new(ErrorCode::InvalidRequest, "a profile's message is malformed")
        .with_help("Host and plugin are of different versions: update the plugin.")
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Timed;

    fn operation() -> Operation {
        Operation {
            name: "attention".into(),
            calls: 3,
            seconds: 0.5,
            bytes: 1000,
            operations: 4000,
            arithmetic: Arithmetic::Integer,
        }
    }

    impl Profile for Timed {
        fn record(&self, on: bool) -> Result<()> {
            let refusal = || BackendError::new(ErrorCode::UnsupportedInput, "not now");
            if on { Ok(()) } else { Err(refusal()) }
        }

        fn recorded(&self) -> Result<Vec<Operation>> {
            Ok(vec![operation()])
        }

        fn limits(&self) -> Result<MachineLimits> {
            Ok(MachineLimits { read_bytes: 100.0, float_operations: 10.0, integer_operations: 800.0 })
        }
    }

    #[test]
    fn everything_arrives_as_it_was_said() {
        let asked = Imported(export(Timed));
        asked.record(true).unwrap();
        assert_eq!(asked.record(false).unwrap_err().message, "not now");
        assert_eq!(asked.recorded().unwrap(), [operation()]);
        assert_eq!(asked.limits().unwrap(), Timed.limits().unwrap());
        assert!(asked.0.call("dance", &[]).is_err());
        assert_eq!(asked.0.call("record", b"{").unwrap_err().code, ErrorCode::InvalidRequest);
    }

    #[test]
    fn the_slower_of_reading_and_computing_is_the_limit() {
        let limits = Timed.limits().unwrap();
        assert_eq!(limits.least_seconds(&operation()), 10.0); // 1000 bytes at 100; 4000 integer operations at 800 take 5
        let floats = Operation { arithmetic: Arithmetic::Float, ..operation() };
        assert_eq!(limits.least_seconds(&floats), 400.0);
        assert_eq!(MachineLimits::default().least_seconds(&operation()), 0.0);
    }
}
