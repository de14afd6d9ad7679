//! A graph's XML as text with its parts found, for changing what somebody else wrote.
//!
//! Only what such changes need is understood: which operations there are, where constants lie in the `.bin` file, and what is
//! connected to what. Graphs inside of operations (bodies of loops) are left alone, but for where their constants lie.

use std::collections::HashMap;
use std::ops::Range;

use thiserror::Error;

/// A graph's XML and its parts.
#[derive(Debug)]
pub(super) struct Document<'a> {
    /// The operations of the graph itself, in the order of the text.
    pub(super) operations: Vec<Operation<'a>>,
    /// What feeds what.
    pub(super) edges: Vec<Edge>,
    /// Where every constant's place is told, those of inner graphs included.
    pub(super) places: Vec<Place>,
}

/// An operation.
#[derive(Debug)]
pub(super) struct Operation<'a> {
    /// Its number.
    pub(super) id: u64,
    /// What it does.
    pub(super) kind: &'a str,
    /// Its text, from `<layer` to `</layer>`.
    pub(super) span: Range<usize>,
    /// The attributes of its `data`.
    pub(super) data: HashMap<&'a str, &'a str>,
    /// For a constant: which of [`Document::places`] is its own.
    pub(super) place: Option<usize>,
}

/// From an output to an input.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Edge {
    /// Operation and port that give.
    pub(super) from: (u64, u64),
    /// Operation and port that take.
    pub(super) to: (u64, u64),
    /// Its text.
    pub(super) span: Range<usize>,
}

/// Where a constant lies in the `.bin` file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Place {
    /// Bytes from the beginning.
    pub(super) offset: u64,
    /// How many.
    pub(super) size: u64,
    /// The text of the offset's number.
    pub(super) offset_span: Range<usize>,
}

/// What is wrong with a text.
#[derive(Debug, Error, PartialEq, Eq)]
#[error("no OpenVINO graph: {what} at byte {at}")]
pub(super) struct Broken {
    /// The rule that is broken.
    pub(super) what: &'static str,
    /// Where.
    pub(super) at: usize,
}

/// A tag: its name, what stands in it, and where.
struct Tag<'a> {
    name: &'a str,
    closing: bool,
    alone: bool,
    inside: &'a str,
    span: Range<usize>,
}

impl<'a> Tag<'a> {
    /// Attributes with the place of their values.
    fn attributes(&self) -> impl Iterator<Item = (&'a str, &'a str, Range<usize>)> + use<'a> {
        let (mut rest, mut at) = (self.inside, self.span.start + 1 + self.name.len());
        std::iter::from_fn(move || {
            let (key, after) = rest.split_once("=\"")?;
            let (value, later) = after.split_once('"')?;
            let begin = at + key.len() + 2;
            at = begin + value.len() + 1;
            rest = later;
            Some((key.trim(), value, begin..begin + value.len()))
        })
    }

    fn number(&self, key: &str) -> Option<u64> {
        self.attributes().find(|(name, ..)| *name == key)?.1.parse().ok()
    }
}

/// The next tag from `at` on.
fn next_tag(text: &str, at: usize) -> Result<Option<Tag<'_>>, Broken> {
    let broken = |what| Broken { what, at };
    let Some(start) = text[at..].find('<').map(|found| at + found) else { return Ok(None) };
    let rest = &text[start + 1..];
    if rest.starts_with("!--") {
        let end = rest.find("-->").ok_or(broken("a comment without an end"))?;
        return next_tag(text, start + 1 + end + 3);
    }
    // Values may hold anything but quotes.
    let (mut quoted, mut end) = (false, None);
    for (place, byte) in rest.bytes().enumerate() {
        match byte {
            b'"' => quoted = !quoted,
            b'>' if !quoted => {
                end = Some(place);
                break;
            }
            _ => {}
        }
    }
    let end = end.ok_or(broken("a tag without an end"))?;
    let inside = &rest[..end];
    let closing = inside.starts_with('/');
    let alone = inside.ends_with('/') || inside.starts_with('?');
    let inside = inside.trim_start_matches('/');
    let name_end = inside.find(|c: char| c.is_ascii_whitespace() || c == '/').unwrap_or(inside.len());
    let (name, inside) = inside.split_at(name_end);
    Ok(Some(Tag { name, closing, alone, inside, span: start..start + 1 + end + 1 }))
}

