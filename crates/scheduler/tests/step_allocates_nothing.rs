//! Does a steady step leave the heap alone? The only test in its process: it counts allocations.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use messages::{Limits, Priority, SampledToken, SequenceId, StepIndex, StepPlan, StepResult};
use scheduler::{Pace, STEPS_IN_FLIGHT_MAX, Scheduler, SequenceRequest};

struct Counting;

static ALLOCATIONS: AtomicU64 = AtomicU64::new(0);

// SAFETY: every call is handed to the system allocator unchanged; counting does not allocate.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the caller keeps the contract of `alloc`, which is the same here.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: `pointer` came from `System.alloc` with this layout, above.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

const LIMITS: Limits = Limits {
    context_tokens_max: 4096,
    sequences_max: 8,
    waiting_max: 16,
    aging_plans: 100,
    step_tokens_max: 64,
    proposed_tokens_max: 16,
    block_tokens: 16,
    block_count: 512,
};

fn fill(result: &mut StepResult, plan: &StepPlan) {
    result.step = plan.step;
    result.samples.clear();
    for row in plan.rows.iter().filter(|row| row.sample_index.is_some()) {
        let sequence = row.sequence;
        result.samples.push(SampledToken { sequence, token: 5, logprob: None });
    }
}

/// The test harness has a thread of its own, which may still be starting this test.
fn until_the_heap_is_still() {
    let mut seen = u64::MAX;
    while std::mem::replace(&mut seen, ALLOCATIONS.load(Ordering::Relaxed)) != seen {
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
}

#[test]
fn step_allocates_nothing() {
    let mut scheduler = Scheduler::new(LIMITS);
    for id in 0..16 {
        let request = SequenceRequest {
            id: SequenceId(id),
            prompt: vec![1; 20 + id as usize],
            max_tokens: Some(400),
            min_tokens: 0,
            stop_tokens: vec![7],
            cache_namespace: Some(Default::default()),
            restorable: 0..0,
            priority: Priority::ALL[id as usize % 3],
            tenant: Arc::from(["one", "two"][id as usize % 2]),
        };
        assert!(scheduler.add(request).is_ok());
    }
    const DEPTH: usize = STEPS_IN_FLIGHT_MAX;
    let mut plans: [StepPlan; DEPTH] = std::array::from_fn(|_| StepPlan::empty(StepIndex(0)));
    let mut result = StepResult { step: StepIndex(0), samples: Vec::with_capacity(8) };
    let mut events = Vec::with_capacity(8);
    // The first use of each plan allocates it.
    for plan in &mut plans {
        assert!(scheduler.plan(Pace { prompt_tokens_max: 20, ..Pace::FREE }, plan));
    }
    until_the_heap_is_still();
    let before = ALLOCATIONS.load(Ordering::Relaxed);
    let (mut planned, mut settled) = (DEPTH, 0);
    while settled < planned {
        fill(&mut result, &plans[settled % DEPTH]);
        events.clear();
        scheduler.settle(&result, &mut events);
        settled += 1;
        while planned - settled < DEPTH
            && scheduler
                .plan(Pace { prompt_tokens_max: 20, ..Pace::FREE }, &mut plans[planned % DEPTH])
        {
            planned += 1;
        }
    }
    let allocations = ALLOCATIONS.load(Ordering::Relaxed) - before;
    assert!(planned > 800, "{planned} steps were run");
    assert_eq!(allocations, 0, "in {planned} steps with admissions, growth and ends");
    assert_eq!(scheduler.counts().finished_total, 16);
}
