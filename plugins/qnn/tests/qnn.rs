//! Folders of contexts are made, run in emulation, and give nearly the references' numbers.
//!
//! The runtime is proprietary: it is there only where whoever runs the tests accepted its licence
//! (`DROPHAMMER_ACCEPTED_LICENCES=qnn cargo xtask test`). Without it, tests that compile say so and only check what is refused.

#![allow(clippy::unwrap_used)] // a test stops at the first surprise

use std::path::{Path, PathBuf};

use drophammer_formats::Source;
use drophammer_infer::Tokenizer;
use drophammer_qnn::Qnn;
use drophammer_sdk::{
    Backend, Batch, ErrorCode, ForgeReport, ForgeRequest, Goal, HostInfo, LoadRequest, OutputKind,
    ProbeRequest, Session, Unwatched, most_likely,
};

const JOB: Unwatched = Unwatched { threads: 2 };

fn fixtures(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures").join(name)
}

fn backend() -> Qnn {
    Qnn::open(HostInfo::default()).unwrap()
}

/// Whether there is a runtime to compile and run anything with.
fn runs() -> bool {
    let report = backend().probe(&ProbeRequest::default()).unwrap();
    let runs = report.formats[0].run;
    assert!(runs || !licence_accepted(), "{:?}", report.problems);
    if !runs {
        eprintln!("not run: {:?}", report.problems);
    }
    runs
}

fn licence_accepted() -> bool {
    std::env::var_os("DROPHAMMER_RUNTIMES").is_some()
        && std::env::var("DROPHAMMER_ACCEPTED_LICENCES")
            .is_ok_and(|list| list.split(',').any(|name| name == "qnn"))
}

fn goal(scheme: &str) -> Goal {
    Goal { format: "qnn".into(), scheme: scheme.into(), ..Goal::default() }
}

fn forge(source: &Path, goal: Goal, staging: &Path) -> drophammer_sdk::Result<ForgeReport> {
    let request = ForgeRequest {
        source: source.to_owned(),
        goal,
        staging: staging.to_owned(),
        name: "model".into(),
        no_tokenizer: !source.join("tokenizer.json").exists(),
        ..ForgeRequest::default()
    };
    backend().quantize(&request, &JOB)
}

fn load(path: &Path) -> Box<dyn Session> {
    let request = LoadRequest { path: path.to_owned(), reference: true, ..LoadRequest::default() };
    backend().load(&request, Box::new(JOB)).unwrap()
}

fn floats(file: &Source, name: &str) -> Vec<f32> {
    let bytes = file.bytes(file.tensor(name).unwrap()).chunks_exact(4);
    bytes.map(|bytes| f32::from_le_bytes(bytes.try_into().unwrap())).collect()
}

/// Token rows of a reference, and the logits or hidden states due.
fn reference(directory: &Path, output: &str) -> (Vec<Vec<u32>>, Vec<f32>) {
    let file = Source::open(directory.join("reference.safetensors")).unwrap();
    let tokens = file.tensor("tokens").unwrap();
    let ids = file.bytes(tokens).chunks_exact(8);
    let ids: Vec<u32> = ids.map(|bytes| i64::from_le_bytes(bytes.try_into().unwrap()) as u32).collect();
    let rows = ids.chunks(tokens.row_elements() as usize).map(<[u32]>::to_vec).collect();
    (rows, floats(&file, output))
}

fn step(session: &mut dyn Session, tokens: &[u32], first: u32) -> Vec<f32> {
    let count = tokens.len() as u32;
    let positions: Vec<u32> = (first..first + count).collect();
    let (sequences, outputs) = (vec![0; tokens.len()], (0..count).collect::<Vec<_>>());
    let mut out = vec![f32::NAN; tokens.len() * session.limits().output_width as usize];
    let batch = Batch { tokens, positions: &positions, sequences: &sequences, outputs: &outputs };
    session.forward(batch, &mut out).unwrap();
    out
}

fn best(row: &[f32]) -> usize {
    most_likely(row).unwrap()
}

