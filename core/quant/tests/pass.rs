//! A pass gives the same bytes whatever happens to it, within the memory it stated, and says why when it cannot.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use drophammer_formats::digest::Digest;
use drophammer_formats::gguf::{self, Metadata};
use drophammer_formats::layout::Layout;
use drophammer_formats::{DType, Source, TensorDecl, TensorInfo};
use drophammer_quant::pass::{
    Advance, BoxError, Encoder, Importance, Item, Options, Output, PassError, Progress, SourceBytes,
    SourceRows, estimate, forge, journal,
};

fn fixture() -> Source {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/shakespeare-llama");
    Source::open(path).unwrap()
}

/// What the fixture becomes: matrices Q8_0 or Q4_0, vectors F32, the embedding copied.
fn decls(source: &Source) -> Vec<TensorDecl> {
    let dtype = |index: usize, tensor: &TensorInfo| match tensor.shape.len() {
        _ if tensor.name.contains("embed") => tensor.dtype,
        1 => DType::F32,
        _ if index.is_multiple_of(2) => DType::Q4_0,
        _ => DType::Q8_0,
    };
    let tensors = source.tensors().iter().enumerate();
    tensors.map(|(i, tensor)| TensorDecl::new(&tensor.name, dtype(i, tensor), tensor.shape.clone())).collect()
}

fn items<'a>(source: &'a Source, decls: &[TensorDecl]) -> Vec<Item<'a>> {
    let tensors = source.tensors().iter().zip(decls).enumerate();
    tensors
        .map(|(i, (tensor, decl))| {
            if decl.dtype == tensor.dtype {
                Item::copy(i, decl, SourceBytes::new(source, tensor)).unwrap()
            } else {
                Item::quantize(i, decl, SourceRows::new(source, tensor).unwrap(), None).unwrap()
            }
        })
        .collect()
}

fn layout(decls: &[TensorDecl], max_file_bytes: Option<u64>) -> Layout {
    let mut metadata = Metadata::new();
    metadata.set("general.architecture", "llama");
    gguf::plan("out", &metadata, decls, max_file_bytes).unwrap()
}

/// Small chunks, so that even the fixture has many.
fn options(threads: usize) -> Options {
    Options { threads, memory_budget: Some(16 << 10), ..Options::default() }
}

fn forge_fixture(directory: &Path, options: &Options, progress: &dyn Progress) -> Result<(), PassError> {
    let source = fixture();
    let decls = decls(&source);
    let layout = layout(&decls, Some(2 << 20));
    forge(directory, layout, &items(&source, &decls), Digest::of(b"recipe"), options, progress).map(|_| ())
}

/// Every file of a directory, by name.
fn contents(directory: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let mut files: Vec<_> = std::fs::read_dir(directory)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .map(|path| (path.file_name().unwrap().into(), std::fs::read(&path).unwrap()))
        .collect();
    files.sort();
    files
}

fn undisturbed() -> Vec<(PathBuf, Vec<u8>)> {
    let dir = tempfile::tempdir().unwrap();
    forge_fixture(dir.path(), &options(1), &()).unwrap();
    contents(dir.path())
}

#[test]
fn the_bytes_do_not_depend_on_threads_or_memory_and_decode_to_the_source() {
    let expected = undisturbed();
    assert!(expected.len() > 1, "the output is split");
    let larger = Options { threads: 3, memory_budget: Some(1 << 20), ..Options::default() };
    for options in [Options::default(), options(2), options(5), larger] {
        let dir = tempfile::tempdir().unwrap();
        forge_fixture(dir.path(), &options, &()).unwrap();
        assert!(contents(dir.path()) == expected, "{options:?}");
        let (source, made) = (fixture(), Source::open(dir.path()).unwrap());
        for tensor in source.tensors() {
            let other = made.tensor(&tensor.name).unwrap();
            assert_eq!(tensor.shape, other.shape);
            let count = tensor.elements() as usize;
            let (mut a, mut b) = (vec![0.0; count], vec![0.0; count]);
            drophammer_quant::dequantize(tensor.dtype, source.bytes(tensor), &mut a).unwrap();
            drophammer_quant::dequantize(other.dtype, made.bytes(other), &mut b).unwrap();
            let energy: f32 = a.iter().map(|x| x * x).sum();
            let error: f32 = a.iter().zip(&b).map(|(x, y)| (x - y) * (x - y)).sum();
            assert!(error <= energy * 0.02, "{}: {error} of {energy}", tensor.name);
        }
    }
}

