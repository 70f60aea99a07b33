//! How is NVIDIA's driver spoken to? Its library is opened at run time; a table of its functions.
//!
//! Nothing of it is linked, so the same program starts on machines without it. Types and values are
//! those of `cuda.h` of CUDA 12: <https://docs.nvidia.com/cuda/cuda-driver-api>.

use std::ffi::{CStr, c_char, c_int, c_uint, c_void};

use libloading::Library;

pub(crate) type Status = c_int;
pub(crate) type Handle = *mut c_void;

pub(crate) const OUT_OF_MEMORY: Status = 2;

/// Oldest driver with everything used here: launches with attributes in captured graphs.
const VERSION_MIN: c_int = 12_030;

/// What keeps a GPU from being used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CudaError {
    #[error("there is no NVIDIA driver here: {0} (install the driver, or choose --device cpu)")]
    NoDriver(String),
    #[error(
        "the NVIDIA driver speaks CUDA {}.{}, at least 12.3 is needed: update the driver, or \
         choose --device cpu", version / 1000, version % 1000 / 10
    )]
    DriverTooOld { version: c_int },
    #[error("there is no CUDA device {asked}: this machine has {count}{}", hint(*count))]
    NoDevice { asked: u32, count: u32 },
    #[error(
        "CUDA device {device} ({name}) has compute capability {major}.{minor}, at least 7.5 is \
         needed: choose --device cpu"
    )]
    TooOld { device: u32, name: String, major: c_int, minor: c_int },
    #[error(
        "the GPU has no room for {bytes} bytes, {free} are free: lower kv_cache_mb, \
         context_tokens or sequences_max, choose a smaller model, or end what else uses the card"
    )]
    OutOfMemory { bytes: usize, free: usize },
    #[error("kv_dtype is {0}: this device keeps keys and values in f16 or int8")]
    KvFormat(&'static str),
    #[error("the GPU failed in {call}: {text}")]
    Failed { call: &'static str, text: String },
    #[error("the kernels cannot be compiled here: {0}")]
    Compile(String),
}

fn hint(count: u32) -> &'static str {
    if count == 0 { " (choose --device cpu)" } else { " (they count from 0)" }
}

/// `CUlaunchConfig`.
#[repr(C)]
pub(crate) struct LaunchConfig {
    pub(crate) grid: [c_uint; 3],
    pub(crate) block: [c_uint; 3],
    pub(crate) shared_bytes: c_uint,
    pub(crate) stream: Handle,
    pub(crate) attributes: *mut LaunchAttribute,
    pub(crate) attribute_count: c_uint,
}

/// `CUlaunchAttribute`: an id, padded to 8 bytes, and a union of 64.
#[repr(C)]
pub(crate) struct LaunchAttribute {
    pub(crate) id: c_uint,
    pub(crate) padding: c_uint,
    pub(crate) value: [c_uint; 16],
}

macro_rules! table {
    ($($field:ident = $symbol:literal ($($argument:ty),* $(,)?);)*) => {
        /// The driver's functions; the library stays loaded as long as the process lives.
        pub(crate) struct Driver {
            $(pub(crate) $field: unsafe extern "C" fn($($argument),*) -> Status,)*
        }

        impl Driver {
            fn from_library(library: &'static Library) -> Result<Self, CudaError> {
                let missing = |error: libloading::Error| {
                    CudaError::NoDriver(format!("its library is damaged or old: {error}"))
                };
                Ok(Self {
                    $($field: {
                        // SAFETY: the symbol has this signature, by the driver's documentation.
                        let symbol = unsafe { library.get($symbol.as_bytes()) };
                        *symbol.map_err(missing)?
                    },)*
                })
            }
        }
    };
}

