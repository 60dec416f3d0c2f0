//! The AVI container, read front to back: a strict walk over its chunks that needs no index.
//!
//! ```text
//! RIFF size 'AVI '                          then, in files over 1 GB (OpenDML), more of: RIFF size 'AVIX'
//!   LIST size 'hdrl'  avih, LIST 'strl' (strh, strf, …) for each stream
//!   LIST size 'movi'  NNdc or NNdb: a frame of stream NN; NNwb: sound; ix##: index; LIST 'rec ': a group
//!   idx1, JUNK, …     passed over
//! ```
//!
//! Every chunk must end inside the list that holds it. A list whose own end lies behind the file's is read up to the
//! file's end, since recorders that are switched off leave such files; a frame that is cut there is reported as cut.

use std::io::{Read, Seek, SeekFrom};

use super::decode::MAX_PICTURE_BYTES;
use super::error::AviError;

/// Most bytes of the list of headers. Real ones have some hundreds, or some ten thousands with an OpenDML index.
const MAX_HEADER_BYTES: u64 = 4 << 20;
/// Deepest nesting: RIFF, movi, rec, and one to spare.
const MAX_DEPTH: usize = 4;

/// What the headers say about the video.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct AviHeader {
    /// Four letters of the codec.
    pub(super) codec: String,
    pub(super) width: u32,
    pub(super) height: u32,
    /// Frames a second, where the file says something sensible.
    pub(super) rate_hz: Option<f64>,
    /// Number of the video stream.
    stream: usize,
}

/// The next thing in the list of frames.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum AviFrame {
    /// The buffer holds a whole frame.
    Whole,
    /// The file ends inside a frame.
    Cut,
    /// The file ends.
    End,
}

/// A reader of the frames of one video stream.
#[derive(Debug)]
pub(super) struct AviReader<R> {
    reader: R,
    file_end: u64,
    header: AviHeader,
    /// Where the next chunk begins.
    at: u64,
    /// Ends of the lists around `at`, outermost first.
    ends: Vec<u64>,
    /// The file ended inside a chunk.
    cut: bool,
    movi_seen: bool,
}

/// A chunk's head.
#[derive(Debug, Clone, Copy)]
struct Chunk {
    id: [u8; 4],
    offset: u64,
    bytes: u64,
}

impl Chunk {
    fn too_large(&self) -> AviError {
        let id = self.id.escape_ascii().to_string();
        AviError::BadSize { id, offset: self.offset, bytes: self.bytes }
    }

    /// First byte of the contents.
    fn body(&self) -> u64 {
        self.offset + 8
    }

    /// First byte behind the contents; chunks begin at even offsets.
    fn next(&self) -> u64 {
        self.body() + self.bytes + (self.bytes & 1)
    }
}

impl<R: Read + Seek> AviReader<R> {
    /// Reads the headers and stands before the first frame.
    ///
    /// # Errors
    /// No AVI file, damaged headers, no video stream, or no list of frames.
    pub(super) fn open(mut reader: R) -> Result<Self, AviError> {
        let file_end = reader.seek(SeekFrom::End(0))?;
        let mut magic = [0; 12];
        reader.seek(SeekFrom::Start(0))?;
        let read = read_up_to(&mut reader, &mut magic)?;
        if read < 12 || magic[..4] != *b"RIFF" || magic[8..] != *b"AVI " {
            return Err(AviError::NotAvi);
        }
        let mut avi = Self {
            reader,
            file_end,
            header: AviHeader { codec: String::new(), width: 0, height: 0, rate_hz: None, stream: 0 },
            at: 0,
            ends: Vec::with_capacity(MAX_DEPTH),
            cut: false,
            movi_seen: false,
        };
        avi.header = avi.find_header()?;
        avi.find_movi()?;
        avi.rewind();
        Ok(avi)
    }

    pub(super) fn header(&self) -> &AviHeader {
        &self.header
    }

    /// Back to the first frame.
    pub(super) fn rewind(&mut self) {
        self.at = 0;
        self.ends.clear();
        self.cut = false;
    }