#[test]
fn the_estimate_is_the_same_for_any_size_of_tensor_and_keeps_to_the_budget() {
    let rows = |_: Range<u64>, _: &mut [f32]| Ok::<(), BoxError>(());
    let item =
        |shape: &[u64]| Item::quantize(0, &TensorDecl::new("w", DType::Q8_0, shape), rows, None).unwrap();
    let free = Options { threads: 2, memory_budget: None, ..Options::default() };
    let small = estimate(&[item(&[4096, 4096])], &free).unwrap();
    let large = estimate(&[item(&[262_144, 4096]), item(&[128, 4096, 4096])], &free).unwrap();
    assert_eq!(small.peak_bytes, large.peak_bytes);
    assert!(small.peak_bytes < 16 << 20);

    let tight = Options { threads: 8, memory_budget: Some(64 << 10), ..Options::default() };
    let fitted = estimate(&[item(&[4096, 4096])], &tight).unwrap();
    assert!(fitted.peak_bytes <= 64 << 10 && fitted.threads >= 1);
    let error = estimate(
        &[item(&[4096, 4096])],
        &Options { threads: 1, memory_budget: Some(1000), ..Options::default() },
    )
    .unwrap_err();
    assert!(matches!(error, PassError::Memory { budget: 1000, .. }), "{error}");
}

/// Counts what it hears, and cancels after so many bytes.
struct Watch {
    last: AtomicU64,
    total: AtomicU64,
    verified: AtomicU64,
    stop_at: u64,
}

impl Watch {
    fn until(stop_at: u64) -> Self {
        Self { last: 0.into(), total: 0.into(), verified: 0.into(), stop_at }
    }
}

impl Progress for Watch {
    fn advanced(&self, advance: Advance<'_>) {
        self.last.fetch_max(advance.done_bytes, Ordering::Relaxed);
        self.total.store(advance.total_bytes, Ordering::Relaxed);
        self.verified.fetch_add(advance.verifying.into(), Ordering::Relaxed);
    }

    fn cancelled(&self) -> bool {
        self.last.load(Ordering::Relaxed) >= self.stop_at
    }
}

#[test]
fn progress_counts_every_byte_once_and_a_cancelled_pass_continues() {
    let dir = tempfile::tempdir().unwrap();
    let error = forge_fixture(dir.path(), &options(2), &Watch::until(2 << 20)).unwrap_err();
    assert_eq!(error.code(), "cancelled");
    let second = Watch::until(u64::MAX);
    forge_fixture(dir.path(), &options(2), &second).unwrap();
    assert!(second.verified.load(Ordering::Relaxed) > 0, "finished tensors are taken over");
    assert_eq!(second.last.load(Ordering::Relaxed), second.total.load(Ordering::Relaxed));
    assert!(contents(dir.path()) == undisturbed());
}

#[test]
fn a_finished_tensor_that_was_damaged_since_is_made_again() {
    let dir = tempfile::tempdir().unwrap();
    forge_fixture(dir.path(), &options(2), &Watch::until(3 << 20)).unwrap_err();
    assert!(dir.path().join(journal::JOURNAL_NAME).exists());
    for (name, mut content) in contents(dir.path()) {
        if name.extension().is_some_and(|extension| extension == "gguf") {
            // The header stays as it is: a changed one means another layout, and everything is made anew.
            let begin = gguf::parse(&content, content.len() as u64).unwrap().data_begin as usize;
            for byte in content[begin..].iter_mut().step_by(300_000) {
                *byte ^= 0x55;
            }
            std::fs::write(dir.path().join(name), content).unwrap();
        }
    }
    forge_fixture(dir.path(), &options(2), &()).unwrap();
    assert!(contents(dir.path()) == undisturbed());
}

const CHILD_DIRECTORY: &str = "DROPHAMMER_TEST_FORGE_INTO";

/// Not a test by itself: the process that others kill or starve.
#[test]
fn child_that_forges() {
    let Some(directory) = std::env::var_os(CHILD_DIRECTORY) else { return };
    forge_fixture(Path::new(&directory), &options(2), &()).unwrap();
}

fn spawn_child(directory: &Path) -> std::process::Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "child_that_forges"])
        .env(CHILD_DIRECTORY, directory)
        .stdout(Stdio::null())
        .spawn()
        .unwrap()
}

