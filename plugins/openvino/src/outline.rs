//! What a session needs to know of a graph's XML, and the one change it makes to it.

use std::path::Path;

use drophammer_sdk::{BackendError, ErrorCode, Result};

/// Graphs are text of some megabytes.
const MOST: u64 = 256 << 20;

/// A graph's text with what this project told in it.
pub(crate) struct Outline {
    text: String,
    /// Tokens of the longest sequence.
    pub(crate) context: Option<u32>,
    /// Token ids run below it.
    pub(crate) vocabulary: Option<u32>,
    /// Bytes of the weights' file that the graph was written beside.
    weights: Option<u64>,
    /// The operation behind which rows can be left out.
    wanted: Option<u32>,
}

impl Outline {
    /// Reads a graph's file.
    ///
    /// # Errors
    /// When it cannot be read or is no graph.
    pub(crate) fn read(path: &Path) -> Result<Self> {
        let failed = |code, what: String, help: &str| {
            BackendError::new(code, format!("{}: {what}", path.display())).with_help(help)
        };
        let length = std::fs::metadata(path).map(|metadata| metadata.len()).map_err(|error| {
            failed(
                ErrorCode::InvalidInput,
                error.to_string(),
                "Name a directory that holds openvino_model.xml.",
            )
        })?;
        if length > MOST {
            return Err(failed(
                ErrorCode::InvalidInput,
                format!("{length} bytes are no graph"),
                "Check the file.",
            ));
        }
        let text = std::fs::read_to_string(path).map_err(|error| {
            failed(ErrorCode::InvalidInput, error.to_string(), "The graph must be readable text.")
        })?;
        if !text.contains("<net ") || !text.contains("</edges>") {
            return Err(failed(ErrorCode::InvalidInput, "is no OpenVINO graph".into(), "Check the file."));
        }
        Ok(Self::of(text))
    }

    fn of(text: String) -> Self {
        let told = text.rfind("<drophammer>").map_or("", |begin| &text[begin..]);
        let number = |name: &str| {
            let (_, rest) = told.split_once(&format!("<{name} value=\""))?;
            rest.split_once('"')?.0.parse().ok()
        };
        let (context, vocabulary, wanted) = (number("context"), number("vocabulary"), number("wanted"));
        let weights =
            told.split_once("<weights value=\"").and_then(|(_, rest)| rest.split_once('"')?.0.parse().ok());
        Self { text, context, vocabulary, weights, wanted }
    }

    /// Numbers that the graph's variables keep for each token of a sequence.
    pub(crate) fn cached_per_token(&self) -> u64 {
        let layers = self.text.split("<layer ").filter(|layer| layer.contains("type=\"ReadValue\""));
        let shapes = layers.filter_map(|layer| {
            let (_, rest) = layer.split_once("variable_shape=\"")?;
            Some(rest.split_once('"')?.0)
        });
        // Dimensions that are not numbers are those of sequences and tokens.
        let numbers = |shape: &str| -> u64 {
            shape.split(',').filter_map(|size| size.trim().parse::<u64>().ok()).fold(1, u64::saturating_mul)
        };
        shapes.map(numbers).fold(0, u64::saturating_add)
    }

