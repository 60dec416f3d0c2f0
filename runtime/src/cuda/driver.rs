//! A card: its context, its stream, its kernels, its memory. The one place that calls the driver.

use std::collections::HashMap;
use std::ffi::{CString, c_uint, c_void};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use cudarc::driver::{result, sys};

use super::error::CudaError;
use super::sources::{ARCHITECTURES, Architecture, SOURCES};

/// The oldest driver whose calls are used: JetPack 5.
const OLDEST_DRIVER: i32 = 11_040;

/// Which card, and where its kernels are.
#[derive(Clone, Debug)]
pub struct CudaOptions {
    /// The card's number.
    pub ordinal: usize,
    /// The folder of compiled kernels, with a folder `sm_NN` for each architecture.
    pub kernels: PathBuf,
}

/// An open card.
pub struct Device {
    device: sys::CUdevice,
    context: sys::CUcontext,
    stream: sys::CUstream,
    modules: Vec<sys::CUmodule>,
    functions: HashMap<&'static str, sys::CUfunction>,
    name: String,
    /// Compute capability: 87 for 8.7.
    sm: u32,
    multiprocessors: usize,
    integrated: bool,
    /// Shared memory that a block may have on request.
    pub(crate) block_memory: usize,
}

// SAFETY: handles of the driver may be used from any thread whose current context is theirs; every method sees to that.
unsafe impl Send for Device {}
// SAFETY: as above, and the driver itself is thread-safe.
unsafe impl Sync for Device {}

impl std::fmt::Debug for Device {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Device").field("name", &self.name).field("sm", &self.sm).finish_non_exhaustive()
    }
}

/// The architecture whose code a card of capability `sm` runs: of its own major version, the newest that is not newer than it.
fn architecture(sm: u32) -> Option<Architecture> {
    let fits = |a: &&Architecture| a.sm / 10 == sm / 10 && a.sm <= sm;
    ARCHITECTURES.iter().filter(fits).max_by_key(|a| a.sm).copied()
}

