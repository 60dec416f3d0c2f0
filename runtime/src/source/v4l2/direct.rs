//! Streaming by the kernel's own interface, for what nokhwa cannot do: grey cameras and rates that are no whole number.
//!
//! Every buffer that leaves the driver's queue goes back exactly once, whatever happens to its contents.

#![allow(unsafe_code)]

use std::io;
use std::os::fd::AsFd;
use std::ptr::{self, NonNull};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};

use super::super::error::SourceError;
use super::super::monotonic_ns;
use super::abi;
use super::device::{Device, refused};

/// Buffers in the driver's queue: one is filled, one is read, two are spare.
const BUFFERS: u32 = 4;

/// A raw frame as it lies in the driver's memory.
#[derive(Debug)]
pub(super) struct Raw<'a> {
    pub(super) bytes: &'a [u8],
    pub(super) capture_ns: u64,
    /// Frames since the last one, this one included: more than 1 means that some were lost.
    pub(super) step: u64,
    /// The driver says that the contents are broken.
    pub(super) damaged: bool,
}

/// A camera that streams.
#[derive(Debug)]
pub(super) struct DirectStream {
    device: Device,
    buffers: Vec<Mapping>,
    last_sequence: Option<u32>,
}

impl DirectStream {
    /// Starts to stream in the format that was agreed with the device.
    pub(super) fn start(device: Device) -> Result<Self, SourceError> {
        let node = device.node.display().to_string();
        let failed = |what: &'static str| move |e: Errno| refused(&node, what, &e.into());
        let mut request = abi::RequestBuffers::new(BUFFERS);
        abi::request_buffers(&device, &mut request).map_err(failed.clone()("gives no buffers"))?;
        // From here on, dropping the stream gives back what it has.
        let mut stream = Self { device, buffers: Vec::new(), last_sequence: None };
        for index in 0..request.count {
            let mut buffer = abi::Buffer::new(index);
            abi::query_buffer(&stream.device, &mut buffer)
                .map_err(failed.clone()("does not describe its buffers"))?;
            let mapping =
                Mapping::new(&stream.device, &buffer).map_err(failed.clone()("cannot share its buffers"))?;
            stream.buffers.push(mapping);
            abi::queue_buffer(&stream.device, &mut abi::Buffer::new(index))
                .map_err(failed.clone()("does not take its buffers"))?;
        }
        abi::stream_on(&stream.device, &mut { abi::VIDEO_CAPTURE }).map_err(failed("does not start"))?;
        Ok(stream)
    }

    /// Waits at most `timeout` for a frame and shows the newest one to `look`; `None` when none came.
    pub(super) fn next<T>(
        &mut self,
        timeout: Duration,
        look: impl FnOnce(Raw) -> T,
    ) -> Result<Option<T>, SourceError> {
        let node = self.device.node.display().to_string();
        self.wait(timeout).map_err(|e| refused(&node, "cannot be waited for", &e))?;
        let Some(mut newest) = self.dequeue().map_err(|e| refused(&node, "gives no frame", &e.into()))?
        else {
            return Ok(None);
        };
        let mut step = self.step_to(newest.sequence);
        // A reader that was slow takes the newest frame; the older ones go back unread.
        while let Ok(Some(newer)) = self.dequeue() {
            let old = std::mem::replace(&mut newest, newer);
            self.requeue(old.index).map_err(|e| refused(&node, "does not take its buffers", &e.into()))?;
            step += self.step_to(newest.sequence);
        }
        let seen = self.buffers.get(newest.index as usize).map(|mapping| {
            let bytes = mapping.bytes();
            let used = if newest.bytes_used == 0 { bytes.len() } else { newest.bytes_used as usize };
            let damaged = newest.flags & abi::BUF_FLAG_ERROR != 0;
            look(Raw {
                bytes: &bytes[..used.min(bytes.len())],
                capture_ns: capture_ns(&newest),
                step,
                damaged,
            })
        });
        self.requeue(newest.index).map_err(|e| refused(&node, "does not take its buffers", &e.into()))?;
        Ok(seen)
    }

