//! Damaged and malicious files: each yields an error that names what is wrong, none a panic or a huge allocation.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::fs;
use std::path::{Path, PathBuf};

use drophammer_formats::gguf::{self, Array, Metadata, Value};
use drophammer_formats::settle::{Missing, completeness};
use drophammer_formats::{DType, Error, Source, TensorDecl, safetensors};
use proptest::prelude::*;

/// A safetensors file with this header text and so many bytes of data.
fn safetensors_file(header: &str, data: usize) -> Vec<u8> {
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend(header.as_bytes());
    file.resize(file.len() + data, 7);
    file
}

/// The beginning of a GGUF file.
fn gguf_head(version: u32, tensors: u64, keys: u64) -> Vec<u8> {
    let mut file = b"GGUF".to_vec();
    file.extend(version.to_le_bytes());
    file.extend(tensors.to_le_bytes());
    file.extend(keys.to_le_bytes());
    file
}

fn string(text: &str) -> Vec<u8> {
    [&(text.len() as u64).to_le_bytes()[..], text.as_bytes()].concat()
}

fn entry(key: &str, kind: u32, value: &[u8]) -> Vec<u8> {
    [&string(key)[..], &kind.to_le_bytes(), value].concat()
}

fn info(name: &str, dimensions: &[u64], kind: u32, offset: u64) -> Vec<u8> {
    let mut out = string(name);
    out.extend((dimensions.len() as u32).to_le_bytes());
    out.extend(dimensions.iter().flat_map(|dimension| dimension.to_le_bytes()));
    out.extend(kind.to_le_bytes());
    out.extend(offset.to_le_bytes());
    out
}

/// A GGUF file of these entries, tensor infos and bytes of data.
fn gguf_file(entries: &[Vec<u8>], infos: &[Vec<u8>], data: usize) -> Vec<u8> {
    let mut file = gguf_head(3, infos.len() as u64, entries.len() as u64);
    file.extend(entries.concat());
    file.extend(infos.concat());
    file.resize(file.len().next_multiple_of(32) + data, 7);
    file
}

fn open_bytes(name: &str, bytes: &[u8]) -> Result<Source, Error> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(name);
    fs::write(&path, bytes).unwrap();
    Source::open(path)
}

/// Opening fails with these words, and the error names the file and a way out.
fn assert_refused(name: &str, bytes: &[u8], words: &str) {
    let error = open_bytes(name, bytes).expect_err(words);
    let message = error.to_string();
    assert!(message.contains(words), "{message:?} does not say {words:?}");
    assert!(message.contains(name), "{message:?} does not name the file");
    assert!(!error.help().is_empty());
}