/// Share of rows with the same best token, and mean KL divergence in nats.
fn compare(found: &[f32], due: &[f32], width: usize) -> (f64, f64) {
    let log_softmax = |row: &[f32]| -> Vec<f64> {
        let most = row.iter().copied().fold(f32::MIN, f32::max);
        let sum: f64 = row.iter().map(|x| f64::from(x - most).exp()).sum();
        row.iter().map(|x| f64::from(x - most) - sum.ln()).collect()
    };
    let rows = found.chunks(width).zip(due.chunks(width));
    let (mut same, mut divergence, mut count) = (0, 0.0, 0);
    for (found, due) in rows {
        same += usize::from(best(found) == best(due));
        let (q, p) = (log_softmax(found), log_softmax(due));
        divergence += p.iter().zip(&q).map(|(p, q)| p.exp() * (p - q)).sum::<f64>();
        count += 1;
    }
    (same as f64 / f64::from(count), divergence / f64::from(count))
}

#[test]
fn schemes_come_as_near_to_the_trained_model_as_their_bits_allow() {
    if !runs() {
        return;
    }
    let source = fixtures("shakespeare-llama");
    let (rows, due) = reference(&source, "logits");
    for (scheme, same, divergence) in
        [("fp16", 0.999, 5e-6), ("a16w8", 0.97, 1.2e-4), ("a16w4", 0.92, 5.5e-3), ("a8w8", 0.87, 1.5e-2)]
    {
        let staging = tempfile::tempdir().unwrap();
        let report = forge(&source, goal(scheme), staging.path()).unwrap();
        println!("{scheme}: {} bytes, {:?}", report.bytes, report.notes);
        let told = report.notes.iter().filter(|note| note.contains("on the NPU")).count();
        assert_eq!(told, 2, "{:?}", report.notes);
        let mut session = load(staging.path());
        let width = session.limits().output_width as usize;
        let mut found = Vec::new();
        for row in &rows {
            session.remove(0, 0, u32::MAX).unwrap();
            found.extend(step(session.as_mut(), row, 0));
        }
        let seen = compare(&found, &due, width);
        println!("{scheme}: top-1 {:.2}%, KL {:.2e}", seen.0 * 100.0, seen.1);
        assert!(seen.0 >= same && seen.1 <= divergence, "{scheme}: {seen:?}");
    }
}

#[test]
fn a_trained_model_goes_on_as_its_reference_does_and_again_in_another_session() {
    if !runs() {
        return;
    }
    let source = fixtures("shakespeare-llama");
    let text = std::fs::read_to_string(source.join("reference.json")).unwrap();
    let reference: serde_json::Value = serde_json::from_str(&text).unwrap();
    let expected: Vec<u32> = serde_json::from_value(reference["greedy_tokens"].clone()).unwrap();
    let tokenizer = Tokenizer::from_directory(&source).unwrap();
    let prompt = tokenizer.encode(reference["greedy_prompt"].as_str().unwrap(), true).unwrap();
    let staging = tempfile::tempdir().unwrap();
    let report = forge(&source, goal("fp16"), staging.path()).unwrap();
    let mut before: Option<Vec<f32>> = None;
    for _ in 0..2 {
        let mut session = load(&staging.path().join(&report.files[0]));
        let width = session.limits().output_width as usize;
        let mut tokens = prompt.clone();
        let mut rows = step(session.as_mut(), &tokens, 0);
        let mut all = rows.clone();
        let mut equals = 0;
        for due in &expected[prompt.len()..] {
            let row = &rows[rows.len() - width..];
            // Half precision makes equals of logits that float32 tells apart: which of them is first says nothing.
            assert_eq!(row[*due as usize], row[best(row)], "token {}: {}", tokens.len(), best(row));
            equals += usize::from(best(row) != *due as usize);
            rows = step(session.as_mut(), &[*due], tokens.len() as u32);
            all.extend_from_slice(&rows);
            tokens.push(*due);
        }
        println!("{} tokens as the reference's, {equals} among equals", tokens.len() - prompt.len());
        if let Some(before) = &before {
            assert!(before.iter().zip(&all).all(|(a, b)| a.to_bits() == b.to_bits()), "logits differ");
        }
        before = Some(all);
    }
}

/// Where [`a_folder_for_another_test`] puts one.
const FOLDER: &str = "DROPHAMMER_TEST_FOLDER";

#[test]
#[ignore = "the work of a process of its own for `two_processes_make_the_same_graphs`"]
fn a_folder_for_another_test() {
    let Some(folder) = std::env::var_os(FOLDER) else { return };
    forge(&fixtures("arch/llama"), goal("a16w4"), Path::new(&folder)).unwrap();
}

