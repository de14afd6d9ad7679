//! What lies beside the graph and its weights: configuration, tokenizer, chat template, the Model Server's graph.

use drophammer_forge::failure;
use drophammer_infer::{Tokenizer, tokenizer::TokenizerError};
use drophammer_models::Checkpoint;
use drophammer_models::description::ModelKind;
use drophammer_sdk::{BackendError, ErrorCode, Result};
use serde_json::{Map, Value as Json, json};

use crate::tokenizer::{self, Graphs};

/// Files by name.
type Files = Vec<(String, Vec<u8>)>;

/// Everything but the model itself.
///
/// # Errors
/// Sources without a tokenizer, unless that is allowed; tokenizers that cannot be read.
pub(crate) fn files(checkpoint: &Checkpoint, no_tokenizer: bool, notes: &mut Vec<String>) -> Result<Files> {
    let source = checkpoint.source();
    let config =
        checkpoint.hugging_face_config().map_err(|error| failure::of_model(source.root(), &error))?;
    let mut files = vec![("config.json".to_owned(), document(&config)?)];
    if checkpoint.description().kind == ModelKind::Decoder {
        files.push(("graph.pbtxt".to_owned(), SERVER_GRAPH.as_bytes().to_vec()));
    }
    if !checkpoint.has_tokenizer() {
        if no_tokenizer {
            return Ok(files);
        }
        let message = format!("{}: has no tokenizer", source.root().display());
        return Err(BackendError::new(ErrorCode::InvalidInput, message)
            .with_help("Put its tokenizer.json beside the weights, or convert with --no-tokenizer."));
    }
    let tokenizer = Tokenizer::from_source(source).map_err(|error| of_tokenizer(&error))?;
    files.push(("generation_config.json".to_owned(), generation_config(checkpoint, &tokenizer)?));
    let rules = match &source.tokenizer().tokenizer_json {
        Some(path) => std::fs::read(path).map_err(|error| unreadable(path, &error))?,
        None => tokenizer.to_json().map_err(|error| of_tokenizer(&error))?.into_bytes(),
    };
    for (name, path) in source.tokenizer().iter().filter(|(name, _)| *name != "tokenizer.json") {
        files.push((name.to_owned(), std::fs::read(path).map_err(|error| unreadable(path, &error))?));
    }
    if source.tokenizer().tokenizer_config.is_none() {
        files.push(("tokenizer_config.json".to_owned(), tokenizer_config(checkpoint, &tokenizer)?));
    }
    // Generation goes on at the right end of a row.
    let pad_left = checkpoint.description().kind == ModelKind::Decoder;
    match tokenizer::graphs(&rules, &tokenizer, chat_template(&files), pad_left) {
        Ok(Graphs { tokenizer, detokenizer }) => {
            for (name, graph) in [("openvino_tokenizer", tokenizer), ("openvino_detokenizer", detokenizer)] {
                files.push((format!("{name}.xml"), graph.xml.into_bytes()));
                files.push((format!("{name}.bin"), graph.bytes));
            }
        }
        Err(why) => notes.push(format!("OpenVINO's own programs find no tokenizer in it: {why}")),
    }
    files.push(("tokenizer.json".to_owned(), rules));
    Ok(files)
}

fn of_tokenizer(error: &TokenizerError) -> BackendError {
    BackendError::new(ErrorCode::InvalidInput, error.to_string())
        .with_help("Check the tokenizer's files, or convert with --no-tokenizer.")
}

fn unreadable(path: &std::path::Path, error: &std::io::Error) -> BackendError {
    BackendError::new(ErrorCode::Failed, format!("{}: {error}", path.display()))
        .with_help("Check its permissions.")
}

fn document(value: &Json) -> Result<Vec<u8>> {
    serde_json::to_vec_pretty(value).map_err(|error| BackendError::new(ErrorCode::Failed, error.to_string()))
}

/// The source's own, with every token that ends generation; or that alone.
fn generation_config(checkpoint: &Checkpoint, tokenizer: &Tokenizer) -> Result<Vec<u8>> {
    let mut config = match checkpoint.source().generation_config() {
        Some(Json::Object(config)) => config.clone(),
        _ => Map::new(),
    };
    let special = tokenizer.special();
    for (key, token) in
        [("bos_token_id", special.bos), ("eos_token_id", special.eos), ("pad_token_id", special.padding)]
    {
        if let (Some(token), false) = (token, config.contains_key(key)) {
            config.insert(key.to_owned(), token.into());
        }
    }
    let ends = &special.end_of_generation;
    if !ends.is_empty() {
        config.insert(
            "eos_token_id".to_owned(),
            if let [end] = ends.as_slice() { json!(end) } else { json!(ends) },
        );
    }
    document(&Json::Object(config))
}

/// For sources that keep it elsewhere: special tokens and the chat template.
fn tokenizer_config(checkpoint: &Checkpoint, tokenizer: &Tokenizer) -> Result<Vec<u8>> {
    let special = tokenizer.special();
    let mut config = Map::new();
    config.insert("tokenizer_class".to_owned(), "PreTrainedTokenizerFast".into());
    config.insert("clean_up_tokenization_spaces".to_owned(), false.into());
    for (key, token) in [
        ("bos_token", special.bos),
        ("eos_token", special.eos),
        ("unk_token", special.unknown),
        ("pad_token", special.padding),
    ] {
        if let Some(name) = token.and_then(|token| tokenizer.token_name(token)) {
            config.insert(key.to_owned(), name.into());
        }
    }
    if let Some(template) = checkpoint.source().metadata().str("tokenizer.chat_template") {
        config.insert("chat_template".to_owned(), template.into());
    }
    document(&Json::Object(config))
}

/// The chat template among files.
fn chat_template(files: &Files) -> Option<String> {
    let file = |name: &str| files.iter().find(|(known, _)| known == name).map(|(_, bytes)| bytes);
    if let Some(bytes) = file("chat_template.jinja") {
        return String::from_utf8(bytes.clone()).ok();
    }
    let config: Json = serde_json::from_slice(file("tokenizer_config.json")?).ok()?;
    config.get("chat_template")?.as_str().map(str::to_owned)
}

/// How the Model Server runs the directory it lies in.
const SERVER_GRAPH: &str = r#"input_stream: "HTTP_REQUEST_PAYLOAD:input"
output_stream: "HTTP_RESPONSE_PAYLOAD:output"

node: {
  name: "LLMExecutor"
  calculator: "HttpLLMCalculator"
  input_stream: "LOOPBACK:loopback"
  input_stream: "HTTP_REQUEST_PAYLOAD:input"
  input_side_packet: "LLM_NODE_RESOURCES:llm"
  output_stream: "LOOPBACK:loopback"
  output_stream: "HTTP_RESPONSE_PAYLOAD:output"
  input_stream_info: {
    tag_index: "LOOPBACK:0",
    back_edge: true
  }
  node_options: {
    [type.googleapis.com / mediapipe.LLMCalculatorOptions]: {
      models_path: "./"
      device: "CPU"
      cache_size: 0
      max_num_seqs: 256
      enable_prefix_caching: true
    }
  }
  input_stream_handler {
    input_stream_handler: "SyncSetInputStreamHandler",
    options {
      [mediapipe.SyncSetInputStreamHandlerOptions.ext] {
        sync_set {
          tag_index: "LOOPBACK:0"
        }
      }
    }
  }
}
"#;
