//! What of a GPU does a program hold? Its context, memory, streams, modules, graphs.
//!
//! Safe to call, but for launches: what a kernel reads and writes is the launcher's promise. Every
//! object keeps its [`Gpu`] alive; all steps of a program go through its one stream, in order.

use std::ffi::{CString, c_int, c_void};
use std::sync::Arc;

use device::HeapMemory;

use crate::driver::{CudaError, Driver, Handle, LaunchAttribute, LaunchConfig, OUT_OF_MEMORY};
use crate::images::{KernelTarget, target};

/// A device with its primary context. The context is the process's and is never given back: other
/// models may be using it.
pub(crate) struct Gpu {
    driver: Driver,
    context: Handle,
    pub(crate) name: String,
    /// `major * 10 + minor`.
    pub(crate) capability: u32,
    pub(crate) target: KernelTarget,
    pub(crate) multiprocessors: u32,
    /// Most shared memory of a block that asks for more than the usual, of what its kernels know.
    pub(crate) shared_bytes_max: u32,
    /// By the width and the clock of its memory; 0 where the driver does not say.
    pub(crate) memory_bytes_per_second: f64,
}

// SAFETY: the driver's functions may be called by any thread; the context is made current by each
// thread before it is used (`Gpu::enter`).
unsafe impl Send for Gpu {}
// SAFETY: as above; nothing in it changes after `open`.
unsafe impl Sync for Gpu {}

/// `CUdevice_attribute` values.
const MULTIPROCESSORS: c_int = 16;
const MEMORY_KILOHERTZ: c_int = 36;
const MEMORY_BITS: c_int = 37;
const CAPABILITY_MAJOR: c_int = 75;
const CAPABILITY_MINOR: c_int = 76;
const SHARED_BYTES_OPT_IN: c_int = 97;

/// Turing, the first with the tensor cores' halves-to-floats products of 8 columns.
const CAPABILITY_MIN: u32 = 75;

impl Gpu {
    /// Opens device `ordinal`.
    pub(crate) fn open(ordinal: u32) -> Result<Arc<Self>, CudaError> {
        let driver = Driver::open()?;
        let (mut count, mut device) = (0, 0);
        // SAFETY: the pointers are of live integers, here and in the calls below.
        driver.check("cuDeviceGetCount", unsafe { (driver.device_count)(&raw mut count) })?;
        if ordinal >= count as u32 {
            return Err(CudaError::NoDevice { asked: ordinal, count: count as u32 });
        }
        // SAFETY: as above, and the device exists.
        let status = unsafe { (driver.device_get)(&raw mut device, ordinal as c_int) };
        driver.check("cuDeviceGet", status)?;
        let attribute = |which| {
            let mut value = 0;
            // SAFETY: as above.
            let status = unsafe { (driver.device_attribute)(&raw mut value, which, device) };
            driver.check("cuDeviceGetAttribute", status).map(|()| value)
        };
        let mut name = [0u8; 128];
        // SAFETY: the buffer has that many bytes.
        let status = unsafe { (driver.device_name)(name.as_mut_ptr().cast(), 127, device) };
        driver.check("cuDeviceGetName", status)?;
        let end = name.iter().position(|&byte| byte == 0).unwrap_or(0);
        let name = String::from_utf8_lossy(&name[..end]).into_owned();
        let (major, minor) = (attribute(CAPABILITY_MAJOR)?, attribute(CAPABILITY_MINOR)?);
        let capability = (10 * major + minor) as u32;
        if capability < CAPABILITY_MIN {
            return Err(CudaError::TooOld { device: ordinal, name, major, minor });
        }
        let target = target(capability)?;
        let multiprocessors = attribute(MULTIPROCESSORS)? as u32;
        let shared_bytes = attribute(SHARED_BYTES_OPT_IN)? as u32;
        let shared_bytes_max = shared_bytes.min(target.shared_bytes_max());
        // Twice a clock.
        let memory_hertz = 2.0 * 1e3 * f64::from(attribute(MEMORY_KILOHERTZ)?);
        let memory_bytes_per_second = memory_hertz * f64::from(attribute(MEMORY_BITS)?) / 8.0;
        let mut context: Handle = std::ptr::null_mut();
        // SAFETY: as above.
        let status = unsafe { (driver.context_retain)(&raw mut context, device) };
        driver.check("cuDevicePrimaryCtxRetain", status)?;
        Ok(Arc::new(Self {
            driver,
            context,
            name,
            capability,
            target,
            multiprocessors,
            shared_bytes_max,
            memory_bytes_per_second,
        }))
    }

