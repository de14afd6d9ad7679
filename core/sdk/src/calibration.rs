//! Calibration, an extension of sessions: a loaded model tells how strongly the inputs of its matrices are used, and lets a
//! matrix be stored in fewer bits for a while, so that the host can measure what that costs the whole model.
//!
//! A session that can do it implements [`Calibrate`] and answers [`Session::extension`](crate::Session::extension) for [`ID`] with
//! [`export`]; the host asks with [`of`]. Matrices go by their GGUF names.
//!
//! On the wire a payload is a JSON document behind its length as a little-endian `u32`, and after it raw `f32`s.

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::backend::{Extension, Session};
use crate::error::{BackendError, ErrorCode, Result};

/// The extension's id.
pub const ID: &str = "drophammer.calibration.1";

/// How strongly the columns of a matrix were used.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Usage {
    /// GGUF name.
    pub name: String,
    /// Rows of input seen; one number per expert for stacked matrices, otherwise one.
    pub counts: Vec<f32>,
    /// `Σ x²` per column, expert after expert.
    pub sums: Vec<f32>,
}

/// What a session offers to whoever calibrates.
pub trait Calibrate: Send + Sync {
    /// From now on inputs of all matrices are counted (from zero), or no longer.
    ///
    /// # Errors
    /// When the session cannot.
    fn observe(&self, on: bool) -> Result<()>;

    /// From now on inputs of all matrices are counted (from zero), and for these the products of columns besides.
    ///
    /// # Errors
    /// [`ErrorCode::UnsupportedInput`] when the session cannot.
    fn observe_products(&self, matrices: &[String]) -> Result<()> {
        let _ = matrices;
        Err(no_products())
    }

    /// `Σ x·xᵀ` over the inputs of a matrix: for windows of 256 columns (the last may be narrower), window after window, each row
    /// by row. What lies left of the diagonal need not be there. Empty for a matrix that met no input.
    ///
    /// # Errors
    /// [`ErrorCode::UnsupportedInput`] when the session cannot.
    fn products(&self, matrix: &str) -> Result<Vec<f32>> {
        let _ = matrix;
        Err(no_products())
    }

    /// What was counted, one entry per matrix that met an input.
    ///
    /// # Errors
    /// When the session cannot.
    fn usage(&self) -> Result<Vec<Usage>>;

    /// The next forward pass uses this matrix as it would be if stored as `dtype`. `importance` has a weight per column (times
    /// experts), or is empty.
    ///
    /// # Errors
    /// [`ErrorCode::InvalidRequest`] for a matrix that is not there, or a type that it cannot be stored as.
    fn replace(&self, matrix: &str, dtype: &str, importance: &[f32]) -> Result<()>;

    /// The next forward pass uses all matrices as they are.
    ///
    /// # Errors
    /// When the session cannot.
    fn restore(&self) -> Result<()>;
}

fn no_products() -> BackendError {
    BackendError::new(ErrorCode::UnsupportedInput, "this backend's sessions sum no products of activations")
        .with_help("Use a backend that does, such as the native one: --backend native.")
}

#[derive(Serialize, Deserialize)]
struct Observe {
    on: bool,
    /// Matrices whose products are summed.
    #[serde(default)]
    products: Vec<String>,
}

#[derive(Serialize, Deserialize)]
struct OfMatrix {
    matrix: String,
}

#[derive(Serialize, Deserialize)]
struct Replace {
    matrix: String,
    dtype: String,
}

/// A matrix's place in the floats: its counts, then its sums.
#[derive(Serialize, Deserialize)]
struct Told {
    name: String,
    counts: usize,
    sums: usize,
}

/// The extension of a session that calibrates.
pub fn export(calibrate: impl Calibrate + 'static) -> Box<dyn Extension> {
    Box::new(Exported(calibrate))
}

/// The session's calibration, if it has one.
pub fn of(session: &dyn Session) -> Option<impl Calibrate + use<>> {
    session.extension(ID).map(Imported)
}

struct Exported<T>(T);

impl<T: Calibrate> Extension for Exported<T> {
    fn call(&self, method: &str, payload: &[u8]) -> Result<Vec<u8>> {
        match method {
            "observe" => match unpack(payload)?.0 {
                Observe { on: true, products } if !products.is_empty() => {
                    self.0.observe_products(&products)?;
                }
                Observe { on, .. } => self.0.observe(on)?,
            },
            "products" => {
                let sums = self.0.products(&unpack::<OfMatrix>(payload)?.0.matrix)?;
                return pack(&(), &sums);
            }
            "restore" => self.0.restore()?,
            "replace" => {
                let (Replace { matrix, dtype }, importance) = unpack(payload)?;
                self.0.replace(&matrix, &dtype, &importance)?;
            }
            "usage" => {
                let usage = self.0.usage()?;
                let told = |usage: &Usage| Told {
                    name: usage.name.clone(),
                    counts: usage.counts.len(),
                    sums: usage.sums.len(),
                };
                let floats = usage.iter().flat_map(|usage| usage.counts.iter().chain(&usage.sums));
                return pack(&usage.iter().map(told).collect::<Vec<_>>(), floats);
            }
            other => {
                let message = format!("calibration has no method {other}");
                return Err(BackendError::new(ErrorCode::InvalidRequest, message));
            }
        }
        Ok(Vec::new())
    }
}

struct Imported(Box<dyn Extension>);

impl Calibrate for Imported {
    fn observe(&self, on: bool) -> Result<()> {
        self.0.call("observe", &pack(&Observe { on, products: Vec::new() }, &[])?).map(drop)
    }

