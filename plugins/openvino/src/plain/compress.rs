//! Weights of somebody else's IR in eight bits, a scale per output channel.
//!
//! Compressed are constants that only weights of layers read: of matrix products, convolutions and embeddings. What a product
//! stores with outputs innermost is turned, so that a channel is a row. Everything else is copied as it is.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::ops::Range;

use drophammer_forge::failure;
use drophammer_formats::layout::{FilePlan, Layout, Place};
use drophammer_formats::openvino::ALIGNMENT;
use drophammer_formats::{DType, TensorDecl};
use drophammer_quant::grouped::{Format, Levels, ScaleType};
use drophammer_quant::pass::{BoxError, ByteSource, Item, RowSource};
use drophammer_sdk::Result;
use half::f16;

use super::document::{Document, Operation};
use crate::encoder::{GroupedEncoder, bytes_of};
use crate::forge::{MODEL, WEIGHTS};

/// Smaller weights gain nothing.
const LEAST_ELEMENTS: u64 = 1024;
const LEAST_COLUMNS: u64 = 8;

/// What becomes of a graph.
pub(super) struct Compressed {
    pub(super) layout: Layout,
    /// Tensors of the layout, in order, weight after weight.
    work: Vec<Work>,
    /// Weights in eight bits.
    pub(super) matrices: u64,
    /// Numbers in all float constants.
    pub(super) parameters: u64,
    pub(super) notes: Vec<String>,
}

enum Work {
    /// Bytes of the old file.
    Copy { tensor: usize, bytes: Range<usize> },
    /// A weight, its codes' tensor being the first of its own.
    Encode { tensor: usize, format: Format, matrix: Matrix },
}

/// A weight in the old file.
#[derive(Debug, Clone)]
struct Matrix {
    bytes: Range<usize>,
    half: bool,
    rows: u64,
    columns: u64,
    /// Whether rows lie innermost.
    turned: bool,
}

/// A constant to be compressed.
struct Weight<'d> {
    operation: &'d Operation<'d>,
    matrix: Matrix,
    /// The shape of its codes, and that of its scales.
    shapes: [Vec<u64>; 2],
    /// The products that read it, which must take it turned.
    turning: Vec<u64>,
}