    /// Makes this thread speak to this device.
    pub(crate) fn enter(&self) -> Result<(), CudaError> {
        // SAFETY: the context was retained by `open` and is never released.
        self.driver.check("cuCtxSetCurrent", unsafe { (self.driver.context_set)(self.context) })
    }

    /// Bytes that can still be had.
    pub(crate) fn free_bytes(&self) -> Result<usize, CudaError> {
        self.enter()?;
        let (mut free, mut total) = (0, 0);
        // SAFETY: the pointers are of live integers.
        let status = unsafe { (self.driver.memory_info)(&raw mut free, &raw mut total) };
        self.driver.check("cuMemGetInfo", status)?;
        Ok(free)
    }
}

/// A place in the device's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(transparent)]
pub(crate) struct Address(pub(crate) u64);

impl Address {
    pub(crate) const NONE: Self = Self(0);

    pub(crate) fn plus(self, bytes: usize) -> Self {
        Self(self.0 + bytes as u64)
    }
}

/// `CUtensorMap`: rows of halves, boxes of which the copy engine of Hopper copies.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
pub(crate) struct TensorMap([u64; 16]);

/// Rows of halves, and the box of them that one copy brings.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Boxed {
    pub(crate) base: Address,
    /// Elements of a row: 128 bytes or a multiple.
    pub(crate) stride: usize,
    pub(crate) rows: usize,
    /// At most 256.
    pub(crate) box_rows: u32,
    /// At most 64, which are 128 bytes.
    pub(crate) box_columns: u32,
}

/// `CU_TENSOR_MAP_DATA_TYPE_FLOAT16`.
const HALVES: u32 = 6;
/// `CU_TENSOR_MAP_SWIZZLE_128B`: 16-byte units of a row swapped by the row.
const SWAPPED_128: u32 = 3;
/// `CU_TENSOR_MAP_L2_PROMOTION_L2_256B`.
const PROMOTED_256: u32 = 3;

impl TensorMap {
    pub(crate) const NONE: Self = Self([0; 16]);
}

impl Gpu {
    /// Rows beyond the last read as zeros.
    pub(crate) fn tensor_map(&self, boxed: Boxed) -> Result<TensorMap, CudaError> {
        let mut map = TensorMap::NONE;
        let sizes = [boxed.stride as u64, boxed.rows as u64];
        let strides = [2 * boxed.stride as u64];
        let (boxes, steps) = ([boxed.box_columns, boxed.box_rows], [1u32; 2]);
        // SAFETY: the map has the 128 bytes of a `CUtensorMap` at their alignment; the arrays hold
        // one number for each of two dimensions (one for the strides) and live through the call.
        let status = unsafe {
            (self.driver.tensor_map)(
                (&raw mut map).cast(),
                HALVES,
                2,
                boxed.base.0,
                sizes.as_ptr(),
                strides.as_ptr(),
                boxes.as_ptr(),
                steps.as_ptr(),
                0,
                SWAPPED_128,
                PROMOTED_256,
                0,
            )
        };
        self.driver.check("cuTensorMapEncodeTiled", status)?;
        Ok(map)
    }
}

impl Gpu {
    /// Zeros on the device.
    pub(crate) fn allocate(self: &Arc<Self>, bytes: usize) -> Result<Address, CudaError> {
        self.enter()?;
        let mut base = 0;
        // SAFETY: the pointer is of a live integer.
        let status = unsafe { (self.driver.memory_alloc)(&raw mut base, bytes) };
        if status == OUT_OF_MEMORY {
            return Err(CudaError::OutOfMemory { bytes, free: self.free_bytes()? });
        }
        self.driver.check("cuMemAlloc", status)?;
        let address = Address(base);
        let zeroed = Stream::new(self).and_then(|stream| {
            stream.zero(address, bytes)?;
            stream.wait()
        });
        if zeroed.is_err() {
            self.free(address);
        }
        zeroed.map(|()| address)
    }

