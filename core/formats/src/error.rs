//! What can be wrong with a file, said with its place and the way out.

use std::io;
use std::path::{Path, PathBuf};

/// The result of reading or writing a model file.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// A failure that names its file. [`Error::help`] says what the user can do next.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The operating system refused.
    #[error("{}: cannot {action}: {source}", path.display())]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// What was attempted, as a verb phrase.
        action: &'static str,
        /// The system's reason.
        source: io::Error,
    },
    /// The file breaks its format's rules.
    #[error("{}: {fault}", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// The rule that is broken, and where.
        fault: Fault,
    },
    /// The path holds no model this project can read.
    #[error("{}: not a model: {found}", path.display())]
    NotAModel {
        /// The file or directory.
        path: PathBuf,
        /// What was found instead.
        found: String,
    },
    /// Weights stored as a Python pickle, which would run code to be read.
    #[error("{}: weights are a Python pickle, which can run arbitrary code when it is read", path.display())]
    Pickle {
        /// The pickle.
        path: PathBuf,
    },
    /// Several models lie in one directory and none is marked as the main one.
    #[error("{}: holds several models: {}", path.display(), candidates.join(", "))]
    Ambiguous {
        /// The directory.
        path: PathBuf,
        /// Their file names.
        candidates: Vec<String>,
    },
    /// Files that an index or a split header names are absent.
    #[error("{}: missing {}", path.display(), missing.join(", "))]
    MissingShard {
        /// The file that names them.
        path: PathBuf,
        /// The absent files' names.
        missing: Vec<String>,
    },
    /// The index says a shard holds a tensor, and it does not.
    #[error("{}: the index places tensor `{tensor}` in {shard}, which does not hold it", path.display())]
    NotInShard {
        /// The index.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// The shard's file name.
        shard: String,
    },
    /// Two files of one model hold a tensor of the same name.
    #[error("{}: tensor `{tensor}` is also in {}", path.display(), other.display())]
    TensorInTwoFiles {
        /// The second file.
        path: PathBuf,
        /// The first.
        other: PathBuf,
        /// The tensor.
        tensor: String,
    },
    /// The work was cancelled by its owner.
    #[error("{}: cancelled", path.display())]
    Cancelled {
        /// The file being read or written.
        path: PathBuf,
    },
}

impl Error {
    /// An [`Error::Io`] maker for `map_err`.
    pub fn io(path: &Path, action: &'static str) -> impl FnOnce(io::Error) -> Error {
        let path = path.to_owned();
        move |source| Error::Io { path, action, source }
    }

    /// An [`Error::Malformed`] maker for `map_err`.
    pub fn malformed(path: &Path) -> impl FnOnce(Fault) -> Error {
        let path = path.to_owned();
        move |fault| Error::Malformed { path, fault }
    }

    /// The file or directory the failure is about.
    pub fn path(&self) -> &Path {
        match self {
            Error::Io { path, .. }
            | Error::Malformed { path, .. }
            | Error::NotAModel { path, .. }
            | Error::Pickle { path }
            | Error::Ambiguous { path, .. }
            | Error::MissingShard { path, .. }
            | Error::NotInShard { path, .. }
            | Error::TensorInTwoFiles { path, .. }
            | Error::Cancelled { path } => path,
        }
    }