    fn observe_products(&self, matrices: &[String]) -> Result<()> {
        self.0.call("observe", &pack(&Observe { on: true, products: matrices.to_vec() }, &[])?).map(drop)
    }

    fn products(&self, matrix: &str) -> Result<Vec<f32>> {
        let asked = OfMatrix { matrix: matrix.to_owned() };
        unpack::<()>(&self.0.call("products", &pack(&asked, &[])?)?).map(|((), sums)| sums)
    }

    fn usage(&self) -> Result<Vec<Usage>> {
        let (told, floats): (Vec<Told>, _) = unpack(&self.0.call("usage", &[])?)?;
        let mut rest = floats.as_slice();
        let mut take = |count: usize| -> Result<Vec<f32>> {
            let (taken, later) = rest.split_at_checked(count).ok_or_else(malformed)?;
            rest = later;
            Ok(taken.to_vec())
        };
        told.into_iter()
            .map(|Told { name, counts, sums }| Ok(Usage { name, counts: take(counts)?, sums: take(sums)? }))
            .collect()
    }

    fn replace(&self, matrix: &str, dtype: &str, importance: &[f32]) -> Result<()> {
        let replace = Replace { matrix: matrix.to_owned(), dtype: dtype.to_owned() };
        self.0.call("replace", &pack(&replace, importance)?).map(drop)
    }

    fn restore(&self) -> Result<()> {
        self.0.call("restore", &[]).map(drop)
    }
}

fn pack<'a>(document: &impl Serialize, floats: impl IntoIterator<Item = &'a f32>) -> Result<Vec<u8>> {
    let json = serde_json::to_vec(document).map_err(|_| malformed())?;
    let length = u32::try_from(json.len()).map_err(|_| malformed())?;
    let mut bytes = length.to_le_bytes().to_vec();
    bytes.extend(json);
    bytes.extend(floats.into_iter().flat_map(|value| value.to_le_bytes()));
    Ok(bytes)
}

fn unpack<T: DeserializeOwned>(bytes: &[u8]) -> Result<(T, Vec<f32>)> {
    let (length, rest) = bytes.split_first_chunk().ok_or_else(malformed)?;
    let json = rest.split_at_checked(u32::from_le_bytes(*length) as usize);
    let (json, floats) = json.ok_or_else(malformed)?;
    let floats = floats.chunks_exact(4);
    if !floats.remainder().is_empty() {
        return Err(malformed());
    }
    let document = serde_json::from_slice(json).map_err(|_| malformed())?;
    Ok((document, floats.map(|bytes| f32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]])).collect()))
}

fn malformed() -> BackendError {
    BackendError::new(ErrorCode::InvalidRequest, "a calibration message is malformed")
        .with_help("Host and plugin are of different versions: update the plugin.")
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    /// Remembers what was asked of it.
    #[derive(Default)]
    struct Bench(Mutex<Vec<String>>);

    impl Calibrate for &'static Bench {
        fn observe(&self, on: bool) -> Result<()> {
            self.0.lock().unwrap().push(format!("observe {on}"));
            Ok(())
        }

        fn observe_products(&self, matrices: &[String]) -> Result<()> {
            self.0.lock().unwrap().push(format!("products of {matrices:?}"));
            Ok(())
        }

        fn products(&self, matrix: &str) -> Result<Vec<f32>> {
            Ok(vec![matrix.len() as f32, 0.5])
        }

        fn usage(&self) -> Result<Vec<Usage>> {
            let plain = Usage { name: "a".into(), counts: vec![3.0], sums: vec![1.0, 2.0] };
            let stacked = Usage { name: "b".into(), counts: vec![1.0, 0.0], sums: vec![5.0, 6.0, 0.0, 0.0] };
            Ok(vec![plain, stacked])
        }

        fn replace(&self, matrix: &str, dtype: &str, importance: &[f32]) -> Result<()> {
            if matrix == "none" {
                return Err(BackendError::new(ErrorCode::InvalidRequest, "no matrix none"));
            }
            self.0.lock().unwrap().push(format!("{matrix} as {dtype} by {importance:?}"));
            Ok(())
        }

        fn restore(&self) -> Result<()> {
            self.0.lock().unwrap().push("restore".into());
            Ok(())
        }
    }

    #[test]
    fn everything_arrives_as_it_was_said() {
        let bench: &Bench = Box::leak(Box::default());
        let asked = Imported(export(bench));
        asked.observe(true).unwrap();
        asked.replace("a", "q4_k", &[0.5, 2.0]).unwrap();
        asked.restore().unwrap();
        asked.observe_products(&["a".into()]).unwrap();
        let due = ["observe true", "a as q4_k by [0.5, 2.0]", "restore", "products of [\"a\"]"];
        assert_eq!(*bench.0.lock().unwrap(), due);
        assert_eq!(asked.products("abc").unwrap(), [3.0, 0.5]);
        assert_eq!(asked.usage().unwrap(), (&bench).usage().unwrap());
        assert_eq!(asked.replace("none", "q4_k", &[]).unwrap_err().message, "no matrix none");
    }

    #[test]
    fn nonsense_is_refused() {
        let extension = export(Box::leak(Box::<Bench>::default()) as &Bench);
        for payload in [
            &[][..],
            &[1, 0, 0],
            &[9, 0, 0, 0, b'{'],
            &[2, 0, 0, 0, b'{', b'}', 1],
            &[2, 0, 0, 0, b'[', b']'],
        ] {
            assert_eq!(extension.call("replace", payload).unwrap_err().code, ErrorCode::InvalidRequest);
        }
        assert!(extension.call("dance", &[]).is_err());
    }
}
