//! Does a program take its memory from pools, and are copies beside steps and those of the step
//! itself the same? On a machine without a CUDA device each test says so and passes.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::sync::Arc;
use std::time::Instant;

use backend_cuda::CudaBackend;
use device::{
    Backend, BlitQueue, BlitSettings, BlockCopy, CommandRing, HeapPool, HeapSettings, HeapSource,
    HostBytes, MemoryKind, Program, RingSettings, StagingRing, StepInputs, SystemAllocator,
};
use testkit::device_cases::{PLAIN, tape};
use testkit::device_steps::{CAPACITY, run, schedule, step};
use testkit::device_tensors::Tensors;

fn cuda() -> Option<CudaBackend> {
    CudaBackend::open(0).inspect_err(|error| eprintln!("skipped: no CUDA device ({error})")).ok()
}

fn load(backend: &CudaBackend) -> Box<dyn Program> {
    let tape = tape(&PLAIN);
    let tensors = Tensors::of(&PLAIN, &tape);
    backend.load(tape, &tensors, CAPACITY).unwrap()
}

fn bits(steps: &[Vec<f32>]) -> Vec<Vec<u32>> {
    steps.iter().map(|step| step.iter().map(|value| value.to_bits()).collect()).collect()
}

/// One heap, small heaps, none at all; copies of weights by lanes and by whoever packs: all the
/// same answers, and a step takes nothing.
#[test]
fn memory_comes_from_pools_and_answers_do_not_depend_on_them() {
    let plain = HeapSettings::default();
    let small = HeapSettings { heap_bytes: Some(24 << 20), heaps: 8, ..plain.clone() };
    let alone = HeapSettings { enabled: false, ..plain.clone() };
    let copies = BlitSettings::default();
    let by_itself = BlitSettings { enabled: false, ..copies };
    let lanes = BlitSettings { concurrent_ops_max: 3, staging_bytes: 1 << 19, ..copies };
    let mut answers = Vec::new();
    for (heaps, copies) in [(plain, copies), (small, lanes), (alone, by_itself)] {
        let Some(backend) = cuda() else { return };
        let backend = backend.with_heaps(heaps.clone(), None).with_copies(copies);
        let mut program = load(&backend);
        let pools = program.heap_pools();
        let kinds: Vec<MemoryKind> = pools.iter().map(HeapPool::kind).collect();
        assert_eq!(kinds, [MemoryKind::Device, MemoryKind::Pinned]);
        let before: Vec<_> = pools.iter().map(HeapPool::statistics).collect();
        let planned = program.memory();
        let planned = planned.weights_bytes + planned.kv_bytes + planned.activations_bytes;
        match (heaps.enabled, heaps.heap_bytes) {
            (true, None) => assert_eq!((before[0].heaps, before[0].reserved_bytes), (1, planned)),
            (true, Some(bytes)) => assert_eq!(before[0].reserved_bytes, 8 * bytes as u64),
            (false, _) => assert_eq!(before[0].allocations_total, before[0].carved_total),
        }
        assert!(before[0].used_bytes <= planned && before[0].used_bytes > 0, "{before:?}");
        let loaded = program.own_copies().statistics();
        assert_eq!(loaded.ops_total > 0, copies.enabled, "weights went by lanes: {loaded:?}");
        answers.push(bits(&run(program.as_mut(), &schedule())));
        let after: Vec<_> = pools.iter().map(HeapPool::statistics).collect();
        assert_eq!(after, before, "a step takes no memory");
        let stepped = program.own_copies().statistics();
        assert!(stepped.bytes_total > loaded.bytes_total, "steps are told and read");
        drop(program);
        assert!(pools.iter().all(|pool| pool.statistics().used_bytes == 0), "all was given back");
    }
    assert!(answers.iter().all(|answer| *answer == answers[0]), "the same bits");
}

/// As a library would give it: memory of the process that the driver did not pin.
#[test]
fn heaps_of_the_process_may_come_from_elsewhere() {
    let Some(backend) = cuda() else { return };
    let expected = bits(&run(load(&backend).as_mut(), &schedule()));
    let backend = backend.with_heaps(HeapSettings::default(), Some(Arc::new(SystemAllocator)));
    let mut program = load(&backend);
    assert_eq!(program.heap_pools()[1].kind(), MemoryKind::Host);
    assert_eq!(bits(&run(program.as_mut(), &schedule())), expected);
}

