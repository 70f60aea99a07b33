//! Who computes? A persistent team of threads that runs one closure on every member (SPMD).
//!
//! `Team::run` wakes the members once per model step; inside, the phases of the step are
//! separated by `Worker::barrier`, which costs a fraction of a microsecond where a wake-up costs
//! several. Invariants:
//! - every member executes the same sequence of barriers (a panic poisons the run instead);
//! - `run` returns only when every member has left the closure, so the closure may borrow;
//! - an idle member spins for some microseconds, then sleeps in the kernel.

use std::any::Any;
use std::cell::Cell;
use std::hint::spin_loop;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{JoinHandle, yield_now};

/// Spins before an idle member sleeps. A pause is about 15 to 40 ns, so this is 60 to 160 us:
/// longer than the host's work between two decode steps, too short to be seen as load.
const IDLE_SPINS: u32 = 4_000;
/// Spins at a barrier before the member starts to yield: about 30 us, a typical phase.
const BARRIER_SPINS: u32 = 2_000;
/// With more members than cores the one waited for may need this core: yield almost at once.
const CROWDED_SPINS: u32 = 16;

type Job<'a> = dyn Fn(&Worker<'_>) + Sync + 'a;

/// A cache line of its own (two, because adjacent-line prefetch pairs them).
#[repr(align(128))]
struct Padded<T>(T);

/// A fixed set of threads; the caller of `run` is member 0.
pub struct Team {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
    /// Two steps at once would mix their barriers.
    running: Mutex<()>,
}

struct Shared {
    members: usize,
    idle_spins: u32,
    barrier_spins: u32,
    /// Incremented per run; members compare it with the last one they served.
    epoch: Padded<AtomicU32>,
    /// A pointer to the fat pointer of the job, valid while a run is under way.
    job: Padded<AtomicPtr<()>>,
    sleepers: Padded<AtomicUsize>,
    finished: Padded<AtomicUsize>,
    arrived: Padded<AtomicUsize>,
    generation: Padded<AtomicU32>,
    /// Task counters of the even and the odd phases.
    tasks: [Padded<AtomicUsize>; 2],
    /// Per member: the phase it was last claimed in, and how many tasks of its share then.
    near: Vec<Padded<AtomicU64>>,
    poisoned: AtomicBool,
    closing: AtomicBool,
    panic: Mutex<Option<Box<dyn Any + Send>>>,
    sleep: Mutex<()>,
    wake: Condvar,
}

/// What a member unwinds with when another member has panicked.
struct TeamPoisoned;

/// One member's hold on the run under way.
pub struct Worker<'a> {
    index: usize,
    phase: Cell<usize>,
    shared: &'a Shared,
}

impl Team {
    /// The number of threads this process may use (affinity and cgroup quota respected).
    pub fn default_threads() -> usize {
        std::thread::available_parallelism().map_or(1, usize::from)
    }

    /// A team of `members` threads, the caller included.
    ///
    /// # Errors
    /// The operating system's, if a thread cannot be started.
    ///
    /// # Panics
    /// If `members` is 0.
    pub fn new(members: usize) -> std::io::Result<Self> {
        assert!(members > 0, "a team needs at least one member");
        let crowded = members > Self::default_threads();
        let shared = Arc::new(Shared {
            members,
            idle_spins: if crowded { CROWDED_SPINS } else { IDLE_SPINS },
            barrier_spins: if crowded { CROWDED_SPINS } else { BARRIER_SPINS },
            epoch: Padded(AtomicU32::new(0)),
            job: Padded(AtomicPtr::new(std::ptr::null_mut())),
            sleepers: Padded(AtomicUsize::new(0)),
            finished: Padded(AtomicUsize::new(0)),
            arrived: Padded(AtomicUsize::new(0)),
            generation: Padded(AtomicU32::new(0)),
            tasks: [Padded(AtomicUsize::new(0)), Padded(AtomicUsize::new(0))],
            near: (0..members).map(|_| Padded(AtomicU64::new(0))).collect(),
            poisoned: AtomicBool::new(false),
            closing: AtomicBool::new(false),
            panic: Mutex::new(None),
            sleep: Mutex::new(()),
            wake: Condvar::new(),
        });
        let mut team = Self { shared, threads: Vec::new(), running: Mutex::new(()) };
        for index in 1..members {
            let shared = Arc::clone(&team.shared);
            let thread = std::thread::Builder::new()
                .name(format!("compute-{index}"))
                .spawn(move || serve(&shared, index))?;
            team.threads.push(thread);
        }
        Ok(team)
    }