/// Plans a graph's compression.
///
/// # Errors
/// What the text or the weights lack.
pub(super) fn compress(
    text: &str,
    weights: &[u8],
    levels: Levels,
) -> std::result::Result<Compressed, String> {
    let document = Document::read(text).map_err(|error| error.to_string())?;
    let (mut parameters, mut work) = (0, Vec::new());
    let mut found = Vec::new();
    for operation in &document.operations {
        found.extend(weight_of(&document, operation, weights.len()));
        if matches!(operation.data.get("element_type"), Some(&("f32" | "f16"))) && operation.kind == "Const" {
            parameters += shape_of(operation).unwrap_or_default().iter().product::<u64>();
        }
    }
    let mut places = Vec::new();
    let mut end = 0u64;
    let mut reserve = |len: u64| {
        let offset = end.next_multiple_of(ALIGNMENT);
        places.push(Place { file: 0, offset, len });
        end = offset + len;
        (places.len() - 1, offset)
    };
    let mut changes: Vec<(Range<usize>, String)> = Vec::new();
    let own: Vec<usize> = found.iter().filter_map(|weight| weight.operation.place).collect();
    let mut copied: HashMap<(u64, u64), u64> = HashMap::new();
    for (index, place) in document.places.iter().enumerate().filter(|(index, _)| !own.contains(index)) {
        let bytes = usize::try_from(place.offset).ok().zip(usize::try_from(place.size).ok());
        let bytes = bytes.and_then(|(offset, size)| Some(offset..offset.checked_add(size)?));
        let bytes = bytes.filter(|bytes| bytes.end <= weights.len());
        let bytes = bytes.ok_or_else(|| format!("constant {index} lies outside of the weights"))?;
        let offset = match copied.get(&(place.offset, place.size)) {
            Some(&offset) => offset,
            None if bytes.is_empty() => 0,
            None => {
                let (tensor, offset) = reserve(place.size);
                work.push(Work::Copy { tensor, bytes });
                copied.insert((place.offset, place.size), offset);
                offset
            }
        };
        changes.push((place.offset_span.clone(), offset.to_string()));
    }
    let next = document.operations.iter().map(|operation| operation.id.saturating_add(1)).max().unwrap_or(0);
    let mut additions = Additions { next, ..Additions::default() };
    for weight in &found {
        let format = Format { levels, group: None, scale: ScaleType::F16 };
        let sizes = bytes_of(format, weight.matrix.columns, weight.matrix.rows);
        let reserved: Vec<(usize, u64)> = sizes.iter().map(|&len| reserve(len)).collect();
        let matrix = weight.matrix.clone();
        work.push(Work::Encode { tensor: reserved[0].0, format, matrix });
        let stored: Vec<(u64, u64)> =
            reserved.iter().zip(&sizes).map(|((_, offset), len)| (*offset, *len)).collect();
        let (own, last) = additions.decompress(text, weight, levels, &stored);
        changes.push((weight.operation.span.clone(), own));
        for edge in document.readers(weight.operation.id) {
            let ((to, port), from) = (edge.to, last);
            let changed =
                format!("<edge from-layer=\"{from}\" from-port=\"1\" to-layer=\"{to}\" to-port=\"{port}\"/>");
            changes.push((edge.span.clone(), changed));
        }
        for product in weight.turning.iter().filter_map(|id| document.operation(*id)) {
            let span = product.span.clone();
            let told =
                text[span.clone()].find("transpose_b=\"false\"").ok_or("a product without its sides")?;
            let at = span.start + told;
            changes.push((at..at + "transpose_b=\"false\"".len(), "transpose_b=\"true\"".to_owned()));
        }
    }
    // The graph's own lists are the last: inner graphs end before.
    for (tag, more) in [("</layers>", additions.layers), ("</edges>", additions.edges)] {
        let at = text.rfind(tag).ok_or("a graph without its lists")?;
        changes.push((at..at, more));
    }
    Ok(Compressed {
        layout: Layout {
            files: vec![FilePlan { name: WEIGHTS.to_owned(), header: Vec::new(), len: end }],
            places,
            side_files: vec![(MODEL.to_owned(), changed(text, changes)?.into_bytes())],
        },
        work,
        matrices: found.len() as u64,
        parameters,
        notes: vec![format!(
            "{} weights of layers are stored in eight bits, the rest as it was",
            found.len()
        )],
    })
}

/// A text with parts replaced.
fn changed(text: &str, mut changes: Vec<(Range<usize>, String)>) -> std::result::Result<String, String> {
    changes.sort_by_key(|(span, _)| (span.start, span.end));
    let mut out = String::with_capacity(text.len() * 2);
    let mut at = 0;
    for (span, replacement) in changes {
        out.push_str(text.get(at..span.start).ok_or("parts of the graph lie in one another")?);
        out.push_str(&replacement);
        at = span.end;
    }
    out.push_str(text.get(at..).ok_or("parts of the graph lie outside of it")?);
    Ok(out)
}

fn shape_of(operation: &Operation<'_>) -> Option<Vec<u64>> {
    let shape = operation.data.get("shape")?;
    let sizes = shape.split(',').map(str::trim).filter(|size| !size.is_empty());
    sizes.map(|size| size.parse().ok()).collect()
}

