//! `tokenizer.json` and the files that say what its special tokens mean.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read as _;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use drophammer_formats::TokenizerFiles;
use drophammer_formats::source::read_json;
use serde_json::Value as Json;

use super::error::{Problem, TokenizerError};
use super::pieces::{Entry, Pieces, Rules};
use super::{Frame, Result, SpecialTokens, Tokenizer, gguf, sentencepiece};

/// The largest vocabularies take about 40 MB.
const MAX_TOKENIZER: u64 = 512 << 20;

/// Reads the tokenizer files of a model at `root`.
pub(super) fn open(
    files: &TokenizerFiles,
    root: &Path,
    config: Option<&Json>,
    generation_config: Option<&Json>,
) -> Result<Tokenizer> {
    let Some(path) = &files.tokenizer_json else {
        return open_sentencepiece(files, root);
    };
    let bytes = read_bounded(path)?;
    let tokenizer_config = files.tokenizer_config.as_deref().map(read_json).transpose()?;
    let special_tokens_map = files.special_tokens_map.as_deref().map(read_json).transpose()?;
    let named = [tokenizer_config.as_ref(), special_tokens_map.as_ref()];
    let numbered = [generation_config, config];
    parse(&bytes, &named, &numbered).map_err(|problem| problem.at(path))
}

/// Without a `tokenizer.json`, a SentencePiece model will do.
fn open_sentencepiece(files: &TokenizerFiles, root: &Path) -> Result<Tokenizer> {
    let models = [&files.tokenizer_model, &files.spiece_model, &files.sentencepiece_model];
    let Some(path) = models.into_iter().flatten().next() else {
        return Err(missing(files, root));
    };
    let added = match &files.added_tokens {
        None => BTreeMap::new(),
        Some(path) => {
            let json = read_json(path)?;
            let entries = json.as_object().into_iter().flatten();
            entries.filter_map(|(text, id)| Some((u32::try_from(id.as_u64()?).ok()?, text.clone()))).collect()
        }
    };
    let metadata = sentencepiece::to_metadata(&read_bounded(path)?, &added);
    metadata.and_then(|metadata| gguf::build(&metadata)).map_err(|problem| problem.at(path))
}

/// `named` documents give special tokens by their text, `numbered` ones by id; earlier documents count more.
fn parse(bytes: &[u8], named: &[Option<&Json>], numbered: &[Option<&Json>]) -> Result<Tokenizer, Problem> {
    // The library indexes where it should check; a panic on a hostile file must not reach the caller.
    let inner = catch_unwind(AssertUnwindSafe(|| tokenizers::Tokenizer::from_bytes(bytes)))
        .map_err(|_| Problem::broken("its entries contradict each other"))?
        .map_err(|e| Problem::broken(e.to_string()))?;
    let vocabulary = inner.get_vocab(true);
    let added = inner.get_added_tokens_decoder();
    let rules = Rules::of(inner.get_decoder());
    let own = vocabulary.iter().map(|(name, &id)| Entry { id, name, literal: false, special: false });
    let added = added.iter().map(|(&id, token)| Entry {
        id,
        name: &token.content,
        literal: true,
        special: token.special,
    });
    let entries = own.chain(added);
    let pieces = Pieces::new(&rules, vocabulary.len(), entries)?;
    let role = |name: &str| {
        let by_name =
            named.iter().flatten().find_map(|document| inner.token_to_id(content(document.get(name)?)?));
        let by_id = || numbered.iter().flatten().find_map(|document| ids(document, name).next());
        by_name.or_else(by_id)
    };
    let special = SpecialTokens {
        bos: role("bos_token"),
        eos: role("eos_token"),
        unknown: role("unk_token"),
        padding: role("pad_token"),
        end_of_generation: numbered
            .iter()
            .flatten()
            .flat_map(|document| ids(document, "eos_token"))
            .collect(),
    };
    let flag = |key: &str| named.iter().flatten().find_map(|document| document.get(key)?.as_bool());
    let frame = Frame { bos: flag("add_bos_token"), eos: flag("add_eos_token") };
    Tokenizer::assemble(inner, pieces, special, frame)
}

/// A token is written as its text or as an object holding it.
fn content(token: &Json) -> Option<&str> {
    token.as_str().or_else(|| token.get("content")?.as_str())
}

/// `eos_token` → the numbers under `eos_token_id`, which may be one or a list.
fn ids<'a>(document: &'a Json, role: &str) -> impl Iterator<Item = u32> + use<'a> {
    let value = document.get(format!("{role}_id"));
    let list = value.and_then(Json::as_array).map(Vec::as_slice).unwrap_or_default();
    let one = value.filter(|value| value.is_u64());
    one.into_iter().chain(list).filter_map(|id| u32::try_from(id.as_u64()?).ok())
}

fn missing(files: &TokenizerFiles, root: &Path) -> TokenizerError {
    let path = root.to_owned();
    if !files.is_complete() {
        return TokenizerError::Missing { path };
    }
    let found: Vec<_> = files
        .iter()
        .map(|(name, _)| name)
        .filter(|name| !name.starts_with("chat_template") && !name.ends_with("config.json"))
        .collect();
    TokenizerError::OtherForm { path, found: found.join(", ") }
}

fn read_bounded(path: &Path) -> Result<Vec<u8>> {
    let io = |source| TokenizerError::Io { path: path.to_owned(), source };
    let mut bytes = Vec::new();
    File::open(path).map_err(io)?.take(MAX_TOKENIZER + 1).read_to_end(&mut bytes).map_err(io)?;
    if bytes.len() as u64 > MAX_TOKENIZER {
        return Err(Problem::broken("it is larger than 512 MiB").at(path));
    }
    Ok(bytes)
}
