//! Memory of a card, memory of the host that a card copies from and to, and launches that are kept as one graph.

use std::sync::Arc;

use cudarc::driver::{result, sys};

use super::driver::Device;
use super::error::CudaError;

/// Memory of a card.
#[derive(Debug)]
pub(crate) struct Memory {
    device: Arc<Device>,
    at: sys::CUdeviceptr,
    bytes: usize,
}

impl Memory {
    /// Of `bytes` that were allocated at `at`.
    pub(super) fn new(device: Arc<Device>, at: sys::CUdeviceptr, bytes: usize) -> Self {
        Self { device, at, bytes }
    }

    /// Its address on the card.
    pub(crate) fn at(&self) -> u64 {
        self.at
    }

    /// Bytes of it.
    pub(crate) fn len(&self) -> usize {
        self.bytes
    }

    /// Copies `from` to `offset`, and waits: what tests put on a card.
    ///
    /// # Panics
    /// If it does not fit.
    #[cfg(test)]
    pub(crate) fn write<T: bytemuck::Pod>(&self, offset: usize, from: &[T]) -> Result<(), CudaError> {
        assert!(
            offset + size_of_val(from) <= self.bytes,
            "{} bytes at {offset} of {}",
            size_of_val(from),
            self.bytes
        );
        self.device.wait()?;
        // SAFETY: checked above; the copy is over when the call returns.
        unsafe { result::memcpy_htod_sync(self.at + offset as u64, from) }
            .map_err(CudaError::of("cuMemcpyHtoD"))
    }

    /// Copies from `offset` to `to`, and waits.
    ///
    /// # Panics
    /// If there is not as much.
    #[cfg(test)]
    pub(crate) fn read<T: bytemuck::Pod>(&self, offset: usize, to: &mut [T]) -> Result<(), CudaError> {
        assert!(
            offset + size_of_val(to) <= self.bytes,
            "{} bytes at {offset} of {}",
            size_of_val(to),
            self.bytes
        );
        self.device.enter()?;
        // SAFETY: checked above; `wait` returns when the copy is over.
        unsafe { result::memcpy_dtoh_async(to, self.at + offset as u64, self.device.stream) }
            .map_err(CudaError::of("cuMemcpyDtoH"))?;
        self.device.wait()
    }
}

impl Memory {
    /// Where so many bytes go: nothing goes nowhere.
    fn way(&self, bytes: usize) -> Option<sys::CUstream> {
        self.device.way().filter(|_| bytes > 0)
    }

    /// Puts a copy of `bytes` from the place `at` of pinned memory to `offset` into the stream.
    ///
    /// # Panics
    /// If it does not fit.
    pub(crate) fn write_from(
        &self,
        offset: usize,
        from: &mut Pinned,
        at: usize,
        bytes: usize,
    ) -> Result<(), CudaError> {
        assert!(
            offset + bytes <= self.bytes && at + bytes <= from.bytes,
            "{bytes} bytes at {offset} of {}",
            self.bytes
        );
        let Some(stream) = self.way(bytes) else { return Ok(()) };
        self.device.enter()?;
        // SAFETY: checked above; `Pinned` is not written to before the event that `follow` records has passed.
        unsafe {
            sys::cuMemcpyHtoDAsync_v2(
                self.at + offset as u64,
                from.at.wrapping_add(at).cast_const().cast(),
                bytes,
                stream,
            )
        }
        .result()
        .map_err(CudaError::of("cuMemcpyHtoD"))?;
        if stream == self.device.stream { from.follow() } else { Ok(()) }
    }

    /// Puts a copy of `bytes` from `offset` to the place `to` of pinned memory into the stream.
    ///
    /// # Panics
    /// If it does not fit.
    pub(crate) fn read_into(
        &self,
        offset: usize,
        to: &mut Pinned,
        at: usize,
        bytes: usize,
    ) -> Result<(), CudaError> {
        assert!(
            offset + bytes <= self.bytes && at + bytes <= to.bytes,
            "{bytes} bytes at {offset} of {}",
            self.bytes
        );
        let Some(stream) = self.way(bytes) else { return Ok(()) };
        self.device.enter()?;
        // SAFETY: checked above; `Pinned` is not read before the event that `follow` records has passed.
        unsafe {
            sys::cuMemcpyDtoHAsync_v2(to.at.wrapping_add(at).cast(), self.at + offset as u64, bytes, stream)
        }
        .result()
        .map_err(CudaError::of("cuMemcpyDtoH"))?;
        if stream == self.device.stream { to.follow() } else { Ok(()) }
    }

    /// Puts a copy of `bytes` from `from` to the place `to` of other memory of the card into the stream.
    ///
    /// # Panics
    /// If one of the two has not as many there.
    pub(crate) fn copy_to(
        &self,
        from: usize,
        other: &Self,
        to: usize,
        bytes: usize,
    ) -> Result<(), CudaError> {
        assert!(
            from + bytes <= self.bytes && to + bytes <= other.bytes,
            "{bytes} bytes from {from} of {} to {to} of {}",
            self.bytes,
            other.bytes
        );
        let Some(stream) = self.way(bytes) else { return Ok(()) };
        self.device.enter()?;
        let (to, from) = (other.at + to as u64, self.at + from as u64);
        // SAFETY: checked above; the two do not overlap.
        unsafe { result::memcpy_dtod_async(to, from, bytes, stream) }.map_err(CudaError::of("cuMemcpyDtoD"))
    }