#[test]
fn a_pass_killed_at_any_moment_resumes_to_the_same_bytes() {
    let expected = undisturbed();
    let dir = tempfile::tempdir().unwrap();
    let begin = Instant::now();
    assert!(spawn_child(dir.path()).wait().unwrap().success());
    let whole = begin.elapsed();
    let mut state = 0x9e37_79b9_7f4a_7c15_u64; // fixed: the machine's own timing adds chance enough
    let mut interrupted = 0;
    for _ in 0..50 {
        let dir = tempfile::tempdir().unwrap();
        let mut child = spawn_child(dir.path());
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        let moment = whole.mul_f64((state >> 33) as f64 / (1u64 << 31) as f64);
        std::thread::sleep(moment.max(Duration::from_millis(1)));
        child.kill().unwrap(); // SIGKILL
        child.wait().unwrap();
        interrupted += u32::from(dir.path().join(journal::JOURNAL_NAME).exists());
        forge_fixture(dir.path(), &options(2), &()).unwrap();
        assert!(contents(dir.path()) == expected, "killed after {moment:?}");
    }
    assert!(interrupted > 0, "no kill met a pass at work");
}

#[test]
fn a_disk_that_fills_up_is_a_clear_error_and_loses_nothing() {
    let dir = tempfile::tempdir().unwrap();
    // A limit on file size stands for a full disk: the system refuses to grow the file. The signal that comes
    // with it is ignored, so that the refusal shows as an error.
    let script = "trap '' XFSZ; ulimit -f 500; exec \"$0\" --exact child_that_forges --nocapture";
    let output = Command::new("sh")
        .args(["-c", script])
        .arg(std::env::current_exe().unwrap())
        .env(CHILD_DIRECTORY, dir.path())
        .output()
        .unwrap();
    let said =
        [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).concat();
    assert!(!output.status.success());
    assert!(said.contains("FileTooLarge") && said.contains("out-00001-of-"), "{said}");
    // With room again, the same call completes.
    forge_fixture(dir.path(), &options(2), &()).unwrap();
    assert!(contents(dir.path()) == undisturbed());
}

/// The bytes of one tensor, forged by one item on three threads.
fn forge_one(
    dtype: DType,
    shape: &[u64],
    item: impl Fn(&TensorDecl) -> Item<'static>,
) -> Result<Vec<u8>, PassError> {
    let dir = tempfile::tempdir().unwrap();
    let decl = TensorDecl::new("blk.0.w", dtype, shape);
    let layout = layout(std::slice::from_ref(&decl), None);
    let place = layout.places[0];
    let options = Options { threads: 3, memory_budget: None, ..Options::default() };
    forge(dir.path(), layout, &[item(&decl)], Digest::of(b""), &options, &())?;
    let file = std::fs::read(dir.path().join("out.gguf")).unwrap();
    Ok(file[place.offset as usize..(place.offset + place.len) as usize].to_vec())
}

/// A row source of these values.
fn rows_of(
    columns: u64,
    value: impl Fn(u64, u64) -> f32 + Send + Sync,
) -> impl Fn(Range<u64>, &mut [f32]) -> Result<(), BoxError> + Send + Sync {
    move |rows, out| {
        for (row, values) in rows.zip(out.chunks_exact_mut(columns as usize)) {
            values.iter_mut().zip(0..).for_each(|(v, column)| *v = value(row, column));
        }
        Ok(())
    }
}

#[test]
fn of_several_weights_that_are_not_finite_the_first_is_named_with_its_place() {
    let value = |row, column| match (row, column) {
        (900, 17) => f32::INFINITY,
        (5000, 3) => f32::NAN,
        _ => 1.0,
    };
    for _ in 0..20 {
        let made = forge_one(DType::Q8_0, &[8192, 1024], |decl| {
            Item::quantize(0, decl, rows_of(1024, value), None).unwrap()
        });
        let message = made.unwrap_err().to_string();
        assert!(message.contains("`blk.0.w` holds inf in row 900, column 17"), "{message}");
    }
}

#[test]
fn a_source_that_fails_and_importance_that_does_not_fit_are_named() {
    let broken = |_: Range<u64>, _: &mut [f32]| Err::<(), BoxError>("gone".into());
    let made = forge_one(DType::Q8_0, &[4, 32], |decl| Item::quantize(0, decl, broken, None).unwrap());
    assert_eq!(made.unwrap_err().to_string(), "tensor `blk.0.w`: cannot read rows 0..4: gone");
    let decl = TensorDecl::new("w", DType::Q4_0, [4, 32]);
    for bad in [vec![], vec![1.0; 31], vec![1.0; 96], vec![-1.0; 32], vec![f32::NAN; 32]] {
        let result = Item::quantize(0, &decl, broken, Some(Importance(bad.into())));
        assert!(matches!(result, Err(PassError::Importance { .. })));
    }
    let decl = TensorDecl::new("w", DType::I32, [4, 32]);
    assert!(matches!(Item::quantize(0, &decl, broken, None), Err(PassError::Unsupported { .. })));
}