    /// Reads the next frame's bytes into `frame`, whose memory is reused.
    ///
    /// # Errors
    /// A chunk with an impossible size, or a read error.
    pub(super) fn next_frame(&mut self, frame: &mut Vec<u8>) -> Result<AviFrame, AviError> {
        while let Some(chunk) = self.next_chunk()? {
            // An empty chunk stands for a frame that the recorder dropped.
            if self.is_frame(chunk.id) && chunk.bytes > 0 {
                if self.cut {
                    return Ok(AviFrame::Cut);
                }
                let len = usize::try_from(chunk.bytes).map_err(|_| chunk.too_large())?;
                if chunk.bytes > MAX_PICTURE_BYTES {
                    return Err(chunk.too_large());
                }
                self.reader.seek(SeekFrom::Start(chunk.body()))?;
                frame.resize(len, 0);
                if read_up_to(&mut self.reader, frame)? < len {
                    self.cut = true;
                    return Ok(AviFrame::Cut);
                }
                return Ok(AviFrame::Whole);
            }
        }
        Ok(AviFrame::End)
    }

    /// `NNdc` or `NNdb`, NN the stream's number in decimal (some writers use hexadecimal; below ten both agree).
    fn is_frame(&self, id: [u8; 4]) -> bool {
        let digit = |b: u8| char::from(b).to_digit(16).map(|d| d as usize);
        let number = digit(id[0]).zip(digit(id[1])).map(|(high, low)| high * 10 + low);
        number == Some(self.header.stream) && (id[2..] == *b"dc" || id[2..] == *b"db")
    }

    /// The next chunk that is no list of frames; such lists are entered, others passed over. Always moves on.
    fn next_chunk(&mut self) -> Result<Option<Chunk>, AviError> {
        loop {
            if self.cut {
                return Ok(None);
            }
            while self.ends.last().is_some_and(|&end| self.at + 8 > end) {
                // The rest of a list is at most a pad byte; go on behind it.
                self.at = self.at.max(self.ends.pop().unwrap_or(self.at));
                self.at += self.at & 1;
            }
            let Some((chunk, kind)) = self.read_head()? else { return Ok(None) };
            let end = self.ends.last().copied().unwrap_or(self.file_end);
            let inside = chunk.body() + chunk.bytes;
            let entered =
                matches!((&chunk.id, &kind), (b"RIFF", b"AVI " | b"AVIX") | (b"LIST", b"movi" | b"rec "));
            if entered {
                if self.ends.len() == MAX_DEPTH || (inside > end && end < self.file_end) {
                    return Err(chunk.too_large());
                }
                // A recorder that was switched off leaves a size of 0 or one behind the file's end.
                let open = chunk.bytes < 4 || inside > end;
                self.ends.push(if open { end } else { inside });
                self.at = chunk.body() + 4;
                self.movi_seen |= kind == *b"movi";
                continue;
            }
            if inside > end {
                if end < self.file_end {
                    return Err(chunk.too_large());
                }
                self.cut = true;
                return Ok(Some(chunk));
            }
            self.at = chunk.next();
            return Ok(Some(chunk));
        }
    }

    /// The head at `at` and, for a list, its kind; `None` at the end of the file.
    fn read_head(&mut self) -> Result<Option<(Chunk, [u8; 4])>, AviError> {
        if self.at + 8 > self.file_end {
            return Ok(None);
        }
        let mut head = [0; 12];
        self.reader.seek(SeekFrom::Start(self.at))?;
        let read = read_up_to(&mut self.reader, &mut head)?;
        if read < 8 {
            return Ok(None);
        }
        let id = [head[0], head[1], head[2], head[3]];
        let bytes = u64::from(u32_at(&head, 4).unwrap_or(0));
        let kind = if read == 12 { [head[8], head[9], head[10], head[11]] } else { [0; 4] };
        Ok(Some((Chunk { id, offset: self.at, bytes }, kind)))
    }

    fn find_header(&mut self) -> Result<AviHeader, AviError> {
        while let Some(chunk) = self.next_chunk()? {
            if self.cut {
                return Err(AviError::Truncated);
            }
            if self.is_frame_like(chunk.id) {
                return Err(AviError::NoVideo);
            }
            if chunk.id == *b"LIST" {
                if chunk.bytes > MAX_HEADER_BYTES {
                    continue;
                }
                let mut list = vec![0; usize::try_from(chunk.bytes).map_err(|_| chunk.too_large())?];
                self.reader.seek(SeekFrom::Start(chunk.body()))?;
                self.reader.read_exact(&mut list).map_err(|_| AviError::Truncated)?;
                if let Some(body) = list.strip_prefix(b"hdrl") {
                    return parse_header(body, chunk.body() + 4);
                }
            }
        }
        Err(AviError::NoVideo)
    }