    /// Takes back what [`Gpu::allocate`] gave, once.
    pub(crate) fn free(&self, address: Address) {
        // What failed before fails here too, and there is nobody to tell.
        let _ = self.enter();
        // SAFETY: the driver gave this address, and waits for work that uses it.
        unsafe { (self.driver.memory_free)(address.0) };
    }

    /// How many of a kernel's clusters of blocks, one of which is `grid`, run at once.
    pub(crate) fn clusters_at_once(
        &self,
        function: Function,
        grid: Grid,
    ) -> Result<u32, CudaError> {
        self.enter()?;
        let config = LaunchConfig {
            grid: [grid.blocks[0], grid.blocks[1], 1],
            block: [grid.threads, 1, 1],
            shared_bytes: grid.shared_bytes,
            stream: std::ptr::null_mut(),
            attributes: std::ptr::null_mut(),
            attribute_count: 0,
        };
        let mut clusters = 0;
        // SAFETY: the function was given by the driver; the pointers are of live values.
        let status = unsafe {
            (self.driver.clusters_at_once)(&raw mut clusters, function.0, &raw const config)
        };
        self.driver.check("cuOccupancyMaxActiveClusters", status)?;
        Ok(clusters.unsigned_abs())
    }

    /// Lets the device copy from and to this memory of the process without a detour.
    pub(crate) fn pin(&self, memory: &HeapMemory) -> Result<(), CudaError> {
        self.enter()?;
        let start = std::ptr::with_exposed_provenance_mut(memory.address);
        // SAFETY: the caller's memory, which it keeps until it has called `unpin`.
        let status = unsafe { (self.driver.host_register)(start, memory.bytes, 0) };
        self.driver.check("cuMemHostRegister", status)
    }

    /// Undoes [`Gpu::pin`], once.
    pub(crate) fn unpin(&self, memory: &HeapMemory) {
        let _ = self.enter();
        // SAFETY: it was pinned.
        unsafe {
            (self.driver.host_unregister)(std::ptr::with_exposed_provenance_mut(memory.address));
        }
    }
}

/// A kernel, ready to launch. Its module stays loaded as long as the process lives.
#[derive(Clone, Copy)]
pub(crate) struct Function(Handle);

// SAFETY: a handle that any thread may launch.
unsafe impl Send for Function {}
// SAFETY: as above.
unsafe impl Sync for Function {}

/// `CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES`.
const DYNAMIC_SHARED_BYTES: c_int = 8;

/// Machine code on the device.
pub(crate) struct Module {
    gpu: Arc<Gpu>,
    handle: Handle,
}

impl Module {
    /// `image` is what a compiler gave: a fat binary or a cubin.
    pub(crate) fn load(gpu: &Arc<Gpu>, image: &[u8]) -> Result<Self, CudaError> {
        gpu.enter()?;
        let mut handle: Handle = std::ptr::null_mut();
        // SAFETY: the image says its own length in its head, and the compilers' are whole.
        let status = unsafe { (gpu.driver.module_load)(&raw mut handle, image.as_ptr().cast()) };
        gpu.driver.check("cuModuleLoadData", status)?;
        Ok(Self { gpu: Arc::clone(gpu), handle })
    }

    pub(crate) fn function(&self, name: &str, shared_bytes: u32) -> Result<Function, CudaError> {
        let name = CString::new(name).expect("invariant: kernels have plain names");
        let mut function: Handle = std::ptr::null_mut();
        let driver = &self.gpu.driver;
        // SAFETY: the pointers are of live values, and the module is loaded.
        let status =
            unsafe { (driver.module_function)(&raw mut function, self.handle, name.as_ptr()) };
        driver.check("cuModuleGetFunction", status)?;
        if shared_bytes > 0 {
            // SAFETY: the function was given by the driver.
            let status = unsafe {
                (driver.function_set)(function, DYNAMIC_SHARED_BYTES, shared_bytes as c_int)
            };
            driver.check("cuFuncSetAttribute", status)?;
        }
        Ok(Function(function))
    }
}

/// Sizes of a launch.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Grid {
    pub(crate) blocks: [u32; 2],
    pub(crate) threads: u32,
    pub(crate) shared_bytes: u32,
}

