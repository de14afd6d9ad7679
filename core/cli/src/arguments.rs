//! Every command and its flags. Help, shell completions and the manual page are made from this.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueHint};
use drophammer_client::Endpoint;

/// Drop a model into a folder; it comes out converted, quantized, measured and ready to serve.
#[derive(Debug, Parser)]
#[command(name = "drophammer", version, args_conflicts_with_subcommands = true)]
#[command(after_help = "Exit codes: 0 done, 1 failed, 2 usage, 3 unsupported input, 4 missing runtime.\n\
    DROPHAMMER_HOME moves the home (~/.drophammer), DROPHAMMER_CONFIG names the configuration file.")]
pub(crate) struct Arguments {
    #[command(subcommand)]
    pub(crate) command: Option<Command>,
    #[command(flatten)]
    pub(crate) dashboard: Dashboard,
}

impl Arguments {
    /// Whether the answer is to be one JSON document, errors included.
    pub(crate) fn wants_json(&self) -> bool {
        let Some(command) = &self.command else { return false };
        match command {
            Command::Status(Query { output, .. })
            | Command::Jobs(Query { output, .. })
            | Command::Models(Models { query: Query { output, .. }, .. })
            | Command::Plugins(Query { output, .. })
            | Command::Devices(Query { output, .. })
            | Command::Doctor(output)
            | Command::Inspect(Inspect { output, .. })
            | Command::Plan(Plan { output, .. })
            | Command::Eval(Eval { output, .. })
            | Command::Bench(Bench { output, .. })
            | Command::Plugin(
                PluginCommand::List(output)
                | PluginCommand::Info { output, .. }
                | PluginCommand::Check { output, .. },
            )
            | Command::Key(KeyCommand::List(output))
            | Command::Runtime(RuntimeCommand::List(output) | RuntimeCommand::Install { output, .. }) => {
                output.json
            }
            _ => false,
        }
    }
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// The dashboard; starts the daemon if none runs. Also what happens without any command.
    Tui(Dashboard),
    /// Run the daemon in the foreground.
    Daemon,
    /// Stop the daemon. Jobs go on where they were when it next starts.
    Stop(Daemon),
    /// The daemon in brief.
    Status(Query),
    /// Every job the daemon remembers.
    Jobs(Query),
    /// Every model and what was made of it.
    Models(Models),
    /// Every plugin and what it can do here.
    Plugins(Query),
    /// Every device some plugin reaches.
    Devices(Query),
    /// What a file or directory is: parameters, tensors, size.
    Inspect(Inspect),
    /// What would be made of a source, what it costs, and why.
    Plan(Plan),
    /// Convert a source, and quantize it in the same pass; needs no daemon.
    Convert(Convert),
    /// Quantize a source; needs no daemon.
    Quantize(Quantize),
    /// Collect activation statistics of a model, for `quantize --imatrix`; needs no daemon.
    Imatrix(Imatrix),
    /// Perplexity, and with a reference: KL divergence and top-1 agreement; needs no daemon.
    Eval(Eval),
    /// Prefill and decode speed, loading time and memory; needs no daemon.
    Bench(Bench),
    /// Raw logits or hidden states for given token ids; needs no daemon.
    Logits(Logits),
    /// Talk with a model: one that the daemon serves, or any file or directory without a daemon.
    Run(Run),
    /// Hand a model to the daemon: it is linked or copied into the watched folder.
    Add {
        /// The file or directory.
        #[arg(value_hint = ValueHint::AnyPath)]
        path: PathBuf,
        /// Its name in the watched folder; by default the path's last part.
        #[arg(long)]
        name: Option<String>,
        #[command(flatten)]
        daemon: Daemon,
    },
    /// Have the daemon forge a model.
    Forge {
        /// The model's name.
        model: String,
        /// Only this target; may be given several times.
        #[arg(long = "target", value_name = "NAME")]
        targets: Vec<String>,
        #[command(flatten)]
        daemon: Daemon,
    },
    /// Stop a job.
    Cancel {
        /// Its id.
        job: String,
        #[command(flatten)]
        daemon: Daemon,
    },
    /// Queue a finished job again.
    Retry {
        /// Its id.
        job: String,
        #[command(flatten)]
        daemon: Daemon,
    },
    /// Look at plugins, and write them; needs no daemon.
    #[command(subcommand)]
    Plugin(PluginCommand),
    /// The shared libraries that plugins need: what is here, and fetching what is not.
    #[command(subcommand)]
    Runtime(RuntimeCommand),
    /// Keys to the daemon's API over TCP. Once there is one, every request needs one.
    #[command(subcommand)]
    Key(KeyCommand),
    /// What works on this machine, what is missing, and how to get it.
    Doctor(Output),
    /// Write shell completions to standard output.
    Completions {
        /// The shell.
        shell: clap_complete::Shell,
    },
    /// Write the manual page to standard output.
    Man,
}

