//! Where does a kernel's machine code come from? The build, an earlier run, or NVRTC.
//!
//! A program built where `nvcc` was carries its kernels. Another compiles what a model needs with
//! the run-time compiler, which PyPI's `nvidia-cuda-nvrtc` or the toolkit brings, and keeps the
//! result in a folder of the user's caches, named by everything that decides it.

use std::ffi::{CStr, CString, c_char, c_int, c_void};

use device::kernel_cache;
use libloading::Library;
use sha2::{Digest, Sha256};

use crate::driver::CudaError;
use crate::variants::{VARIANTS, Variant};

include!(concat!(env!("OUT_DIR"), "/images.rs"));

/// What kernels are compiled for, on some device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct KernelTarget {
    /// A capability: the device's, or an earlier one, whose kernels run there too.
    capability: u32,
    /// Whether the driver compiles them from an earlier capability's text.
    is_text: bool,
}

impl KernelTarget {
    /// Whether the device's kernels are those that only Hopper has.
    pub(crate) fn is_hopper(self) -> bool {
        self.capability == 90 && !self.is_text
    }

    /// Whether kernels say when the next may start.
    pub(crate) fn starts_early(self) -> bool {
        self.capability >= 90
    }

    /// Whether kernels are written for what a Turing has.
    pub(crate) fn is_turing(self) -> bool {
        self.capability < 80
    }

    /// Most shared memory of a block that its kernels take.
    pub(crate) fn shared_bytes_max(self) -> u32 {
        if self.is_turing() { 64 * 1024 } else { u32::MAX }
    }
}

/// What the kernels of a device of this capability are compiled for.
///
/// # Errors
/// [`CudaError::Compile`] when the build has only kernels for later devices.
pub(crate) fn target(capability: u32) -> Result<KernelTarget, CudaError> {
    if IMAGES.is_empty() {
        return Ok(KernelTarget { capability, is_text: false });
    }
    of_built(TARGETS, capability).ok_or_else(|| {
        CudaError::Compile(format!(
            "this program was built with kernels for compute capabilities {TARGETS:?} (in tenths), \
             and the device's is {capability}: build it with PELTON_CUDA_TARGETS={capability}, or \
             choose --device cpu"
        ))
    })
}

/// Machine code is for later devices of the same major number, too; the last target's text is there
/// for all others.
fn of_built(targets: &[u32], capability: u32) -> Option<KernelTarget> {
    let is_code = |&&target: &&u32| target / 10 == capability / 10 && target <= capability;
    if let Some(&capability) = targets.iter().filter(is_code).max() {
        return Some(KernelTarget { capability, is_text: false });
    }
    let text = *targets.last()?;
    (text < capability).then_some(KernelTarget { capability: text, is_text: true })
}

const PRELUDE: &str = include_str!("../kernels/prelude.cuh");

/// The text of a variant's files, behind what all share.
fn source(files: &str) -> String {
    files.split('+').fold(PRELUDE.to_owned(), |whole, file| whole + text(file))
}