#[test]
fn two_processes_make_the_same_graphs() {
    if !runs() {
        return;
    }
    let made = || {
        let staging = tempfile::tempdir().unwrap();
        let mut process = std::process::Command::new(std::env::current_exe().unwrap());
        process.args(["--exact", "a_folder_for_another_test", "--ignored"]).env(FOLDER, staging.path());
        assert!(process.output().unwrap().status.success());
        let mut files: Vec<PathBuf> =
            std::fs::read_dir(staging.path()).unwrap().map(|file| file.unwrap().path()).collect();
        // Binaries may differ: QNN writes some memory that it never set into those of very small graphs.
        files.retain(|file| file.extension().is_some_and(|kind| kind == "onnx"));
        files.sort();
        let name = |file: &Path| file.file_name().unwrap().to_owned();
        files.iter().map(|file| (name(file), std::fs::read(file).unwrap())).collect::<Vec<_>>()
    };
    let (first, second) = (made(), made());
    assert!(first.len() == 2 && second.len() == 2);
    for ((name, first), (_, second)) in first.iter().zip(&second) {
        assert!(first == second, "{} differs", name.display());
    }
}

#[test]
fn heads_with_norms_pairs_windows_and_experts_come_out_right() {
    if !runs() {
        return;
    }
    let mut failures = Vec::new();
    for name in [
        "arch/qwen3",
        "arch/gemma3",
        "arch/hunyuan",
        "arch/exaone4",
        "arch/cohere",
        "arch/gpt2",
        // Mixtures of experts, with sinks, with groups and with latent attention.
        "arch/gpt_oss",
        "arch/granitemoe",
        "arch/deepseek_v2",
    ] {
        let (rows, due) = reference(&fixtures(name), "logits");
        let staging = tempfile::tempdir().unwrap();
        forge(&fixtures(name), goal("fp16"), staging.path()).unwrap();
        let mut session = load(staging.path());
        let mut found = Vec::new();
        for row in &rows {
            session.remove(0, 0, u32::MAX).unwrap();
            found.extend(step(session.as_mut(), row, 0));
        }
        let largest = found.iter().zip(&due).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        println!("{name}: largest difference {largest:.1e}");
        if largest.is_nan() || largest > 0.05 {
            failures.push(format!("{name}: {largest}"));
        }
    }
    assert!(failures.is_empty(), "{failures:?}");
}

#[test]
fn encoders_give_hidden_states_whether_a_text_fills_their_graph_or_not() {
    if !runs() {
        return;
    }
    let mut failures = Vec::new();
    let all = ["arch/bert", "arch/distilbert", "arch/modernbert", "arch/nomic_bert", "arch/roberta"];
    let schemes = all.iter().map(|name| (*name, "fp16", 0.05));
    for (name, scheme, most) in schemes.chain([("arch/bert", "a16w8", 0.4)]) {
        let (rows, due) = reference(&fixtures(name), "hidden");
        for context in [rows[0].len(), 30] {
            let mut goal = goal(scheme);
            goal.options.insert("context".into(), context.into());
            let staging = tempfile::tempdir().unwrap();
            if let Err(error) = forge(&fixtures(name), goal, staging.path()) {
                failures.push(format!("{name} of {context}: {error}"));
                continue;
            }
            let mut session = load(staging.path());
            assert_eq!(session.limits().output_kind, OutputKind::Hidden);
            let found: Vec<f32> = rows.iter().flat_map(|row| step(session.as_mut(), row, 0)).collect();
            let largest = found.iter().zip(&due).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            println!("{name} {scheme} of {context}: largest difference {largest:.1e}");
            if largest.is_nan() || largest > most || found.len() != due.len() {
                failures.push(format!("{name} of {context}: {largest}"));
            }
        }
    }
    assert!(failures.is_empty(), "{failures:?}");
}

