//! What a worker and its supervisor say to each other.
//!
//! The wire is one private socket. A frame is a little-endian `u32` length, one byte for its kind, and a payload: a
//! JSON document, or raw `f32` rows where logits travel between a reference worker and a measuring worker. The length
//! counts kind and payload and is bounded ([`FRAME_LIMIT`]): neither side allocates what the other merely claims.
//!
//! Both ends are always the same binary, so there is no version to negotiate.

use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use drophammer_infer::measure::{Bench, Measurement, Roofline};
use drophammer_sdk::{ForgeReport, ForgeRequest, HostInfo, LoadRequest, LogLevel, ProbeReport, ProbeRequest};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// The largest frame, in bytes. Documents are far smaller; rows of logits are sent in pieces below it.
pub const FRAME_LIMIT: usize = 64 << 20;

/// Supervisor to worker.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Order {
    /// The one assignment of this worker's life; always the first frame.
    Start(Box<Assignment>),
    /// The job should end soon.
    Cancel,
    /// Answer with [`Report::Pong`]; answered by a thread of its own, also while the plugin works.
    Ping,
}

/// Everything a worker needs to do its work.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Assignment {
    /// Directory of the plugin to load.
    pub plugin: PathBuf,
    /// What the plugin is told about its host.
    pub host: HostInfo,
    /// What the worker may use.
    pub limits: Limits,
    /// What to do.
    pub work: Work,
}

/// What a worker may use. Zero means no limit.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Limits {
    /// Threads to compute with.
    pub threads: u32,
    /// Resident bytes, mapped files not counted; a worker above it ends itself.
    pub memory_bytes: u64,
    /// Bytes that may be written to the staging directory; a worker above it ends itself.
    pub disk_bytes: u64,
    /// Niceness: how much the worker yields to others, 0 to 19.
    pub nice: i32,
}

/// One job, or one loaded model.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Work {
    /// What can the plugin do here?
    Probe(ProbeRequest),
    /// Make an artifact at plain precision.
    Convert(ForgeRequest),
    /// Make a quantized artifact.
    Quantize(ForgeRequest),
    /// Perplexity and, where a lending worker is at the other end of the handed channel, the distance from it.
    Measure(MeasureOrder),
    /// Load a reference and answer for it over the handed channel until that is closed.
    Lend(LoadRequest),
    /// Activation statistics and, where types are named, what each tensor costs in each.
    Calibrate(CalibrateOrder),
    /// Loading time and tokens per second.
    Bench(BenchOrder),
    /// Where that time goes, for sessions that tell; in a worker of its own, because measuring the machine takes memory.
    Profile(BenchOrder),
    /// Raw output rows for given tokens.
    Logits(LogitsOrder),
    /// Load a model and answer requests over the handed channel until that is closed.
    Serve(ServeOrder),
}

/// What to load and how much to take on.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ServeOrder {
    /// What to load.
    pub load: LoadRequest,
    /// Sources or artifacts that may hold its tokenizer and chat template; the first one that has a tokenizer does.
    pub vocabulary: Vec<PathBuf>,
    /// Requests that may wait.
    pub queue: u32,
    /// A cheaper model of the same vocabulary that guesses ahead.
    pub draft: Option<LoadRequest>,
}

impl ServeOrder {
    /// Serves what lies at `path`, with its own vocabulary: contexts of so many tokens, for so many sequences at once.
    pub fn of(path: &Path, context: u32, sequences: u32, queue: u32) -> Self {
        let load = LoadRequest {
            path: path.to_owned(),
            context: Some(context),
            max_sequences: sequences,
            ..LoadRequest::default()
        };
        Self { load, vocabulary: vec![path.to_owned()], queue, draft: None }
    }
}

