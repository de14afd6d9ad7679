//! Artifacts of this backend run in its own session and give the references' numbers.
//!
//! ONNX Runtime is found as users' is; `cargo xtask test` provides the pinned one. Without any, tests that run a model say so and
//! only check what is made.

#![allow(clippy::unwrap_used)] // a test stops at the first surprise

use std::path::{Path, PathBuf};

use drophammer_formats::Source;
use drophammer_onnxruntime::OnnxRuntime;
use drophammer_sdk::{
    Backend, Batch, ErrorCode, ForgeReport, ForgeRequest, Goal, HostInfo, LoadRequest, ProbeRequest, Session,
    Unwatched, most_likely,
};

const JOB: Unwatched = Unwatched { threads: 2 };

fn fixtures(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures").join(name)
}

fn backend() -> OnnxRuntime {
    OnnxRuntime::open(HostInfo::default()).unwrap()
}

/// Whether there is a library to run anything with.
fn runs() -> bool {
    let report = backend().probe(&ProbeRequest::default()).unwrap();
    let runs = report.formats[0].run;
    assert!(runs || std::env::var_os("DROPHAMMER_RUNTIMES").is_none(), "{:?}", report.problems);
    if !runs {
        eprintln!("not run: {:?}", report.problems);
    }
    runs
}

fn forge(source: &Path, scheme: &str, staging: &Path) -> drophammer_sdk::Result<ForgeReport> {
    let request = ForgeRequest {
        source: source.to_owned(),
        goal: Goal { format: "onnx".into(), scheme: scheme.into(), ..Goal::default() },
        staging: staging.to_owned(),
        name: "model".into(),
        no_tokenizer: true,
        ..ForgeRequest::default()
    };
    let report = backend().quantize(&request, &JOB)?;
    if let Some(keep) = std::env::var_os("DROPHAMMER_KEEP_ONNX") {
        let place =
            Path::new(&keep).join(format!("{}-{scheme}", source.file_name().unwrap().to_string_lossy()));
        std::fs::create_dir_all(&place).unwrap();
        for file in &report.files {
            std::fs::copy(staging.join(file), place.join(file)).unwrap();
        }
    }
    Ok(report)
}

fn load(path: &Path, sequences: u32) -> Box<dyn Session> {
    let request = LoadRequest {
        path: path.to_owned(),
        max_sequences: sequences,
        reference: true,
        ..LoadRequest::default()
    };
    backend().load(&request, Box::new(JOB)).unwrap()
}

fn reference(directory: &Path) -> (Vec<Vec<u32>>, Vec<f32>) {
    let file = Source::open(directory.join("reference.safetensors")).unwrap();
    let tokens = file.tensor("tokens").unwrap();
    let ids = file.bytes(tokens).chunks_exact(8);
    let ids: Vec<u32> = ids.map(|bytes| i64::from_le_bytes(bytes.try_into().unwrap()) as u32).collect();
    let rows = ids.chunks(tokens.row_elements() as usize).map(<[u32]>::to_vec).collect();
    let due = file.tensor("logits").or_else(|| file.tensor("hidden")).unwrap();
    let due = file.bytes(due).chunks_exact(4);
    (rows, due.map(|bytes| f32::from_le_bytes(bytes.try_into().unwrap())).collect())
}

fn step(session: &mut dyn Session, tokens: &[u32], first: u32, sequence: u32) -> Vec<f32> {
    let count = tokens.len() as u32;
    let positions: Vec<u32> = (first..first + count).collect();
    let (sequences, outputs) = (vec![sequence; tokens.len()], (0..count).collect::<Vec<_>>());
    let mut out = vec![f32::NAN; tokens.len() * session.limits().output_width as usize];
    let batch = Batch { tokens, positions: &positions, sequences: &sequences, outputs: &outputs };
    session.forward(batch, &mut out).unwrap();
    out
}

fn difference(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, |m, d| if d > m || d.is_nan() { d } else { m })
}