impl Device {
    /// Opens a card and loads its kernels.
    ///
    /// # Errors
    /// If there is no driver or an old one, no such card, or no kernels for it.
    pub fn open(options: &CudaOptions) -> Result<Arc<Self>, CudaError> {
        // SAFETY: opens the library and nothing else; without this check the first call would panic.
        if !unsafe { sys::is_culib_present() } {
            return Err(CudaError::NoDriver);
        }
        let mut found = 0;
        // SAFETY: writes one integer.
        unsafe { sys::cuDriverGetVersion(&raw mut found) }
            .result()
            .map_err(CudaError::of("cuDriverGetVersion"))?;
        if found < OLDEST_DRIVER {
            return Err(CudaError::OldDriver { found, needed: OLDEST_DRIVER });
        }
        let no_device = |count| CudaError::NoDevice { ordinal: options.ordinal, count };
        match result::init() {
            Err(error) if error.0 == sys::CUresult::CUDA_ERROR_NO_DEVICE => return Err(no_device(0)),
            other => other.map_err(CudaError::of("cuInit"))?,
        }
        let count = result::device::get_count().map_err(CudaError::of("cuDeviceGetCount"))?;
        let count = usize::try_from(count).unwrap_or(0);
        let ordinal = i32::try_from(options.ordinal).map_err(|_| no_device(count))?;
        if options.ordinal >= count {
            return Err(no_device(count));
        }
        let device = result::device::get(ordinal).map_err(CudaError::of("cuDeviceGet"))?;
        let name = result::device::get_name(device).map_err(CudaError::of("cuDeviceGetName"))?;
        let attribute = |attribute| {
            // SAFETY: the device was found above.
            let value = unsafe { result::device::get_attribute(device, attribute) };
            value
                .map(|value| u32::try_from(value).unwrap_or(0))
                .map_err(CudaError::of("cuDeviceGetAttribute"))
        };
        use sys::CUdevice_attribute as A;
        let sm = 10 * attribute(A::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?
            + attribute(A::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?;
        let Some(arch) = architecture(sm) else {
            let known: Vec<_> =
                ARCHITECTURES.iter().map(|a| format!("{}.{}", a.sm / 10, a.sm % 10)).collect();
            return Err(CudaError::UnknownArchitecture { device: name, sm, known: known.join(", ") });
        };
        let multiprocessors = attribute(A::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)? as usize;
        let integrated = attribute(A::CU_DEVICE_ATTRIBUTE_INTEGRATED)? != 0;
        let block_memory = attribute(A::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN)? as usize;
        // SAFETY: the device was found above; `Drop` releases the context.
        let context = unsafe { result::primary_ctx::retain(device) };
        let context = context.map_err(CudaError::of("cuDevicePrimaryCtxRetain"))?;
        let mut this = Self {
            device,
            context,
            stream: std::ptr::null_mut(),
            modules: Vec::new(),
            functions: HashMap::new(),
            name,
            sm,
            multiprocessors,
            integrated,
            block_memory,
        };
        this.enter()?;
        this.stream = result::stream::create(result::stream::StreamKind::NonBlocking)
            .map_err(CudaError::of("cuStreamCreate"))?;
        this.load(&options.kernels.join(format!("sm_{}", arch.sm)))?;
        log::info!(
            "engine=cuda device=\"{}\" sm={sm} kernels=sm_{} multiprocessors={multiprocessors} integrated={integrated} driver={}.{}",
            this.name,
            arch.sm,
            found / 1000,
            found % 1000 / 10,
        );
        Ok(Arc::new(this))
    }

    /// The card's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its compute capability: 87 for 8.7.
    pub fn sm(&self) -> u32 {
        self.sm
    }

    /// How many multiprocessors it has.
    pub fn multiprocessors(&self) -> usize {
        self.multiprocessors
    }

    /// Whether it shares the memory of the CPU.
    pub fn integrated(&self) -> bool {
        self.integrated
    }

    /// Loads every kernel file's module from `dir`.
    fn load(&mut self, dir: &Path) -> Result<(), CudaError> {
        for file in &SOURCES {
            let path = dir.join(format!("{}.cubin", file.name));
            let image = std::fs::read(&path).map_err(|source| CudaError::NoKernels { path, source })?;
            // SAFETY: the image outlives the call, which copies it. A file that is no image for this card is refused by the driver.
            let module = unsafe { result::module::load_data(image.as_ptr().cast()) };
            let module = module.map_err(CudaError::of("cuModuleLoadData"))?;
            self.modules.push(module);
            for &name in file.kernels {
                let c_name = CString::new(name).expect("names of kernels have no zero bytes");
                // SAFETY: the module was loaded above and is unloaded by `Drop`.
                let function = unsafe { result::module::get_function(module, c_name) };
                self.functions.insert(name, function.map_err(CudaError::of("cuModuleGetFunction"))?);
            }
        }
        Ok(())
    }

    /// Makes the card's context that of this thread.
    fn enter(&self) -> Result<(), CudaError> {
        // SAFETY: the context is held until `Drop`.
        unsafe { result::ctx::set_current(self.context) }.map_err(CudaError::of("cuCtxSetCurrent"))
    }

    /// Allocates device memory for `what`, whose contents are arbitrary.
    pub(crate) fn allocate(self: &Arc<Self>, what: &'static str, bytes: usize) -> Result<Memory, CudaError> {
        self.enter()?;
        let (free, _) = result::mem_get_info().map_err(CudaError::of("cuMemGetInfo"))?;
        let short = || CudaError::OutOfMemory { what, needed: bytes, free };
        // SAFETY: `Memory` frees it.
        match unsafe { result::malloc_sync(bytes.max(1)) } {
            Ok(at) => Ok(Memory { device: Arc::clone(self), at, bytes }),
            Err(error) if error.0 == sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY => Err(short()),
            Err(error) => Err(CudaError::of("cuMemAlloc")(error)),
        }
    }

    /// Lets a block of a kernel have as much shared memory as the card has.
    pub(crate) fn allow_block_memory(&self, kernel: &'static str) -> Result<(), CudaError> {
        let most = i32::try_from(self.block_memory).unwrap_or(i32::MAX);
        let attribute = sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
        // SAFETY: the function is of a loaded module.
        unsafe { result::function::set_function_attribute(self.functions[kernel], attribute, most) }
            .map_err(CudaError::of("cuFuncSetAttribute"))
    }

    /// Puts a kernel into the stream.
    ///
    /// # Safety
    /// `arguments` must point to values of the types that the kernel takes, and device memory among them must be as large as it needs.
    pub(crate) unsafe fn launch(
        &self,
        kernel: &'static str,
        grid: [usize; 3],
        threads: usize,
        shared: usize,
        arguments: &mut [*mut c_void],
    ) -> Result<(), CudaError> {
        self.enter()?;
        let narrow = |n: usize| c_uint::try_from(n).unwrap_or(c_uint::MAX);
        let [x, y, z] = grid.map(narrow);
        // SAFETY: the caller vouches for the arguments; the function is of a loaded module.
        unsafe {
            result::launch_kernel(
                self.functions[kernel],
                (x, y, z),
                (narrow(threads), 1, 1),
                narrow(shared),
                self.stream,
                arguments,
            )
        }
        .map_err(CudaError::of(kernel))
    }

    /// Runs `work`, whose launches go into a graph instead of the stream.
    pub(crate) fn capture<E: From<CudaError>>(
        self: &Arc<Self>,
        work: impl FnOnce() -> Result<(), E>,
    ) -> Result<Graph, E> {
        self.enter()?;
        let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        // SAFETY: the stream lives until `Drop`, here and below.
        unsafe { result::stream::begin_capture(self.stream, mode) }
            .map_err(CudaError::of("cuStreamBeginCapture"))?;
        let worked = work();
        // A capture is ended even if the work failed.
        // SAFETY: as above.
        let graph =
            unsafe { result::stream::end_capture(self.stream) }.map_err(CudaError::of("cuStreamEndCapture"));
        worked?;
        let graph = graph?;
        let mut executable = std::ptr::null_mut();
        // SAFETY: the graph was captured above and is destroyed below; `Graph` destroys the executable one.
        let made = unsafe { sys::cuGraphInstantiateWithFlags(&raw mut executable, graph, 0) }.result();
        // SAFETY: as above. A graph that cannot be destroyed is lost with the context.
        let _ = unsafe { result::graph::destroy(graph) };
        made.map_err(CudaError::of("cuGraphInstantiate"))?;
        Ok(Graph { device: Arc::clone(self), executable })
    }

    /// Waits for everything in the stream.
    pub(crate) fn wait(&self) -> Result<(), CudaError> {
        self.enter()?;
        // SAFETY: the stream lives until `Drop`.
        unsafe { result::stream::synchronize(self.stream) }.map_err(CudaError::of("cuStreamSynchronize"))
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        if self.enter().is_err() {
            return;
        }
        // What fails here fails because the card is lost; nothing is left to be done then.
        for &module in &self.modules {
            // SAFETY: loaded by `load`, and unloaded once.
            let _ = unsafe { result::module::unload(module) };
        }
        if !self.stream.is_null() {
            // SAFETY: created by `open`, and destroyed once.
            let _ = unsafe { result::stream::destroy(self.stream) };
        }
        // SAFETY: retained by `open`, and released once.
        let _ = unsafe { result::primary_ctx::release(self.device) };
    }
}

/// Memory of a card.
#[derive(Debug)]
pub(crate) struct Memory {
    device: Arc<Device>,
    at: sys::CUdeviceptr,
    bytes: usize,
}

impl Memory {
    /// Its address on the card.
    pub(crate) fn at(&self) -> u64 {
        self.at
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
    /// Puts a copy of the first `bytes` of `from` to `offset` into the stream.
    ///
    /// # Panics
    /// If it does not fit.
    pub(crate) fn write_from(&self, offset: usize, from: &mut Pinned, bytes: usize) -> Result<(), CudaError> {
        assert!(
            offset + bytes <= self.bytes && bytes <= from.bytes,
            "{bytes} bytes at {offset} of {}",
            self.bytes
        );
        self.device.enter()?;
        let stream = self.device.stream;
        // SAFETY: checked above; `Pinned` is not written to before the event that is recorded here has passed.
        unsafe {
            sys::cuMemcpyHtoDAsync_v2(self.at + offset as u64, from.at.cast_const().cast(), bytes, stream)
        }
        .result()
        .map_err(CudaError::of("cuMemcpyHtoD"))?;
        // SAFETY: both live.
        unsafe { result::event::record(from.event, stream) }.map_err(CudaError::of("cuEventRecord"))?;
        from.busy = true;
        Ok(())
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
        self.device.enter()?;
        let stream = self.device.stream;
        // SAFETY: checked above; `Pinned` is not read before the event that is recorded here has passed.
        unsafe {
            sys::cuMemcpyDtoHAsync_v2(to.at.wrapping_add(at).cast(), self.at + offset as u64, bytes, stream)
        }
        .result()
        .map_err(CudaError::of("cuMemcpyDtoH"))?;
        // SAFETY: both live.
        unsafe { result::event::record(to.event, stream) }.map_err(CudaError::of("cuEventRecord"))?;
        to.busy = true;
        Ok(())
    }

    /// Puts a copy of the first `bytes` to `other` into the stream.
    ///
    /// # Panics
    /// If one of the two is smaller.
    pub(crate) fn copy_to(&self, other: &Self, bytes: usize) -> Result<(), CudaError> {
        assert!(
            bytes <= self.bytes && bytes <= other.bytes,
            "{bytes} bytes of {} to {}",
            self.bytes,
            other.bytes
        );
        self.device.enter()?;
        // SAFETY: checked above; the two do not overlap.
        unsafe { result::memcpy_dtod_async(other.at, self.at, bytes, self.device.stream) }
            .map_err(CudaError::of("cuMemcpyDtoD"))
    }

    /// Puts zeros into `bytes` from `offset` on, in the stream.
    ///
    /// # Panics
    /// If there are not as many.
    pub(crate) fn fill(&self, offset: usize, bytes: usize) -> Result<(), CudaError> {
        assert!(offset + bytes <= self.bytes, "{bytes} bytes at {offset} of {}", self.bytes);
        self.device.enter()?;
        // SAFETY: checked above.
        unsafe { result::memset_d8_async(self.at + offset as u64, 0, bytes, self.device.stream) }
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
        let event = result::event::create(flags).map_err(CudaError::of("cuEventCreate"))?;
        // SAFETY: `Drop` frees it.
        let at = unsafe { result::malloc_host(bytes.max(1), 0) }
            .map_err(CudaError::of("cuMemHostAlloc"))?
            .cast::<u8>();
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
        // SAFETY: created and allocated by `new`, destroyed and freed once. A lost card has nothing to free.
        let _ = unsafe { result::event::destroy(self.event) };
        // SAFETY: as above.
        let _ = unsafe { result::free_host(self.at.cast()) };
    }
}

/// Launches that were captured, to be put into the stream as one.
#[derive(Debug)]
pub(crate) struct Graph {
    device: Arc<Device>,
    executable: sys::CUgraphExec,
}

// SAFETY: a handle of the driver, which any thread may use whose context is current.
unsafe impl Send for Graph {}
// SAFETY: as above; launches of one graph are ordered by the stream.
unsafe impl Sync for Graph {}

impl Graph {
    /// Puts the launches into the stream.
    pub(crate) fn launch(&self) -> Result<(), CudaError> {
        self.device.enter()?;
        // SAFETY: both live.
        unsafe { result::graph::launch(self.executable, self.device.stream) }
            .map_err(CudaError::of("cuGraphLaunch"))
    }
}

impl Drop for Graph {
    fn drop(&mut self) {
        // Not before the last launch is over.
        let _ = self.device.wait();
        // SAFETY: made by `capture`, and destroyed once.
        let _ = unsafe { result::graph::exec_destroy(self.executable) };
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        if self.device.enter().is_ok() {
            // SAFETY: allocated by `Device::allocate`, and freed once. A lost card has nothing to free.
            let _ = unsafe { result::memory_free(self.at) };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_card_runs_code_of_its_own_major_version_that_is_not_newer() {
        let of = |sm| architecture(sm).map(|a| a.sm);
        assert_eq!(
            [72, 75, 86, 87, 89, 90, 101, 110].map(of),
            [Some(72), Some(72), None, Some(87), Some(87), Some(90), None, Some(110),]
        );
    }
}