fn text(file: &str) -> &'static str {
    match file {
        "activate" => include_str!("../kernels/activate.cu"),
        "causal_conv" => include_str!("../kernels/causal_conv.cu"),
        "copy_columns" => include_str!("../kernels/copy_columns.cu"),
        "embed.cu" => include_str!("../kernels/embed.cu"),
        "embed.received.cu" => include_str!("../kernels/embed.received.cu"),
        "layer_norm" => include_str!("../kernels/layer_norm.cu"),
        "linear.cu" => include_str!("../kernels/linear.cu"),
        "hopper.cuh" => include_str!("../kernels/hopper.cuh"),
        "linear_stream.cuh" => include_str!("../kernels/linear_stream.cuh"),
        "linear_wide.cuh" => include_str!("../kernels/linear_wide.cuh"),
        "packed.cuh" => include_str!("../kernels/packed.cuh"),
        "experts.cu" => include_str!("../kernels/experts.cu"),
        "experts_stream.cuh" => include_str!("../kernels/experts_stream.cuh"),
        "experts.join.cu" => include_str!("../kernels/experts.join.cu"),
        "experts.route.cu" => include_str!("../kernels/experts.route.cu"),
        "gated_delta" => include_str!("../kernels/gated_delta.cu"),
        "gated_norm" => include_str!("../kernels/gated_norm.cu"),
        "head_linear" => include_str!("../kernels/head_linear.cu"),
        "linear.halve.cu" => include_str!("../kernels/linear.halve.cu"),
        "low_rank" => include_str!("../kernels/low_rank.cu"),
        "norm_heads" => include_str!("../kernels/norm_heads.cu"),
        "rms_norm.floats.cu" => include_str!("../kernels/rms_norm.floats.cu"),
        "paged_attention.cu" => include_str!("../kernels/paged_attention.cu"),
        "paged_attention_team.cuh" => include_str!("../kernels/paged_attention_team.cuh"),
        "paged_attention_wide.cuh" => include_str!("../kernels/paged_attention_wide.cuh"),
        "normed_row.cuh" => include_str!("../kernels/normed_row.cuh"),
        "rms_norm.cu" => include_str!("../kernels/rms_norm.cu"),
        "pool_rows" => include_str!("../kernels/pool_rows.cu"),
        "rotary.rotate.cu" => include_str!("../kernels/rotary.rotate.cu"),
        "rotary" => include_str!("../kernels/rotary.cu"),
        "sample_rows" => include_str!("../kernels/sample_rows.cu"),
        "select_rows" => include_str!("../kernels/select_rows.cu"),
        "sigmoid_gate" => include_str!("../kernels/sigmoid_gate.cu"),
        "turns.cuh" => include_str!("../kernels/turns.cuh"),
        "soft_cap" => include_str!("../kernels/soft_cap.cu"),
        other => unreachable!("invariant: variants name files of kernels/, not {other}"),
    }
}

/// Machine code of a variant for a device of this capability.
///
/// # Errors
/// [`CudaError::Compile`] when there is neither.
pub(crate) fn image(name: &str, capability: u32) -> Result<Vec<u8>, CudaError> {
    if let Some((_, image)) = IMAGES.iter().find(|(known, _)| *known == name) {
        return Ok(image.to_vec());
    }
    let variant = VARIANTS.iter().find(|(known, _, _)| *known == name);
    let variant =
        variant.ok_or_else(|| CudaError::Compile(format!("there is no kernel {name}")))?;
    let compiler = Compiler::open()?;
    let source = source(variant.1);
    let path = kernel_cache::folder().map(|folder| {
        let key = key(variant, &source, capability, &compiler);
        folder.join(format!("{name}-sm{capability}-{key}.cubin"))
    });
    if let Some(image) = path.as_ref().and_then(|path| std::fs::read(path).ok()) {
        return Ok(image);
    }
    let image = compiler.compile(variant, &source, capability)?;
    if let Some(path) = path {
        // A cache that cannot be written costs time at the next start, and nothing else.
        let _ = kernel_cache::keep(&path, &image);
    }
    Ok(image)
}

fn key(variant: &Variant, source: &str, capability: u32, compiler: &Compiler) -> String {
    let mut hash = Sha256::new();
    hash.update(format!("{variant:?} {capability} {:?}", compiler.version()));
    hash.update(source);
    hash.finalize()[..8].iter().map(|byte| format!("{byte:02x}")).collect()
}

type Program = *mut c_void;
type Status = c_int;
type Texts = *const *const c_char;

/// NVRTC: <https://docs.nvidia.com/cuda/nvrtc>.
struct Compiler {
    library: Library,
}

impl Compiler {
    fn open() -> Result<Self, CudaError> {
        for name in ["libnvrtc.so.13", "libnvrtc.so.12", "libnvrtc.so"] {
            // SAFETY: the library does nothing of note when it is loaded.
            if let Ok(library) = unsafe { Library::new(name) } {
                return Ok(Self { library });
            }
        }
        Err(CudaError::Compile(
            "this program was built without nvcc, and libnvrtc is not found: install it (pip \
             install nvidia-cuda-nvrtc, and put its lib folder on LD_LIBRARY_PATH), or choose \
             --device cpu"
                .to_owned(),
        ))
    }

    fn function<T: Copy>(&self, name: &str) -> Result<T, CudaError> {
        // SAFETY: the callers below ask for the signatures of NVRTC's documentation.
        let symbol = unsafe { self.library.get::<T>(name.as_bytes()) };
        symbol.map(|symbol| *symbol).map_err(|error| CudaError::Compile(error.to_string()))
    }

