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
use crate::spirv::{Loops, ResultsOrder};

/// Two matrices of f16, and one of f32.
const BYTES: u64 = HALVES_BYTES as u64 + 256 * 4;
const HALVES_BYTES: usize = 2 * 256 * 2;

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

/// Where lanes have their elements of results, if all have them at the same places and of the rows
/// and columns that kernels expect. `said`: the lane of each, times eight, and its place.
fn order_of(said: &[f32]) -> Option<ResultsOrder> {
    let mut order = [u8::MAX; 8];
    for (at, &value) in (0u16..).zip(said) {
        // Each lane's elements of results are those of A.
        let element = element_of_a(at % 16, at / 16);
        let place = (value as u16 % 8) as u8;
        let known = &mut order[usize::from(element % 8)];
        if value as u16 / 8 != element / 8 || ![u8::MAX, place].contains(known) {
            return None;
        }
        *known = place;
    }
    Some(order)
}

/// What the device says of its lanes' elements.
pub(crate) struct Fragments {
    /// Whether those of A and B are as expected.
    pub(crate) are_as_expected: bool,
    pub(crate) results: Option<ResultsOrder>,
}

impl Fragments {
    pub(crate) fn ask(gpu: &Gpu, pipelines: &Pipelines) -> Self {
        let scope = gpu.device.push_error_scope(ErrorFilter::Validation);
        let said = probe(gpu, pipelines);
        let failed = wait(scope.pop()).is_some();
        match said {
            Some((inputs, results)) if !failed && inputs.iter().copied().eq(expected()) => {
                Self { are_as_expected: true, results: order_of(&results) }
            }
            _ => Self { are_as_expected: false, results: None },
        }
    }
}

fn probe(gpu: &Gpu, pipelines: &Pipelines) -> Option<(Vec<f32>, Vec<f32>)> {
    let pipeline = pipelines.filled("probe", &PROBE.concat(), Loops::AsTheyAre).ok()?;
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
    let (halves, results) = view.split_at(HALVES_BYTES);
    let half = |bytes: &[u8; 2]| half::f16::from_le_bytes(*bytes).to_f32();
    let inputs = halves.as_chunks().0.iter().map(half).collect();
    let results = results.as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect();
    Some((inputs, results))
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
    use super::{element_of_a, element_of_b, expected, order_of};

    #[test]
    fn the_order_of_results_is_what_all_lanes_say() {
        // The lower row before those eight columns on.
        let order = [0, 1, 4, 5, 2, 3, 6, 7];
        let said = |at: u16| {
            let element = element_of_a(at % 16, at / 16);
            f32::from(element / 8 * 8 + u16::from(order[usize::from(element % 8)]))
        };
        let mut said: Vec<f32> = (0..256).map(said).collect();
        assert_eq!(order_of(&said), Some(order));
        // One lane has them otherwise, or another lane has one of them.
        said.swap(3, 3 + 8);
        assert_eq!(order_of(&said), None);
        said.swap(3, 3 + 8);
        said.swap(0, 1);
        assert_eq!(order_of(&said), None);
    }

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