    pub fn members(&self) -> usize {
        self.shared.members
    }

    /// Runs `job` on every member and returns when all have left it. Not reentrant: calling `run`
    /// from inside a job deadlocks; concurrent callers take turns.
    ///
    /// # Panics
    /// With the payload of the first member that panicked; the team stays usable.
    pub fn run<'a>(&self, job: &'a Job<'a>) {
        let _turn = lock(&self.running);
        let shared = &*self.shared;
        shared.finished.0.store(0, Ordering::Relaxed);
        shared.arrived.0.store(0, Ordering::Relaxed);
        for counter in &shared.tasks {
            counter.0.store(0, Ordering::Relaxed);
        }
        let job_reference: &'a Job<'a> = job;
        let job_pointer = (&raw const job_reference).cast::<()>().cast_mut();
        shared.job.0.store(job_pointer, Ordering::Relaxed);
        // SeqCst pairs with `sleepers` in `wait_for_work`: one of the two sides sees the other.
        shared.epoch.0.fetch_add(1, Ordering::SeqCst);
        if shared.sleepers.0.load(Ordering::SeqCst) > 0 {
            let _guard = lock(&shared.sleep);
            shared.wake.notify_all();
        }
        shared.execute(0, job);
        let mut spins = 0;
        while shared.finished.0.load(Ordering::Acquire) + 1 < shared.members {
            relax(&mut spins, shared.barrier_spins);
        }
        shared.job.0.store(std::ptr::null_mut(), Ordering::Relaxed);
        if shared.poisoned.swap(false, Ordering::Relaxed) {
            let payload = lock(&shared.panic).take();
            resume_unwind(payload.unwrap_or_else(|| Box::new("a team member panicked")));
        }
    }
}

