//! A card: its context, its stream, its kernels, its memory. The one place that calls the driver.

use std::collections::HashMap;
use std::ffi::{CString, c_uint, c_void};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use cudarc::driver::{result, sys};

use super::error::CudaError;
use super::host::HostReads;
use super::memory::Memory;
use super::nvrtc::{self, Compiler};
use super::sources::{ARCHITECTURES, Architecture, KernelFile, SOURCES};

/// The oldest driver whose calls are used: JetPack 5.
const OLDEST_DRIVER: i32 = 11_040;

/// Which card, and where its kernels are.
#[derive(Clone, Debug)]
pub struct CudaOptions {
    /// The card's number.
    pub ordinal: usize,
    /// The folder of compiled kernels, with a folder `sm_NN` for each architecture; `nvrtc` or `nvrtc:LIBRARY` has them compiled for the
    /// card by that library of NVIDIA's.
    pub kernels: PathBuf,
}

/// An open card.
pub struct Device {
    device: sys::CUdevice,
    context: sys::CUcontext,
    pub(super) stream: sys::CUstream,
    /// What is launched here becomes a graph: nothing that another thread puts into the other stream gets into it.
    pub(super) captured: sys::CUstream,
    pub(super) capturing: Mutex<()>,
    modules: Vec<sys::CUmodule>,
    functions: HashMap<&'static str, sys::CUfunction>,
    name: String,
    /// Compute capability: 87 for 8.7.
    sm: u32,
    multiprocessors: usize,
    integrated: bool,
    host_reads: HostReads,
    /// As the driver counts: 11040 is 11.4.
    driver: i32,
    /// Bytes of memory, of a board the host's.
    memory: usize,
    /// Shared memory that a block may have on request.
    block_memory: usize,
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

/// The architecture whose code a card of capability `sm` runs: its own, or of its major version the newest that is not newer, unless that
/// is a Tegra chip's.
fn architecture(sm: u32) -> Option<Architecture> {
    let fits = |a: &&Architecture| a.sm == sm || !a.tegra && a.sm / 10 == sm / 10 && a.sm < sm;
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
        let compiler = nvrtc::library(&options.kernels).map(|path| Compiler::open(&path)).transpose()?;
        let known = architecture(sm).map(|arch| arch.sm);
        let Some(arch) = compiler.as_ref().map(|_| sm).or(known) else {
            let known: Vec<_> =
                ARCHITECTURES.iter().map(|a| format!("{}.{}", a.sm / 10, a.sm % 10)).collect();
            return Err(CudaError::UnknownArchitecture { device: name, sm, known: known.join(", ") });
        };
        let multiprocessors = attribute(A::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)? as usize;
        let integrated = attribute(A::CU_DEVICE_ATTRIBUTE_INTEGRATED)? != 0;
        let host_reads = HostReads::of(
            attribute(A::CU_DEVICE_ATTRIBUTE_PAGEABLE_MEMORY_ACCESS)? != 0,
            attribute(A::CU_DEVICE_ATTRIBUTE_HOST_REGISTER_SUPPORTED)? != 0,
            attribute(A::CU_DEVICE_ATTRIBUTE_READ_ONLY_HOST_REGISTER_SUPPORTED)? != 0,
        );
        // SAFETY: the device was found above.
        let memory = unsafe { result::device::total_mem(device) };
        let memory = memory.map_err(CudaError::of("cuDeviceTotalMem"))?;
        let block_memory = attribute(A::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN)? as usize;
        // SAFETY: the device was found above; `Drop` releases the context.
        let context = unsafe { result::primary_ctx::retain(device) };
        let context = context.map_err(CudaError::of("cuDevicePrimaryCtxRetain"))?;
        let mut this = Self {
            device,
            context,
            stream: std::ptr::null_mut(),
            captured: std::ptr::null_mut(),
            capturing: Mutex::new(()),
            modules: Vec::new(),
            functions: HashMap::new(),
            name,
            sm,
            multiprocessors,
            integrated,
            host_reads,
            driver: found,
            memory,
            block_memory,
        };
        this.enter()?;
        for stream in [&mut this.stream, &mut this.captured] {
            *stream = result::stream::create(result::stream::StreamKind::NonBlocking)
                .map_err(CudaError::of("cuStreamCreate"))?;
        }
        let folder = options.kernels.join(format!("sm_{arch}"));
        match &compiler {
            Some(compiler) => {
                let [major, minor] = compiler.version;
                log::warn!(
                    "kernels are compiled by NVRTC {major}.{minor} for sm_{sm}, now: an option for developers"
                );
                this.load(&|file| compiler.compile(file, sm))?;
            }
            None => this.load(&|file| {
                let path = folder.join(format!("{}.cubin", file.name));
                std::fs::read(&path).map_err(|source| CudaError::NoKernels { path, source })
            })?,
        }
        // Those that hold a row of floats, or four (`layer_norm`): from 12,288 or 3,072 on they are larger than what a block has unasked.
        for kernel in ["quantise_rows", "rms_norm_rows", "quantise_patches", "layer_norm"] {
            this.allow_block_memory(kernel)?;
        }
        log::info!(
            "engine=cuda device=\"{}\" sm={sm} kernels=sm_{} multiprocessors={multiprocessors} integrated={integrated} driver={}.{}",
            this.name,
            arch,
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

    /// Bytes of its memory, of a board the host's.
    pub(crate) fn memory(&self) -> usize {
        self.memory
    }

    /// Bytes of rows that a block can hold, beside what kernels declare.
    pub(crate) fn block_room(&self) -> usize {
        self.block_memory.saturating_sub(1 << 10)
    }

    /// Whether it shares the memory of the CPU.
    pub fn integrated(&self) -> bool {
        self.integrated
    }

    /// How it reads memory that the host has mapped.
    pub(crate) fn host_reads(&self) -> HostReads {
        self.host_reads
    }

    /// The driver's version, as it counts: 11040 is 11.4.
    pub(crate) fn driver(&self) -> i32 {
        self.driver
    }

    /// Loads every kernel file's module, whose image `image` has.
    fn load(&mut self, image: &dyn Fn(&KernelFile) -> Result<Vec<u8>, CudaError>) -> Result<(), CudaError> {
        for file in &SOURCES {
            let image = image(file)?;
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
    pub(super) fn enter(&self) -> Result<(), CudaError> {
        // SAFETY: the context is held until `Drop`.
        unsafe { result::ctx::set_current(self.context) }.map_err(CudaError::of("cuCtxSetCurrent"))
    }

    /// Refuses `needed` bytes that are not free; `what` needs them.
    pub(crate) fn check(&self, what: &'static str, needed: u128) -> Result<(), CudaError> {
        let free = self.free()?;
        if needed <= free as u128 {
            return Ok(());
        }
        Err(CudaError::OutOfMemory { what, needed: usize::try_from(needed).unwrap_or(usize::MAX), free })
    }

    /// Bytes that are free.
    pub(crate) fn free(&self) -> Result<usize, CudaError> {
        self.enter()?;
        Ok(result::mem_get_info().map_err(CudaError::of("cuMemGetInfo"))?.0)
    }

    /// Allocates device memory for `what`, whose contents are arbitrary.
    pub(crate) fn allocate(self: &Arc<Self>, what: &'static str, bytes: usize) -> Result<Memory, CudaError> {
        let free = self.free()?;
        let short = || CudaError::OutOfMemory { what, needed: bytes, free };
        // SAFETY: `Memory` frees it.
        match unsafe { result::malloc_sync(bytes.max(1)) } {
            Ok(at) => Ok(Memory::new(Arc::clone(self), at, bytes)),
            Err(error) if error.0 == sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY => Err(short()),
            Err(error) => Err(CudaError::of("cuMemAlloc")(error)),
        }
    }

    /// Lets a block of a kernel have as much shared memory as the card has.
    fn allow_block_memory(&self, kernel: &'static str) -> Result<(), CudaError> {
        use sys::CUfunction_attribute as A;
        // What the kernel declares counts too.
        // SAFETY: the function is of a loaded module.
        let declared = unsafe {
            result::function::get_function_attribute(
                self.functions[kernel],
                A::CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES,
            )
        };
        let declared = declared.map_err(CudaError::of("cuFuncGetAttribute"))?;
        let most = i32::try_from(self.block_memory).unwrap_or(i32::MAX) - declared;
        let attribute = A::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
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
        let Some(stream) = self.way() else { return Ok(()) };
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
                stream,
                arguments,
            )
        }
        .map_err(CudaError::of(kernel))
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
        for stream in [self.stream, self.captured].into_iter().filter(|stream| !stream.is_null()) {
            // SAFETY: created by `open`, and destroyed once.
            let _ = unsafe { result::stream::destroy(stream) };
        }
        // SAFETY: retained by `open`, and released once.
        let _ = unsafe { result::primary_ctx::release(self.device) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_card_runs_its_own_code_or_older_of_its_major_version_that_is_no_tegra_chips() {
        let of = |sm| architecture(sm).map_or(0, |a| a.sm);
        assert_eq!(
            [70, 72, 75, 80, 86, 87, 89, 90, 101, 110, 111].map(of),
            [0, 72, 75, 80, 80, 87, 80, 90, 0, 110, 0]
        );
    }
}