    fn version(&self) -> (c_int, c_int) {
        let version: Result<unsafe extern "C" fn(*mut c_int, *mut c_int) -> Status, _> =
            self.function("nvrtcVersion");
        let (mut major, mut minor) = (0, 0);
        if let Ok(version) = version {
            // SAFETY: the pointers are of live integers.
            unsafe { version(&raw mut major, &raw mut minor) };
        }
        (major, minor)
    }

    fn compile(
        &self,
        &(name, _, definitions): &Variant,
        source: &str,
        capability: u32,
    ) -> Result<Vec<u8>, CudaError> {
        type Create = unsafe extern "C" fn(
            *mut Program,
            *const c_char,
            *const c_char,
            c_int,
            Texts,
            Texts,
        ) -> Status;
        let create: Create = self.function("nvrtcCreateProgram")?;
        let compile: unsafe extern "C" fn(Program, c_int, Texts) -> Status =
            self.function("nvrtcCompileProgram")?;
        let destroy: unsafe extern "C" fn(*mut Program) -> Status =
            self.function("nvrtcDestroyProgram")?;
        let text = |text: &str| CString::new(text).expect("invariant: no zeros in our own texts");
        let (source, file) = (text(source), text(&format!("{name}.cu")));
        // All of Hopper, not only what its successors have too.
        let target = if capability == 90 { "90a".to_owned() } else { capability.to_string() };
        let mut options = vec![text(&format!("-arch=sm_{target}")), text("-std=c++17")];
        options.extend(definitions.iter().map(|definition| text(&format!("-D{definition}"))));
        let options: Vec<*const c_char> = options.iter().map(|option| option.as_ptr()).collect();
        let mut program: Program = std::ptr::null_mut();
        let none = std::ptr::null();
        // SAFETY: all texts live through the calls and end in zero; the program is destroyed once.
        let image = unsafe {
            let status = create(&raw mut program, source.as_ptr(), file.as_ptr(), 0, none, none);
            if status != 0 {
                return Err(CudaError::Compile(format!("{name}: NVRTC error {status}")));
            }
            let status = compile(program, options.len() as c_int, options.as_ptr());
            let part = if status == 0 { "nvrtcGetCUBIN" } else { "nvrtcGetProgramLog" };
            let bytes = self.part(program, part);
            destroy(&raw mut program);
            let bytes = bytes?;
            if status != 0 {
                let log = CStr::from_bytes_until_nul(&bytes).unwrap_or_default();
                return Err(CudaError::Compile(format!("{name}: {}", log.to_string_lossy())));
            }
            bytes
        };
        Ok(image)
    }

    /// A compiled program's code or log: asked for its size, then for its bytes.
    fn part(&self, program: Program, name: &str) -> Result<Vec<u8>, CudaError> {
        let size_of: unsafe extern "C" fn(Program, *mut usize) -> Status =
            self.function(&format!("{name}Size"))?;
        let get: unsafe extern "C" fn(Program, *mut u8) -> Status = self.function(name)?;
        let mut size = 0;
        // SAFETY: the program is live; the buffer has the size that was asked for.
        unsafe {
            size_of(program, &raw mut size);
            let mut bytes = vec![0; size];
            get(program, bytes.as_mut_ptr());
            Ok(bytes)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{VARIANTS, of_built, source};

    #[test]
    fn devices_run_the_latest_kernels_that_they_can() {
        let all = [75, 80, 89, 90];
        let of = |targets: &[u32], capability| {
            let found = of_built(targets, capability)?;
            Some((found.capability, found.is_text, found.is_hopper(), found.starts_early()))
        };
        assert_eq!(of(&all, 75), Some((75, false, false, false)));
        assert_eq!(of(&all, 86), Some((80, false, false, false)));
        assert_eq!(of(&all, 90), Some((90, false, true, true)));
        assert_eq!(of(&all, 120), Some((90, true, false, true)));
        assert_eq!(of(&[75], 90), Some((75, true, false, false)));
        assert_eq!(of(&[80, 90], 75), None);
    }

    #[test]
    fn every_variant_has_its_text() {
        for (name, files, _) in VARIANTS {
            assert!(source(files).contains("extern \"C\" __global__"), "{name}");
        }
    }
}