#[test]
fn each_broken_safetensors_file_is_refused_with_the_reason() {
    let big = u64::MAX.to_string();
    let one = |entry: &str| format!(r#"{{"a":{entry}}}"#);
    let table: &[(Vec<u8>, &str)] = &[
        (vec![], "ends at byte 0"),
        (vec![1, 2, 3], "the header length"),
        (u64::MAX.to_le_bytes().to_vec(), "claims 18446744073709551615 bytes"),
        (1000u64.to_le_bytes().to_vec(), "needs 1000 bytes"),
        (safetensors_file("", 0), "not valid"),
        (safetensors_file("[]", 0), "not valid"),
        (safetensors_file("{\"a\":", 0), "not valid"),
        (safetensors_file(&"[".repeat(10_000), 0), "not valid"),
        (safetensors_file(&one(r#"{"dtype":"F32","shape":[1]}"#), 4), "data_offsets"),
        (safetensors_file(&one(r#"{"dtype":"F32","shape":[-1],"data_offsets":[0,4]}"#), 4), "not valid"),
        (
            safetensors_file(&one(r#"{"dtype":"F31","shape":[1],"data_offsets":[0,4]}"#), 4),
            "unknown type F31",
        ),
        (safetensors_file(&one(r#"{"dtype":"F32","shape":[2],"data_offsets":[0,4]}"#), 4), "takes 8 bytes"),
        (
            safetensors_file(&one(r#"{"dtype":"F32","shape":[1],"data_offsets":[4,0]}"#), 4),
            "before they begin",
        ),
        (safetensors_file(&one(r#"{"dtype":"F32","shape":[2],"data_offsets":[0,8]}"#), 4), "the file ends"),
        (
            safetensors_file(&one(r#"{"dtype":"F32","shape":[1],"data_offsets":[0,4]}"#), 9),
            "belong to no tensor",
        ),
        (
            safetensors_file(&one(r#"{"dtype":"F32","shape":[1],"data_offsets":[4,8]}"#), 8),
            "belong to no tensor",
        ),
        (
            safetensors_file(
                &one(&format!(r#"{{"dtype":"F32","shape":[{big},{big}],"data_offsets":[0,4]}}"#)),
                4,
            ),
            "64 bits",
        ),
        (
            safetensors_file(
                &one(&format!(r#"{{"dtype":"F32","shape":[{big},{big},0],"data_offsets":[0,0]}}"#)),
                0,
            ),
            "64 bits",
        ),
        (
            safetensors_file(
                &one(&format!(r#"{{"dtype":"U8","shape":[1],"data_offsets":[{big},{big}]}}"#)),
                4,
            ),
            "the file ends",
        ),
        (
            safetensors_file(
                &one(&format!(r#"{{"dtype":"U8","shape":[{}1],"data_offsets":[0,1]}}"#, "1,".repeat(5000))),
                1,
            ),
            "5001 dimensions",
        ),
        (
            safetensors_file(
                r#"{"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]},"a":{"dtype":"U8","shape":[2],"data_offsets":[2,4]}}"#,
                4,
            ),
            "`a` appears twice",
        ),
        (
            safetensors_file(
                r#"{"a":{"dtype":"U8","shape":[3],"data_offsets":[0,3]},"b":{"dtype":"U8","shape":[3],"data_offsets":[1,4]}}"#,
                4,
            ),
            "`a` and `b` overlap",
        ),
        (safetensors_file(r#"{"__metadata__":{"x":"1","x":"2"}}"#, 0), "`x` appears twice"),
        (safetensors_file(r#"{"__metadata__":{"x":{}}}"#, 0), "is not a string"),
        (safetensors_file(r#"{"__metadata__":{},"__metadata__":{}}"#, 0), "appears twice"),
    ];
    for (bytes, words) in table {
        assert_refused("model.safetensors", bytes, words);
    }
}

#[test]
fn each_broken_gguf_file_is_refused_with_the_reason() {
    let f32_row = |name: &str, offset| info(name, &[8], 0, offset);
    let with_infos = |infos: &[Vec<u8>], data| gguf_file(&[], infos, data);
    let with_entries = |entries: &[Vec<u8>]| gguf_file(entries, &[], 0);
    let array = |kind: u32, count: u64| [&kind.to_le_bytes()[..], &count.to_le_bytes()].concat();
    let nested = (0..9).map(|_| array(9, 1)).collect::<Vec<_>>().concat();
    let table: &[(Vec<u8>, &str)] = &[
        (vec![], "the magic number"),
        (b"GGU".to_vec(), "the magic number"),
        (b"tjgg....".to_vec(), "before GGUF"),
        (b"version https://git-lfs.github.com/spec/v1".to_vec(), "Git LFS pointer"),
        (b"PK\x03\x04....".to_vec(), "not a GGUF file"),
        (gguf_head(1, 0, 0), "version 1 is not supported"),
        (gguf_head(9, 0, 0), "version 9 is not supported"),
        (gguf_head(3u32.swap_bytes(), 0, 0), "big-endian"),
        (gguf_head(3, 1_000_000_000_000, 0), "claims 1000000000000 tensors"),
        (gguf_head(3, 0, 1_000_000_000_000), "claims 1000000000000 metadata entries"),
        (gguf_head(3, u64::MAX, u64::MAX), "tensors"),
        (with_entries(&[entry("a", 13, &[0; 8])]), "unknown type 13"),
        (with_entries(&[entry("a", 7, &[2])]), "no truth value"),
        (with_entries(&[entry("a", 0, &[1]), entry("a", 0, &[1])]), "`a` appears twice"),
        (with_entries(&[entry("a", 8, &u64::MAX.to_le_bytes())]), "the file ends"),
        (with_entries(&[entry("a", 9, &array(4, u64::MAX))]), "array elements"),
        (with_entries(&[entry("a", 9, &array(4, 1_000_000))]), "a metadata array"),
        (with_entries(&[entry("a", 9, &array(77, 0))]), "unknown type 77"),
        (with_entries(&[entry("a", 9, &nested)]), "nested more than 8"),
        (with_entries(&[entry("general.alignment", 4, &3u32.to_le_bytes())]), "power of two"),
        (with_entries(&[entry("general.alignment", 8, &string("32"))]), "power of two"),
        (with_entries(&[[&2u64.to_le_bytes()[..], b"\xff\xfe", &[0, 0, 0, 0, 1]].concat()]), "not UTF-8"),
        (with_infos(&[f32_row("t", 0), f32_row("t", 32)], 64), "`t` appears twice"),
        (with_infos(&[f32_row("a", 0), f32_row("b", 0)], 64), "overlap"),
        (with_infos(&[f32_row("a", 0), f32_row("b", 32)], 63), "the file ends"),
        (with_infos(&[f32_row("a", 16)], 64), "not a multiple of the alignment"),
        (with_infos(&[f32_row("a", !31)], 64), "the file ends"),
        (with_infos(&[info("a", &[8], 4, 0)], 64), "q4_2"),
        (with_infos(&[info("a", &[8], 250, 0)], 64), "ggml type 250"),
        (with_infos(&[info("a", &[33], 2, 0)], 64), "whole q4_0 blocks"),
        (with_infos(&[info("a", &[1, 1, 1, 1, 1], 0, 0)], 64), "5 dimensions"),
        (with_infos(&[info("a", &[u64::MAX, 2], 0, 0)], 64), "64 bits"),
        (with_infos(&[info("a", &[1 << 62], 0, 0)], 64), "64 bits"),
        (
            gguf_file(&[entry("split.no", 2, &[0, 0]), entry("split.count", 2, &[3, 0])], &[], 0),
            "part 1 of 3",
        ),
    ];
    for (bytes, words) in table {
        assert_refused("model.gguf", bytes, words);
    }
}

fn small_safetensors(path: &Path) -> Vec<u8> {
    let data = [3u8; 24];
    let a = TensorDecl::new("a", DType::F16, [2, 3]);
    let b = TensorDecl::new("b", DType::F32, [3]);
    safetensors::write(path, &[(a, &data[..12]), (b, &data[..12])], &[("format", "pt")]).unwrap();
    fs::read(path).unwrap()
}

fn small_gguf(path: &Path) -> Vec<u8> {
    let mut metadata = Metadata::new();
    metadata.set("general.architecture", "llama");
    metadata.set("tokens", vec!["a".to_owned(), "b".to_owned()]);
    metadata.set("nested", Value::Array(Array::Array(vec![Array::U16(vec![1, 2]), Array::Bool(vec![true])])));
    let data = [5u8; 64];
    let a = TensorDecl::new("a", DType::F32, [2, 8]);
    let b = TensorDecl::new("b", DType::F32, [16]);
    gguf::write(path, &metadata, &[(a, &data), (b, &data)]).unwrap();
    fs::read(path).unwrap()
}

#[test]
fn a_file_cut_at_any_byte_is_refused_and_known_to_be_unfinished() {
    let dir = tempfile::tempdir().unwrap();
    for (name, make) in [("m.safetensors", small_safetensors as fn(&Path) -> Vec<u8>), ("m.gguf", small_gguf)]
    {
        let path = dir.path().join(name);
        let whole = make(&path);
        assert!(Source::open(&path).is_ok());
        assert_eq!(completeness(&path).unwrap(), []);
        for len in 0..whole.len() {
            fs::write(&path, &whole[..len]).unwrap();
            let error = Source::open(&path).expect_err("a cut file");
            assert!(matches!(error, Error::Malformed { .. }), "{name} cut at {len}: {error}");
            let missing = completeness(&path).unwrap();
            assert!(matches!(missing[..], [Missing::Bytes { .. }]), "{name} cut at {len}: {missing:?}");
        }
    }
}

#[test]
fn a_flipped_bit_never_panics_and_tensors_stay_inside_the_file() {
    let dir = tempfile::tempdir().unwrap();
    for (name, make) in [("m.safetensors", small_safetensors as fn(&Path) -> Vec<u8>), ("m.gguf", small_gguf)]
    {
        let path = dir.path().join(name);
        let mut bytes = make(&path);
        for bit in 0..bytes.len() * 8 {
            bytes[bit / 8] ^= 1 << (bit % 8);
            fs::write(&path, &bytes).unwrap();
            if let Ok(source) = Source::open(&path) {
                for tensor in source.tensors() {
                    assert_eq!(source.bytes(tensor).len() as u64, tensor.byte_len());
                }
            }
            bytes[bit / 8] ^= 1 << (bit % 8);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn arbitrary_bytes_never_panic_the_parsers(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        let _ = safetensors::parse(&bytes);
        let _ = safetensors::parse_header(&bytes, 1 << 20);
        let _ = safetensors::parse_index(&bytes);
        let _ = gguf::parse(&bytes, bytes.len() as u64);
        let mut with_magic = gguf_head(3, u64::from(bytes.first().copied().unwrap_or(0) % 4), 2);
        with_magic.extend(&bytes);
        let _ = gguf::parse(&with_magic, with_magic.len() as u64);
    }

}

proptest! {
    // Each case writes and flushes two files.
    #![proptest_config(ProptestConfig::with_cases(100))]

    #[test]
    fn what_is_written_reads_back(
        tensors in prop::collection::btree_map("[a-z.]{1,12}", (0usize..6, prop::collection::vec(0u64..5, 0..4)), 0..8),
        strings in prop::collection::btree_map(".{0,8}", ".{0,20}", 0..5),
    ) {
        const TYPES: [DType; 6] = [DType::F32, DType::F16, DType::BF16, DType::I8, DType::I64, DType::F64];
        let decls: Vec<TensorDecl> =
            tensors.into_iter().map(|(name, (t, shape))| TensorDecl::new(name, TYPES[t], shape)).collect();
        let datas: Vec<Vec<u8>> = decls
            .iter()
            .enumerate()
            .map(|(i, decl)| vec![i as u8 + 1; decl.byte_len().unwrap() as usize])
            .collect();
        let tensors: Vec<(TensorDecl, &[u8])> = decls.iter().cloned().zip(datas.iter().map(Vec::as_slice)).collect();
        let dir = tempfile::tempdir().unwrap();

        let path = dir.path().join("m.safetensors");
        let annotations: Vec<(&str, &str)> = strings.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
        safetensors::write(&path, &tensors, &annotations).unwrap();
        let source = Source::open(&path).unwrap();
        let read: Vec<(&str, &str)> = source.annotations().iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
        prop_assert_eq!(read, annotations);
        for (decl, data) in &tensors {
            let tensor = source.tensor(&decl.name).unwrap();
            prop_assert_eq!(&tensor.decl(), decl);
            prop_assert_eq!(source.bytes(tensor), *data);
        }

        let path = dir.path().join("m.gguf");
        let mut metadata = Metadata::new();
        for (key, value) in &strings {
            metadata.set(key, value.as_str());
        }
        gguf::write(&path, &metadata, &tensors).unwrap();
        let source = Source::open(&path).unwrap();
        prop_assert_eq!(source.metadata(), &metadata);
        for (decl, data) in &tensors {
            let tensor = source.tensor(&decl.name).unwrap();
            prop_assert_eq!(&tensor.decl(), decl);
            prop_assert_eq!(source.bytes(tensor), *data);
        }
    }
}

/// Names and contents of a directory's files.
type Files<'a> = &'a [(&'a str, &'a [u8])];

/// A directory with these files.
fn directory(files: Files<'_>) -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    for (name, content) in files {
        fs::write(dir.path().join(name), content).unwrap();
    }
    let path = dir.path().to_owned();
    (dir, path)
}

#[test]
fn what_is_not_a_model_is_told_precisely() {
    let empty = safetensors_file("{}", 0);
    let index = |shard: &str| format!(r#"{{"weight_map":{{"a":"{shard}"}}}}"#).into_bytes();
    let (missing, escaping) = (index("model-00001-of-00002.safetensors"), index("../../etc/passwd"));
    let table: &[(Files<'_>, &str)] = &[
        (&[], "an empty directory"),
        (&[("notes.txt", b"x")], "without config.json"),
        (&[("config.json", b"{}")], "but no weights"),
        (&[("model.safetensors", &empty)], "without config.json"),
        (&[("config.json", b"{}"), ("pytorch_model.bin", b"x")], "Python pickle"),
        (&[("config.json", b"{}"), ("tf_model.h5", b"x")], "no weights"),
        (&[("config.json", b"{"), ("model.safetensors", &empty)], "not valid"),
        (&[("m.xml", b"<net/>"), ("m.bin", b"x")], "an OpenVINO model"),
        (&[("a.gguf", b""), ("b.gguf", b"")], "several models: a.gguf, b.gguf"),
        (&[("config.json", b"{}"), ("a.safetensors", &empty), ("b.safetensors", &empty)], "several models"),
        (
            &[("config.json", b"{}"), ("model-00001-of-00002.safetensors", &empty)],
            "missing model-00002-of-00002.safetensors",
        ),
        (
            &[("config.json", b"{}"), ("model.safetensors.index.json", &missing)],
            "missing model-00001-of-00002.safetensors",
        ),
        (
            &[("config.json", b"{}"), ("model.safetensors.index.json", &escaping)],
            "not a plain path inside its directory",
        ),
        (
            &[
                ("config.json", b"{}"),
                ("model.safetensors.index.json", &missing),
                ("model-00001-of-00002.safetensors", &empty),
            ],
            "which does not hold it",
        ),
        (&[("adapter_config.json", b"{}")], "missing adapter_model.safetensors"),
        (&[("adapter_config.json", b"{}"), ("adapter_model.bin", b"x")], "Python pickle"),
        (&[("m-00001-of-00002.gguf", b"x")], "missing m-00002-of-00002.gguf"),
    ];
    for (files, words) in table {
        let (_dir, path) = directory(files);
        let error = Source::open(&path).expect_err(words);
        assert!(error.to_string().contains(words), "{error} does not say {words:?}");
        assert!(!error.help().is_empty());
    }
    assert!(matches!(Source::open("/no/such/path"), Err(Error::Io { .. })));
}

#[test]
fn a_download_is_complete_only_when_nothing_partial_or_missing_remains() {
    let whole = safetensors_file(r#"{"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]}}"#, 4);
    let growing = &whole[..whole.len() - 1];
    let index = br#"{"weight_map":{"a":"s-00001-of-00002.safetensors","b":"s-00002-of-00002.safetensors"}}"#;
    let table: &[(Files<'_>, &[&str])] = &[
        (&[("config.json", b"{}"), ("model.safetensors", &whole)], &[]),
        (&[("config.json", b"{}"), ("model.safetensors", growing)], &["bytes"]),
        (&[("model.safetensors", &whole)], &["config.json is missing"]),
        (&[("config.json", b"{}")], &["*.safetensors is missing"]),
        (
            &[("config.json", b"{}"), ("model.safetensors", &whole), ("tokenizer.json.incomplete", b"")],
            &["still being downloaded"],
        ),
        (&[("config.json", b"{}"), ("x.crdownload", b"")], &["still being downloaded", "*.safetensors"]),
        (&[("config.json", b"{}"), ("model.safetensors.index.json", b"{\"weight_m")], &["bytes"]),
        (
            &[
                ("config.json", b"{}"),
                ("model.safetensors.index.json", index),
                ("s-00001-of-00002.safetensors", &whole),
            ],
            &["s-00002-of-00002.safetensors is missing"],
        ),
    ];
    for (files, expected) in table {
        let (_dir, path) = directory(files);
        let missing: Vec<String> = completeness(&path).unwrap().iter().map(ToString::to_string).collect();
        assert_eq!(missing.len(), expected.len(), "{missing:?}");
        assert!(missing.iter().zip(*expected).all(|(m, e)| m.contains(e)), "{missing:?}");
    }
    let (_dir, path) = directory(&[("m.gguf.part", b""), ("m.gguf", b"GGUF"), ("other.tmp", b"")]);
    let missing = completeness(&path.join("m.gguf")).unwrap();
    assert!(matches!(missing[..], [Missing::PartialDownload { .. }, Missing::Bytes { .. }]), "{missing:?}");
    assert!(completeness(Path::new("/no/such/path")).is_err());
}

#[test]
fn mlx_directories_adapters_and_single_files_are_told_apart() {
    let whole = safetensors_file(r#"{"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]}}"#, 4);
    let mlx = br#"{"quantization":{"group_size":64,"bits":4}}"#;
    let (_a, mlx) = directory(&[("config.json", mlx), ("model.safetensors", &whole)]);
    assert_eq!(Source::open(mlx).unwrap().kind().name(), "mlx");
    let (_b, lora) =
        directory(&[("adapter_config.json", b"{\"r\":8}"), ("adapter_model.safetensors", &whole)]);
    let lora = Source::open(lora).unwrap();
    assert_eq!((lora.kind().name(), &lora.config().unwrap()["r"]), ("lora", &8.into()));
    let (_c, single) = directory(&[("weights.safetensors", &whole)]);
    let single = Source::open(single.join("weights.safetensors")).unwrap();
    assert_eq!((single.kind().name(), single.config()), ("safetensors", None));
}