impl Drop for Team {
    fn drop(&mut self) {
        self.shared.closing.store(true, Ordering::Relaxed);
        self.shared.epoch.0.fetch_add(1, Ordering::SeqCst);
        {
            let _guard = lock(&self.shared.sleep);
            self.shared.wake.notify_all();
        }
        for thread in self.threads.drain(..) {
            // A member never unwinds out of `serve`: panics of jobs are caught in `execute`.
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn execute(&self, index: usize, job: &Job<'_>) {
        let worker = Worker { index, phase: Cell::new(0), shared: self };
        let outcome = catch_unwind(AssertUnwindSafe(|| job(&worker)));
        let Err(payload) = outcome else { return };
        if !payload.is::<TeamPoisoned>() {
            let mut first = lock(&self.panic);
            if first.is_none() {
                *first = Some(payload);
            }
        }
        self.poisoned.store(true, Ordering::Release);
    }
}

impl Worker<'_> {
    /// This member, `0..members`.
    pub fn index(&self) -> usize {
        self.index
    }

    pub fn members(&self) -> usize {
        self.shared.members
    }

    /// This member's contiguous share of `count` items.
    pub fn share(&self, count: usize) -> Range<usize> {
        let members = self.shared.members;
        count * self.index / members..count * (self.index + 1) / members
    }

    /// Waits until every member is here. What any member wrote before is visible to all after.
    ///
    /// # Panics
    /// If another member has panicked, so that nobody waits for it.
    pub fn barrier(&self) {
        let shared = self.shared;
        let phase = self.phase.get();
        self.phase.set(phase.wrapping_add(1));
        if shared.members == 1 {
            shared.tasks[phase & 1].0.store(0, Ordering::Relaxed);
            return;
        }
        let generation = shared.generation.0.load(Ordering::Relaxed);
        if shared.arrived.0.fetch_add(1, Ordering::AcqRel) + 1 == shared.members {
            // Everybody has left this phase's claims, so its counter can serve the next but one.
            shared.tasks[phase & 1].0.store(0, Ordering::Relaxed);
            shared.arrived.0.store(0, Ordering::Relaxed);
            shared.generation.0.store(generation.wrapping_add(1), Ordering::Release);
            return;
        }
        let mut spins = 0;
        while shared.generation.0.load(Ordering::Acquire) == generation {
            if shared.poisoned.load(Ordering::Relaxed) {
                resume_unwind(Box::new(TeamPoisoned));
            }
            relax(&mut spins, shared.barrier_spins);
        }
    }

    /// The next unclaimed task of this phase. Each number is given to one member only.
    pub fn claim(&self) -> usize {
        self.shared.tasks[self.phase.get() & 1].0.fetch_add(1, Ordering::Relaxed)
    }

    /// Shares `0..count` among the members, whoever is free takes the next, then a barrier.
    pub fn for_each(&self, count: usize, mut task: impl FnMut(usize)) {
        if self.shared.members == 1 {
            (0..count).for_each(task);
            return self.barrier();
        }
        loop {
            let index = self.claim();
            if index >= count {
                break;
            }
            task(index);
        }
        self.barrier();
    }
}

impl Worker<'_> {
    /// As `for_each`, but a member takes its own share of the tasks first, the same one in every
    /// phase of so many tasks: what it wrote in one is near it in the next. Then it helps others.
    pub fn for_each_near(&self, count: usize, mut task: impl FnMut(usize)) {
        let members = self.shared.members;
        if members == 1 {
            (0..count).for_each(task);
            return self.barrier();
        }
        for owner in (self.index..members).chain(0..self.index) {
            let share = count * owner / members..count * (owner + 1) / members;
            while let Some(index) = self.claim_near(owner, share.len()) {
                task(share.start + index);
            }
        }
        self.barrier();
    }

    /// The next unclaimed one of `count` tasks in a member's share of this phase.
    fn claim_near(&self, owner: usize, count: usize) -> Option<usize> {
        let counter = &self.shared.near[owner].0;
        // Counters are not reset between phases: those of another phase count as 0. A counter
        // would be mistaken only if nobody looked at it for 2^16 runs, and every run of more than
        // one phase has everybody look at all.
        let run = self.shared.epoch.0.load(Ordering::Relaxed);
        let phase = u64::from(run << 16 | self.phase.get() as u32 & 0xffff) << 32;
        let mut seen = counter.load(Ordering::Relaxed);
        loop {
            let claimed = if seen >> 32 == phase >> 32 { seen & 0xffff_ffff } else { 0 };
            if claimed >= count as u64 {
                return None;
            }
            let next = phase | (claimed + 1);
            match counter.compare_exchange_weak(seen, next, Ordering::Relaxed, Ordering::Relaxed) {
                Ok(_) => return Some(claimed as usize),
                Err(now) => seen = now,
            }
        }
    }
}

fn serve(shared: &Shared, index: usize) {
    let mut seen = 0;
    loop {
        seen = wait_for_work(shared, seen);
        if shared.closing.load(Ordering::Relaxed) {
            return;
        }
        let pointer = shared.job.0.load(Ordering::Relaxed).cast::<&Job<'_>>();
        // SAFETY: `run` stored the address of a live `&Job` before it advanced the epoch that
        // `wait_for_work` acquired, and keeps it alive until this member counts as finished.
        let job = unsafe { *pointer };
        shared.execute(index, job);
        shared.finished.0.fetch_add(1, Ordering::Release);
    }
}

