//! A graph of operations and its XML.

use std::collections::HashMap;
use std::fmt::Write as _;

use super::element::Element;

/// An operation's output.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Port {
    layer: usize,
    output: usize,
}

impl Port {
    /// Another output of the same operation.
    #[must_use]
    pub const fn output(self, number: usize) -> Self {
        Self { layer: self.layer, output: number }
    }
}

/// Where a constant's bytes are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Data {
    /// In the network's own bytes, from here.
    Inline {
        /// Bytes from their beginning.
        offset: u64,
        /// How many.
        len: u64,
    },
    /// A tensor that is written by somebody else; its place is told when the XML is written.
    Tensor(usize),
}

#[derive(Debug)]
struct Layer {
    name: String,
    kind: &'static str,
    set: &'static str,
    attributes: Vec<(&'static str, String)>,
    inputs: Vec<Port>,
    outputs: Vec<Output>,
    /// The constant's type, shape and bytes.
    data: Option<(Element, Vec<u64>, Data)>,
    /// Marks a conversion of stored weights to what is computed with.
    decompression: bool,
}

#[derive(Debug)]
struct Output {
    element: Element,
    names: String,
    dims: Option<String>,
}

/// A graph that grows by one operation at a time.
#[derive(Debug, Default)]
pub struct Network {
    name: String,
    layers: Vec<Layer>,
    inline: Vec<u8>,
    /// Where bytes lie in `inline`.
    known: HashMap<Vec<u8>, u64>,
    runtime_info: Vec<(String, String)>,
    scope: String,
}

/// Constants begin at multiples of this.
pub const ALIGNMENT: u64 = 64;

impl Network {
    /// An empty graph.
    pub fn new(name: &str) -> Self {
        Self { name: name.to_owned(), ..Self::default() }
    }

    /// Names of operations added from here on begin with this.
    pub fn enter(&mut self, scope: String) {
        self.scope = scope;
    }