    /// Puts a copy of `bytes` from `from` to `to`, which do not overlap, into the stream.
    ///
    /// # Panics
    /// If there are not as many, or the two overlap.
    pub(crate) fn copy_within(&self, from: usize, to: usize, bytes: usize) -> Result<(), CudaError> {
        assert!(
            from.max(to) + bytes <= self.bytes && from.abs_diff(to) >= bytes,
            "{bytes} bytes from {from} to {to} of {}",
            self.bytes
        );
        let Some(stream) = self.way(bytes) else { return Ok(()) };
        self.device.enter()?;
        let (to, from) = (self.at + to as u64, self.at + from as u64);
        // SAFETY: checked above.
        unsafe { result::memcpy_dtod_async(to, from, bytes, stream) }.map_err(CudaError::of("cuMemcpyDtoD"))
    }

    /// Puts zeros into `bytes` from `offset` on, in the stream.
    ///
    /// # Panics
    /// If there are not as many.
    pub(crate) fn fill(&self, offset: usize, bytes: usize) -> Result<(), CudaError> {
        assert!(offset + bytes <= self.bytes, "{bytes} bytes at {offset} of {}", self.bytes);
        let Some(stream) = self.way(bytes) else { return Ok(()) };
        self.device.enter()?;
        // SAFETY: checked above.
        unsafe { result::memset_d8_async(self.at + offset as u64, 0, bytes, stream) }
            .map_err(CudaError::of("cuMemsetD8"))
    }
}

/// Memory of the host that a card copies from and to in the background.
#[derive(Debug)]
pub(crate) struct Pinned {
    device: Arc<Device>,
    at: *mut u8,
    bytes: usize,
    event: sys::CUevent,
    /// Whether a copy may be under way.
    busy: bool,
}

// SAFETY: plain memory, and an event that any thread may wait for.
unsafe impl Send for Pinned {}
// SAFETY: shared references only read, after the event has passed.
unsafe impl Sync for Pinned {}

impl Pinned {
    /// Allocates zeroed memory.
    pub(crate) fn new(device: &Arc<Device>, bytes: usize) -> Result<Self, CudaError> {
        device.enter()?;
        let flags = sys::CUevent_flags::CU_EVENT_DISABLE_TIMING;
        // SAFETY: freed below, or by `Drop`.
        let at = unsafe { result::malloc_host(bytes.max(1), 0) }
            .map_err(CudaError::of("cuMemHostAlloc"))?
            .cast::<u8>();
        let event = result::event::create(flags).map_err(|error| {
            // SAFETY: allocated above, and nobody else has it.
            let _ = unsafe { result::free_host(at.cast()) };
            CudaError::of("cuEventCreate")(error)
        })?;
        // SAFETY: allocated above, as long.
        unsafe { at.write_bytes(0, bytes) };
        Ok(Self { device: Arc::clone(device), at, bytes, event, busy: false })
    }

    /// Waits until no copy is under way.
    fn settle(&mut self) -> Result<(), CudaError> {
        if std::mem::take(&mut self.busy) {
            self.device.enter()?;
            // SAFETY: the event lives until `Drop`.
            unsafe { result::event::synchronize(self.event) }.map_err(CudaError::of("cuEventSynchronize"))?;
        }
        Ok(())
    }

    /// Says that what was put into the stream up to now may copy from here or to here: a graph, since its copies are not put there
    /// one by one.
    pub(crate) fn follow(&mut self) -> Result<(), CudaError> {
        self.device.enter()?;
        // SAFETY: both live.
        unsafe { result::event::record(self.event, self.device.stream) }
            .map_err(CudaError::of("cuEventRecord"))?;
        self.busy = true;
        Ok(())
    }

    /// Bytes of it.
    pub(crate) fn len(&self) -> usize {
        self.bytes
    }

    /// The memory, when no copy is under way any more.
    pub(crate) fn get(&mut self) -> Result<&mut [u8], CudaError> {
        self.settle()?;
        // SAFETY: allocated and initialised by `new`, as long; nobody else refers to it now.
        Ok(unsafe { std::slice::from_raw_parts_mut(self.at, self.bytes) })
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        let _ = self.settle();
        // Whatever thread this is. A lost card has nothing to free.
        if self.device.enter().is_ok() {
            // SAFETY: created and allocated by `new`, destroyed and freed once.
            let _ = unsafe { result::event::destroy(self.event) };
            // SAFETY: as above.
            let _ = unsafe { result::free_host(self.at.cast()) };
        }
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // Not before what reads it or writes to it is over.
        let _ = self.device.wait();
        if self.device.enter().is_ok() {
            // SAFETY: allocated by `Device::allocate`, and freed once. A lost card has nothing to free.
            let _ = unsafe { result::memory_free(self.at) };
        }
    }
}
