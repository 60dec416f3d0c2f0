//! Whether a graph is all in its file. ONNX lets tensors lie in other files, by path, and nodes name compiled graphs elsewhere: what a
//! bundle's hashes do not cover, and what has let files outside a model's folder be read (CVE-2022-25882, CVE-2024-27318 and later).
//!
//! Only the framing is read here: protobuf fields of the messages that can lead to such a place, nothing is kept. Field numbers are those
//! of `onnx.proto`.

/// Graphs inside graphs, and what lies between: deeper than any exporter nests them.
const MAX_DEPTH: usize = 64;
/// Says of a file that it is in ONNX Runtime's own format.
const ORT_FORMAT: &[u8] = b"ORTM";

const DAMAGED: &str = "it is no ONNX file, or a damaged one; export the graph again";

/// Checks that the bytes are one ONNX graph, and that it is all in them.
///
/// # Errors
/// What is wrong, and what to do.
pub(super) fn contained(bytes: &[u8]) -> Result<(), &'static str> {
    if bytes.get(4..8) == Some(ORT_FORMAT) {
        return Err("it is in ONNX Runtime's own format; export the graph as .onnx");
    }
    let mut graphs = 0;
    visit(Message::Model, bytes, 0, &mut graphs)?;
    if graphs == 0 { Err(DAMAGED) } else { Ok(()) }
}

/// The messages that can lead to a tensor.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Message {
    Model,
    Training,
    Function,
    Graph,
    Node,
    Attribute,
    SparseTensor,
    Tensor,
}

impl Message {
    /// What a field holds, if that can lead to a tensor.
    const fn field(self, number: u64) -> Option<Self> {
        match (self, number) {
            (Self::Model, 7) | (Self::Training, 1 | 2) | (Self::Attribute, 6 | 11) => Some(Self::Graph),
            (Self::Model, 20) => Some(Self::Training),
            (Self::Model, 25) => Some(Self::Function),
            (Self::Function, 7) | (Self::Graph, 1) => Some(Self::Node),
            (Self::Function, 11) | (Self::Node, 5) => Some(Self::Attribute),
            (Self::Graph, 5) | (Self::Attribute, 5 | 10) | (Self::SparseTensor, 1 | 2) => Some(Self::Tensor),
            (Self::Graph, 15) | (Self::Attribute, 22 | 23) => Some(Self::SparseTensor),
            _ => None,
        }
    }
}

/// Walks through a message; no byte is looked at more than once a level.
fn visit(message: Message, mut bytes: &[u8], depth: usize, graphs: &mut usize) -> Result<(), &'static str> {
    if depth > MAX_DEPTH {
        return Err("its graphs are nested too deeply; export it without control flow");
    }
    *graphs += usize::from(message == Message::Graph);
    while !bytes.is_empty() {
        let tag = varint(&mut bytes)?;
        // Tags of more than 32 bits and groups do not occur in ONNX.
        let number = u64::from(u32::try_from(tag).map_err(|_| DAMAGED)?) >> 3;
        let (mut value, mut content) = (0, &[][..]);
        match tag & 7 {
            0 => value = varint(&mut bytes)?,
            1 => drop(take(&mut bytes, 8)?),
            2 => {
                let len = varint(&mut bytes)?;
                content = take(&mut bytes, len)?;
            }
            5 => drop(take(&mut bytes, 4)?),
            _ => return Err(DAMAGED),
        }
        match (message, number) {
            (Message::Tensor, 13) => return Err(OUTSIDE),
            (Message::Tensor, 14) if value != 0 => return Err(OUTSIDE),
            (Message::Node, 4) if content == b"EPContext" => return Err(OUTSIDE),
            _ => {}
        }
        if tag & 7 == 2
            && let Some(inner) = message.field(number)
        {
            visit(inner, content, depth + 1, graphs)?;
        }
    }
    Ok(())
}

const OUTSIDE: &str = "it has parts in other files, which a bundle does not take; export the graph with all weights in one file";

/// A number of up to 64 bits, seven a byte.
fn varint(bytes: &mut &[u8]) -> Result<u64, &'static str> {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let (&first, rest) = bytes.split_first().ok_or(DAMAGED)?;
        *bytes = rest;
        value |= u64::from(first & 0x7f) << shift;
        if first < 0x80 {
            return Ok(value);
        }
    }
    Err(DAMAGED)
}

fn take<'a>(bytes: &mut &'a [u8], len: u64) -> Result<&'a [u8], &'static str> {
    let (taken, rest) =
        usize::try_from(len).ok().and_then(|len| bytes.split_at_checked(len)).ok_or(DAMAGED)?;
    *bytes = rest;
    Ok(taken)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A field that holds bytes.
    fn field(number: u8, content: &[u8]) -> Vec<u8> {
        let mut bytes = vec![number << 3 | 2];
        // Field numbers from 16 take two bytes.
        if number >= 16 {
            bytes = vec![(number << 3 | 2) | 0x80, number >> 4];
        }
        let mut len = content.len();
        while len >= 0x80 {
            bytes.push(u8::try_from(len & 0x7f).unwrap() | 0x80);
            len >>= 7;
        }
        bytes.push(u8::try_from(len).unwrap());
        bytes.extend_from_slice(content);
        bytes
    }

    fn model(graph: &[u8]) -> Vec<u8> {
        field(7, graph)
    }

    #[test]
    fn takes_a_graph_whose_tensors_are_inside() {
        let tensor = field(5, &field(9, &[0; 300]));
        let node = field(1, &[field(4, b"Conv"), field(5, &field(1, b"strides"))].concat());
        assert_eq!(contained(&model(&[tensor, node].concat())), Ok(()));
    }

    #[test]
    fn finds_what_lies_outside_wherever_it_is_named() {
        let location = field(13, &field(1, b"location"));
        // `data_location: EXTERNAL` alone, and with bits that protobuf cuts off.
        let flag = vec![14 << 3, 1];
        let wide = vec![14 << 3, 0x81, 0x80, 0x80, 0x80, 0x10];
        for tensor in [location, flag, wide] {
            let attribute = |number| field(1, &field(5, &field(number, &tensor)));
            let sparse = field(15, &field(2, &tensor));
            let inner = field(1, &field(5, &field(6, &field(5, &tensor))));
            let places = [field(5, &tensor), attribute(5), attribute(10), sparse, inner];
            for (at, graph) in places.iter().enumerate() {
                assert_eq!(contained(&model(graph)), Err(OUTSIDE), "place {at}");
            }
            let function = [model(&[]), field(25, &field(7, &field(5, &field(5, &tensor))))].concat();
            assert_eq!(contained(&function), Err(OUTSIDE));
        }
        assert_eq!(contained(&model(&field(1, &field(4, b"EPContext")))), Err(OUTSIDE));
    }

    #[test]
    fn refuses_what_is_no_graph() {
        for bytes in [&b""[..], b"hello", &[0x3a, 0x05, 0], &[0x3b], &[0x80; 11], &field(8, b"ai.onnx")] {
            assert_eq!(contained(bytes), Err(DAMAGED), "{bytes:?}");
        }
        assert!(contained(b"\x20\0\0\0ORTM").unwrap_err().contains(".onnx"));
        let mut deep = Vec::new();
        for _ in 0..40 {
            deep = field(1, &field(5, &field(6, &deep)));
        }
        assert!(contained(&model(&deep)).unwrap_err().contains("deep"));
    }

    proptest! {
        #[test]
        fn never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..256)) {
            let _ = contained(&bytes);
            let _ = contained(&model(&bytes));
        }
    }
}