    /// A short stable name of the kind of failure, for scripts.
    pub fn code(&self) -> &'static str {
        match self {
            Error::Io { source, .. } => match source.kind() {
                io::ErrorKind::NotFound => "not_found",
                io::ErrorKind::PermissionDenied => "permission_denied",
                io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge => {
                    "disk_full"
                }
                io::ErrorKind::ReadOnlyFilesystem => "read_only",
                _ => "io",
            },
            Error::Malformed { fault, .. } => fault.code(),
            Error::NotAModel { .. } => "not_a_model",
            Error::Pickle { .. } => "pickle",
            Error::Ambiguous { .. } => "ambiguous",
            Error::MissingShard { .. } => "missing_shard",
            Error::NotInShard { .. } | Error::TensorInTwoFiles { .. } => "inconsistent_shards",
            Error::Cancelled { .. } => "cancelled",
        }
    }

    /// What the user can do next.
    pub fn help(&self) -> String {
        match self {
            Error::Io { source, .. } => match source.kind() {
                io::ErrorKind::NotFound => "Check the path.".into(),
                io::ErrorKind::PermissionDenied => "Make it readable (or writable) by this user.".into(),
                io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge => {
                    "Free disk space or raise the limit, then retry: finished tensors are kept.".into()
                }
                io::ErrorKind::ReadOnlyFilesystem => "Choose an output directory that can be written.".into(),
                _ => "Check the disk and retry.".into(),
            },
            Error::Malformed { fault, .. } => fault.help().into(),
            Error::NotAModel { .. } => "Give a Hugging Face directory with config.json and *.safetensors, \
                 a .safetensors file or a .gguf file."
                .into(),
            Error::Pickle { path } => format!(
                "Convert it where you trust it: python -c \"import torch, safetensors.torch as s; \
                 s.save_file({{k: v.contiguous().clone() for k, v in torch.load('{}', map_location='cpu', \
                 weights_only=True).items()}}, 'model.safetensors')\", then drop the directory again.",
                path.file_name().unwrap_or_default().to_string_lossy()
            ),
            Error::Ambiguous { .. } => "Name one of the files instead of the directory.".into(),
            Error::MissingShard { .. } => "Finish the download, or fetch the missing files again.".into(),
            Error::NotInShard { .. } | Error::TensorInTwoFiles { .. } => {
                "The files come from different versions of the model: download all of them again.".into()
            }
            Error::Cancelled { .. } => "Run it again to continue where it stopped.".into(),
        }
    }
}