table! {
    init = "cuInit" (c_uint);
    error_string = "cuGetErrorString" (Status, *mut *const c_char);
    device_count = "cuDeviceGetCount" (*mut c_int);
    device_get = "cuDeviceGet" (*mut c_int, c_int);
    device_name = "cuDeviceGetName" (*mut c_char, c_int, c_int);
    device_attribute = "cuDeviceGetAttribute" (*mut c_int, c_int, c_int);
    context_retain = "cuDevicePrimaryCtxRetain" (*mut Handle, c_int);
    context_set = "cuCtxSetCurrent" (Handle);
    memory_info = "cuMemGetInfo_v2" (*mut usize, *mut usize);
    memory_alloc = "cuMemAlloc_v2" (*mut u64, usize);
    memory_free = "cuMemFree_v2" (u64);
    memory_set = "cuMemsetD8Async" (u64, u8, usize, Handle);
    host_register = "cuMemHostRegister_v2" (*mut c_void, usize, c_uint);
    host_unregister = "cuMemHostUnregister" (*mut c_void);
    copy_to_device = "cuMemcpyHtoDAsync_v2" (u64, *const c_void, usize, Handle);
    copy_to_host = "cuMemcpyDtoHAsync_v2" (*mut c_void, u64, usize, Handle);
    copy_on_device = "cuMemcpyDtoDAsync_v2" (u64, u64, usize, Handle);
    stream_create = "cuStreamCreate" (*mut Handle, c_uint);
    stream_destroy = "cuStreamDestroy_v2" (Handle);
    stream_synchronize = "cuStreamSynchronize" (Handle);
    capture_begin = "cuStreamBeginCapture_v2" (Handle, c_uint);
    capture_end = "cuStreamEndCapture" (Handle, *mut Handle);
    graph_instantiate = "cuGraphInstantiateWithFlags" (*mut Handle, Handle, u64);
    graph_launch = "cuGraphLaunch" (Handle, Handle);
    graph_destroy = "cuGraphDestroy" (Handle);
    graph_exec_destroy = "cuGraphExecDestroy" (Handle);
    module_load = "cuModuleLoadData" (*mut Handle, *const c_void);
    module_function = "cuModuleGetFunction" (*mut Handle, Handle, *const c_char);
    function_set = "cuFuncSetAttribute" (Handle, c_int, c_int);
    clusters_at_once = "cuOccupancyMaxActiveClusters" (*mut c_int, Handle, *const LaunchConfig);
    launch = "cuLaunchKernelEx" (*const LaunchConfig, Handle, *mut *mut c_void, *mut *mut c_void);
    tensor_map = "cuTensorMapEncodeTiled" (
        *mut c_void, c_uint, c_uint, u64, *const u64, *const u64, *const c_uint, *const c_uint,
        c_uint, c_uint, c_uint, c_uint,
    );
    event_create = "cuEventCreate" (*mut Handle, c_uint);
    event_record = "cuEventRecord" (Handle, Handle);
    event_synchronize = "cuEventSynchronize" (Handle);
    event_elapsed = "cuEventElapsedTime" (*mut f32, Handle, Handle);
    event_destroy = "cuEventDestroy_v2" (Handle);
}

impl Driver {
    /// Opens the driver and starts it.
    pub(crate) fn open() -> Result<Self, CudaError> {
        let names = ["libcuda.so.1", "libcuda.so", "nvcuda.dll"];
        let mut reason = String::new();
        for name in names {
            // SAFETY: the driver's library does nothing of note when it is loaded.
            match unsafe { Library::new(name) } {
                Ok(library) => return Self::start(Box::leak(Box::new(library))),
                Err(error) if reason.is_empty() => reason = error.to_string(),
                Err(_) => {}
            }
        }
        Err(CudaError::NoDriver(reason))
    }

    fn start(library: &'static Library) -> Result<Self, CudaError> {
        // The version first: an old library lacks functions of the table.
        // SAFETY: the symbol has this signature, by the driver's documentation.
        let version_of = unsafe {
            library.get::<unsafe extern "C" fn(*mut c_int) -> Status>(b"cuDriverGetVersion")
        };
        let version_of = version_of.map_err(|error| CudaError::NoDriver(error.to_string()))?;
        let mut version = 0;
        // SAFETY: the pointer is of a live integer.
        let status = unsafe { version_of(&raw mut version) };
        if status == 0 && version < VERSION_MIN {
            return Err(CudaError::DriverTooOld { version });
        }
        let driver = Self::from_library(library)?;
        // SAFETY: flags must be 0.
        let status = unsafe { (driver.init)(0) };
        if status != 0 {
            return Err(CudaError::NoDriver(driver.text(status)));
        }
        Ok(driver)
    }

    /// The driver's own words for a status.
    pub(crate) fn text(&self, status: Status) -> String {
        let mut text: *const c_char = std::ptr::null();
        // SAFETY: the pointer is of a live pointer; the text is static.
        let known = unsafe { (self.error_string)(status, &raw mut text) };
        if known != 0 || text.is_null() {
            return format!("error {status}");
        }
        // SAFETY: the driver gave a string that ends in zero and is never freed.
        let text = unsafe { CStr::from_ptr(text) };
        format!("{} (error {status})", text.to_string_lossy())
    }

    pub(crate) fn check(&self, call: &'static str, status: Status) -> Result<(), CudaError> {
        if status == 0 { Ok(()) } else { Err(CudaError::Failed { call, text: self.text(status) }) }
    }
}
