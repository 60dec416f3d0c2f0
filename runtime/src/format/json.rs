//! The JSON of a header: exactly the objects that the format prescribes, read in one pass without recursion.
//!
//! A general parser would take more than the format allows (a key twice, an array for an object) and would put a
//! string of any length into its error. This one knows where it is, so every error has an offset, and it allocates
//! nothing but what a [`Header`](super::Header) keeps.

use std::borrow::Cow;
use std::collections::BTreeMap;

use super::bytes::ByteCount;
use super::{
    Dtype, FormatError, MAX_METADATA, MAX_RANK, MAX_TENSORS, METADATA_KEY, PREFIX_BYTES, TensorInfo,
};

type Result<T> = std::result::Result<T, FormatError>;

/// What a header says, not yet compared with the file: tensors in header order, offsets relative to the data section.
#[derive(Default)]
pub(super) struct RawHeader {
    pub(super) tensors: Vec<TensorInfo>,
    pub(super) metadata: BTreeMap<String, String>,
}

/// Parses the header text, which starts with `{` and ends with `}`.
pub(super) fn parse(text: &str) -> Result<RawHeader> {
    let mut header = RawHeader::default();
    let mut json = Cursor { text, at: 0, entry: None };
    let mut has_metadata = false;
    json.object(|json, key| {
        if key == METADATA_KEY {
            if std::mem::replace(&mut has_metadata, true) {
                return Err(FormatError::DuplicateName { name: METADATA_KEY.into() });
            }
            return json.metadata(&mut header.metadata);
        }
        if header.tensors.len() == MAX_TENSORS {
            return Err(FormatError::TooManyTensors);
        }
        json.entry = Some(clipped(&key));
        header.tensors.push(json.tensor(key.into_owned())?);
        json.entry = None;
        Ok(())
    })?;
    if json.at < text.len() {
        return Err(json.unexpected("the end of the header"));
    }
    Ok(header)
}

/// The start of a key: enough to find it, never a megabyte of it.
fn clipped(text: &str) -> String {
    text.chars().take(200).collect()
}

/// A place in the header and the entry it belongs to.
struct Cursor<'a> {
    text: &'a str,
    at: usize,
    entry: Option<String>,
}

impl<'a> Cursor<'a> {
    fn peek(&self) -> Option<u8> {
        self.text.as_bytes().get(self.at).copied()
    }

    fn skip_blanks(&mut self) {
        while matches!(self.peek(), Some(b' ' | b'\n' | b'\r' | b'\t')) {
            self.at += 1;
        }
    }

    /// Takes `byte`, after blanks.
    fn expect(&mut self, byte: u8, what: &str) -> Result<()> {
        self.skip_blanks();
        if self.peek() != Some(byte) {
            return Err(self.unexpected(what));
        }
        self.at += 1;
        Ok(())
    }

    /// Takes `,` and says true, or takes `close` and says false.
    fn comma_or(&mut self, close: u8) -> Result<bool> {
        self.skip_blanks();
        match self.peek() {
            Some(b',') => self.at += 1,
            Some(byte) if byte == close => {
                self.at += 1;
                return Ok(false);
            }
            _ => return Err(self.unexpected(if close == b'}' { "`,` or `}`" } else { "`,` or `]`" })),
        }
        Ok(true)
    }

    /// `{ "key": …, … }`, where `value` reads what follows each colon.
    fn object(&mut self, mut value: impl FnMut(&mut Self, Cow<'a, str>) -> Result<()>) -> Result<()> {
        self.expect(b'{', "`{`")?;
        self.skip_blanks();
        if self.peek() == Some(b'}') {
            self.at += 1;
            return Ok(());
        }
        loop {
            let key = self.string("a key in quotes")?;
            self.expect(b':', "`:`")?;
            value(self, key)?;
            if !self.comma_or(b'}')? {
                return Ok(());
            }
        }
    }

    /// A string, borrowed unless it has escapes.
    fn string(&mut self, what: &str) -> Result<Cow<'a, str>> {
        self.expect(b'"', what)?;
        let (text, start) = (self.text, self.at);
        let mut escapes = false;
        loop {
            match self.peek() {
                Some(b'"') => break,
                Some(b'\\') => {
                    escapes = true;
                    self.at += 2;
                }
                Some(0..0x20) => return Err(self.unexpected("a string without control characters")),
                Some(_) => self.at += 1,
                None => return Err(self.unexpected("the closing quote of a string")),
            }
        }
        let (raw, quoted) = (&text[start..self.at], &text[start - 1..=self.at]);
        self.at += 1;
        if !escapes {
            return Ok(Cow::Borrowed(raw));
        }
        match serde_json::from_str(quoted) {
            Ok(text) => Ok(Cow::Owned(text)),
            Err(_) => {
                self.at = start;
                Err(self.unexpected("a string with valid escapes"))
            }
        }
    }

