//! Does every kernel become a program of Metal? Translated as wgpu does on a Mac, without one.

#![allow(clippy::unwrap_used, reason = "tests")]

use backend_wgpu::every_kernel;
use naga::back::msl;
use naga::valid::{Capabilities, ValidationFlags, Validator};

/// Words of Metal for what kernels use, and what a kernel's text must become.
#[test]
fn every_kernel_becomes_metal() {
    let mut failed = Vec::new();
    for kernel in every_kernel() {
        match metal(&kernel.wgsl) {
            Ok(text) => {
                assert!(text.contains("kernel void"), "{}: {text}", kernel.name);
                // Types that the language does not have, though the translator writes them.
                assert!(!text.contains("simdgroup_half16x16"), "{}", kernel.name);
            }
            Err(error) => failed.push(format!("{}: {error}", kernel.name)),
        }
    }
    assert_eq!(failed, Vec::<String>::new());
}

fn metal(wgsl: &str) -> Result<String, String> {
    let module = naga::front::wgsl::parse_str(wgsl).map_err(|e| e.emit_to_string(wgsl))?;
    let capabilities = Capabilities::IMMEDIATES | Capabilities::SHADER_FLOAT16_IN_FLOAT32;
    let info = Validator::new(ValidationFlags::all(), capabilities)
        .validate(&module)
        .map_err(|error| error.emit_to_string(wgsl))?;
    let options =
        msl::Options { lang_version: (2, 4), fake_missing_bindings: true, ..Default::default() };
    let pipeline = msl::PipelineOptions::default();
    let (text, _) = msl::write_string(&module, &info, &options, &pipeline)
        .map_err(|error| error.to_string())?;
    Ok(text)
}