/// The weight that a constant is, where it can be compressed.
fn weight_of<'d>(document: &'d Document<'d>, operation: &'d Operation<'d>, len: usize) -> Option<Weight<'d>> {
    let element = *operation.data.get("element_type").filter(|_| operation.kind == "Const")?;
    let half = match element {
        "f32" => false,
        "f16" => true,
        _ => return None,
    };
    let place = document.places.get(operation.place?)?;
    let shape = shape_of(operation)?;
    let elements = shape.iter().try_fold(1u64, |product, size| product.checked_mul(*size))?;
    let begin = usize::try_from(place.offset).ok()?;
    let bytes = begin..begin.checked_add(usize::try_from(place.size).ok()?)?;
    if elements < LEAST_ELEMENTS
        || elements.checked_mul(if half { 2 } else { 4 })? != place.size
        || bytes.end > len
    {
        return None;
    }
    // All readers must use it as weights of the same kind.
    let mut use_of = None;
    let mut turning = Vec::new();
    for edge in document.readers(operation.id) {
        let reader = document.operation(edge.to.0)?;
        let is = match (reader.kind, edge.to.1, shape.len()) {
            ("MatMul", 1, 2) if reader.data.get("transpose_b") == Some(&"true") => (1, false),
            ("MatMul", 1, 2) => (1, true),
            ("Convolution", 1, 3..) | ("Gather", 0, 2) => (1, false),
            ("GroupConvolution", 1, 4..) => (2, false),
            _ => return None,
        };
        if use_of.is_some_and(|other| other != is) {
            return None;
        }
        if is.1 {
            turning.push(reader.id);
        }
        use_of = Some(is);
    }
    let (outer, turned) = use_of?;
    let (rows, columns) = if turned {
        (shape[1], shape[0])
    } else {
        let rows: u64 = shape[..outer].iter().product();
        (rows, elements / rows.max(1))
    };
    if columns < LEAST_COLUMNS || rows < 2 {
        return None;
    }
    let codes = if turned { vec![rows, columns] } else { shape };
    let scales = codes.iter().enumerate().map(|(axis, size)| if axis < outer { *size } else { 1 }).collect();
    let matrix = Matrix { bytes, half, rows, columns, turned };
    Some(Weight { operation, matrix, shapes: [codes, scales], turning })
}

/// Operations and connections that a graph gets.
#[derive(Default)]
struct Additions {
    next: u64,
    layers: String,
    edges: String,
}

impl Additions {
    /// Writes the operations that make floats of a weight: the constant's own anew, which is given back, others among the
    /// additions; gives the number of the last operation, whose output is its port 1.
    fn decompress(
        &mut self,
        text: &str,
        weight: &Weight<'_>,
        levels: Levels,
        stored: &[(u64, u64)],
    ) -> (String, u64) {
        let id = weight.operation.id;
        let old = &text[weight.operation.span.clone()];
        let name = old
            .split_once(" name=\"")
            .and_then(|(_, rest)| Some(rest.split_once('"')?.0))
            .unwrap_or("weight");
        let [codes, scales] = &weight.shapes;
        let element = if matches!(levels, Levels::Signed { .. }) { "i8" } else { "u8" };
        let own = constant(id, name, element, codes, stored[0]);
        let mut value = self.operation(name, "Convert", "destination_type=\"f16\"", &[(id, 0)]);
        if levels.has_offset() {
            let zero = self.constant(name, element, scales, stored[1]);
            let zero = self.operation(name, "Convert", "destination_type=\"f16\"", &[zero]);
            value = self.operation(name, "Subtract", "auto_broadcast=\"numpy\"", &[value, zero]);
        }
        let scale = self.constant(name, "f16", scales, stored[stored.len() - 1]);
        value = self.operation(name, "Multiply", "auto_broadcast=\"numpy\"", &[value, scale]);
        let to = if weight.matrix.half { "f16" } else { "f32" };
        let (last, _) = self.operation(name, "Convert", &format!("destination_type=\"{to}\""), &[value]);
        (own, last)
    }

    fn fresh(&mut self) -> u64 {
        self.next += 1;
        self.next - 1
    }