#[test]
fn a_heap_that_is_too_large_is_refused_in_words() {
    let Some(backend) = cuda() else { return };
    let heaps = HeapSettings { heap_bytes: Some(1 << 44), ..HeapSettings::default() };
    let backend = backend.with_heaps(heaps, None);
    let tape = tape(&PLAIN);
    let tensors = Tensors::of(&PLAIN, &tape);
    let error = backend.load(tape, &tensors, CAPACITY).err().unwrap().to_string();
    assert!(error.contains("`cuda`") && error.contains("no room for"), "{error}");
    load(&cuda().unwrap());
}

/// Blocks go out to pinned buffers and come back, by two lanes or by the step itself.
#[test]
fn blocks_are_copied_beside_steps() {
    let mut answers = Vec::new();
    for lanes in [0, 2] {
        let Some(backend) = cuda() else { return };
        let program = load(&backend);
        let (form, pools) = (program.block_form(), program.heap_pools());
        let settings = HeapSettings { heap_bytes: Some(16 << 20), ..HeapSettings::default() };
        let source = HeapSource { settings, allocator: Arc::clone(&pools[1].source().allocator) };
        let staging = StagingRing::new(HeapPool::open(source, 0).unwrap(), form.bytes, 16);
        let blit = BlitSettings { concurrent_ops_max: lanes, ..BlitSettings::default() };
        let queue = (lanes > 0).then(|| BlitQueue::start(&blit, None).unwrap());
        let mut ring =
            CommandRing::start(program, &CAPACITY, RingSettings::default(), queue).unwrap();
        let mut turn = |inputs: StepInputs| {
            ring.submit(Instant::now(), |place| *place = inputs);
            let completion = ring.completions().recv().unwrap();
            let done = ring.collect(completion, |done| {
                assert_eq!(done.result, Ok(()));
                let copies = std::mem::take(&mut done.inputs.copies);
                (std::mem::take(&mut done.outputs.logits), copies)
            });
            done.unwrap()
        };
        turn(step(&[(0, 0, 70, Some(0))], &[0]));
        let decode = || step(&[(0, 70, 1, Some(0))], &[]);
        let (first, _) = turn(decode());
        let blocks = decode().blocks;
        let out = |&block: &u32| BlockCopy::Out { block, bytes: staging.take().unwrap() };
        let copies = blocks.iter().map(out).collect();
        let (_, copies) = turn(StepInputs { copies, ..StepInputs::default() });
        let kept: Vec<(u32, Vec<u8>)> = copies
            .iter()
            .filter_map(|copy| match copy {
                BlockCopy::Out { block, bytes } => Some((*block, bytes.as_ref().to_vec())),
                BlockCopy::In { .. } | BlockCopy::StateOut { .. } | BlockCopy::StateIn { .. } => {
                    None
                }
            })
            .collect();
        assert_eq!(kept.len(), blocks.len());
        assert!(kept.iter().all(|(_, bytes)| bytes.iter().any(|&byte| byte != 0)));
        let back = |(block, bytes): &(u32, Vec<u8>), fill: Option<u8>| {
            let bytes = fill.map_or_else(|| bytes.clone(), |fill| vec![fill; bytes.len()]);
            BlockCopy::In { block: *block, bytes: HostBytes(Arc::new(bytes)) }
        };
        let broken = kept.iter().map(|block| back(block, Some(0))).collect();
        turn(StepInputs { copies: broken, ..StepInputs::default() });
        assert_ne!(turn(decode()).0, first, "keys of zeros are others");
        let mut mended = decode();
        mended.copies = kept.iter().map(|block| back(block, None)).collect();
        assert_eq!(turn(mended).0, first);
        let counts = ring.copies().map(BlitQueue::statistics);
        let ops = 3 * blocks.len() as u64;
        assert_eq!(
            counts.map(|counts| (counts.ops_total, counts.late_ops_total)).unwrap_or((ops, 0)),
            (ops, 0)
        );
        answers.push(first);
    }
    assert_eq!(answers[0], answers[1]);
}