/// How to measure quality.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct MeasureOrder {
    /// What to load.
    pub load: LoadRequest,
    /// Sources or artifacts whose tokenizer may read the text; the first one that has one does.
    pub vocabulary: Vec<PathBuf>,
    /// The text; by default the one that comes with the program.
    pub text: Option<PathBuf>,
    /// Tokens beyond this many are not read.
    pub most_tokens: usize,
}

/// How to measure speed.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct BenchOrder {
    /// What to load.
    pub load: LoadRequest,
    /// Tokens of the prompt.
    pub prompt: u32,
    /// Tokens generated.
    pub generate: u32,
    /// Runs that count.
    pub repetitions: u32,
}

/// Which rows to write.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct LogitsOrder {
    /// What to load.
    pub load: LoadRequest,
    /// A safetensors file with `tokens` [B, T], 64-bit.
    pub tokens: PathBuf,
    /// Where `logits.safetensors` is written.
    pub staging: PathBuf,
}

/// File of the activation statistics that [`Work::Calibrate`] leaves.
pub const IMATRIX_FILE: &str = "imatrix.gguf";
/// File of the sensitivities that it leaves.
pub const SENSITIVITY_FILE: &str = "sensitivity.json";

/// What to run a calibration text through, and what to find out. Leaves `imatrix.gguf` in the staging directory and, where
/// tensors are weighed, `sensitivity.json`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct CalibrateOrder {
    /// What to load.
    pub load: LoadRequest,
    /// Sources or artifacts that may hold its tokenizer.
    pub vocabulary: Vec<PathBuf>,
    /// The text; by default one that comes with the program.
    pub text: Option<PathBuf>,
    /// Tokens beyond this many are not read.
    pub most_tokens: usize,
    /// Statistics at hand; collected where there are none.
    pub imatrix: Option<PathBuf>,
    /// Whether products of activations are collected besides.
    pub products: bool,
    /// Types to weigh every tensor in, the usual ones where the list is empty; `None` weighs nothing.
    pub types: Option<Vec<String>>,
    /// Where files are written.
    pub staging: PathBuf,
}

impl CalibrateOrder {
    /// Tokens read for products of columns: twice as many hardly bring a model nearer.
    pub const PRODUCTS: usize = 1 << 13;
    /// Tokens read for the statistics of one artifact: 64 already bring a 4-bit model as near as thousands do, to a tenth.
    const AUTOMATIC: usize = 1 << 9;

    /// Statistics of a model for one artifact of it, over the program's own text, to be put into `staging`.
    pub fn automatic(source: &Path, products: bool, staging: &Path) -> Self {
        Self {
            load: LoadRequest { path: source.to_owned(), ..LoadRequest::default() },
            vocabulary: vec![source.to_owned()],
            text: None,
            most_tokens: if products { Self::PRODUCTS } else { Self::AUTOMATIC },
            imatrix: None,
            products,
            types: None,
            staging: staging.to_owned(),
        }
    }
}

impl Work {
    /// Makes what the request's goal asks for: plain number schemes are converted to, all others quantized to.
    pub fn forge(request: ForgeRequest) -> Self {
        const PLAIN: [&str; 5] = ["f32", "f16", "bf16", "fp32", "fp16"];
        if PLAIN.contains(&request.goal.scheme.as_str()) {
            Self::Convert(request)
        } else {
            Self::Quantize(request)
        }
    }

    /// The stage a failure is laid to before the plugin names one of its own.
    pub fn stage(&self) -> &'static str {
        match self {
            Self::Probe(_) => "probe",
            Self::Convert(_) => "convert",
            Self::Quantize(_) => "quantize",
            Self::Measure(_) => "measure",
            Self::Lend(_) => "reference",
            Self::Calibrate(_) => "calibrate",
            Self::Bench(_) => "bench",
            Self::Profile(_) => "profile",
            Self::Logits(_) => "logits",
            Self::Serve(_) => "serve",
        }
    }

    /// The directory the work writes to, if it writes.
    pub fn staging(&self) -> Option<&std::path::Path> {
        match self {
            Self::Convert(request) | Self::Quantize(request) => Some(&request.staging),
            Self::Logits(order) => Some(&order.staging),
            Self::Calibrate(order) => Some(&order.staging),
            Self::Probe(_)
            | Self::Measure(_)
            | Self::Lend(_)
            | Self::Bench(_)
            | Self::Profile(_)
            | Self::Serve(_) => None,
        }
    }
}