    fn is_frame_like(&self, id: [u8; 4]) -> bool {
        id[..2].iter().all(u8::is_ascii_digit) && matches!(&id[2..], b"dc" | b"db" | b"wb")
    }

    /// Makes sure that there is a list of frames at all, even an empty one.
    fn find_movi(&mut self) -> Result<(), AviError> {
        while !self.movi_seen {
            if self.next_chunk()?.is_none() && !self.movi_seen {
                return Err(AviError::NoMovi);
            }
        }
        Ok(())
    }
}

/// Chunks of a list in memory; `base` is where it begins in the file.
fn chunks(list: &[u8], base: u64) -> impl Iterator<Item = Result<([u8; 4], &[u8]), AviError>> {
    let mut at = 0;
    std::iter::from_fn(move || {
        let head = list.get(at..at + 8)?;
        let id = [head[0], head[1], head[2], head[3]];
        let bytes = u32_at(head, 4)?;
        let chunk = Chunk { id, offset: base + at as u64, bytes: u64::from(bytes) };
        let start = at + 8;
        let body = usize::try_from(bytes).ok().and_then(|n| list.get(start..start.checked_add(n)?));
        at = body.map_or(list.len(), |body| start + body.len() + (body.len() & 1));
        Some(body.map(|body| (id, body)).ok_or_else(|| chunk.too_large()))
    })
}

/// The first video stream of the list of headers.
fn parse_header(list: &[u8], base: u64) -> Result<AviHeader, AviError> {
    let (mut main, mut stream) = (None, 0);
    for chunk in chunks(list, base) {
        match chunk? {
            (id, body) if id == *b"avih" => main = Some(body),
            (id, body) if id == *b"LIST" && body.starts_with(b"strl") => {
                if let Some(header) = parse_stream(&body[4..], stream, main, base)? {
                    return Ok(header);
                }
                stream += 1;
            }
            _ => {}
        }
    }
    Err(AviError::NoVideo)
}

/// The headers of one stream, if it is a video stream.
fn parse_stream(
    list: &[u8],
    stream: usize,
    main: Option<&[u8]>,
    base: u64,
) -> Result<Option<AviHeader>, AviError> {
    let (mut strh, mut strf) = (None, None);
    for chunk in chunks(list, base) {
        match chunk? {
            (id, body) if id == *b"strh" => strh = Some(body),
            (id, body) if id == *b"strf" => strf = Some(body),
            _ => {}
        }
    }
    let (Some(strh), Some(strf)) = (strh, strf) else { return Ok(None) };
    if !strh.starts_with(b"vids") {
        return Ok(None);
    }
    let (Some(width), Some(height), Some(codec)) = (u32_at(strf, 4), u32_at(strf, 8), strf.get(16..20))
    else {
        return Err(AviError::Truncated);
    };
    let ratio = |num: Option<u32>, den: Option<u32>| {
        let hz = f64::from(num?) / f64::from(den?);
        (0.1..=1000.0).contains(&hz).then_some(hz)
    };
    let rate_hz = ratio(u32_at(strh, 24), u32_at(strh, 20))
        .or_else(|| ratio(Some(1_000_000), main.and_then(|avih| u32_at(avih, 0))));
    // A negative height means rows from top to bottom; to us both are the same picture.
    let height = height.cast_signed().unsigned_abs();
    let codec = codec.escape_ascii().to_string();
    Ok(Some(AviHeader { codec, width, height, rate_hz, stream }))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(*bytes.get(at..)?.first_chunk()?))
}

/// Fills as much of `buffer` as there is.
fn read_up_to(reader: &mut impl Read, buffer: &mut [u8]) -> std::io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match reader.read(&mut buffer[filled..]) {
            Ok(0) => break,
            Ok(n) => filled += n,
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(filled)
}

#[cfg(test)]
pub(super) mod tests;