    /// A constant; gives its output.
    fn constant(&mut self, name: &str, element: &str, shape: &[u64], place: (u64, u64)) -> (u64, u64) {
        let id = self.fresh();
        self.layers.push_str(&constant(id, &format!("{name}/{id}"), element, shape, place));
        (id, 0)
    }

    /// An operation that reads outputs; gives its own. Conversions to what is computed with are marked as decompression.
    fn operation(&mut self, name: &str, kind: &str, data: &str, from: &[(u64, u64)]) -> (u64, u64) {
        let id = self.fresh();
        let last = from.len() as u64;
        let mark = if kind == "Convert" && from.first().is_some_and(|(_, port)| *port > 0) {
            "<rt_info><attribute name=\"decompression\" version=\"0\"/></rt_info>"
        } else {
            ""
        };
        let precision = if data.contains("f32") { "FP32" } else { "FP16" };
        let mut inputs = String::new();
        for port in 0..last {
            let _ = write!(inputs, "<port id=\"{port}\" precision=\"FP16\"/>");
        }
        let _ = writeln!(
            self.layers,
            "<layer id=\"{id}\" name=\"{name}/{id}\" type=\"{kind}\" version=\"opset1\"><data {data}/>{mark}\
             <input>{inputs}</input><output><port id=\"{last}\" precision=\"{precision}\"/></output></layer>"
        );
        for ((layer, port), to) in from.iter().zip(0..) {
            let _ = writeln!(
                self.edges,
                "<edge from-layer=\"{layer}\" from-port=\"{port}\" to-layer=\"{id}\" to-port=\"{to}\"/>"
            );
        }
        (id, last)
    }
}

/// A constant's text.
fn constant(id: u64, name: &str, element: &str, shape: &[u64], (offset, len): (u64, u64)) -> String {
    let precision = if element == "f16" { "FP16".to_owned() } else { element.to_uppercase() };
    let mut dims = String::new();
    for size in shape {
        let _ = write!(dims, "<dim>{size}</dim>");
    }
    let sizes = shape.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    format!(
        "<layer id=\"{id}\" name=\"{name}\" type=\"Const\" version=\"opset1\"><data element_type=\"{element}\" \
         shape=\"{sizes}\" offset=\"{offset}\" size=\"{len}\"/><output><port id=\"0\" precision=\"{precision}\">{dims}\
         </port></output></layer>\n"
    )
}

impl Compressed {
    /// The work of the pass.
    ///
    /// # Errors
    /// Constants too large for this machine.
    pub(super) fn items<'a>(&'a self, weights: &'a [u8]) -> Result<Vec<Item<'a>>> {
        self.work
            .iter()
            .map(|work| match work {
                Work::Copy { tensor, bytes } => {
                    let decl = TensorDecl::new("constant", DType::U8, vec![bytes.len() as u64]);
                    Item::copy(*tensor, &decl, Slice(&weights[bytes.clone()]))
                        .map_err(|error| failure::of_pass(&error))
                }
                Work::Encode { tensor, format, matrix } => {
                    let extent = [matrix.rows, matrix.columns];
                    let encoder = GroupedEncoder::new(*format, extent, None);
                    let outputs = encoder.outputs(*tensor);
                    let rows = MatrixRows { bytes: &weights[matrix.bytes.clone()], matrix };
                    Ok(Item::encode("weight", extent, rows, encoder, outputs))
                }
            })
            .collect()
    }
}

/// Bytes as they are.
struct Slice<'a>(&'a [u8]);

impl ByteSource for Slice<'_> {
    fn read(&self, bytes: Range<u64>, out: &mut [u8]) -> std::result::Result<(), BoxError> {
        out.copy_from_slice(self.0.get(bytes.start as usize..bytes.end as usize).ok_or("bytes outside")?);
        Ok(())
    }
}

/// Rows of a weight.
struct MatrixRows<'a> {
    bytes: &'a [u8],
    matrix: &'a Matrix,
}