impl<'a> Document<'a> {
    /// Finds the parts of a graph's text.
    ///
    /// # Errors
    /// [`Broken`] where the text is none.
    pub(super) fn read(text: &'a str) -> Result<Self, Broken> {
        let mut document = Self { operations: Vec::new(), edges: Vec::new(), places: Vec::new() };
        let (mut at, mut depth) = (0, 0usize);
        let mut seen = false;
        while let Some(tag) = next_tag(text, at)? {
            at = tag.span.end;
            let here = |what| Broken { what, at: tag.span.start };
            match (tag.name, tag.closing) {
                ("net", false) => seen = true,
                ("layer", false) => {
                    if depth == 0 {
                        let id = tag.number("id").ok_or(here("an operation without a number"))?;
                        let kind = tag.attributes().find(|(key, ..)| *key == "type");
                        let kind = kind.ok_or(here("an operation without a type"))?.1;
                        let span = tag.span.clone();
                        document.operations.push(Operation {
                            id,
                            kind,
                            span,
                            data: HashMap::new(),
                            place: None,
                        });
                    }
                    depth += usize::from(!tag.alone);
                }
                ("layer", true) => {
                    depth = depth.checked_sub(1).ok_or(here("an operation that ends before it begins"))?;
                    if let (0, Some(operation)) = (depth, document.operations.last_mut()) {
                        operation.span.end = tag.span.end;
                    }
                }
                ("data", false) if depth > 0 => document.data(&tag, depth),
                ("edge", false) if depth == 0 => {
                    let number = |key| tag.number(key).ok_or(here("a connection without numbers"));
                    document.edges.push(Edge {
                        from: (number("from-layer")?, number("from-port")?),
                        to: (number("to-layer")?, number("to-port")?),
                        span: tag.span.clone(),
                    });
                }
                _ => {}
            }
        }
        if !seen || depth != 0 {
            return Err(Broken { what: "not all of it is there", at: text.len() });
        }
        Ok(document)
    }

    fn data(&mut self, tag: &Tag<'a>, depth: usize) {
        let value = |key: &str| tag.attributes().find(|(name, ..)| *name == key);
        let place = value("offset").zip(value("size")).and_then(|((_, offset, span), (_, size, _))| {
            Some(Place { offset: offset.parse().ok()?, size: size.parse().ok()?, offset_span: span })
        });
        let index = self.places.len();
        let found = place.is_some();
        self.places.extend(place);
        if let (1, Some(operation)) = (depth, self.operations.last_mut()) {
            operation.data = tag.attributes().map(|(key, value, _)| (key, value)).collect();
            operation.place = found.then_some(index);
        }
    }

    /// Who takes what an output gives: operations with the ports that take it.
    pub(super) fn readers(&self, operation: u64) -> impl Iterator<Item = &Edge> {
        self.edges.iter().filter(move |edge| edge.from.0 == operation)
    }

    /// The operation of a number.
    pub(super) fn operation(&self, id: u64) -> Option<&Operation<'a>> {
        // Mostly they lie in order.
        let guess = self.operations.get(usize::try_from(id).ok()?).filter(|operation| operation.id == id);
        guess.or_else(|| self.operations.iter().find(|operation| operation.id == id))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use drophammer_formats::openvino::{Data, Element, Network};

    #[test]
    fn what_is_written_is_found_again() {
        let mut network = Network::new("a>b");
        let x = network.parameter("x", Element::F32, &[-1, 4]);
        let w = network.constant_at(Element::F32, &[2, 4], Data::Tensor(0));
        let y = network.add(
            "MatMul",
            "opset1",
            &[("transpose_a", "false"), ("transpose_b", "true")],
            &[x, w],
            Element::F32,
        );
        network.result("y", y);
        let xml = network.to_xml(|_| (64, 32));
        let document = Document::read(&xml).unwrap();
        let kinds: Vec<&str> = document.operations.iter().map(|operation| operation.kind).collect();
        assert_eq!(kinds, ["Parameter", "Const", "MatMul", "Result"]);
        let weight = document.operation(1).unwrap();
        assert_eq!(weight.data["shape"], "2, 4");
        let place = &document.places[weight.place.unwrap()];
        assert_eq!((place.offset, place.size, &xml[place.offset_span.clone()]), (64, 32, "64"));
        let readers: Vec<_> = document.readers(1).map(|edge| edge.to).collect();
        assert_eq!(readers, [(2, 1)]);
        assert_eq!(document.operation(2).unwrap().data["transpose_b"], "true");
        assert!(xml[weight.span.clone()].ends_with("</layer>"));
    }

    #[test]
    fn graphs_inside_of_operations_only_tell_their_constants() {
        let xml = "<net name=\"n\" version=\"11\"><layers><layer id=\"7\" type=\"Loop\"><body><layers>\
            <layer id=\"0\" type=\"Const\"><data offset=\"3\" size=\"5\"/></layer></layers><edges>\
            <edge from-layer=\"0\" from-port=\"0\" to-layer=\"1\" to-port=\"0\"/></edges></body></layer></layers></net>";
        let document = Document::read(xml).unwrap();
        assert_eq!(document.operations.len(), 1);
        assert_eq!((document.operations[0].id, document.operations[0].place), (7, None));
        assert!(document.edges.is_empty());
        assert_eq!((document.places[0].offset, document.places[0].size), (3, 5));
    }

    #[test]
    fn damaged_texts_are_refused() {
        for xml in [
            "",
            "<net",
            "<net><layers><layer id=\"0\" type=\"A\">",
            "<net></layer></net>",
            "<net><layer type=\"A\"/></net>",
        ] {
            assert!(Document::read(xml).is_err(), "{xml}");
        }
    }

    proptest::proptest! {
        #[test]
        fn any_text_is_read_or_refused(text in "(<|>|\"|/|=|layer|edge|data|net| id=\"1\"| offset=\"|[a-z0-9 ]){0,60}") {
            let _ = Document::read(&text);
        }
    }
}