#[test]
fn every_architecture_gives_the_reference_numbers() {
    let runs = runs();
    let mut failures = Vec::new();
    let mut directories: Vec<PathBuf> =
        std::fs::read_dir(fixtures("arch")).unwrap().map(|entry| entry.unwrap().path()).collect();
    directories.sort();
    for directory in directories.iter().filter(|path| path.join("reference.safetensors").is_file()) {
        let name = directory.file_name().unwrap().to_string_lossy().into_owned();
        let staging = tempfile::tempdir().unwrap();
        let report = match forge(directory, "fp32", staging.path()) {
            Ok(report) => report,
            Err(error) => {
                failures.push(format!("{name}: {error}"));
                continue;
            }
        };
        assert_eq!(report.files[0], Path::new("model.onnx"), "{name}");
        if !runs {
            continue;
        }
        let (rows, due) = reference(directory);
        let path = staging.path().join(&report.files[0]);
        let request = LoadRequest { path, context: Some(64), reference: true, ..LoadRequest::default() };
        let mut session = match backend().load(&request, Box::new(JOB)) {
            Ok(session) => session,
            Err(error) => {
                failures.push(format!("{name}: {error}"));
                continue;
            }
        };
        let mut out = Vec::new();
        for row in &rows {
            out.extend(step(session.as_mut(), row, 0, 0));
            session.remove(0, 0, u32::MAX).unwrap();
        }
        let difference = difference(&out, &due);
        println!("{name}: {difference:.2e}");
        if difference.is_nan() || difference > 1e-4 {
            failures.push(format!("{name}: differs by {difference}"));
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

#[test]
fn an_mlx_directory_is_a_source_like_any_other() {
    let runs = runs();
    for name in ["packed/mlx-4bit", "packed/mlx-mxfp4"] {
        let staging = tempfile::tempdir().unwrap();
        let report = forge(&fixtures(name), "fp32", staging.path()).unwrap();
        if !runs {
            continue;
        }
        let (rows, due) = reference(&fixtures(name));
        let mut session = load(&staging.path().join(&report.files[0]), rows.len() as u32);
        let all: Vec<f32> =
            (0..).zip(&rows).flat_map(|(sequence, row)| step(session.as_mut(), row, 0, sequence)).collect();
        assert!(difference(&all, &due) <= 2e-3, "{name}: {}", difference(&all, &due));
    }
}

#[test]
fn a_prompt_in_pieces_copied_and_cut_gives_the_same_logits() {
    if !runs() {
        return;
    }
    for name in ["arch/qwen3", "arch/mistral-window", "arch/deepseek_v2", "arch/gpt_oss"] {
        let staging = tempfile::tempdir().unwrap();
        let report = forge(&fixtures(name), "fp32", staging.path()).unwrap();
        let mut session = load(&staging.path().join(&report.files[0]), 2);
        let (rows, due) = reference(&fixtures(name));
        let row = &rows[0];
        let due = &due[..row.len() * session.limits().output_width as usize];
        let width = session.limits().output_width as usize;
        let mut out = step(session.as_mut(), &row[..5], 0, 0);
        for (position, token) in row.iter().enumerate().skip(5).take(7) {
            out.extend(step(session.as_mut(), &[*token], position as u32, 0));
        }
        session.copy(0, 1, 0, 9).unwrap();
        out.extend(step(session.as_mut(), &row[12..], 12, 0));
        assert!(difference(&out, due) <= 1e-4, "{name}: {}", difference(&out, due));
        let other = step(session.as_mut(), &row[9..], 9, 1);
        assert!(difference(&other, &due[9 * width..]) <= 1e-4, "{name} copied");
        session.remove(0, 3, u32::MAX).unwrap();
        let again = step(session.as_mut(), &row[3..], 3, 0);
        assert!(difference(&again, &due[3 * width..]) <= 1e-4, "{name} cut");
    }
}

#[test]
fn quantized_models_stay_close_in_proportion_to_their_bits() {
    let source = fixtures("shakespeare-llama");
    let (rows, due) = reference(&source);
    let runs = runs();
    let mut last = 0.0;
    let mean = due.iter().map(|&x| f64::from(x)).sum::<f64>() / due.len() as f64;
    let size: f64 = due.iter().map(|&x| (f64::from(x) - mean).powi(2)).sum();
    // Relative error of the logits: each bound is about twice what was measured.
    for (scheme, bound) in
        [("fp16", 2e-3), ("bf16", 1e-3), ("int8", 0.007), ("int4", 0.11), ("int4_sym", 0.11)]
    {
        let staging = tempfile::tempdir().unwrap();
        let report = forge(&source, scheme, staging.path()).unwrap();
        let bits = report.bits_per_weight;
        assert!(bits > 0.0 && report.bytes > 0, "{scheme}: {bits}");
        if !runs {
            continue;
        }
        let mut session = load(&staging.path().join(&report.files[0]), 1);
        let out = step(session.as_mut(), &rows[0], 0, 0);
        let error: f64 = out.iter().zip(&due).map(|(a, b)| f64::from(a - b).powi(2)).sum();
        let relative = (error / size).sqrt();
        println!("{scheme}: {bits:.2} bits, relative error {relative:.4}");
        assert!(relative <= bound, "{scheme}: {relative}");
        last = relative;
    }
    assert!(!runs || last > 0.0);
}

#[test]
fn experts_in_one_operator_give_what_each_of_them_gives() {
    if !runs() {
        return;
    }
    for name in ["arch/mixtral", "arch/gpt_oss"] {
        let (rows, due) = reference(&fixtures(name));
        // Blocks of 16 divide both widths of the experts (32 and 48): they are fused. Errors are twice what was measured.
        for (scheme, operator, bound) in [
            ("fp32", "MoE", 1e-6),
            ("int8_b16", "QMoE", 0.2),
            ("int4_b16", "QMoE", 0.7),
            ("int4_sym_b16", "QMoE", 0.8),
        ] {
            let staging = tempfile::tempdir().unwrap();
            let report = forge(&fixtures(name), scheme, staging.path()).unwrap();
            assert!(report.notes.iter().all(|note| !note.contains("every expert")), "{:?}", report.notes);
            let file = staging.path().join(&report.files[0]);
            let graph = drophammer_formats::onnx::parse(&std::fs::read(&file).unwrap()).unwrap().graph;
            let fused = graph.nodes.iter().filter(|node| node.op_type == operator).count();
            assert_eq!(fused, 2, "{name} {scheme}: one for each layer");
            let mut session = load(&file, 1);
            let mut out = Vec::new();
            for row in &rows {
                out.extend(step(session.as_mut(), row, 0, 0));
                session.remove(0, 0, u32::MAX).unwrap();
            }
            let size: f64 = due.iter().map(|x| f64::from(*x).powi(2)).sum();
            let error: f64 = out.iter().zip(&due).map(|(a, b)| f64::from(a - b).powi(2)).sum();
            let relative = (error / size).sqrt();
            println!("{name} {scheme}: relative error {relative:.1e}");
            assert!(relative <= bound, "{name} {scheme}: {relative}");
        }
    }
}

#[test]
fn a_trained_model_goes_on_as_its_reference_does() {
    if !runs() {
        return;
    }
    let source = fixtures("shakespeare-llama");
    let text = std::fs::read_to_string(source.join("reference.json")).unwrap();
    let reference: serde_json::Value = serde_json::from_str(&text).unwrap();
    let expected: Vec<u32> = serde_json::from_value(reference["greedy_tokens"].clone()).unwrap();
    for scheme in ["fp32", "int8"] {
        let staging = tempfile::tempdir().unwrap();
        let report = forge(&source, scheme, staging.path()).unwrap();
        // onnxruntime-genai computes as fast mode does.
        let path = staging.path().join(&report.files[0]);
        let request = LoadRequest { path, reference: scheme == "fp32", ..LoadRequest::default() };
        let mut session = backend().load(&request, Box::new(JOB)).unwrap();
        let vocabulary = session.limits().output_width as usize;
        // The continuation begins with its prompt: as many tokens as are needed to get going.
        let mut tokens = expected[..5].to_vec();
        let mut rows = step(session.as_mut(), &tokens, 0, 0);
        while tokens.len() < 37 {
            let last = &rows[rows.len() - vocabulary..];
            let best = most_likely(last).unwrap() as u32;
            rows = step(session.as_mut(), &[best], tokens.len() as u32, 0);
            tokens.push(best);
        }
        if scheme == "fp32" {
            assert_eq!(tokens, expected[..37]);
        } else {
            let same = tokens.iter().zip(&expected).take_while(|(a, b)| a == b).count();
            println!("int8: {same} of {} tokens: {tokens:?}", tokens.len());
            assert!(same > 5);
        }
    }
}

/// The tokens that onnxruntime-genai continues a prompt with, and whether `onnx.checker` has seen the file; `None` where it is not there.
fn theirs(packages: &Path, directory: &Path, prompt: &[u32]) -> Option<Vec<u32>> {
    let ids: Vec<String> = prompt.iter().map(ToString::to_string).collect();
    let output = std::process::Command::new("python3")
        .arg(fixtures("../peers/onnx/genai.py"))
        .arg("tokens")
        .arg(directory)
        .args([&ids.join(","), "32"])
        .env("PYTHONPATH", packages)
        .output()
        .unwrap();
    let (said, wrong) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    if wrong.contains("No module named 'onnx") {
        eprintln!("skipped: there is no onnx or onnxruntime_genai in {}", packages.display());
        return None;
    }
    assert!(output.status.success() && said.contains("onnx.checker"), "{said}{wrong}");
    let line = said.lines().find_map(|line| line.strip_prefix("tokens ")).unwrap();
    let numbers = line.split(|c: char| !c.is_ascii_digit());
    Some(numbers.filter_map(|number| number.parse().ok()).collect())
}

#[test]
fn onnxruntime_genai_continues_with_the_same_tokens() {
    let Some(packages) = std::env::var_os("DROPHAMMER_CLIENTS").map(PathBuf::from) else {
        eprintln!("skipped: DROPHAMMER_CLIENTS names no directory with onnxruntime_genai");
        return;
    };
    if !runs() {
        return;
    }
    let shakespeare = (fixtures("shakespeare-llama"), vec![42, 1051, 17, 333, 1200]);
    // "The water cycle describes how".
    let smollm2 = std::env::var_os("DROPHAMMER_SMOLLM2");
    let smollm2 = smollm2.map(|path| (PathBuf::from(path), vec![504, 913, 4834, 6601, 638]));
    for (source, prompt) in [Some(shakespeare), smollm2].into_iter().flatten() {
        for scheme in ["fp32", "int8", "int4"] {
            let staging = tempfile::tempdir().unwrap();
            forge(&source, scheme, staging.path()).unwrap();
            let Some(due) = theirs(&packages, staging.path(), &prompt) else { return };
            // As genai runs it: in fast mode.
            let path = staging.path().to_owned();
            let request = LoadRequest { path, ..LoadRequest::default() };
            let mut session = backend().load(&request, Box::new(JOB)).unwrap();
            let width = session.limits().output_width as usize;
            let mut tokens = prompt.clone();
            let mut rows = step(session.as_mut(), &tokens, 0, 0);
            while tokens.len() < prompt.len() + due.len() {
                let best = most_likely(&rows[rows.len() - width..]).unwrap() as u32;
                rows = step(session.as_mut(), &[best], tokens.len() as u32, 0);
                tokens.push(best);
            }
            assert_eq!(
                (&tokens[prompt.len()..], due.len()),
                (&due[..], 32),
                "{} at {scheme}",
                source.display()
            );
        }
    }
}

#[test]
fn a_forge_is_reproducible() {
    let digest = |directory: &Path, name: &str| std::fs::read(directory.join(name)).unwrap();
    let (first, second) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    for staging in [&first, &second] {
        forge(&fixtures("shakespeare-llama"), "int4", staging.path()).unwrap();
    }
    for name in ["model.onnx", "model.onnx.data", "genai_config.json"] {
        assert!(digest(first.path(), name) == digest(second.path(), name), "{name}");
    }
}

#[test]
fn what_cannot_be_made_or_run_is_told() {
    let staging = tempfile::tempdir().unwrap();
    let error = forge(&fixtures("arch/llama"), "int3", staging.path()).unwrap_err();
    assert!(error.code == ErrorCode::UnsupportedInput && error.help.contains("int4"), "{error}");
    let mut request = ForgeRequest {
        source: fixtures("arch/llama"),
        goal: Goal { format: "onnx".into(), scheme: "fp32".into(), ..Goal::default() },
        staging: staging.path().to_owned(),
        name: "model".into(),
        ..ForgeRequest::default()
    };
    let error = backend().convert(&request, &JOB).unwrap_err();
    assert!(error.message.contains("tokenizer") && error.help.contains("--no-tokenizer"), "{error}");
    request.goal.scheme = "int4".into();
    assert_eq!(backend().convert(&request, &JOB).unwrap_err().code, ErrorCode::InvalidRequest);
    if runs() {
        let broken = staging.path().join("broken.onnx");
        std::fs::write(&broken, b"no graph").unwrap();
        let request = LoadRequest { path: broken, ..LoadRequest::default() };
        let error = backend().load(&request, Box::new(JOB)).err().unwrap();
        assert_eq!(error.code, ErrorCode::InvalidInput, "{error}");
    }
}