    /// The graph with one more input, of shape `[rows]`: only these rows of the marked operation's output go on to what
    /// comes after it. `None` where no operation is marked, or the graph was saved anew since: its weights' file is of `weights`
    /// bytes.
    pub(crate) fn with_wanted_rows(&self, input: &str, weights: u64) -> Option<String> {
        let marked = self.wanted.filter(|_| self.weights == Some(weights))?;
        let text = &self.text;
        let layer = text.split_once(&format!("<layer id=\"{marked}\" "))?.1.split_once("</layer>")?.0;
        let outputs = layer.split_once("<output>")?.1;
        let port: u32 = outputs.split_once("<port id=\"")?.1.split_once('"')?.0.parse().ok()?;
        let first = 1 + text
            .match_indices("<layer id=\"")
            .filter_map(|(at, start)| text[at + start.len()..].split_once('"')?.0.parse::<u32>().ok())
            .max()?;
        let [rows, axis, gather] = [first, first + 1, first + 2];
        let from = format!("from-layer=\"{marked}\" from-port=\"{port}\"");
        let text = text.replace(&from, &format!("from-layer=\"{gather}\" from-port=\"3\""));
        let layers = format!(
            "<layer id=\"{rows}\" name=\"{input}\" type=\"Parameter\" version=\"opset1\"><data shape=\"?\" element_type=\"i64\"/>\
             <output><port id=\"0\" precision=\"I64\" names=\"{input}\"><dim>-1</dim></port></output></layer>\n\
             <layer id=\"{axis}\" name=\"{input}/axis\" type=\"Const\" version=\"opset1\"><data element_type=\"i64\" shape=\"\" offset=\"{}\" size=\"8\"/>\
             <output><port id=\"0\" precision=\"I64\"/></output></layer>\n\
             <layer id=\"{gather}\" name=\"{input}/rows\" type=\"Gather\" version=\"opset8\"><data batch_dims=\"0\"/>\
             <input><port id=\"0\" precision=\"FP32\"/><port id=\"1\" precision=\"I64\"/><port id=\"2\" precision=\"I64\"/></input>\
             <output><port id=\"3\" precision=\"FP32\"/></output></layer>\n</layers>",
            self.place_of_one()?
        );
        let edges = format!(
            "<edge {from} to-layer=\"{gather}\" to-port=\"0\"/>\n\
             <edge from-layer=\"{rows}\" from-port=\"0\" to-layer=\"{gather}\" to-port=\"1\"/>\n\
             <edge from-layer=\"{axis}\" from-port=\"0\" to-layer=\"{gather}\" to-port=\"2\"/>\n</edges>"
        );
        Some(text.replacen("</layers>", &layers, 1).replacen("</edges>", &edges, 1))
    }

    /// Where the weights' file holds a 64-bit 1: graphs of this project tell.
    fn place_of_one(&self) -> Option<u64> {
        let told = &self.text[self.text.rfind("<drophammer>")?..];
        told.split_once("<one value=\"")?.1.split_once('"')?.0.parse().ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_taken_between_the_marked_operation_and_its_readers() {
        let graph = "<net name=\"m\" version=\"11\"><layers>\
            <layer id=\"0\" name=\"x\" type=\"Parameter\" version=\"opset1\"><output><port id=\"0\"/></output></layer>\
            <layer id=\"1\" name=\"h\" type=\"ReLU\" version=\"opset1\"><input><port id=\"0\"/></input><output><port id=\"1\"/></output></layer>\
            </layers><edges><edge from-layer=\"0\" from-port=\"0\" to-layer=\"1\" to-port=\"0\"/>\
            <edge from-layer=\"1\" from-port=\"1\" to-layer=\"7\" to-port=\"0\"/></edges>\
            <rt_info><drophammer><wanted value=\"1\"/><one value=\"64\"/><weights value=\"72\"/><context value=\"128\"/></drophammer></rt_info></net>";
        let outline = Outline::of(graph.to_owned());
        assert_eq!(outline.cached_per_token(), 0);
        assert_eq!((outline.context, outline.vocabulary), (Some(128), None));
        let text = outline.with_wanted_rows("wanted", 72).unwrap();
        for part in [
            "<edge from-layer=\"4\" from-port=\"3\" to-layer=\"7\" to-port=\"0\"/>",
            "<edge from-layer=\"1\" from-port=\"1\" to-layer=\"4\" to-port=\"0\"/>",
            "<edge from-layer=\"2\" from-port=\"0\" to-layer=\"4\" to-port=\"1\"/>",
            "offset=\"64\" size=\"8\"",
        ] {
            assert!(text.contains(part), "{part} is not in {text}");
        }
        assert!(Outline::of(graph.replace("wanted", "other")).with_wanted_rows("wanted", 72).is_none());
        assert!(outline.with_wanted_rows("wanted", 80).is_none(), "saved anew");
    }

    #[test]
    fn what_is_cached_per_token_is_read_from_the_variables() {
        let variable = |id: u32, shape: &str| {
            format!(
                "<layer id=\"{id}\" name=\"v\" type=\"ReadValue\" version=\"opset6\">\
                 <data variable_id=\"v{id}\" variable_type=\"f32\" variable_shape=\"{shape}\"/></layer>"
            )
        };
        let graph = format!(
            "<net ><layers>{}{}<layer id=\"3\" type=\"Assign\"><data variable_id=\"v1\" variable_shape=\"?,4,?,64\"/></layer></layers></net>",
            variable(1, "?,4,?,64"),
            variable(2, "?,2,?,32")
        );
        assert_eq!(Outline::of(graph).cached_per_token(), 4 * 64 + 2 * 32);
    }
}
