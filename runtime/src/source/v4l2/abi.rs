//! The part of the kernel's V4L2 interface that is used here, as `linux/videodev2.h` lays it out on 64-bit machines.

#![allow(unsafe_code)]

use std::os::fd::AsFd;

use rustix::io::Result;
use rustix::ioctl::{Opcode, Updater, ioctl, opcode};

/// `V4L2_BUF_TYPE_VIDEO_CAPTURE`.
pub(super) const VIDEO_CAPTURE: u32 = 1;
/// `V4L2_MEMORY_MMAP`.
pub(super) const MEMORY_MMAP: u32 = 1;

/// Capability bits.
pub(super) const CAP_VIDEO_CAPTURE: u32 = 0x1;
pub(super) const CAP_VIDEO_CAPTURE_MPLANE: u32 = 0x1000;
pub(super) const CAP_M2M: u32 = 0x4000 | 0x8000;
pub(super) const CAP_META_CAPTURE: u32 = 0x0080_0000;
pub(super) const CAP_STREAMING: u32 = 0x0400_0000;
pub(super) const CAP_DEVICE_CAPS: u32 = 0x8000_0000;

/// Buffer flags.
pub(super) const BUF_FLAG_ERROR: u32 = 0x40;
pub(super) const BUF_FLAG_TIMESTAMP_MASK: u32 = 0xe000;
pub(super) const BUF_FLAG_TIMESTAMP_MONOTONIC: u32 = 0x2000;

/// `V4L2_CAP_TIMEPERFRAME`.
pub(super) const PARM_TIMEPERFRAME: u32 = 0x1000;

/// `struct v4l2_capability`.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Capability {
    pub(super) driver: [u8; 16],
    pub(super) card: [u8; 32],
    pub(super) bus: [u8; 32],
    pub(super) version: u32,
    pub(super) capabilities: u32,
    pub(super) device_caps: u32,
    reserved: [u32; 3],
}

/// `struct v4l2_fmtdesc`.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct FormatDescription {
    pub(super) index: u32,
    pub(super) kind: u32,
    flags: u32,
    description: [u8; 32],
    pub(super) fourcc: [u8; 4],
    mbus_code: u32,
    reserved: [u32; 3],
}

impl FormatDescription {
    /// To ask for the format of this number.
    pub(super) fn new(index: u32) -> Self {
        Self { index, kind: VIDEO_CAPTURE, ..Self::default() }
    }
}

/// `struct v4l2_format` with its `v4l2_pix_format`; the union holds pointers and is therefore 8-byte aligned.
#[repr(C, align(8))]
#[derive(Debug, Clone, Copy)]
pub(super) struct Format {
    kind: u32,
    align: u32,
    pub(super) width: u32,
    pub(super) height: u32,
    pub(super) fourcc: [u8; 4],
    pub(super) field: u32,
    pub(super) bytes_per_line: u32,
    pub(super) size_image: u32,
    rest: [u32; 44],
}

impl Format {
    /// A format to be asked for.
    pub(super) fn new((width, height): (u32, u32), fourcc: [u8; 4]) -> Self {
        let (kind, align, field, bytes_per_line, size_image) = (VIDEO_CAPTURE, 0, 0, 0, 0);
        Self { kind, align, width, height, fourcc, field, bytes_per_line, size_image, rest: [0; 44] }
    }
}

/// `struct v4l2_streamparm` with its `v4l2_captureparm`.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub(super) struct StreamParameters {
    pub(super) kind: u32,
    pub(super) capability: u32,
    capture_mode: u32,
    /// Seconds a frame, as a fraction.
    pub(super) numerator: u32,
    pub(super) denominator: u32,
    rest: [u32; 46],
}

impl Default for StreamParameters {
    fn default() -> Self {
        let kind = VIDEO_CAPTURE;
        Self { kind, capability: 0, capture_mode: 0, numerator: 0, denominator: 0, rest: [0; 46] }
    }
}

/// `struct v4l2_requestbuffers`.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct RequestBuffers {
    pub(super) count: u32,
    pub(super) kind: u32,
    pub(super) memory: u32,
    capabilities: u32,
    flags: u32,
}

impl RequestBuffers {
    /// To ask for this many buffers, or to give all back.
    pub(super) fn new(count: u32) -> Self {
        Self { count, kind: VIDEO_CAPTURE, memory: MEMORY_MMAP, ..Self::default() }
    }
}

/// `struct v4l2_buffer`.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Buffer {
    pub(super) index: u32,
    pub(super) kind: u32,
    pub(super) bytes_used: u32,
    pub(super) flags: u32,
    field: u32,
    align: u32,
    pub(super) seconds: i64,
    pub(super) microseconds: i64,
    timecode: [u32; 4],
    pub(super) sequence: u32,
    pub(super) memory: u32,
    /// The member `offset` of the union `m`.
    pub(super) offset: u64,
    pub(super) length: u32,
    reserved: [u32; 3],
}

impl Buffer {
    /// The buffer of this number.
    pub(super) fn new(index: u32) -> Self {
        Self { index, kind: VIDEO_CAPTURE, memory: MEMORY_MMAP, ..Self::default() }
    }
}

// The kernel tells requests apart by these sizes, too.
const _: () = assert!(size_of::<Capability>() == 104);
const _: () = assert!(size_of::<FormatDescription>() == 64);
const _: () = assert!(size_of::<Format>() == 208);
const _: () = assert!(size_of::<StreamParameters>() == 204);
const _: () = assert!(size_of::<RequestBuffers>() == 20);
const _: () = assert!(size_of::<Buffer>() == 88);

const GROUP: u8 = b'V';

/// One request to the driver, which reads and writes `value`.
///
/// # Safety
/// `OPCODE` must be that of a request whose argument is a `T`.
unsafe fn request<const OPCODE: Opcode, T>(fd: impl AsFd, value: &mut T) -> Result<()> {
    // SAFETY: the caller vouches for the pair of opcode and type.
    let request = unsafe { Updater::<OPCODE, T>::new(value) };
    // SAFETY: the request writes at most a `T`, which `value` is borrowed for.
    unsafe { ioctl(fd, request) }
}

/// Writes the functions below: each is a request and the structure that `videodev2.h` gives it.
macro_rules! requests {
    ($($name:ident = $direction:ident $number:literal $value:ty;)*) => {$(
        /// The request of this name.
        pub(super) fn $name(fd: impl AsFd, value: &mut $value) -> Result<()> {
            // SAFETY: number, direction and structure stand so in `videodev2.h`; the sizes are asserted above.
            unsafe { request::<{ opcode::$direction::<$value>(GROUP, $number) }, $value>(fd, value) }
        }
    )*};
}

requests! {
    query_capability = read 0 Capability;
    enumerate_format = read_write 2 FormatDescription;
    set_format = read_write 5 Format;
    request_buffers = read_write 8 RequestBuffers;
    query_buffer = read_write 9 Buffer;
    queue_buffer = read_write 15 Buffer;
    dequeue_buffer = read_write 17 Buffer;
    stream_on = write 18 u32;
    stream_off = write 19 u32;
    get_parameters = read_write 21 StreamParameters;
    set_parameters = read_write 22 StreamParameters;
}
