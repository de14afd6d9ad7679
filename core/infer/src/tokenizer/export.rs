//! A tokenizer as Hugging Face's files, for directories made from sources that keep their vocabulary elsewhere.

use serde_json::{Map, Value as Json, json};

use super::{Result, Tokenizer, TokenizerError};

impl Tokenizer {
    /// `tokenizer.json` and `tokenizer_config.json`: names and contents.
    ///
    /// # Errors
    /// [`TokenizerError::Encode`] when the tokenizer cannot be written down.
    pub fn hugging_face_files(
        &self,
        chat_template: Option<&str>,
        context: u32,
    ) -> Result<Vec<(String, Vec<u8>)>> {
        let failed = |error: &dyn std::fmt::Display| TokenizerError::Encode(error.to_string());
        let text = self.inner.to_string(false).map_err(|error| failed(&error))?;
        let mut document: Json = serde_json::from_str(&text).map_err(|error| failed(&error))?;
        let bos = self.special.bos.filter(|_| self.frame.bos == Some(true));
        let eos = self.special.eos.filter(|_| self.frame.eos == Some(true));
        if bos.is_some() || eos.is_some() {
            document["post_processor"] = self.frame_document(bos, eos);
        }
        let mut config = Map::new();
        config.insert("tokenizer_class".into(), "PreTrainedTokenizerFast".into());
        config.insert("clean_up_tokenization_spaces".into(), false.into());
        config.insert("model_max_length".into(), context.into());
        let special = &self.special;
        for (key, id) in [
            ("bos_token", special.bos),
            ("eos_token", special.eos),
            ("unk_token", special.unknown),
            ("pad_token", special.padding),
        ] {
            if let Some(name) = id.and_then(|id| self.token_name(id)) {
                config.insert(key.into(), name.into());
            }
        }
        if let Some(template) = chat_template {
            config.insert("chat_template".into(), template.into());
        }
        let bytes = |document: &Json| format!("{document:#}\n").into_bytes();
        Ok(vec![
            ("tokenizer.json".into(), bytes(&document)),
            ("tokenizer_config.json".into(), bytes(&Json::Object(config))),
        ])
    }

    /// The post-processor that puts tokens around a text.
    fn frame_document(&self, bos: Option<u32>, eos: Option<u32>) -> Json {
        let name = |id: u32| self.token_name(id).unwrap_or_default();
        let special = |id: u32, kind: u32| json!({ "SpecialToken": { "id": name(id), "type_id": kind } });
        let around = |sequence: &str, kind: u32| {
            let text = json!({ "Sequence": { "id": sequence, "type_id": kind } });
            let parts = [bos.map(|id| special(id, kind)), Some(text), eos.map(|id| special(id, kind))];
            parts.into_iter().flatten().collect::<Vec<_>>()
        };
        let tokens = [bos, eos]
            .into_iter()
            .flatten()
            .map(|id| (name(id), json!({ "id": name(id), "ids": [id], "tokens": [name(id)] })));
        let pair = [around("A", 0), around("B", 1)].concat();
        json!({
            "type": "TemplateProcessing",
            "single": around("A", 0),
            "pair": pair,
            "special_tokens": tokens.collect::<Map<_, _>>(),
        })
    }
}