/// Worker to supervisor.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Report {
    /// How far the work is.
    Progress(Progress),
    /// A line for the job's log.
    Log {
        /// [`LogLevel`] by number.
        level: u32,
        /// One line.
        message: String,
    },
    /// Answer to [`Order::Ping`].
    Pong,
    /// The work is done; the worker exits.
    Done {
        /// What came of it.
        outcome: Box<Outcome>,
        /// Peak resident bytes of the process.
        peak_memory_bytes: Option<u64>,
    },
    /// The work failed; the worker exits.
    Failed(Failure),
}

/// How far the work is.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Progress {
    /// The plugin's word for what it does.
    pub stage: String,
    /// The tensor at hand; may be empty.
    pub tensor: String,
    /// Units done, bytes wherever bytes make sense.
    pub done: u64,
    /// Units in all.
    pub total: u64,
}

/// What came of the work.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// Of [`Work::Probe`].
    Probed(ProbeReport),
    /// Of [`Work::Convert`] and [`Work::Quantize`].
    Forged(ForgeReport),
    /// Of [`Work::Measure`].
    Measured(Measurement),
    /// Of [`Work::Lend`].
    Lent,
    /// Of [`Work::Calibrate`].
    Calibrated(Calibrated),
    /// Of [`Work::Bench`].
    Benched(Benched),
    /// Of [`Work::Profile`]; nothing where the session tells nothing.
    Profiled(Option<Roofline>),
    /// Of [`Work::Logits`].
    Written,
    /// Of [`Work::Serve`].
    Served,
}

/// What a calibration read and weighed.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Calibrated {
    /// Tokens read.
    pub tokens: u64,
    /// Tensors weighed, where that was asked for.
    pub weighed: Option<usize>,
}

/// How fast a model is.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Benched {
    /// Seconds to load it.
    pub load_seconds: f64,
    /// Threads it ran with.
    pub threads: u32,
    /// Tokens per second.
    pub bench: Bench,
    /// Whether [`Work::Profile`] would tell more.
    pub profiles: bool,
}

/// An error the worker itself could still report.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// Word of a [`drophammer_sdk::ErrorCode`].
    pub code: String,
    /// What happened, to which file or tensor.
    pub message: String,
    /// What the user can do next; may be empty.
    pub help: String,
    /// Where the work was.
    pub progress: Progress,
}

/// A log level from its number on the wire.
pub fn log_level(number: u32) -> LogLevel {
    LogLevel::from_number(number)
}

/// What a frame's payload is.
#[derive(Debug, Clone, PartialEq)]
pub enum Frame {
    /// A JSON document.
    Document(Vec<u8>),
    /// Rows of floats.
    Rows(Vec<f32>),
}

const DOCUMENT: u8 = 0;
const ROWS: u8 = 1;

impl Frame {
    /// A document's frame.
    ///
    /// # Errors
    /// When the value cannot be written as JSON.
    pub fn document<T: Serialize>(value: &T) -> io::Result<Self> {
        Ok(Self::Document(serde_json::to_vec(value)?))
    }

    /// Kind byte and payload, as they follow the length.
    pub fn encode(&self) -> Vec<u8> {
        match self {
            Self::Document(json) => [&[DOCUMENT], json.as_slice()].concat(),
            Self::Rows(rows) => {
                let mut bytes = Vec::with_capacity(1 + rows.len() * 4);
                bytes.push(ROWS);
                for value in rows {
                    bytes.extend_from_slice(&value.to_le_bytes());
                }
                bytes
            }
        }
    }