/// Work in order.
pub(crate) struct Stream {
    pub(crate) gpu: Arc<Gpu>,
    handle: Handle,
}

// SAFETY: a handle that any thread may use.
unsafe impl Send for Stream {}

/// `CU_STREAM_NON_BLOCKING`.
const NON_BLOCKING: u32 = 1;
/// `CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION`.
const MAY_START_EARLY: u32 = 6;
/// `CU_STREAM_CAPTURE_MODE_THREAD_LOCAL`.
const CAPTURE_THREAD_LOCAL: u32 = 1;

impl Stream {
    pub(crate) fn new(gpu: &Arc<Gpu>) -> Result<Self, CudaError> {
        gpu.enter()?;
        let mut handle: Handle = std::ptr::null_mut();
        // SAFETY: the pointer is of a live pointer.
        let status = unsafe { (gpu.driver.stream_create)(&raw mut handle, NON_BLOCKING) };
        gpu.driver.check("cuStreamCreate", status)?;
        Ok(Self { gpu: Arc::clone(gpu), handle })
    }

    /// Launches a kernel whose one argument is `arguments`.
    ///
    /// # Safety
    /// `A` is laid out as the kernel's argument, and the addresses in it are good for what the
    /// kernel does with them until the stream has been synchronized.
    pub(crate) unsafe fn launch<A: Copy>(
        &self,
        function: Function,
        grid: Grid,
        arguments: &A,
    ) -> Result<(), CudaError> {
        let early = self.gpu.target.starts_early();
        let mut value = [0; 16];
        value[0] = 1;
        let mut attribute = LaunchAttribute { id: MAY_START_EARLY, padding: 0, value };
        let config = LaunchConfig {
            grid: [grid.blocks[0], grid.blocks[1], 1],
            block: [grid.threads, 1, 1],
            shared_bytes: grid.shared_bytes,
            stream: self.handle,
            attributes: &raw mut attribute,
            attribute_count: u32::from(early),
        };
        let mut pointer: *mut c_void = std::ptr::from_ref(arguments).cast_mut().cast();
        // SAFETY: the configuration and the argument live through the call, which copies them; the
        // rest is the caller's promise.
        let status = unsafe {
            let none = std::ptr::null_mut();
            (self.gpu.driver.launch)(&raw const config, function.0, &raw mut pointer, none)
        };
        self.gpu.driver.check("cuLaunchKernelEx", status)
    }

    /// Sets memory to zeros.
    pub(crate) fn zero(&self, address: Address, bytes: usize) -> Result<(), CudaError> {
        // SAFETY: the memory was taken from a heap and has that many bytes.
        let status = unsafe { (self.gpu.driver.memory_set)(address.0, 0, bytes, self.handle) };
        self.gpu.driver.check("cuMemsetD8Async", status)
    }

    /// Copies to the device. Pageable memory is read before this returns; pinned memory must not
    /// change until the stream has been synchronized, which its owners see to.
    pub(crate) fn copy_in(&self, to: Address, from: &[u8]) -> Result<(), CudaError> {
        // SAFETY: `from` is live; `to` was taken from a heap for at least as many bytes.
        let status = unsafe {
            (self.gpu.driver.copy_to_device)(to.0, from.as_ptr().cast(), from.len(), self.handle)
        };
        self.gpu.driver.check("cuMemcpyHtoDAsync", status)
    }

    /// Copies on the device.
    pub(crate) fn copy_within(
        &self,
        to: Address,
        from: Address,
        bytes: usize,
    ) -> Result<(), CudaError> {
        // SAFETY: both were taken from heaps for at least as many bytes.
        let status = unsafe { (self.gpu.driver.copy_on_device)(to.0, from.0, bytes, self.handle) };
        self.gpu.driver.check("cuMemcpyDtoDAsync", status)
    }

    /// Copies to the host and waits for it.
    pub(crate) fn copy_out(&self, to: &mut [u8], from: Address) -> Result<(), CudaError> {
        self.begin_copy_out(to, from)?;
        self.wait()
    }

