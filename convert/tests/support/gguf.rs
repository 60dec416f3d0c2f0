//! GGUF files byte by byte, for tests that bend them.

#![allow(dead_code, unreachable_pub, reason = "each test file uses its part")]

/// The bytes of a file before its padding.
#[derive(Default)]
pub struct Builder {
    pub metadata: Vec<Vec<u8>>,
    pub tensors: Vec<Vec<u8>>,
}

/// A string as the format has it.
pub fn string(text: impl AsRef<[u8]>) -> Vec<u8> {
    let text = text.as_ref();
    [&(text.len() as u64).to_le_bytes(), text].concat()
}

impl Builder {
    /// An entry; `value` is as it lies in the file.
    pub fn entry(mut self, key: impl AsRef<[u8]>, value_type: u32, value: &[u8]) -> Self {
        self.metadata.push([&string(key)[..], &value_type.to_le_bytes(), value].concat());
        self
    }

    /// An entry of a string array.
    pub fn strings(self, key: &str, values: &[&str]) -> Self {
        let bytes: Vec<u8> = values.iter().flat_map(string).collect();
        self.array(key, 8, values.len() as u64, &bytes)
    }

    /// An entry of any array with `count` elements.
    pub fn array(self, key: &str, element: u32, count: u64, elements: &[u8]) -> Self {
        self.entry(key, 9, &[&element.to_le_bytes(), &count.to_le_bytes()[..], elements].concat())
    }

    /// A tensor; `dims` innermost first.
    pub fn tensor(mut self, name: impl AsRef<[u8]>, dims: &[u64], tensor_type: u32, offset: u64) -> Self {
        let rank = u32::try_from(dims.len()).unwrap_or(u32::MAX);
        let dims: Vec<u8> = dims.iter().flat_map(|d| d.to_le_bytes()).collect();
        self.tensors.push(
            [
                &string(name)[..],
                &rank.to_le_bytes(),
                &dims,
                &tensor_type.to_le_bytes(),
                &offset.to_le_bytes(),
            ]
            .concat(),
        );
        self
    }

    /// All before the padding.
    pub fn header(&self) -> Vec<u8> {
        let counts = [self.tensors.len() as u64, self.metadata.len() as u64].map(u64::to_le_bytes).concat();
        [&b"GGUF\x03\0\0\0"[..], &counts, &self.metadata.concat(), &self.tensors.concat()].concat()
    }

    /// The whole file: padded to `alignment`, then so many bytes of data.
    pub fn file(&self, alignment: usize, data_bytes: usize) -> Vec<u8> {
        let mut file = self.header();
        file.resize(file.len().next_multiple_of(alignment) + data_bytes, 0);
        file
    }
}