    fn wait(&self, timeout: Duration) -> io::Result<()> {
        let timeout = Timespec::try_from(timeout).map_err(io::Error::other)?;
        let mut fds = [PollFd::new(&self.device, PollFlags::IN)];
        match poll(&mut fds, Some(&timeout)) {
            // What a poll reports as an error, the request that follows says precisely.
            Ok(_) | Err(Errno::INTR) => Ok(()),
            Err(e) => Err(e.into()),
        }
    }

    fn dequeue(&self) -> Result<Option<abi::Buffer>, Errno> {
        let mut buffer = abi::Buffer::new(0);
        match abi::dequeue_buffer(&self.device, &mut buffer) {
            Ok(()) => Ok(Some(buffer)),
            Err(Errno::AGAIN | Errno::INTR) => Ok(None),
            Err(e) => Err(e),
        }
    }

    fn requeue(&self, index: u32) -> Result<(), Errno> {
        abi::queue_buffer(&self.device, &mut abi::Buffer::new(index))
    }

    /// Frames from the last one to this one; a counter that jumps backwards has been reset.
    fn step_to(&mut self, sequence: u32) -> u64 {
        let step = self.last_sequence.map_or(1, |last| sequence.wrapping_sub(last));
        self.last_sequence = Some(sequence);
        if (1..1 << 20).contains(&step) { u64::from(step) } else { 1 }
    }
}

impl Drop for DirectStream {
    fn drop(&mut self) {
        // A device that has gone refuses all of this, and its memory goes with its file.
        let _ = abi::stream_off(&self.device, &mut { abi::VIDEO_CAPTURE });
        self.buffers.clear();
        let mut none = abi::RequestBuffers::new(0);
        let _ = abi::request_buffers(&self.device, &mut none);
    }
}

/// When the driver took the frame, if its clock is ours; now otherwise.
fn capture_ns(buffer: &abi::Buffer) -> u64 {
    let now = monotonic_ns();
    if buffer.flags & abi::BUF_FLAG_TIMESTAMP_MASK != abi::BUF_FLAG_TIMESTAMP_MONOTONIC {
        return now;
    }
    let part = |x: i64, ns: u64| u64::try_from(x).ok().and_then(|x| x.checked_mul(ns));
    let stamp = part(buffer.seconds, 1_000_000_000).zip(part(buffer.microseconds, 1000));
    // A stamp from the future would make an age negative.
    stamp.and_then(|(s, us)| s.checked_add(us)).map_or(now, |stamp| stamp.min(now))
}

/// One of the driver's buffers, mapped.
#[derive(Debug)]
struct Mapping {
    start: NonNull<u8>,
    len: usize,
}

// SAFETY: the mapping belongs to this value alone and is as valid on one thread as on another.
unsafe impl Send for Mapping {}

impl Mapping {
    fn new(device: impl AsFd, buffer: &abi::Buffer) -> Result<Self, Errno> {
        let len = buffer.length as usize;
        // `offset` is the low half of the union `m`.
        let offset = buffer.offset & u64::from(u32::MAX);
        // SAFETY: a new mapping at an address of the kernel's choice touches no other memory.
        let start = unsafe { mmap(ptr::null_mut(), len, ProtFlags::READ, MapFlags::SHARED, device, offset) }?;
        NonNull::new(start.cast()).map(|start| Self { start, len }).ok_or(Errno::NOMEM)
    }

    /// The contents. Only asked for between dequeueing and requeueing, when the driver does not write.
    fn bytes(&self) -> &[u8] {
        // SAFETY: `start` and `len` are those of a live mapping, which `self` keeps.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.len) }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: `start` and `len` are those of the mapping, and no slice of it outlives `self`.
        let _ = unsafe { munmap(self.start.as_ptr().cast(), self.len) };
    }
}