    /// Adds an operation with one output.
    pub fn add(
        &mut self,
        kind: &'static str,
        set: &'static str,
        attributes: &[(&'static str, &str)],
        inputs: &[Port],
        element: Element,
    ) -> Port {
        self.add_many(kind, set, attributes, inputs, &[element])
    }

    /// Adds an operation; gives its first output.
    pub fn add_many(
        &mut self,
        kind: &'static str,
        set: &'static str,
        attributes: &[(&'static str, &str)],
        inputs: &[Port],
        elements: &[Element],
    ) -> Port {
        let layer = self.layers.len();
        let scope = if self.scope.is_empty() { String::new() } else { format!("{}/", self.scope) };
        self.layers.push(Layer {
            name: format!("{scope}{kind}_{layer}"),
            kind,
            set,
            attributes: attributes.iter().map(|(key, value)| (*key, (*value).to_owned())).collect(),
            inputs: inputs.to_vec(),
            outputs: elements
                .iter()
                .map(|&element| Output { element, names: String::new(), dims: None })
                .collect(),
            data: None,
            decompression: false,
        });
        Port { layer, output: 0 }
    }

    /// Adds an input of the model. Unknown dimensions are -1.
    pub fn parameter(&mut self, name: &str, element: Element, shape: &[i64]) -> Port {
        let dims: Vec<String> =
            shape.iter().map(|&d| if d < 0 { "?".to_owned() } else { d.to_string() }).collect();
        let attributes = [("shape", dims.join(",")), ("element_type", element.name().to_owned())];
        let attributes = attributes.each_ref().map(|(key, value)| (*key, value.as_str()));
        let port = self.add("Parameter", "opset1", &attributes, &[], element);
        let layer = &mut self.layers[port.layer];
        layer.name = name.to_owned();
        layer.outputs[0].names = name.to_owned();
        let dims = shape.iter().map(|d| format!("<dim>{d}</dim>"));
        layer.outputs[0].dims = Some(dims.collect());
        port
    }

    /// Makes a value an output of the model.
    pub fn result(&mut self, name: &str, value: Port) {
        self.name_output(value, name);
        let port = self.add_many("Result", "opset1", &[], &[value], &[]);
        self.layers[port.layer].name = format!("{name}/result");
    }

    /// Names a value, as inputs and outputs are looked up.
    pub fn name_output(&mut self, value: Port, name: &str) {
        let names = &mut self.layers[value.layer].outputs[value.output].names;
        if !names.is_empty() {
            names.push(',');
        }
        names.push_str(name);
    }

    /// Names the operation that makes a value.
    pub fn name_layer(&mut self, value: Port, name: &str) {
        self.layers[value.layer].name = name.to_owned();
    }

    /// The number that an operation has in the XML.
    pub const fn layer_id(&self, value: Port) -> usize {
        value.layer
    }

    /// Adds a constant of bytes that the network keeps.
    pub fn constant(&mut self, element: Element, shape: &[u64], bytes: &[u8]) -> Port {
        let data = Data::Inline { offset: self.inline_offset(bytes), len: bytes.len() as u64 };
        self.constant_at(element, shape, data)
    }

    /// Where the network's own bytes hold these; they are added unless they are there.
    pub fn inline_offset(&mut self, bytes: &[u8]) -> u64 {
        if let Some(&offset) = self.known.get(bytes) {
            return offset;
        }
        let aligned = (self.inline.len() as u64).next_multiple_of(ALIGNMENT);
        self.inline.resize(aligned as usize, 0);
        self.inline.extend_from_slice(bytes);
        self.known.insert(bytes.to_vec(), aligned);
        aligned
    }

    /// Adds a constant whose bytes are elsewhere.
    pub fn constant_at(&mut self, element: Element, shape: &[u64], data: Data) -> Port {
        let port = self.add("Const", "opset1", &[], &[], element);
        self.layers[port.layer].data = Some((element, shape.to_vec(), data));
        port
    }

    /// Marks the operation that makes a value as decompression of weights, which runtimes keep compressed.
    pub fn mark_decompression(&mut self, value: Port) {
        self.layers[value.layer].decompression = true;
    }

    /// Tells readers something about the model: `path` is a list of names separated by `/`.
    pub fn tell(&mut self, path: &str, value: &str) {
        self.runtime_info.push((path.to_owned(), value.to_owned()));
    }

    /// The type of a value.
    pub fn element(&self, value: Port) -> Element {
        self.layers[value.layer].outputs[value.output].element
    }

    /// Bytes of the constants that the network keeps itself; they belong at the beginning of the `.bin` file.
    pub fn inline_bytes(&self) -> &[u8] {
        &self.inline
    }

    /// The document. `place` gives offset and length in the `.bin` file of each tensor.
    pub fn to_xml(&self, place: impl Fn(usize) -> (u64, u64)) -> String {
        let mut xml = String::with_capacity(self.layers.len() * 600);
        xml.push_str("<?xml version=\"1.0\"?>\n");
        let _ = writeln!(xml, "<net name=\"{}\" version=\"11\">\n\t<layers>", escaped(&self.name));
        for (id, layer) in self.layers.iter().enumerate() {
            self.write_layer(&mut xml, id, layer, &place);
        }
        xml.push_str("\t</layers>\n\t<edges>\n");
        for (id, layer) in self.layers.iter().enumerate() {
            for (number, input) in layer.inputs.iter().enumerate() {
                let from = self.layers[input.layer].inputs.len() + input.output;
                let _ = writeln!(
                    xml,
                    "\t\t<edge from-layer=\"{}\" from-port=\"{from}\" to-layer=\"{id}\" to-port=\"{number}\"/>",
                    input.layer
                );
            }
        }
        xml.push_str("\t</edges>\n");
        self.write_runtime_info(&mut xml);
        xml.push_str("</net>\n");
        xml
    }

    fn write_layer(&self, xml: &mut String, id: usize, layer: &Layer, place: &impl Fn(usize) -> (u64, u64)) {
        let Layer { name, kind, set, .. } = layer;
        let _ = writeln!(
            xml,
            "\t\t<layer id=\"{id}\" name=\"{}\" type=\"{kind}\" version=\"{set}\">",
            escaped(name)
        );
        if let Some((element, shape, data)) = &layer.data {
            let (offset, len) = match *data {
                Data::Inline { offset, len } => (offset, len),
                Data::Tensor(index) => place(index),
            };
            let shape: Vec<String> = shape.iter().map(ToString::to_string).collect();
            let _ = writeln!(
                xml,
                "\t\t\t<data element_type=\"{}\" shape=\"{}\" offset=\"{offset}\" size=\"{len}\"/>",
                element.name(),
                shape.join(", ")
            );
        } else if !layer.attributes.is_empty() {
            xml.push_str("\t\t\t<data");
            for (key, value) in &layer.attributes {
                let _ = write!(xml, " {key}=\"{}\"", escaped(value));
            }
            xml.push_str("/>\n");
        }
        if layer.decompression {
            xml.push_str("\t\t\t<rt_info>\n\t\t\t\t<attribute name=\"decompression\" version=\"0\"/>\n\t\t\t</rt_info>\n");
        }
        if !layer.inputs.is_empty() {
            xml.push_str("\t\t\t<input>\n");
            for (number, input) in layer.inputs.iter().enumerate() {
                let precision = self.element(*input).precision();
                let _ = writeln!(xml, "\t\t\t\t<port id=\"{number}\" precision=\"{precision}\"/>");
            }
            xml.push_str("\t\t\t</input>\n");
        }
        if !layer.outputs.is_empty() {
            xml.push_str("\t\t\t<output>\n");
            for (number, output) in layer.outputs.iter().enumerate() {
                let number = layer.inputs.len() + number;
                let precision = output.element.precision();
                let _ = write!(xml, "\t\t\t\t<port id=\"{number}\" precision=\"{precision}\"");
                if !output.names.is_empty() {
                    let _ = write!(xml, " names=\"{}\"", escaped(&output.names));
                }
                match &output.dims {
                    Some(dims) => {
                        let _ = writeln!(xml, ">{dims}</port>");
                    }
                    None => xml.push_str("/>\n"),
                }
            }
            xml.push_str("\t\t\t</output>\n");
        }
        xml.push_str("\t\t</layer>\n");
    }

    fn write_runtime_info(&self, xml: &mut String) {
        xml.push_str("\t<rt_info>\n");
        let mut open: Vec<&str> = Vec::new();
        for (path, value) in &self.runtime_info {
            let names: Vec<&str> = path.split('/').collect();
            let (leaf, folders) =
                names.split_last().map_or(("", &[][..]), |(leaf, folders)| (*leaf, folders));
            let common = open.iter().zip(folders).take_while(|(a, b)| a == b).count();
            for name in open.drain(common..).rev() {
                let _ = writeln!(xml, "\t</{name}>");
            }
            for name in &folders[common..] {
                let _ = writeln!(xml, "\t<{name}>");
                open.push(name);
            }
            let _ = writeln!(xml, "\t\t<{leaf} value=\"{}\"/>", escaped(value));
        }
        for name in open.iter().rev() {
            let _ = writeln!(xml, "\t</{name}>");
        }
        xml.push_str("\t</rt_info>\n");
    }
}

/// Text as it stands in an attribute.
fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\n' | '\r' | '\t' => {
                let _ = write!(out, "&#{};", c as u32);
            }
            c if c.is_control() => out.push('\u{fffd}'),
            c => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_small_network_is_written_with_ports_edges_and_places() {
        let mut network = Network::new("a<b");
        let x = network.parameter("x", Element::F32, &[-1, 4]);
        let stored = network.constant_at(Element::F16, &[2, 4], Data::Tensor(0));
        let w = network.add("Convert", "opset1", &[("destination_type", "f32")], &[stored], Element::F32);
        network.mark_decompression(w);
        let one = network.constant(Element::F32, &[], &1f32.to_le_bytes());
        let y = network.add("MatMul", "opset1", &[("transpose_b", "true")], &[x, w], Element::F32);
        let y = network.add("Add", "opset1", &[], &[y, one], Element::F32);
        network.result("y", y);
        network.tell("runtime_options/KV_CACHE_PRECISION", "f16");
        network.tell("runtime_options/ACTIVATIONS_SCALE_FACTOR", "8.0");
        network.tell("made_by", "test");
        let xml = network.to_xml(|index| {
            assert_eq!(index, 0);
            (64, 16)
        });
        for part in [
            "<net name=\"a&lt;b\" version=\"11\">",
            "<data shape=\"?,4\" element_type=\"f32\"/>",
            "<port id=\"0\" precision=\"FP32\" names=\"x\"><dim>-1</dim><dim>4</dim></port>",
            "<data element_type=\"f16\" shape=\"2, 4\" offset=\"64\" size=\"16\"/>",
            "<data element_type=\"f32\" shape=\"\" offset=\"0\" size=\"4\"/>",
            "<attribute name=\"decompression\" version=\"0\"/>",
            "<edge from-layer=\"4\" from-port=\"2\" to-layer=\"5\" to-port=\"0\"/>",
            "<port id=\"2\" precision=\"FP32\" names=\"y\"/>",
            "<edge from-layer=\"5\" from-port=\"2\" to-layer=\"6\" to-port=\"0\"/>",
        ] {
            assert!(xml.contains(part), "{part} is not in\n{xml}");
        }
        assert_eq!(xml.matches("<runtime_options>").count(), 1);
        assert_eq!(xml.matches("</runtime_options>").count(), 1);
        assert_eq!(network.inline_bytes(), 1f32.to_le_bytes());
    }
}
