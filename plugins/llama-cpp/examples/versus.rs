//! Whole files, ours beside llama.cpp's own quantizer: both in this process, taking turns, on equally many threads.
//!
//! ```text
//! cargo run --release -p drophammer-llama-cpp --example versus -- SOURCE.gguf FOLDER SCHEME,… [--threads N] [--rounds N] [--imatrix FILE]
//! ```
//! Prints per scheme the fastest seconds of each, their ratio, and the squared errors of both files relative to the signal, over
//! tensors that are stored in blocks. FOLDER should lie in memory (`/dev/shm`): ours flushes what it writes, llama.cpp does not.
#![allow(unsafe_code, clippy::expect_used, clippy::unwrap_used)]

use std::ffi::{CString, c_char, c_void};
use std::path::{Path, PathBuf};
use std::time::Instant;

use drophammer_formats::Source;
use drophammer_quant::importance::Importance;
use drophammer_quant::metrics::ErrorSums;
use drophammer_quant::presets;
use drophammer_sdk::{Budgets, ForgeRequest, Goal, JobContext, LogLevel};
use llama_cpp_sys_2 as sys;

unsafe extern "C" fn quiet(_: sys::ggml_log_level, _: *const c_char, _: *mut c_void) {}

/// A job that nobody watches.
struct Job(u32);

impl JobContext for Job {
    fn progress(&self, _: &str, _: &str, _: u64, _: u64) {}
    fn log(&self, _: LogLevel, _: &str) {}
    fn cancelled(&self) -> bool {
        false
    }
    fn budgets(&self) -> Budgets {
        Budgets { threads: self.0, memory_bytes: 0, disk_bytes: 0 }
    }
}

struct Versus {
    source: PathBuf,
    folder: PathBuf,
    threads: u32,
    imatrix: Option<PathBuf>,
    /// The importance matrix as llama.cpp takes it.
    told: Vec<(CString, Vec<f32>)>,
}

impl Versus {
    fn ours(&self, scheme: &str) -> (f64, PathBuf) {
        let staging = self.folder.join("ours");
        let _ = std::fs::remove_dir_all(&staging);
        std::fs::create_dir_all(&staging).expect("a folder to write to");
        let request = ForgeRequest {
            source: self.source.clone(),
            goal: Goal { format: "gguf".into(), scheme: scheme.into(), ..Goal::default() },
            staging: staging.clone(),
            name: "model".into(),
            imatrix: self.imatrix.clone(),
            no_tokenizer: true,
            ..ForgeRequest::default()
        };
        let start = Instant::now();
        let report = drophammer_forge::gguf::quantize(&request, &Job(self.threads)).expect("our file");
        (start.elapsed().as_secs_f64(), staging.join(&report.files[0]))
    }

    fn theirs(&self, scheme: &str) -> (f64, PathBuf) {
        let target = self.folder.join("theirs.gguf");
        let mut list: Vec<sys::llama_model_imatrix_data> = self
            .told
            .iter()
            .map(|(name, values)| sys::llama_model_imatrix_data {
                name: name.as_ptr(),
                data: values.as_ptr(),
                size: values.len(),
            })
            .collect();
        list.push(sys::llama_model_imatrix_data { name: std::ptr::null(), data: std::ptr::null(), size: 0 });
        let path = |path: &Path| CString::new(path.to_str().unwrap()).unwrap();
        let (from, to) = (path(&self.source), path(&target));
        // SAFETY: all pointers live until the call returns; the list ends with a null name.
        let (code, seconds) = unsafe {
            let mut parameters = sys::llama_model_quantize_default_params();
            parameters.ftype = presets::preset(scheme).expect("a scheme such as q4_k_m").file_type;
            parameters.nthread = self.threads as i32;
            parameters.imatrix = if self.told.is_empty() { std::ptr::null() } else { list.as_ptr() };
            let start = Instant::now();
            let code = sys::llama_model_quantize(from.as_ptr(), to.as_ptr(), &raw const parameters);
            (code, start.elapsed().as_secs_f64())
        };
        assert!(code == 0, "llama_model_quantize failed");
        (seconds, target)
    }
}

/// Squared error of a file's block tensors relative to the source's signal, and their types with counts.
fn error(source: &Path, made: &Path) -> (f64, String) {
    let (source, made) = (Source::open(source).unwrap(), Source::open(made).unwrap());
    let (mut sums, mut types) = (ErrorSums::default(), std::collections::BTreeMap::<&str, u32>::new());
    for tensor in made.tensors().iter().filter(|tensor| tensor.dtype.is_block()) {
        *types.entry(tensor.dtype.name()).or_default() += 1;
        let original = source.tensor(&tensor.name).expect("the same tensors");
        let columns = tensor.row_elements();
        let [from, to] =
            [original.dtype, tensor.dtype].map(|dtype| dtype.bytes_for(columns).unwrap() as usize);
        let (mut x, mut y) = (vec![0.0; columns as usize], vec![0.0; columns as usize]);
        for (a, b) in source.bytes(original).chunks_exact(from).zip(made.bytes(tensor).chunks_exact(to)) {
            drophammer_quant::dequantize(original.dtype, a, &mut x).unwrap();
            drophammer_quant::dequantize(tensor.dtype, b, &mut y).unwrap();
            sums = sums + ErrorSums::between(&x, &y, None);
        }
    }
    let types: Vec<String> = types.iter().map(|(name, count)| format!("{count} {name}")).collect();
    (sums.relative(), types.join(", "))
}

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let option =
        |name: &str| arguments.iter().position(|word| word == name).map(|at| arguments[at + 1].clone());
    let number = |name: &str, usual: u32| option(name).map_or(usual, |text| text.parse().expect("a number"));
    let [source, folder, schemes] = &arguments[..3] else { unreachable!("a slice of three") };
    let imatrix = option("--imatrix").map(PathBuf::from);
    let importance = imatrix.as_ref().map(|path| Importance::read(path).expect("an imatrix"));
    let told = importance.into_iter().flat_map(|importance| importance.matrices).map(|(name, columns)| {
        let experts = (0..columns.counts.len()).filter_map(|expert| columns.mean_squares(expert));
        (CString::new(name).unwrap(), experts.flatten().collect())
    });
    let versus = Versus {
        source: source.into(),
        folder: folder.into(),
        threads: number("--threads", 2),
        told: told.collect(),
        imatrix,
    };
    // SAFETY: the callback lives as long as the program.
    unsafe {
        sys::llama_log_set(Some(quiet), std::ptr::null_mut());
        sys::llama_backend_init();
    }
    println!("| scheme | ours, s | llama.cpp, s | × | our error | llama.cpp's | ratio | our types |");
    println!("|---|---|---|---|---|---|---|---|");
    for scheme in schemes.split(',') {
        let (mut ours, mut theirs) = (f64::INFINITY, f64::INFINITY);
        let mut paths = None;
        for _ in 0..number("--rounds", 1) {
            let (a, our_path) = versus.ours(scheme);
            let (b, their_path) = versus.theirs(scheme);
            (ours, theirs) = (ours.min(a), theirs.min(b));
            paths = Some((our_path, their_path));
        }
        let (our_path, their_path) = paths.expect("at least one round");
        let ((our_error, types), (their_error, _)) =
            (error(&versus.source, &our_path), error(&versus.source, &their_path));
        println!(
            "| {scheme} | {ours:.2} | {theirs:.2} | {:.2} | {our_error:.4e} | {their_error:.4e} | {:.3} | {types} |",
            theirs / ours,
            our_error / their_error
        );
    }
}
