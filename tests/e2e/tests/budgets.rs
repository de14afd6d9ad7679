//! From a source to statistics, to a plan, to an artifact within its budget: the one-shot commands on a trained model.

// Helpers of tests fail as tests do.
#![allow(clippy::unwrap_used)]

use drophammer_e2e::{Home, fixture};
use serde_json::Value;

#[test]
fn a_budget_is_kept_explained_reused_and_loses_less_than_a_preset_of_its_size() {
    let home = Home::new(&[], "").unwrap();
    let path = |name: &str| home.path().join(name).to_string_lossy().into_owned();
    let source = fixture("shakespeare-llama").to_string_lossy().into_owned();
    // Statistics and sensitivities from the first part of the text, loss on the rest.
    let text = std::fs::read_to_string(fixture("shakespeare-llama/val.txt")).unwrap();
    std::fs::write(path("first.txt"), &text[..20_000]).unwrap();
    std::fs::write(path("rest.txt"), &text[60_000..]).unwrap();
    let run = |arguments: &[&str]| home.run(arguments).unwrap();
    let loss = |artifact: &str| {
        let arguments = ["eval", artifact, "--reference", &source, "--text", &path("rest.txt"), "--details"];
        home.json(&arguments).unwrap()
    };

    let answer = run(&["imatrix", &source, "-o", &path("own.gguf"), "--text", &path("first.txt")]);
    assert_eq!(answer.code, 0, "{answer:?}");
    let answer = run(&[
        "quantize",
        &source,
        "--scheme",
        "q2_k",
        "--imatrix",
        &path("own.gguf"),
        "-o",
        &path("preset.gguf"),
    ]);
    assert_eq!(answer.code, 0, "{answer:?}");
    let size = std::fs::metadata(path("preset.gguf")).unwrap().len();
    let budget = format!("{size}");
    let answer = run(&[
        "quantize",
        &source,
        "--budget",
        &budget,
        "--imatrix",
        &path("own.gguf"),
        "--text",
        &path("first.txt"),
        "-o",
        &path("chosen.gguf"),
    ]);
    assert_eq!(answer.code, 0, "{answer:?}");
    assert!(std::fs::metadata(path("chosen.gguf")).unwrap().len() <= size);
    let (preset, chosen) = (loss(&path("preset.gguf")), loss(&path("chosen.gguf")));
    let kl = |report: &Value| report["kl_mean"].as_f64().unwrap();
    assert!(kl(&chosen) < 0.75 * kl(&preset), "{} {}", kl(&chosen), kl(&preset));
    assert!(chosen["kl_median"].as_f64() <= chosen["kl_p99"].as_f64());
    assert!(chosen["kl_p99"].as_f64() <= chosen["kl_max"].as_f64());
    assert_eq!(chosen["positions"].as_array().unwrap().len(), 255);
    let tensors = chosen["tensors"].as_array().unwrap();
    assert_eq!(tensors.len(), 39);
    assert!(tensors.iter().all(|tensor| tensor["relative"].as_f64().unwrap() < 0.5));

    let plan: Value = serde_json::from_slice(&std::fs::read(path("chosen.plan.json")).unwrap()).unwrap();
    assert_eq!(
        plan["explained"].as_array().unwrap().len(),
        plan["plan"]["entries"].as_array().unwrap().len()
    );
    let again = run(&[
        "quantize",
        &source,
        "--plan",
        &path("chosen.plan.json"),
        "--imatrix",
        &path("own.gguf"),
        "-o",
        &path("again.gguf"),
    ]);
    assert_eq!(again.code, 0, "{again:?}");
    // The name of the file is in it.
    assert_eq!(
        std::fs::metadata(path("again.gguf")).unwrap().len(),
        std::fs::metadata(path("chosen.gguf")).unwrap().len()
    );
    for (budget, says) in [
        ("100KB", "the least possible is"),
        ("kl:1e-9", "the least possible is"),
        ("0.5bpw", "the least possible is"),
    ] {
        let answer = run(&[
            "quantize",
            &source,
            "--plan",
            &path("chosen.plan.json"),
            "--budget",
            budget,
            "-o",
            &path("none.gguf"),
        ]);
        assert!(answer.code == 1 && answer.stderr.contains(says), "{budget}: {answer:?}");
    }
    let answer = run(&["quantize", &source, "--budget", "three apples", "-o", &path("none.gguf")]);
    assert!(answer.code == 2 && answer.stderr.contains("3.2GB"), "{answer:?}");
    let other = fixture("arch/llama").to_string_lossy().into_owned();
    let answer = run(&[
        "quantize",
        &other,
        "--plan",
        &path("chosen.plan.json"),
        "-o",
        &path("none.gguf"),
        "--no-tokenizer",
    ]);
    assert!(answer.code == 2 && answer.stderr.contains("another model"), "{answer:?}");

    // Products of activations let rounding make up for its errors, on text that they were not collected from.
    let products = path("products.gguf");
    let answer = run(&["imatrix", &source, "-o", &products, "--text", &path("first.txt"), "--products"]);
    assert_eq!(answer.code, 0, "{answer:?}");
    let forge = |name: &str, more: &[&str]| {
        let arguments = ["quantize", &source, "--scheme", "q3_k_m", "--imatrix", &products, "-o", name];
        let answer = run(&[&arguments[..], more].concat());
        assert_eq!(answer.code, 0, "{answer:?}");
        kl(&loss(name))
    };
    let (plain, better) = (forge(&path("plain.gguf"), &[]), forge(&path("better.gguf"), &["--compensate"]));
    assert!(better < plain, "{better} {plain}");
    let answer = run(&["quantize", &source, "--scheme", "q4_0", "--compensate", "-o", &path("none.gguf")]);
    assert!(answer.code != 0 && answer.stderr.contains("--products"), "{answer:?}");
}