    /// An unsigned integer, plain digits.
    fn integer(&mut self) -> Result<u64> {
        self.skip_blanks();
        let start = self.at;
        while self.peek().is_some_and(|byte| byte.is_ascii_digit()) {
            self.at += 1;
        }
        let digits = &self.text[start..self.at];
        let plain =
            !matches!(self.peek(), Some(b'.' | b'e' | b'E')) && (digits == "0" || !digits.starts_with('0'));
        match digits.parse() {
            Ok(value) if plain => Ok(value),
            _ => {
                self.at = start;
                Err(self.unexpected("an unsigned 64-bit integer"))
            }
        }
    }

    fn metadata(&mut self, metadata: &mut BTreeMap<String, String>) -> Result<()> {
        self.entry = Some(METADATA_KEY.into());
        self.object(|json, key| {
            if metadata.contains_key(key.as_ref()) {
                return Err(FormatError::DuplicateMetadata { name: clipped(&key) });
            }
            if metadata.len() == MAX_METADATA {
                return Err(FormatError::TooMuchMetadata);
            }
            let value = json.string("a text in quotes")?.into_owned();
            metadata.insert(key.into_owned(), value);
            Ok(())
        })?;
        self.entry = None;
        Ok(())
    }

    /// `{"dtype": …, "shape": […], "data_offsets": [begin, end]}`, each field once, in any order.
    fn tensor(&mut self, name: String) -> Result<TensorInfo> {
        let (mut dtype, mut shape, mut offsets) = (None, None, None);
        self.object(|json, key| {
            let first = match key.as_ref() {
                "dtype" => dtype.replace(json.dtype(&name)?).is_none(),
                "shape" => shape.replace(json.shape(&name)?).is_none(),
                "data_offsets" => offsets.replace(json.offsets()?).is_none(),
                _ => return Err(json.broken("a field other than dtype, shape and data_offsets")),
            };
            if first { Ok(()) } else { Err(json.broken("a field twice")) }
        })?;
        let dtype = dtype.ok_or_else(|| self.broken("no dtype"))?;
        let shape = shape.ok_or_else(|| self.broken("no shape"))?;
        let (begin, end) = offsets.ok_or_else(|| self.broken("no data_offsets"))?;

        let expected = ByteCount::of_tensor(&name, dtype, &shape)?;
        let Some(bytes) = ByteCount::new(end).minus(ByteCount::new(begin)) else {
            return Err(FormatError::OffsetsReversed { name, begin, end });
        };
        if bytes != expected {
            let (expected, found) = (expected.to_u64(), bytes.to_u64());
            return Err(FormatError::SizeMismatch { name, dtype, shape, expected, found });
        }
        Ok(TensorInfo { name, dtype, shape, offset: begin, bytes: bytes.to_u64() })
    }

    fn dtype(&mut self, name: &str) -> Result<Dtype> {
        let found = self.string("a dtype in quotes")?;
        Dtype::from_name(&found)
            .ok_or_else(|| FormatError::UnknownDtype { name: name.into(), found: clipped(&found) })
    }

    fn shape(&mut self, name: &str) -> Result<Vec<usize>> {
        let (mut dims, mut rank) = ([0; MAX_RANK], 0);
        self.expect(b'[', "`[`")?;
        self.skip_blanks();
        if self.peek() == Some(b']') {
            self.at += 1;
            return Ok(Vec::new());
        }
        loop {
            let Some(dim) = dims.get_mut(rank) else {
                return Err(FormatError::Rank { name: name.into() });
            };
            let value = self.integer()?;
            *dim =
                usize::try_from(value).map_err(|_| self.broken("a dimension too large for this machine"))?;
            rank += 1;
            if !self.comma_or(b']')? {
                return Ok(dims[..rank].to_vec());
            }
        }
    }

    fn offsets(&mut self) -> Result<(u64, u64)> {
        self.expect(b'[', "`[`")?;
        let begin = self.integer()?;
        self.expect(b',', "`,`")?;
        let end = self.integer()?;
        self.expect(b']', "`]`")?;
        Ok((begin, end))
    }

    fn broken(&self, message: &str) -> FormatError {
        FormatError::HeaderJson { entry: self.entry.clone(), message: format!("it has {message}") }
    }

    /// The error for what stands here, with its offset in the file.
    fn unexpected(&self, expected: &str) -> FormatError {
        let offset = PREFIX_BYTES + self.at as u64;
        let found = self.text.get(self.at..).and_then(|rest| rest.chars().next());
        let found = found.map_or_else(|| "its end".into(), |c| format!("`{}`", c.escape_debug()));
        let message = format!("expected {expected} at file offset {offset}, found {found}");
        FormatError::HeaderJson { entry: self.entry.clone(), message }
    }
}