#[test]
fn a_sentence_encoder_gives_its_own_embeddings_from_both_its_graphs() {
    let Some(source) = std::env::var_os("DROPHAMMER_MINILM").map(PathBuf::from) else {
        eprintln!("not run: DROPHAMMER_MINILM is not set (`cargo xtask test` sets it)");
        return;
    };
    if !runs() {
        return;
    }
    let reference = Source::open(fixtures("minilm-reference.safetensors")).unwrap();
    let length = |x: &[f32]| x.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>().sqrt();
    for (scheme, least) in [("fp16", 0.999_99), ("a16w8", 0.995)] {
        let mut goal = goal(scheme);
        goal.options.insert("context".into(), 96.into());
        let staging = tempfile::tempdir().unwrap();
        let report = forge(&source, goal, staging.path()).unwrap();
        println!("{scheme}: {} bytes, {:?}", report.bytes, report.notes);
        let mut session = load(staging.path());
        let width = session.limits().output_width as usize;
        for sentence in 0..3 {
            let ids = reference.bytes(reference.tensor(&format!("tokens.{sentence}")).unwrap());
            let ids = ids.chunks_exact(8).map(|b| i64::from_le_bytes(b.try_into().unwrap()) as u32);
            let ids: Vec<u32> = ids.collect();
            let hidden = step(session.as_mut(), &ids, 0);
            let mut pooled = vec![0.0; width];
            for token in hidden.chunks_exact(width) {
                pooled.iter_mut().zip(token).for_each(|(sum, x)| *sum += x / ids.len() as f32);
            }
            let due = floats(&reference, &format!("embedding.{sentence}"));
            let dot: f64 = pooled.iter().zip(&due).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum();
            let cosine = dot / (length(&pooled) * length(&due));
            println!("{scheme}: sentence {sentence} of {} tokens: cosine {cosine:.6}", ids.len());
            assert!(cosine >= least, "{scheme}: {cosine}");
        }
    }
}

#[test]
fn what_cannot_be_made_or_run_is_told() {
    let staging = tempfile::tempdir().unwrap();
    let error = forge(&fixtures("arch/llama"), goal("int4"), staging.path()).unwrap_err();
    assert!(error.code == ErrorCode::UnsupportedInput && error.help.contains("a16w8"), "{error}");
    let mut other = goal("fp16");
    other.options.insert("soc".into(), "sm1".into());
    let error = forge(&fixtures("arch/llama"), other, staging.path()).unwrap_err();
    assert!(error.code == ErrorCode::InvalidRequest && error.help.contains("sm8650"), "{error}");
    let mut other = goal("fp16");
    other.options.insert("context".into(), 0.into());
    let error = forge(&fixtures("arch/llama"), other, staging.path()).unwrap_err();
    assert!(error.message.contains("context"), "{error}");
    let plan = |name: &str| {
        let request = ProbeRequest {
            source: Some(fixtures(name)),
            goals: vec![{
                let mut goal = goal("fp16");
                goal.options.insert("no_tokenizer".into(), true.into());
                goal
            }],
        };
        backend().probe(&request).unwrap().estimates.remove(0)
    };
    let estimate = plan("arch/llama-dynamic");
    assert!(!estimate.supported, "{estimate:?}");
    assert!(estimate.reason.as_ref().unwrap().contains("rotations"), "{estimate:?}");
    let estimate = plan("arch/llama");
    if runs() {
        let reason = estimate.reason.unwrap();
        assert!(estimate.supported && reason.contains("emulation"));
        let asked = [
            "prefill of its first 1 of 2 layers: all",
            "decode of its first 1 of 2 layers: all",
            "on the NPU",
        ];
        assert!(asked.iter().all(|words| reason.contains(words)), "{reason}");
    } else {
        assert!(estimate.help.unwrap().contains("drophammer runtime install"));
    }
}

#[test]
fn a_damaged_folder_is_refused_before_qnn_reads_it() {
    if !runs() {
        return;
    }
    let staging = tempfile::tempdir().unwrap();
    let report = forge(&fixtures("arch/llama"), goal("fp16"), staging.path()).unwrap();
    let binary = report.files.iter().find(|file| file.extension().is_some_and(|kind| kind == "bin")).unwrap();
    let path = staging.path().join(binary);
    let mut bytes = std::fs::read(&path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&path, bytes).unwrap();
    let request = LoadRequest { path: staging.path().to_owned(), ..LoadRequest::default() };
    let error = backend().load(&request, Box::new(JOB)).err().unwrap();
    assert!(error.code == ErrorCode::InvalidInput && error.message.contains("digest"), "{error}");
}