    /// Copies to the host, soon: whoever asks waits for the stream before it lets go of `to`.
    pub(crate) fn begin_copy_out(&self, to: &mut [u8], from: Address) -> Result<(), CudaError> {
        // SAFETY: `to` is live and nobody else's until the wait is over; `from` is of a heap.
        let status = unsafe {
            (self.gpu.driver.copy_to_host)(to.as_mut_ptr().cast(), from.0, to.len(), self.handle)
        };
        self.gpu.driver.check("cuMemcpyDtoHAsync", status)
    }

    /// Until all work is done; tells what failed in it.
    pub(crate) fn wait(&self) -> Result<(), CudaError> {
        // SAFETY: the stream is live.
        let status = unsafe { (self.gpu.driver.stream_synchronize)(self.handle) };
        self.gpu.driver.check("cuStreamSynchronize", status)
    }

    /// What `record` launches, as a graph that can be launched again and again.
    pub(crate) fn capture(
        &self,
        record: impl FnOnce() -> Result<(), CudaError>,
    ) -> Result<Graph, CudaError> {
        let driver = &self.gpu.driver;
        // SAFETY: the stream is live and captures nothing else.
        let status = unsafe { (driver.capture_begin)(self.handle, CAPTURE_THREAD_LOCAL) };
        driver.check("cuStreamBeginCapture", status)?;
        let recorded = record();
        let mut graph: Handle = std::ptr::null_mut();
        // SAFETY: the capture was begun above; the pointer is of a live pointer.
        let ended = unsafe { (driver.capture_end)(self.handle, &raw mut graph) };
        recorded?;
        driver.check("cuStreamEndCapture", ended)?;
        let mut executable: Handle = std::ptr::null_mut();
        // SAFETY: the graph was given by the driver and is destroyed once.
        let status = unsafe {
            let status = (driver.graph_instantiate)(&raw mut executable, graph, 0);
            (driver.graph_destroy)(graph);
            status
        };
        driver.check("cuGraphInstantiate", status)?;
        Ok(Graph { gpu: Arc::clone(&self.gpu), executable })
    }

    /// Launches a captured graph.
    ///
    /// # Safety
    /// As for every launch in it: the addresses it was recorded with are still good.
    pub(crate) unsafe fn replay(&self, graph: &Graph) -> Result<(), CudaError> {
        // SAFETY: both are live; the rest is the caller's promise.
        let status = unsafe { (self.gpu.driver.graph_launch)(graph.executable, self.handle) };
        self.gpu.driver.check("cuGraphLaunch", status)
    }

    /// Milliseconds that the device took for what `work` puts on the stream.
    pub(crate) fn time(
        &self,
        work: impl FnOnce() -> Result<(), CudaError>,
    ) -> Result<f32, CudaError> {
        let driver = &self.gpu.driver;
        let mut events: [Handle; 2] = [std::ptr::null_mut(); 2];
        for event in &mut events {
            // SAFETY: the pointer is of a live pointer.
            let status = unsafe { (driver.event_create)(event, 0) };
            driver.check("cuEventCreate", status)?;
        }
        let mut milliseconds = 0.0;
        // SAFETY: stream and events are live.
        let status = unsafe { (driver.event_record)(events[0], self.handle) };
        driver.check("cuEventRecord", status)?;
        work()?;
        // SAFETY: as above; the events are destroyed once.
        let status = unsafe {
            (driver.event_record)(events[1], self.handle);
            (driver.event_synchronize)(events[1]);
            let status = (driver.event_elapsed)(&raw mut milliseconds, events[0], events[1]);
            for event in events {
                (driver.event_destroy)(event);
            }
            status
        };
        driver.check("cuEventElapsedTime", status)?;
        Ok(milliseconds)
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        let _ = self.gpu.enter();
        // SAFETY: the driver gave this stream; work on it is finished or has failed.
        unsafe { (self.gpu.driver.stream_destroy)(self.handle) };
    }
}

/// Launches that were recorded once.
pub(crate) struct Graph {
    gpu: Arc<Gpu>,
    executable: Handle,
}

// SAFETY: a handle that any thread may launch.
unsafe impl Send for Graph {}

impl Drop for Graph {
    fn drop(&mut self) {
        let _ = self.gpu.enter();
        // SAFETY: the driver gave it; it is launched by this owner only.
        unsafe { (self.gpu.driver.graph_exec_destroy)(self.executable) };
    }
}
