//! Do lanes have the elements of matrices where kernels expect them? The device is asked once.
//!
//! No rule says so: it is how NVIDIA's units have had them since Turing. A device that answers
//! otherwise, or not at all, gets the kernels that go by way of workgroup memory.

use std::borrow::Cow;

use wgpu::{
    BindGroupDescriptor, BindGroupEntry, BufferUsages, ComputePassDescriptor, ErrorFilter, MapMode,
};

use crate::adapters::wait;
use crate::gpu::Gpu;
use crate::kernels::{FIRST_WRITTEN, PROBE, Pipelines};

/// Two matrices of f16.
const BYTES: u64 = 2 * 256 * 2;

/// The element of a lane that is in this row and column of a matrix A: its lane, times eight.
fn element_of_a(row: u16, column: u16) -> u16 {
    let lane = row % 8 * 4 + column % 8 / 2;
    8 * lane + row / 8 * 4 + column / 8 * 2 + column % 2
}

/// The same of a matrix B.
fn element_of_b(row: u16, column: u16) -> u16 {
    let lane = column % 8 * 4 + row % 8 / 2;
    8 * lane + column / 8 * 4 + row / 8 * 2 + row % 2
}

/// What both matrices are, column by column, where lanes have what they should.
fn expected() -> impl Iterator<Item = f32> {
    let of =
        |element: fn(u16, u16) -> u16| (0..256).map(move |at| f32::from(element(at % 16, at / 16)));
    of(element_of_a).chain(of(element_of_b))
}

/// Whether the device has them so.
pub(crate) fn are_as_expected(gpu: &Gpu, pipelines: &Pipelines) -> bool {
    let scope = gpu.device.push_error_scope(ErrorFilter::Validation);
    let said = probe(gpu, pipelines);
    let failed = wait(scope.pop()).is_some();
    !failed && said.is_some_and(|said| said.into_iter().eq(expected()))
}

fn probe(gpu: &Gpu, pipelines: &Pipelines) -> Option<Vec<f32>> {
    let pipeline = pipelines.filled("probe", &PROBE.concat()).ok()?;
    let usage = BufferUsages::STORAGE | BufferUsages::COPY_SRC;
    let buffers = [(); 2].map(|()| gpu.buffer("probe", BYTES, usage));
    let down = gpu.buffer("probe", BYTES, BufferUsages::MAP_READ | BufferUsages::COPY_DST);
    let entry = |binding| {
        let buffer = &buffers[usize::from(binding >= FIRST_WRITTEN)];
        BindGroupEntry { binding, resource: buffer.as_entire_binding() }
    };
    let entries: Vec<_> = (0..pipelines.bindings_count()).map(entry).collect();
    let group = gpu.device.create_bind_group(&BindGroupDescriptor {
        label: None,
        layout: &pipelines.bindings,
        entries: &entries,
    });
    let mut encoder = gpu.encoder();
    let mut pass = encoder.begin_compute_pass(&ComputePassDescriptor::default());
    pass.set_pipeline(&pipeline);
    pass.set_bind_group(0, &group, &[]);
    pass.dispatch_workgroups(1, 1, 1);
    drop(pass);
    encoder.copy_buffer_to_buffer(&buffers[1], 0, &down, 0, BYTES);
    let submission = gpu.queue.submit([encoder.finish()]);
    gpu.map(&down, BYTES, MapMode::Read, Some(submission)).ok()?;
    let view = down.get_mapped_range(..BYTES).ok()?;
    let halves = view.as_chunks::<2>().0;
    Some(halves.iter().map(|bytes| half::f16::from_le_bytes(*bytes).to_f32()).collect())
}

/// A kernel in SPIR-V, as the driver gets it.
pub(crate) fn passed_on(words: Vec<u32>) -> wgpu::ShaderModuleDescriptorPassthrough<'static> {
    let entry = wgpu::PassthroughShaderEntryPoint {
        name: Cow::Borrowed("main"),
        workgroup_size: (256, 1, 1),
    };
    wgpu::ShaderModuleDescriptorPassthrough {
        spirv: Some(Cow::Owned(words)),
        entry_points: Cow::Owned(vec![entry]),
        ..wgpu::ShaderModuleDescriptorPassthrough::default()
    }
}

#[cfg(test)]
mod tests {
    use super::{element_of_a, element_of_b, expected};

    #[test]
    fn every_element_is_one_lanes() {
        for element in [element_of_a, element_of_b] {
            let mut seen: Vec<u16> = (0..256).map(|at| element(at % 16, at / 16)).collect();
            seen.sort_unstable();
            assert_eq!(seen, (0..256).collect::<Vec<_>>());
        }
        // As an H200 says of its first column of A and B.
        let said: Vec<f32> = expected().collect();
        assert_eq!(said[..10], [0.0, 32.0, 64.0, 96.0, 128.0, 160.0, 192.0, 224.0, 4.0, 36.0]);
        assert_eq!(said[256..266], [0.0, 1.0, 8.0, 9.0, 16.0, 17.0, 24.0, 25.0, 2.0, 3.0]);
    }
}
