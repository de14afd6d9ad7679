//! Bits spent where they count: statistics, rounding that makes up for its errors, and plans for a size.

// Whatever goes wrong in a test's own steps is its failure.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::fs;
use std::path::{Path, PathBuf};

use drophammer_e2e::daemon::Daemon;
use drophammer_e2e::{Answer, Home, fixture};
use serde_json::Value;

/// A home, and a text short enough for a test.
struct Place {
    home: Home,
    text: String,
}

impl Place {
    fn new() -> Self {
        let home = Home::new(&[], "").unwrap();
        let text = fs::read_to_string(fixture("shakespeare-llama/val.txt")).unwrap();
        let place = home.path().join("short.txt");
        fs::write(&place, &text[..4096]).unwrap();
        Self { home, text: place.to_str().unwrap().to_owned() }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.home.path().join(name)
    }

    /// Runs `COMMAND MODEL … -o NAME`.
    fn make(&self, command: &str, model: &Path, arguments: &[&str], name: &str) -> Answer {
        let (model, output) = (model.to_str().unwrap(), self.path(name));
        let all = [&[command, model], arguments, &["-o", output.to_str().unwrap()]].concat();
        self.home.run(&all).unwrap()
    }

    fn made(&self, command: &str, arguments: &[&str], name: &str) -> Answer {
        let answer = self.make(command, &model(), arguments, name);
        assert_eq!(answer.code, 0, "{arguments:?}: {answer:?}");
        answer
    }

    /// Refuses, with these words in what it says.
    fn refused(&self, model: &Path, arguments: &[&str], words: &[&str]) {
        let answer = self.make("quantize", model, arguments, "never.gguf");
        assert!(answer.code != 0 && !self.path("never.gguf").exists(), "{arguments:?}: {answer:?}");
        for word in words {
            assert!(answer.stderr.contains(word), "{arguments:?} does not say {word:?}: {answer:?}");
        }
    }

    /// Mean divergence from the source, nats.
    fn divergence(&self, name: &str) -> f64 {
        let (artifact, source) = (self.path(name), model());
        let (artifact, source) = (artifact.to_str().unwrap(), source.to_str().unwrap());
        let told = self.home.json(&["eval", artifact, "--reference", source, "--text", &self.text]).unwrap();
        told["kl_mean"].as_f64().unwrap()
    }
}

fn model() -> PathBuf {
    fixture("shakespeare-llama")
}

#[test]
fn a_budget_is_kept_explained_reusable_and_says_the_least_possible_where_it_cannot_be_met() {
    let place = Place::new();
    let types = ["--types", "q2_k,q3_k,q4_k,q6_k", "--text", &place.text];
    let answer = place.made("quantize", &[&["--budget", "2.2MB"], &types[..]].concat(), "b.gguf");
    assert!(answer.stdout.contains("expected mean KL divergence"), "{answer:?}");
    assert!(fs::metadata(place.path("b.gguf")).unwrap().len() <= 2_200_000);
    let plan: Value = serde_json::from_slice(&fs::read(place.path("b.plan.json")).unwrap()).unwrap();
    let (explained, entries) =
        (plan["explained"].as_array().unwrap(), plan["plan"]["entries"].as_array().unwrap());
    assert!(explained.len() == entries.len() && entries.len() >= 28, "{plan:#}");
    for (sentence, entry) in explained.iter().zip(entries) {
        let sentence = sentence.as_str().unwrap();
        assert!(
            sentence.starts_with(entry["name"].as_str().unwrap()) && sentence.contains("MiB"),
            "{sentence}"
        );
    }
    let measured = place.divergence("b.gguf");
    let expected = plan["expected_kl"].as_f64().unwrap();
    assert!(
        measured < 3.0 * expected && expected < 3.0 * measured,
        "{expected} expected, {measured} measured"
    );

    // The plan makes the same file again, and its measurements another one for another budget.
    let plan = place.path("b.plan.json");
    let plan = plan.to_str().unwrap();
    place.made("quantize", &["--plan", plan], "again.gguf");
    assert!(fs::read(place.path("again.gguf")).unwrap() == fs::read(place.path("b.gguf")).unwrap());
    place.made("quantize", &["--plan", plan, "--budget", "2.6MB"], "larger.gguf");
    let size = fs::metadata(place.path("larger.gguf")).unwrap().len();
    assert!(size > 2_200_000 && size <= 2_600_000, "{size}");
    assert!(place.divergence("larger.gguf") < measured);

    place.refused(
        &model(),
        &["--plan", plan, "--budget", "100kB"],
        &["100000 bytes", "least possible is", "MiB"],
    );
    place.refused(&model(), &["--plan", plan, "--budget", "kl:0.0000001"], &["least possible is"]);
    place.refused(&model(), &["--budget", "three apples"], &["is no budget"]);
    place.refused(&fixture("arch/llama"), &["--plan", plan], &["measured on another model"]);
}

