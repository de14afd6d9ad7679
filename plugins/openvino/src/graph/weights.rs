//! Weights in the network: constants that are written elsewhere, and the operations that decompress them.

use std::collections::{BTreeMap, HashMap, HashSet};

use drophammer_formats::openvino::{Data, Element, Network, Port};
use drophammer_models::weight::Role;
use drophammer_models::{Checkpoint, WeightId, WeightShape};
use drophammer_quant::grouped::{Format, ScaleType};

use crate::encoder::bytes_of;
use crate::scheme::{Scheme, Storage};

/// A weight on its way into the file.
#[derive(Debug, Clone)]
pub(crate) struct Planned {
    /// Which one.
    pub(crate) id: WeightId,
    /// Rows and columns; a vector is one row.
    pub(crate) extent: [u64; 2],
    pub(crate) storage: Storage,
    /// Bytes of each of its constants: codes, then offsets where there are any, then scales; or floats alone.
    pub(crate) bytes: Vec<u64>,
    /// The number of its first constant among all tensors of the file.
    pub(crate) first: usize,
}

/// How many matrices of a width got a group other than the one wanted: (wanted, used, width) → count.
type Fallbacks = BTreeMap<(u32, u32, u64), u32>;

/// Chooses how each weight is stored, and notes it.
pub(crate) struct Weights<'a> {
    checkpoint: &'a Checkpoint,
    scheme: &'a Scheme,
    sensitive: &'a HashSet<WeightId>,
    tied: bool,
    planned: Vec<Planned>,
    tensors: usize,
    ports: HashMap<WeightId, Port>,
    fallbacks: Fallbacks,
}

impl<'a> Weights<'a> {
    /// `sensitive` weights are left to the scheme's backup.
    pub(crate) fn new(
        checkpoint: &'a Checkpoint,
        scheme: &'a Scheme,
        sensitive: &'a HashSet<WeightId>,
    ) -> Self {
        let tied = checkpoint.description().head.is_some_and(|head| head.tied);
        Self {
            checkpoint,
            scheme,
            sensitive,
            tied,
            planned: Vec::new(),
            tensors: 0,
            ports: HashMap::new(),
            fallbacks: BTreeMap::new(),
        }
    }

    /// What was noted, and the groups that took the place of others.
    pub(super) fn finish(self) -> (Vec<Planned>, Fallbacks) {
        (self.planned, self.fallbacks)
    }

    /// A matrix (or a stack of them) as floats; the head's is the embedding's where they are tied.
    pub(super) fn port(&mut self, net: &mut Network, id: WeightId, shape: &[u64]) -> Port {
        let id = if self.tied && id == Role::Head.global() { Role::TokenEmbedding.global() } else { id };
        if let Some(&port) = self.ports.get(&id) {
            return port;
        }
        let weight = WeightShape { id, shape: shape.to_vec() };
        let (storage, fallback) = self.scheme.storage(&weight, self.sensitive.contains(&id));
        let port = match storage {
            Storage::Plain(element) => self.plain(net, &weight, element),
            Storage::Grouped(format) => self.grouped(net, &weight, format),
        };
        if let Some((wanted, used)) = fallback {
            *self.fallbacks.entry((wanted, used, shape.last().copied().unwrap_or(0))).or_default() += 1;
        }
        self.ports.insert(id, port);
        port
    }

    /// A vector in a shape that broadcasts.
    pub(super) fn vector(&mut self, net: &mut Network, id: WeightId, shape: &[u64]) -> Port {
        let elements: u64 = shape.iter().product();
        let stored = self.checkpoint.weight(id).map_or(vec![elements], |weight| weight.shape().to_vec());
        let columns = stored.last().copied().unwrap_or(1);
        let extent = [elements / columns.max(1), columns];
        let tensor = self.plan(id, extent, Storage::Plain(Element::F32), vec![elements * 4]);
        net.constant_at(Element::F32, shape, Data::Tensor(tensor))
    }

    fn plan(&mut self, id: WeightId, extent: [u64; 2], storage: Storage, bytes: Vec<u64>) -> usize {
        let first = self.tensors;
        self.tensors += bytes.len();
        self.planned.push(Planned { id, extent, storage, bytes, first });
        first
    }

    fn plain(&mut self, net: &mut Network, weight: &WeightShape, element: Element) -> Port {
        let [rows, columns] = extent(&weight.shape);
        let bytes = rows * columns * element.bits() / 8;
        let tensor = self.plan(weight.id, [rows, columns], Storage::Plain(element), vec![bytes]);
        let constant = net.constant_at(element, &weight.shape, Data::Tensor(tensor));
        if element == Element::F32 { constant } else { to_float(net, constant) }
    }

    fn grouped(&mut self, net: &mut Network, weight: &WeightShape, format: Format) -> Port {
        let [rows, columns] = extent(&weight.shape);
        let groups = columns / format.group.map_or(columns, u64::from);
        let storage = Storage::Grouped(format);
        let element = storage.element();
        let scale_element = if format.scale == ScaleType::E8M0 { Element::F8E8M0 } else { Element::F16 };
        let bytes = bytes_of(format, columns, rows);
        let scale = bytes.len() - 1;
        let first = self.plan(weight.id, [rows, columns], storage, bytes);
        let outer = &weight.shape[..weight.shape.len() - 1];
        let parted = format.group.is_some();
        let shape = |inner: &[u64]| [outer, inner].concat();
        let code_shape = if parted { shape(&[groups, columns / groups]) } else { weight.shape.clone() };
        let scale_shape = if parted { shape(&[groups, 1]) } else { shape(&[1]) };
        let half = |net: &mut Network, x: Port| {
            net.add("Convert", "opset1", &[("destination_type", "f16")], &[x], Element::F16)
        };
        let codes = net.constant_at(element, &code_shape, Data::Tensor(first));
        let mut x = half(net, codes);
        if format.levels.has_offset() {
            let offset = net.constant_at(element, &scale_shape, Data::Tensor(first + 1));
            let offset = half(net, offset);
            x = net.add("Subtract", "opset1", &[("auto_broadcast", "numpy")], &[x, offset], Element::F16);
        }
        let mut scales = net.constant_at(scale_element, &scale_shape, Data::Tensor(first + scale));
        if scale_element != Element::F16 {
            scales = half(net, scales);
        }
        x = net.add("Multiply", "opset1", &[("auto_broadcast", "numpy")], &[x, scales], Element::F16);
        if parted {
            let sizes: Vec<u8> = weight.shape.iter().flat_map(|&size| (size as i64).to_le_bytes()).collect();
            let sizes = net.constant(Element::I64, &[weight.shape.len() as u64], &sizes);
            x = net.add("Reshape", "opset1", &[("special_zero", "false")], &[x, sizes], Element::F16);
        }
        to_float(net, x)
    }
}

/// Rows and columns of a matrix or a stack of them.
fn extent(shape: &[u64]) -> [u64; 2] {
    let (columns, outer) = shape.split_last().map_or((1, &[][..]), |(columns, outer)| (*columns, outer));
    [outer.iter().product(), columns]
}

fn to_float(net: &mut Network, x: Port) -> Port {
    let port = net.add("Convert", "opset1", &[("destination_type", "f32")], &[x], Element::F32);
    net.mark_decompression(port);
    port
}