#[test]
fn empty_tensors_and_scalars_are_forged() {
    let one = |_: u64, _: u64| 1.0;
    for (dtype, shape, bytes) in [
        (DType::Q8_0, &[0u64, 32][..], vec![]),
        (DType::F32, &[], 1f32.to_le_bytes().to_vec()),
        (DType::F32, &[3, 0], vec![]),
        (DType::BF16, &[2], vec![0x80, 0x3f, 0x80, 0x3f]),
    ] {
        let columns = shape.last().copied().unwrap_or(1).max(1);
        let made =
            forge_one(dtype, shape, |decl| Item::quantize(0, decl, rows_of(columns, one), None).unwrap());
        assert_eq!(made.unwrap(), bytes, "{dtype} {shape:?}");
    }
}

#[test]
fn stacked_matrices_are_weighted_each_by_its_own_importance() {
    let value = |row: u64, column: u64| ((row * 37 + column * 11) % 101) as f32 - 50.0;
    let importance: Arc<[f32]> = (0..3 * 64).map(|i| (i % 7) as f32 + 0.5).collect();
    let bytes = forge_one(DType::Q4_0, &[3, 5, 64], |decl| {
        Item::quantize(0, decl, rows_of(64, value), Some(Importance(importance.clone()))).unwrap()
    });
    let mut expected = Vec::new();
    for matrix in 0..3u64 {
        let values: Vec<f32> =
            (0..5).flat_map(|row| (0..64).map(move |column| value(matrix * 5 + row, column))).collect();
        let mut out = vec![0; values.len() / 32 * 18];
        let weights = &importance[matrix as usize * 64..][..64];
        drophammer_quant::quantize(DType::Q4_0, &values, Some(weights), &mut out).unwrap();
        expected.extend(out);
    }
    assert_eq!(bytes.unwrap(), expected);
}

/// Signs of two rows in one row of bytes, and each row's largest magnitude.
struct Signs;

impl Encoder for Signs {
    fn row_group(&self) -> u64 {
        2
    }

    fn encode(&self, _: u64, rows: &[f32], outputs: &mut [&mut [u8]]) -> Result<(), BoxError> {
        let [signs, largest] = outputs else { return Err("two outputs".into()) };
        for (i, row) in rows.chunks(8).enumerate() {
            for (column, value) in row.iter().enumerate() {
                signs[i / 2 * 8 + column] |= u8::from(*value < 0.0) << (i % 2);
            }
            let max = row.iter().fold(0f32, |max, value| max.max(value.abs()));
            largest[i * 4..][..4].copy_from_slice(&max.to_le_bytes());
        }
        Ok(())
    }
}

#[test]
fn one_source_fills_several_outputs_with_rows_in_groups() {
    let rows = || rows_of(8, |row, column| if (row + column) % 3 == 0 { -1.0 } else { 2.0 });
    let decls = [TensorDecl::new("signs", DType::I8, [50, 8]), TensorDecl::new("largest", DType::F32, [100])];
    let outputs = || vec![Output { tensor: 0, group_bytes: 8 }, Output { tensor: 1, group_bytes: 8 }];
    let mut seen = Vec::new();
    for memory_budget in [None, Some(500)] {
        let dir = tempfile::tempdir().unwrap();
        let items = [Item::encode("w", [100, 8], rows(), Signs, outputs())];
        let options = Options { threads: 2, memory_budget, ..Options::default() };
        forge(dir.path(), layout(&decls, None), &items, Digest::of(b""), &options, &()).unwrap();
        seen.push(std::fs::read(dir.path().join("out.gguf")).unwrap());
    }
    assert!(seen[0] == seen[1]);
    let dir = tempfile::tempdir().unwrap();
    let wrong = [Item::encode("w", [102, 8], rows(), Signs, outputs())];
    let error = forge(dir.path(), layout(&decls, None), &wrong, Digest::of(b""), &Options::default(), &());
    assert!(matches!(error, Err(PassError::Size { made: 408, planned: 400, .. })), "{error:?}");
}