#[derive(Debug, Subcommand)]
pub(crate) enum KeyCommand {
    /// Make a key and print it: only its digest is kept.
    Add {
        /// Who or what will use it.
        name: String,
    },
    /// Every key's name.
    List(Output),
    /// Take a key away.
    Remove {
        /// Its name.
        name: String,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum PluginCommand {
    /// Every plugin found here, probed.
    List(Output),
    /// Everything about one plugin.
    Info {
        /// Its id.
        id: String,
        #[command(flatten)]
        output: Output,
    },
    /// Check a plugin as the daemon would: manifest, digest, ABI, probe.
    Check {
        /// Its dylib, or the directory with its plugin.toml.
        #[arg(value_hint = ValueHint::AnyPath)]
        path: PathBuf,
        #[command(flatten)]
        output: Output,
    },
    /// Write a new plugin: a crate that builds as it is.
    New {
        /// Its id: lower-case letters, digits and `-`. The crate is a new directory of this name.
        name: String,
        /// Where to put that directory; by default here.
        #[arg(long, value_name = "DIRECTORY", default_value = ".", value_hint = ValueHint::DirPath)]
        into: PathBuf,
        /// The SDK to build against: the `core/sdk` folder of Drophammer's sources.
        #[arg(long, value_name = "DIRECTORY", value_hint = ValueHint::DirPath)]
        sdk: Option<PathBuf>,
    },
    /// Put a built plugin where the program finds it: into the home, or into another place.
    Install {
        /// The dylib.
        #[arg(value_hint = ValueHint::FilePath)]
        dylib: PathBuf,
        /// Its plugin.toml; by default the one here.
        #[arg(long, value_name = "FILE", default_value = "plugin.toml", value_hint = ValueHint::FilePath)]
        manifest: PathBuf,
        /// The place: its directory with the plugin's id is replaced.
        #[arg(long, value_name = "DIRECTORY", value_hint = ValueHint::DirPath)]
        into: Option<PathBuf>,
    },
}

/// Which daemon is meant.
#[derive(Debug, Clone, Default, Args)]
pub(crate) struct Daemon {
    /// The daemon: unix:PATH, http://HOST:PORT or HOST:PORT; by default the one of the home.
    #[arg(long, value_name = "ENDPOINT", value_parser = Endpoint::parse)]
    pub(crate) connect: Option<Endpoint>,
}

/// A question to the daemon.
#[derive(Debug, Clone, Args)]
pub(crate) struct Query {
    #[command(flatten)]
    pub(crate) output: Output,
    #[command(flatten)]
    pub(crate) daemon: Daemon,
}

/// How the dashboard looks, and at what.
#[derive(Debug, Clone, Default, Args)]
pub(crate) struct Dashboard {
    #[command(flatten)]
    pub(crate) daemon: Daemon,
    /// dark, light, high-contrast, colour-blind, none, or a theme file.
    #[arg(long, value_name = "THEME")]
    pub(crate) theme: Option<String>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum RuntimeCommand {
    /// Every runtime, and where it is on this machine.
    List(Output),
    /// Fetch a runtime into the home, check it and unpack it; needs no root.
    Install {
        /// Its name, as `runtime list` shows it.
        name: String,
        /// A wheel fetched by hand; may be given several times. Without it Python's pip fetches.
        #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
        from: Vec<PathBuf>,
        /// Accept the runtime's licence, where it has one that must be accepted.
        #[arg(long)]
        accept_licence: bool,
        #[command(flatten)]
        output: Output,
    },
}

/// How the answer is written.
#[derive(Debug, Clone, Copy, Args)]
pub(crate) struct Output {
    /// One JSON document instead of text.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Models {
    /// Also draw the artifacts' sizes against their KL divergences into this file.
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub(crate) svg: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) query: Query,
}

#[derive(Debug, Args)]
pub(crate) struct Inspect {
    /// A file or directory.
    #[arg(value_hint = ValueHint::AnyPath)]
    pub(crate) source: PathBuf,
    #[command(flatten)]
    pub(crate) output: Output,
}

#[derive(Debug, Args)]
pub(crate) struct Plan {
    /// A file or directory.
    #[arg(value_hint = ValueHint::AnyPath)]
    pub(crate) source: PathBuf,
    /// Only this target; may be given several times.
    #[arg(long = "target", value_name = "NAME")]
    pub(crate) targets: Vec<String>,
    #[command(flatten)]
    pub(crate) output: Output,
}

/// What one-shot work may use.
#[derive(Debug, Clone, Args)]
pub(crate) struct Budget {
    /// Threads to compute with; all cores by default.
    #[arg(short = 't', long)]
    pub(crate) threads: Option<u32>,
    /// The most memory the work may take, such as 4G; most of the machine's by default.
    #[arg(long, value_name = "SIZE", value_parser = size)]
    pub(crate) memory: Option<u64>,
    /// Use this backend instead of the preferred one.
    #[arg(long, value_name = "ID")]
    pub(crate) backend: Option<String>,
    /// Show what the worker logs and prints.
    #[arg(short, long)]
    pub(crate) verbose: bool,
}

/// What a model is made or run with.
#[derive(Debug, Clone, Default, Args)]
pub(crate) struct Extras {
    /// A LoRA adapter, merged into a model that is made, attached to one that runs; may be given several times.
    #[arg(long = "adapter", value_name = "PATH", value_hint = ValueHint::AnyPath)]
    pub(crate) adapters: Vec<PathBuf>,
    /// An option of the backend's, such as engine=upstream; may be given several times.
    #[arg(long = "option", value_name = "NAME=VALUE", value_parser = option)]
    pub(crate) options: Vec<(String, serde_json::Value)>,
}

/// Making one artifact from one source.
#[derive(Debug, Args)]
pub(crate) struct Making {
    /// The source: a file or directory.
    #[arg(value_hint = ValueHint::AnyPath)]
    pub(crate) source: PathBuf,
    /// Where to put the result.
    #[arg(short, long, value_name = "OUT", value_hint = ValueHint::AnyPath)]
    pub(crate) output: PathBuf,
    /// Importance matrix, as llama.cpp writes it.
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub(crate) imatrix: Option<PathBuf>,
    /// Collect the importance matrix first, with `--compensate` its products too, from a text that comes with the program: the model
    /// has to run for a few hundred tokens (with products, some thousand).
    #[arg(long, conflicts_with = "imatrix")]
    pub(crate) auto_imatrix: bool,
    /// Choose codes so that later columns make up for the rounding errors of earlier ones (gguf, openvino). Needs an importance matrix
    /// collected with `imatrix --products`; `--budget` and `--auto-imatrix` collect their own.
    #[arg(long)]
    pub(crate) compensate: bool,
    /// Scale columns that meet strong activations before they are rounded, and what writes them the other way (gguf,
    /// openvino). Needs an importance matrix; the model computes the same.
    #[arg(long)]
    pub(crate) awq: bool,
    /// What to run for the ranges of activations: a text for language models (qnn); for plain graphs samples, as a .npz or .npy file or a
    /// directory of them.
    #[arg(long, value_name = "PATH", value_hint = ValueHint::AnyPath)]
    pub(crate) calibration: Option<PathBuf>,
    /// Accept a source without a tokenizer.
    #[arg(long)]
    pub(crate) no_tokenizer: bool,
    /// Only tell what would be made and what it costs.
    #[arg(long)]
    pub(crate) dry_run: bool,
    #[command(flatten)]
    pub(crate) extras: Extras,
    #[command(flatten)]
    pub(crate) budget: Budget,
}

#[derive(Debug, Args)]
pub(crate) struct Convert {
    /// The format to make, such as gguf.
    #[arg(long, value_name = "FORMAT")]
    pub(crate) to: String,
    /// The number scheme, such as q8_0; by default the nearest to how the source is stored.
    #[arg(long)]
    pub(crate) scheme: Option<String>,
    #[command(flatten)]
    pub(crate) making: Making,
}

/// How the type of each tensor is chosen, beyond what a scheme says.
#[derive(Debug, Clone, Default, Args)]
pub(crate) struct Mixture {
    /// Lose as little as possible within a file of this size (3.2GB), so many bits per weight (4.5bpw) or a mean KL divergence
    /// (kl:0.05): tensors are weighed on the model, and each gets its type. The plan is written beside the result.
    #[arg(long = "budget", id = "within", value_name = "BUDGET")]
    pub(crate) within: Option<Budgeted>,
    /// A plan that an earlier `--budget` wrote: its types, or with a new --budget its measurements.
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub(crate) plan: Option<PathBuf>,
    /// Types that `--budget` may choose, such as q4_k,q5_k,q6_k.
    #[arg(long, value_name = "TYPES", value_delimiter = ',')]
    pub(crate) types: Vec<String>,
    /// The text that `--budget` weighs tensors on; by default one that comes with the program.
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub(crate) text: Option<PathBuf>,
    /// Store tensors whose name matches a pattern as this type, such as attn_v=q8_0; may be given several times.
    #[arg(long = "tensor", value_name = "PATTERN=TYPE")]
    pub(crate) tensors: Vec<String>,
    /// Cut the result into files of at most so much tensor data each.
    #[arg(long, value_name = "SIZE", value_parser = size)]
    pub(crate) split: Option<u64>,
}

/// What `--budget` takes.
pub(crate) type Budgeted = drophammer_quant::sensitivity::Budget;

#[derive(Debug, Args)]
pub(crate) struct Imatrix {
    /// The model: a source or an artifact.
    #[arg(value_hint = ValueHint::AnyPath)]
    pub(crate) source: PathBuf,
    /// Where to put the statistics, in llama.cpp's GGUF form.
    #[arg(short, long, value_name = "OUT", value_hint = ValueHint::FilePath)]
    pub(crate) output: PathBuf,
    /// The text to read; by default one that comes with the program.
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub(crate) text: Option<PathBuf>,
    /// The most tokens to read; by default 131072, with --products 8192.
    #[arg(long, value_name = "N")]
    pub(crate) tokens: Option<usize>,
    /// Also sum the products of columns, which `quantize --compensate` needs. How much memory and disk that takes is said first.
    #[arg(long)]
    pub(crate) products: bool,
    #[command(flatten)]
    pub(crate) budget: Budget,
}

#[derive(Debug, Args)]
pub(crate) struct Quantize {
    /// The number scheme, such as q4_k_m.
    #[arg(long, required_unless_present_any = ["within", "plan"])]
    pub(crate) scheme: Option<String>,
    #[command(flatten)]
    pub(crate) mixture: Mixture,
    /// The format to make; by default the one whose scheme this is.
    #[arg(long, value_name = "FORMAT")]
    pub(crate) to: Option<String>,
    #[command(flatten)]
    pub(crate) making: Making,
}

#[derive(Debug, Args)]
pub(crate) struct Run {
    /// A model's name, or that of one of its artifacts; or the path of a file or directory, which needs no daemon.
    #[arg(value_hint = ValueHint::AnyPath)]
    pub(crate) model: String,
    /// What to say; by default what is piped in. On a terminal a conversation begins without it.
    pub(crate) prompt: Option<String>,
    /// The most tokens to generate.
    #[arg(short = 'n', long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) tokens: Option<u32>,
    /// How freely tokens are chosen; 0 takes the most likely one.
    #[arg(long, value_name = "T", default_value_t = 0.8)]
    pub(crate) temperature: f32,
    /// Makes the answer repeatable.
    #[arg(long)]
    pub(crate) seed: Option<u64>,
    /// Continue the prompt as it is, without the model's chat template.
    #[arg(long)]
    pub(crate) raw: bool,
    /// A smaller artifact of the same model that guesses ahead: the same answer, sooner.
    #[arg(long, value_name = "ARTIFACT", value_hint = ValueHint::AnyPath)]
    pub(crate) draft: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) extras: Extras,
    #[command(flatten)]
    pub(crate) budget: Budget,
    #[command(flatten)]
    pub(crate) daemon: Daemon,
}

#[derive(Debug, Args)]
pub(crate) struct Eval {
    /// What to evaluate.
    #[arg(value_hint = ValueHint::AnyPath)]
    pub(crate) artifact: PathBuf,
    /// What to compare it with, usually what it was made from.
    #[arg(long, value_name = "SOURCE", value_hint = ValueHint::AnyPath)]
    pub(crate) reference: Option<PathBuf>,
    /// The text to score; by default a public-domain one that comes with the program.
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub(crate) text: Option<PathBuf>,
    /// The most tokens to read.
    #[arg(long, value_name = "N", default_value_t = 1 << 20)]
    pub(crate) tokens: usize,
    /// Also tell how far each tensor is from the reference's, and how the model does early and late in a chunk.
    #[arg(long)]
    pub(crate) details: bool,
    #[command(flatten)]
    pub(crate) extras: Extras,
    #[command(flatten)]
    pub(crate) budget: Budget,
    #[command(flatten)]
    pub(crate) output: Output,
}

#[derive(Debug, Args)]
pub(crate) struct Bench {
    /// What to run, one after the other.
    #[arg(required = true, value_hint = ValueHint::AnyPath)]
    pub(crate) artifacts: Vec<PathBuf>,
    /// Tokens of the prompt.
    #[arg(short, long, default_value_t = 512)]
    pub(crate) prompt: u32,
    /// Tokens generated.
    #[arg(short = 'n', long, default_value_t = 128)]
    pub(crate) generate: u32,
    /// Runs that count; the middle one is told.
    #[arg(short, long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) repetitions: u32,
    /// Tell the roofline operation by operation.
    #[arg(long)]
    pub(crate) profile: bool,
    #[command(flatten)]
    pub(crate) extras: Extras,
    #[command(flatten)]
    pub(crate) budget: Budget,
    #[command(flatten)]
    pub(crate) output: Output,
}

#[derive(Debug, Args)]
pub(crate) struct Logits {
    /// The model: a source or an artifact.
    #[arg(value_hint = ValueHint::AnyPath)]
    pub(crate) source: PathBuf,
    /// A safetensors file with `tokens`, 64-bit ids of shape [B, T].
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub(crate) tokens: PathBuf,
    /// Where to put `logits` [B, T, V] (or `hidden` [B, T, D] of encoders), float32.
    #[arg(short, long, value_name = "OUT", value_hint = ValueHint::FilePath)]
    pub(crate) output: PathBuf,
    #[command(flatten)]
    pub(crate) extras: Extras,
    #[command(flatten)]
    pub(crate) budget: Budget,
}

/// A size as people write it: `512M`, `4G`, `1.5GiB`, bytes without a unit. Units are powers of 1024.
fn size(text: &str) -> Result<u64, String> {
    let digits = text.find(|c: char| !(c.is_ascii_digit() || c == '.')).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let shift = match unit.trim().trim_end_matches(['b', 'B']).trim_end_matches('i') {
        "" => 0,
        "k" | "K" => 10,
        "m" | "M" => 20,
        "g" | "G" => 30,
        "t" | "T" => 40,
        _ => return Err(format!("`{unit}` is no unit; write it as in 512M or 4G")),
    };
    let number: f64 =
        number.parse().map_err(|_| format!("`{text}` is no size; write it as in 512M or 4G"))?;
    let bytes = number * f64::from(1u32 << shift.min(30)) * if shift == 40 { 1024.0 } else { 1.0 };
    if bytes < 1.0 { Err("must be at least one byte".to_owned()) } else { Ok(bytes as u64) }
}

/// `NAME=VALUE`: the value is JSON where it reads as such (numbers, true, lists), otherwise the text itself.
fn option(text: &str) -> Result<(String, serde_json::Value), String> {
    let (name, value) = text.split_once('=').ok_or("write it as NAME=VALUE")?;
    if name.is_empty() {
        return Err("the name is missing".to_owned());
    }
    Ok((name.to_owned(), serde_json::from_str(value).unwrap_or_else(|_| value.into())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_read_as_json_or_as_text() {
        use serde_json::json;
        for (text, expected) in [
            ("engine=upstream", Some(("engine", json!("upstream")))),
            ("gpu_layers=12", Some(("gpu_layers", json!(12)))),
            ("embeddings=true", Some(("embeddings", json!(true)))),
            ("pattern=a=b", Some(("pattern", json!("a=b")))),
            ("empty=", Some(("empty", json!("")))),
            ("=1", None),
            ("engine", None),
        ] {
            let expected = expected.map(|(name, value)| (name.to_owned(), value));
            assert_eq!(option(text).ok(), expected, "{text}");
        }
    }

    #[test]
    fn the_registry_is_sound() {
        use clap::CommandFactory;
        Arguments::command().debug_assert();
    }

    #[test]
    fn sizes_are_read_as_people_write_them() {
        for (text, expected) in [
            ("1", Ok(1)),
            ("512M", Ok(512 << 20)),
            ("1.5GiB", Ok(3 << 29)),
            ("2 tb", Ok(2 << 40)),
            ("2T", Ok(2 << 40)),
            ("4kb", Ok(4096)),
            ("0", Err(())),
            ("G", Err(())),
            ("1X", Err(())),
            ("-1", Err(())),
        ] {
            assert_eq!(size(text).map_err(drop), expected, "{text}");
        }
    }
}