    /// The reverse of [`Frame::encode`].
    ///
    /// # Errors
    /// [`io::ErrorKind::InvalidData`] for an empty frame, an unknown kind or rows that are not whole floats.
    pub fn decode(bytes: &[u8]) -> io::Result<Self> {
        match bytes.split_first() {
            Some((&DOCUMENT, json)) => Ok(Self::Document(json.to_vec())),
            Some((&ROWS, rows)) if rows.len() % 4 == 0 => Ok(Self::Rows(
                rows.chunks_exact(4).map(|c| f32::from_le_bytes([c[0], c[1], c[2], c[3]])).collect(),
            )),
            Some((kind, _)) => Err(invalid(format!("frame of unknown kind {kind}"))),
            None => Err(invalid("empty frame".into())),
        }
    }

    /// Reads the document in this frame.
    ///
    /// # Errors
    /// [`io::ErrorKind::InvalidData`] when it holds something else.
    pub fn parse<T: DeserializeOwned>(&self) -> io::Result<T> {
        match self {
            Self::Document(json) => Ok(serde_json::from_slice(json)?),
            Self::Rows(_) => Err(invalid("rows where a document was due".into())),
        }
    }

    /// Writes the frame to a blocking stream.
    ///
    /// # Errors
    /// The stream's; [`io::ErrorKind::InvalidInput`] above [`FRAME_LIMIT`].
    pub fn write(&self, stream: &mut impl Write) -> io::Result<()> {
        let body = self.encode();
        if body.len() > FRAME_LIMIT {
            let what = format!("message of {} bytes; the limit is {FRAME_LIMIT}", body.len());
            return Err(io::Error::new(io::ErrorKind::InvalidInput, what));
        }
        stream.write_all(&(body.len() as u32).to_le_bytes())?;
        stream.write_all(&body)?;
        stream.flush()
    }

    /// Reads one frame from a blocking stream; `None` at its end.
    ///
    /// # Errors
    /// The stream's; [`io::ErrorKind::InvalidData`] for a length above [`FRAME_LIMIT`] or a broken frame.
    pub fn read(stream: &mut impl Read) -> io::Result<Option<Self>> {
        let mut length = [0; 4];
        match stream.read_exact(&mut length) {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
            other => other?,
        }
        let length = u32::from_le_bytes(length) as usize;
        if length > FRAME_LIMIT {
            return Err(invalid(format!("frame of {length} bytes; the limit is {FRAME_LIMIT}")));
        }
        // Grows with what really arrives, not with what the length claims.
        let mut body = Vec::new();
        stream.take(length as u64).read_to_end(&mut body)?;
        if body.len() != length {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Self::decode(&body).map(Some)
    }
}

fn invalid(what: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_read_back_as_they_were_written() {
        for frame in [
            Frame::document(&Order::Ping).unwrap(),
            Frame::Rows(vec![1.5, -0.0, f32::MAX]),
            Frame::Rows(Vec::new()),
        ] {
            let mut wire = Vec::new();
            frame.write(&mut wire).unwrap();
            assert_eq!(Frame::read(&mut wire.as_slice()).unwrap(), Some(frame));
        }
        assert_eq!(Frame::read(&mut [].as_slice()).unwrap(), None);
    }

    #[test]
    fn hostile_frames_are_refused() {
        for (wire, expected) in [
            (&[0, 0, 0, 0][..], "empty"),
            (&[255, 255, 255, 255, 0][..], "limit"),
            (&[2, 0, 0, 0, 9, 9][..], "kind 9"),
            (&[4, 0, 0, 0, 1, 0, 0, 0][..], "kind 1"),
            (&[9, 0, 0, 0, 0, 1][..], "unexpected end"),
        ] {
            let error = Frame::read(&mut &*wire).unwrap_err();
            assert!(error.to_string().contains(expected), "{wire:?}: {error}");
        }
    }
}
