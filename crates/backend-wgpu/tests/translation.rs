//! Does every kernel become a program of Metal, and of Direct3D? Translated as wgpu does on a Mac
//! and on Windows, without one.

#![allow(clippy::unwrap_used, reason = "tests")]

use backend_wgpu::{every_kernel, every_kernel_of_matrix_units};
use naga::back::{hlsl, msl};
use naga::valid::{Capabilities, ModuleInfo, ValidationFlags, Validator};

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

#[test]
fn every_kernel_becomes_direct3d() {
    let mut failed = Vec::new();
    for kernel in every_kernel() {
        match direct3d(&kernel.wgsl) {
            Ok(text) => assert!(text.contains("[numthreads("), "{}: {text}", kernel.name),
            Err(error) => failed.push(format!("{}: {error}", kernel.name)),
        }
    }
    assert_eq!(failed, Vec::<String>::new());
}

/// Of a size that neither Metal nor Direct3D has: Vulkan alone runs them.
#[test]
fn every_kernel_of_matrix_units_is_valid() {
    let capabilities =
        CAPABILITIES | Capabilities::COOPERATIVE_MATRIX | Capabilities::SHADER_FLOAT16;
    let capabilities = capabilities | Capabilities::SUBGROUP | Capabilities::SUBGROUP_BARRIER;
    let mut failed = Vec::new();
    for kernel in every_kernel_of_matrix_units() {
        if let Err(error) = checked(&kernel.wgsl, capabilities) {
            failed.push(format!("{}: {error}", kernel.name));
        }
    }
    assert_eq!(failed, Vec::<String>::new());
}

/// What every device has.
const CAPABILITIES: Capabilities =
    Capabilities::IMMEDIATES.union(Capabilities::SHADER_FLOAT16_IN_FLOAT32);

fn checked(wgsl: &str, capabilities: Capabilities) -> Result<(naga::Module, ModuleInfo), String> {
    let module = naga::front::wgsl::parse_str(wgsl).map_err(|e| e.emit_to_string(wgsl))?;
    let info = Validator::new(ValidationFlags::all(), capabilities)
        .validate(&module)
        .map_err(|error| error.emit_to_string(wgsl))?;
    Ok((module, info))
}

fn metal(wgsl: &str) -> Result<String, String> {
    let (module, info) = checked(wgsl, CAPABILITIES)?;
    let options =
        msl::Options { lang_version: (2, 4), fake_missing_bindings: true, ..Default::default() };
    let pipeline = msl::PipelineOptions::default();
    let (text, _) = msl::write_string(&module, &info, &options, &pipeline)
        .map_err(|error| error.to_string())?;
    Ok(text)
}

fn direct3d(wgsl: &str) -> Result<String, String> {
    let (module, info) = checked(wgsl, CAPABILITIES)?;
    let options = hlsl::Options {
        shader_model: hlsl::ShaderModel::V6_0,
        fake_missing_bindings: true,
        immediates_target: Some(hlsl::BindTarget::default()),
        ..hlsl::Options::default()
    };
    let (mut text, pipeline) = (String::new(), hlsl::PipelineOptions::default());
    hlsl::Writer::new(&mut text, &options, &pipeline)
        .write(&module, &info, None)
        .map_err(|error| error.to_string())?;
    Ok(text)
}