/// A broken rule of a file format. Offsets are in bytes from the file's start.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Fault {
    /// The file ends inside something.
    #[error("the file ends at byte {len} inside {what}, which needs {needed} bytes from byte {offset}")]
    Truncated {
        /// What was being read.
        what: &'static str,
        /// Where it starts.
        offset: u64,
        /// How many bytes it needs.
        needed: u64,
        /// The file's length.
        len: u64,
    },
    /// A header larger than the format allows.
    #[error("the header claims {declared} bytes, more than the {limit} the format allows")]
    HeaderTooLarge {
        /// The claimed size.
        declared: u64,
        /// The largest allowed.
        limit: u64,
    },
    /// JSON that does not parse or has the wrong structure.
    #[error("{what} is not valid: {message}")]
    Json {
        /// Which document.
        what: &'static str,
        /// The parser's words, with line and column.
        message: String,
    },
    /// A path in an index that leaves its directory.
    #[error("{what} names the file `{name}`, which is not a plain path inside its directory")]
    UnsafePath {
        /// Which document.
        what: &'static str,
        /// The name.
        name: String,
    },
    /// The file is not of the format its name says.
    #[error("{found}")]
    Magic {
        /// What it is, as far as its first bytes tell.
        found: String,
    },
    /// A version this reader does not know.
    #[error("{format} version {version} is not supported (supported: {supported})")]
    Version {
        /// The format.
        format: &'static str,
        /// The file's version.
        version: u32,
        /// Those that are read.
        supported: &'static str,
    },
    /// More items than can be in the file.
    #[error("claims {count} {what}, but at most {possible} fit (byte {offset})")]
    Count {
        /// What is counted.
        what: &'static str,
        /// The claim.
        count: u64,
        /// The most that could be.
        possible: u64,
        /// Where the claim stands.
        offset: u64,
    },
    /// Values nested too deeply.
    #[error("{what} is nested more than {limit} deep (byte {offset})")]
    Nesting {
        /// What is nested.
        what: &'static str,
        /// The deepest allowed.
        limit: usize,
        /// Where.
        offset: u64,
    },
    /// A name that is not UTF-8.
    #[error("{what} at byte {offset} is not UTF-8 text")]
    Utf8 {
        /// What was read.
        what: &'static str,
        /// Where.
        offset: u64,
    },
    /// A metadata value of a type the format does not have.
    #[error("metadata `{key}` has the unknown type {found} (byte {offset})")]
    ValueType {
        /// The key.
        key: String,
        /// The type's number.
        found: u32,
        /// Where.
        offset: u64,
    },
    /// A metadata value that cannot be what it is.
    #[error("metadata `{key}`: {problem}")]
    Metadata {
        /// The key.
        key: String,
        /// What is wrong with its value.
        problem: String,
    },
    /// A metadata key given twice.
    #[error("metadata `{key}` appears twice")]
    DuplicateKey {
        /// The key.
        key: String,
    },
    /// A tensor name given twice.
    #[error("tensor `{tensor}` appears twice")]
    DuplicateTensor {
        /// The tensor.
        tensor: String,
    },
    /// A storage type that is not known.
    #[error("tensor `{tensor}` has the unknown type {dtype}")]
    UnknownDType {
        /// The tensor.
        tensor: String,
        /// The type's name or number.
        dtype: String,
    },
    /// A shape with too many dimensions, a size overflow, or rows that do not fill blocks.
    #[error("tensor `{tensor}` has the shape {shape:?}: {problem}")]
    Shape {
        /// The tensor.
        tensor: String,
        /// The shape, outermost first.
        shape: Vec<u64>,
        /// What is wrong with it.
        problem: String,
    },
    /// Data outside the file.
    #[error("tensor `{tensor}` lies at bytes {begin}..{end}, but the file ends at byte {len}")]
    Beyond {
        /// The tensor.
        tensor: String,
        /// Where it begins.
        begin: u64,
        /// Where it ends.
        end: u64,
        /// The file's length.
        len: u64,
    },
    /// Offsets that run backwards or do not respect the alignment.
    #[error("tensor `{tensor}` has the offset {offset}: {problem}")]
    Offset {
        /// The tensor.
        tensor: String,
        /// The offset as the file gives it.
        offset: u64,
        /// What is wrong with it.
        problem: String,
    },
    /// Two tensors that share bytes.
    #[error("tensors `{first}` and `{second}` overlap at byte {offset}")]
    Overlap {
        /// The one that begins first.
        first: String,
        /// The one that begins inside it.
        second: String,
        /// Where the second begins.
        offset: u64,
    },
    /// Bytes that belong to no tensor.
    #[error("bytes {begin}..{end} belong to no tensor")]
    Unclaimed {
        /// Where they begin.
        begin: u64,
        /// Where they end.
        end: u64,
    },
    /// Bytes that are not protobuf.
    #[error("not valid protobuf at byte {offset}: {problem}")]
    Wire {
        /// What is wrong.
        problem: String,
        /// Where.
        offset: u64,
    },
    /// Split files that do not belong together.
    #[error("{problem}")]
    Split {
        /// What does not fit.
        problem: String,
    },
}

impl Fault {
    /// A short stable name of the kind of fault, for scripts.
    pub fn code(&self) -> &'static str {
        match self {
            Fault::Truncated { .. } | Fault::Beyond { .. } => "truncated",
            Fault::UnknownDType { .. } | Fault::Version { .. } => "unsupported",
            Fault::UnsafePath { .. } => "unsafe_path",
            _ => "malformed",
        }
    }

    /// What the user can do next.
    pub fn help(&self) -> &'static str {
        match self {
            Fault::Truncated { .. } | Fault::Beyond { .. } => {
                "The file is incomplete: finish or repeat the download."
            }
            Fault::UnknownDType { .. } => {
                "Ask the publisher for a version of the model in a current storage type, such as BF16."
            }
            Fault::Version { .. } => "Convert the model again with a current tool.",
            Fault::Magic { .. } => {
                "Check that the file is what its name says; download it again if it should be."
            }
            Fault::UnsafePath { .. } => "Do not trust this model: its index points outside its directory.",
            Fault::Json { .. } | Fault::Split { .. } => "Download the file again, or correct it.",
            _ => "The file is damaged: download it again, or ask its publisher.",
        }
    }
}