impl RowSource for MatrixRows<'_> {
    fn read(&self, rows: Range<u64>, out: &mut [f32]) -> std::result::Result<(), BoxError> {
        let Matrix { half, rows: all, columns, turned, .. } = *self.matrix;
        let value = |index: u64| -> Option<f32> {
            let index = index as usize;
            Some(if half {
                f16::from_le_bytes(*self.bytes.get(index * 2..)?.first_chunk()?).to_f32()
            } else {
                f32::from_le_bytes(*self.bytes.get(index * 4..)?.first_chunk()?)
            })
        };
        for (row, out) in rows.zip(out.chunks_exact_mut(columns as usize)) {
            for (column, out) in (0..columns).zip(out) {
                let index = if turned { column * all + row } else { row * columns + column };
                *out = value(index).ok_or("rows outside")?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use drophammer_formats::openvino::{Data, Element, Network};

    /// A product that stores its weight inputs first, and another constant.
    fn graph() -> (String, Vec<u8>) {
        let mut network = Network::new("g");
        let x = network.parameter("x", Element::F32, &[-1, 32]);
        let w = network.constant_at(Element::F32, &[32, 48], Data::Tensor(0));
        let y = network.add(
            "MatMul",
            "opset1",
            &[("transpose_a", "false"), ("transpose_b", "false")],
            &[x, w],
            Element::F32,
        );
        let bias = network.constant_at(Element::F32, &[48], Data::Tensor(1));
        let y = network.add("Add", "opset1", &[], &[y, bias], Element::F32);
        network.result("y", y);
        let xml = network.to_xml(|tensor| [(0, 6144), (6144, 192)][tensor]);
        let values = (0..32 * 48 + 48).map(|i| ((i * 7919 % 1000) as f32 - 500.0) / 500.0);
        (xml, values.flat_map(f32::to_le_bytes).collect())
    }

    #[test]
    fn a_products_weight_is_turned_and_decompressed_and_the_rest_is_copied() {
        let (xml, weights) = graph();
        let compressed = compress(&xml, &weights, Levels::ZeroPoint { bits: 8 }).unwrap();
        assert_eq!((compressed.matrices, compressed.parameters), (1, 32 * 48 + 48));
        let text = String::from_utf8(compressed.layout.side_files[0].1.clone()).unwrap();
        let document = Document::read(&text).unwrap();
        let product = document.operations.iter().find(|operation| operation.kind == "MatMul").unwrap();
        assert_eq!(product.data["transpose_b"], "true");
        let weight = document.operation(1).unwrap();
        assert_eq!((weight.data["element_type"], weight.data["shape"]), ("u8", "48, 32"));
        let into = document.edges.iter().find(|edge| edge.to == (product.id, 1)).unwrap();
        let last = document.operation(into.from.0).unwrap();
        assert_eq!((last.kind, last.data["destination_type"]), ("Convert", "f32"));
        // Bias first, then codes, zero points and scales.
        let lens: Vec<u64> = compressed.layout.places.iter().map(|place| place.len).collect();
        assert_eq!(lens, [192, 48 * 32, 48, 96]);
        assert_eq!(compressed.items(&weights).unwrap().len(), 2);
    }

    #[test]
    fn rows_are_read_from_either_side() {
        let bytes: Vec<u8> = (0..6u8).flat_map(|i| f32::from(i).to_le_bytes()).collect();
        for (turned, due) in [(false, [3.0, 4.0, 5.0]), (true, [1.0, 3.0, 5.0])] {
            let matrix = Matrix { bytes: 0..24, half: false, rows: 2, columns: 3, turned };
            let mut row = [0.0; 3];
            MatrixRows { bytes: &bytes, matrix: &matrix }.read(1..2, &mut row).unwrap();
            assert_eq!(row, due);
        }
    }

    #[test]
    fn constants_outside_of_the_weights_are_refused() {
        let (xml, weights) = graph();
        assert!(compress(&xml, &weights[..100], Levels::Signed { bits: 8 }).is_err());
    }
}