#[test]
fn rounding_that_makes_up_for_its_errors_needs_products_of_this_model_and_comes_nearer() {
    let place = Place::new();
    let collected = place.made("imatrix", &["--products", "--text", &place.text], "products.gguf");
    assert!(collected.stderr.contains("products of 30 matrices take"), "said beforehand: {collected:?}");
    place.made("imatrix", &["--text", &place.text], "plain.gguf");
    let [products, plain] = ["products.gguf", "plain.gguf"].map(|name| place.path(name));
    let [products, plain] = [&products, &plain].map(|path| path.to_str().unwrap());

    let scheme = ["--scheme", "q3_k_m", "--imatrix"];
    let with = |more: &[&'static str]| [&scheme[..], &[products], more].concat();
    place.made("quantize", &with(&[]), "q.gguf");
    place.made("quantize", &with(&["--compensate"]), "c.gguf");
    let (before, after) = (place.divergence("q.gguf"), place.divergence("c.gguf"));
    assert!(after < 0.95 * before, "{after} of {before}");
    place.made("convert", &[&["--to", "gguf"], &with(&["--compensate"])[..]].concat(), "same.gguf");
    assert!(fs::read(place.path("same.gguf")).unwrap() == fs::read(place.path("c.gguf")).unwrap());
    // Scaled columns compute the same before they are rounded, and may come along.
    let scaled = place.made("quantize", &with(&["--compensate", "--awq"]), "s.gguf");
    assert!(scaled.stderr.contains("columns are scaled in"), "{scaled:?}");
    assert!(place.divergence("s.gguf") < before);

    let (this, other) = (model(), fixture("arch/llama"));
    place.refused(
        &this,
        &["--scheme", "q4_k_m", "--compensate"],
        &["there is no imatrix", "imatrix SOURCE --products"],
    );
    place.refused(&this, &["--scheme", "q4_k_m", "--awq"], &["importance matrix", "drophammer imatrix"]);
    let lacking = [&scheme[..], &[plain, "--compensate"]].concat();
    place.refused(&this, &lacking, &["holds no products", "imatrix SOURCE --products"]);
    place.refused(&other, &[&with(&["--compensate"])[..], &["--no-tokenizer"]].concat(), &["another model"]);
}

#[test]
fn statistics_are_collected_first_where_that_is_asked_for() {
    let place = Place::new();
    let made = |more: &[&'static str], name: &str| {
        place.made("quantize", &[&["--scheme", "int4_sym_g64", "--to", "openvino"], more].concat(), name);
        fs::read(place.path(name).join("openvino_model.bin")).unwrap()
    };
    // Who makes the artifact need not be able to run its source.
    let automatic = made(&["--auto-imatrix", "--backend", "openvino"], "automatic");
    assert!(automatic != made(&[], "without"));
    let both = ["--scheme", "q4_k_m", "--auto-imatrix", "--imatrix", "own.gguf"];
    place.refused(&model(), &both, &["cannot be used with"]);
}

#[test]
fn a_target_that_calibrates_is_made_with_statistics_as_by_hand() {
    let home = Home::new(
        &[],
        "[serve]\nport = 0\n[targets]\ndefault = [\"blind\", \"gguf-q2_k\", \"made-up-for\"]\n",
    );
    let home = home.unwrap();
    fs::create_dir(home.path().join("targets")).unwrap();
    let blind = "[[target]]\nname = \"blind\"\nformat = \"gguf\"\nscheme = \"q2_k\"\n";
    let more = blind.replace("blind", "made-up-for") + "calibrate = true\noptions = { compensate = true }\n";
    fs::write(home.path().join("targets/mine.toml"), format!("{blind}{more}")).unwrap();
    let source = model().display().to_string();
    // Types that go astray without statistics say so, unless there will be some.
    let few = blind.replace("blind", "few").replace("q2_k", "iq3_xxs");
    fs::write(home.path().join("targets/few.toml"), few).unwrap();
    let plan = home.json(&["plan", &source, "--target", "gguf-iq3_xxs", "--target", "few"]).unwrap();
    let told = |at: usize, key: &str| plan["targets"][at][key].to_string();
    assert!(told(0, "steps").contains("collect statistics"), "{plan:#}");
    assert!(!told(0, "reason").contains("poor") && told(1, "reason").contains("poor"), "{plan:#}");
    let by_hand = home.path().join("by-hand.gguf");
    let arguments =
        ["quantize", &source, "--scheme", "q2_k", "--auto-imatrix", "-o", by_hand.to_str().unwrap()];
    assert_eq!(home.run(&arguments).unwrap().code, 0);

    let daemon = Daemon::start(home).unwrap();
    daemon.drop_in(&model(), "shakespeare-llama").unwrap();
    let made = daemon.wait_for_model("shakespeare-llama", "ready").unwrap();
    let artifact = |target: &str| {
        made["artifacts"].as_array().unwrap().iter().find(|it| it["target"] == target).unwrap().clone()
    };
    let kl = |target: &str| artifact(target)["measurements"]["kl_mean"].as_f64().unwrap();
    assert!(kl("gguf-q2_k") < kl("blind") && kl("made-up-for") < kl("gguf-q2_k"), "{made:#}");
    let path = artifact("gguf-q2_k")["path"].as_str().unwrap().to_owned();
    assert!(fs::read(path).unwrap() == fs::read(&by_hand).unwrap(), "the daemon made something else");
    let left = fs::read_dir(daemon.home.path().join("staging")).unwrap().count();
    assert_eq!(left, 0, "statistics stay behind");
}