/// Returns the epoch that follows `seen`.
fn wait_for_work(shared: &Shared, seen: u32) -> u32 {
    for _ in 0..shared.idle_spins {
        let epoch = shared.epoch.0.load(Ordering::Acquire);
        if epoch != seen {
            return epoch;
        }
        spin_loop();
    }
    shared.sleepers.0.fetch_add(1, Ordering::SeqCst);
    let mut guard = lock(&shared.sleep);
    let epoch = loop {
        let epoch = shared.epoch.0.load(Ordering::SeqCst);
        if epoch != seen {
            break epoch;
        }
        guard = shared.wake.wait(guard).unwrap_or_else(PoisonError::into_inner);
    };
    drop(guard);
    shared.sleepers.0.fetch_sub(1, Ordering::SeqCst);
    epoch
}

fn relax(spins: &mut u32, limit: u32) {
    if *spins < limit {
        *spins += 1;
        spin_loop();
    } else {
        yield_now();
    }
}

/// The mutexes here guard no invariant that a panic could break.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn each_task_runs_once_in_every_phase() {
        for members in [1, 2, 3, 7] {
            let team = Team::new(members).unwrap();
            for _ in 0..20 {
                let counts: Vec<AtomicUsize> = (0..50).map(|_| AtomicUsize::new(0)).collect();
                team.run(&|worker| {
                    for phase in 0..5 {
                        let task = |task: usize| {
                            let before = counts[task].fetch_add(1, Ordering::Relaxed);
                            assert_eq!(before, phase, "phase {phase} overlaps another");
                        };
                        if phase % 2 == 0 {
                            worker.for_each(counts.len(), task);
                        } else {
                            worker.for_each_near(counts.len(), task);
                        }
                    }
                });
                assert!(counts.iter().all(|count| count.load(Ordering::Relaxed) == 5));
            }
        }
    }

    #[test]
    fn shares_cover_everything() {
        let team = Team::new(3).unwrap();
        let covered = AtomicUsize::new(0);
        team.run(&|worker| {
            covered.fetch_add(worker.share(100).len(), Ordering::Relaxed);
        });
        assert_eq!(covered.load(Ordering::Relaxed), 100);
    }

    #[test]
    fn a_panic_reaches_the_caller_and_the_team_survives() {
        let team = Team::new(3).unwrap();
        for culprit in 0..3 {
            let outcome = catch_unwind(AssertUnwindSafe(|| {
                team.run(&|worker| {
                    worker.barrier();
                    assert_ne!(worker.index(), culprit, "the culprit");
                    worker.barrier();
                });
            }));
            let payload = outcome.unwrap_err();
            assert!(payload.downcast_ref::<String>().unwrap().contains("the culprit"));
        }
        let sum = AtomicUsize::new(0);
        team.run(&|worker| worker.for_each(10, |task| _ = sum.fetch_add(task, Ordering::Relaxed)));
        assert_eq!(sum.load(Ordering::Relaxed), 45);
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn default_threads_are_those_that_affinity_leaves() {
        use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
        // In a thread of its own: affinity is each thread's.
        let bound = std::thread::spawn(|| {
            let all = sched_getaffinity(None).unwrap();
            let one = (0..CpuSet::MAX_CPU).find(|&cpu| all.is_set(cpu)).unwrap();
            let mut only = CpuSet::new();
            only.set(one);
            sched_setaffinity(None, &only).unwrap();
            Team::default_threads()
        });
        assert_eq!(bound.join().unwrap(), 1);
    }

    #[test]
    fn sleepers_wake() {
        let team = Team::new(2).unwrap();
        for _ in 0..5 {
            std::thread::sleep(std::time::Duration::from_millis(3));
            let sum = AtomicUsize::new(0);
            team.run(&|_| _ = sum.fetch_add(1, Ordering::Relaxed));
            assert_eq!(sum.load(Ordering::Relaxed), 2);
        }
    }
}
