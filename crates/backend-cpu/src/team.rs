//! Who computes? A persistent team of threads that runs one closure on its members (SPMD).
//!
//! `Team::run` wakes the members once per model step; inside, the step is a sequence of phases
//! (`Worker::for_each`), each a number of tasks that whoever is free claims. A phase ends when its
//! tasks are done, not when all members have come: one that the system has put aside for another
//! program holds nothing up unless it is in the middle of a task, and when it is back it finds the
//! phases behind it closed and hurries through them. Waiting for every member at every phase makes
//! steps tens of times longer as soon as another program wants a core. Invariants:
//! - every member goes through the same sequence of phases (a panic poisons the run instead);
//! - what happens between phases reads nothing that tasks write, since tasks of any later phase
//!   may run meanwhile;
//! - `run` returns only when every member that began the closure has left it, so the closure may
//!   borrow; one that comes when all is done does not begin it;
//! - an idle member spins for some microseconds, then sleeps in the kernel.

use std::any::Any;
use std::cell::Cell;
use std::hint::spin_loop;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{JoinHandle, yield_now};

/// Spins before an idle member sleeps. A pause is about 15 to 40 ns, so this is 60 to 160 us:
/// longer than the host's work between two decode steps, too short to be seen as load.
const IDLE_SPINS: u32 = 4_000;
/// Spins at the end of a phase before the member starts to yield: about 30 us, a typical phase.
const PHASE_SPINS: u32 = 2_000;
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
    phase_spins: u32,
    /// Incremented per run; members compare it with the last one they served.
    epoch: Padded<AtomicU32>,
    /// A pointer to the fat pointer of the job, valid while a run is under way.
    job: Padded<AtomicPtr<()>>,
    sleepers: Padded<AtomicUsize>,
    /// The run, whether it is closed, and how many members other than the caller are in it.
    inside: Padded<AtomicU64>,
    /// Members that have left a run that all take part in.
    finished: Padded<AtomicUsize>,
    /// The phase that the run began with.
    first_phase: AtomicU32,
    /// The phase whose tasks are being done: all before it are closed. Never goes back.
    phase: Padded<AtomicU32>,
    /// Tasks of this phase that are done.
    done: Padded<AtomicUsize>,
    tasks: Padded<Claims>,
    /// Of each member's own share.
    near: Vec<Padded<Claims>>,
    poisoned: AtomicBool,
    closing: AtomicBool,
    panic: Mutex<Option<Box<dyn Any + Send>>>,
    sleep: Mutex<()>,
    wake: Condvar,
}

/// How many tasks of a phase are claimed, and of which phase: in the lower and the upper half.
struct Claims(AtomicU64);

/// In `Shared::inside`: nobody may begin the run any more.
const CLOSED: u64 = 1 << 31;

/// What a member unwinds with when another member has panicked.
struct TeamPoisoned;

/// One member's hold on the run under way.
pub struct Worker<'a> {
    index: usize,
    phase: Cell<u32>,
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
            phase_spins: if crowded { CROWDED_SPINS } else { PHASE_SPINS },
            epoch: Padded(AtomicU32::new(0)),
            job: Padded(AtomicPtr::new(std::ptr::null_mut())),
            sleepers: Padded(AtomicUsize::new(0)),
            inside: Padded(AtomicU64::new(CLOSED)),
            finished: Padded(AtomicUsize::new(0)),
            first_phase: AtomicU32::new(0),
            phase: Padded(AtomicU32::new(0)),
            done: Padded(AtomicUsize::new(0)),
            tasks: Padded(Claims::new()),
            near: (0..members).map(|_| Padded(Claims::new())).collect(),
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

    /// Runs `job`, whose work is all in phases, and returns when they are done and no member is in
    /// it any more. The caller runs all of it; a member that comes too late does not begin. Not
    /// reentrant: calling `run` from inside a job deadlocks; concurrent callers take turns.
    ///
    /// # Panics
    /// With the payload of the first member that panicked; the team stays usable.
    pub fn run<'a>(&self, job: &'a Job<'a>) {
        self.run_until(job, |_| true);
    }

    /// Runs `job` once on every member, however late one comes.
    ///
    /// # Panics
    /// As `run`.
    pub fn run_on_all<'a>(&self, job: &'a Job<'a>) {
        let members = self.members();
        self.run_until(job, |shared| shared.finished.0.load(Ordering::Acquire) + 1 == members);
    }

    /// Runs `job` here and on who comes, until it is done here and `may_close`.
    fn run_until<'a>(&self, job: &'a Job<'a>, may_close: impl Fn(&Shared) -> bool) {
        let _turn = lock(&self.running);
        let shared = &*self.shared;
        shared.begin();
        let job_reference: &'a Job<'a> = job;
        let job_pointer = (&raw const job_reference).cast::<()>().cast_mut();
        shared.job.0.store(job_pointer, Ordering::Relaxed);
        let epoch = shared.epoch.0.load(Ordering::Relaxed).wrapping_add(1);
        shared.inside.0.store(u64::from(epoch) << 32, Ordering::Release);
        // SeqCst pairs with `sleepers` in `wait_for_work`: one of the two sides sees the other.
        shared.epoch.0.store(epoch, Ordering::SeqCst);
        if shared.sleepers.0.load(Ordering::SeqCst) > 0 {
            let _guard = lock(&shared.sleep);
            shared.wake.notify_all();
        }
        shared.execute(0, job);
        let mut spins = 0;
        while !may_close(shared) {
            relax(&mut spins, shared.phase_spins);
        }
        shared.inside.0.fetch_or(CLOSED, Ordering::Relaxed);
        while shared.inside.0.load(Ordering::Acquire) & (CLOSED - 1) != 0 {
            relax(&mut spins, shared.phase_spins);
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
        // `inside` stays closed: nobody begins a run that is none.
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
    /// Prepares the next run; no member is in one.
    fn begin(&self) {
        // Beyond a phase that a panic may have left half done.
        let phase = self.phase.0.load(Ordering::Relaxed).wrapping_add(1);
        self.phase.0.store(phase, Ordering::Relaxed);
        self.first_phase.store(phase, Ordering::Relaxed);
        self.done.0.store(0, Ordering::Relaxed);
        self.finished.0.store(0, Ordering::Relaxed);
        // Claims of long ago would be taken for later ones when the numbers of phases wrap.
        for claims in self.near.iter().chain([&self.tasks]) {
            claims.0.forget(phase);
        }
    }

    fn execute(&self, index: usize, job: &Job<'_>) {
        let phase = Cell::new(self.first_phase.load(Ordering::Relaxed));
        let worker = Worker { index, phase, shared: self };
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

    /// Counts a member into the run `epoch`, unless it is over.
    fn enter(&self, epoch: u32) -> bool {
        let open = |inside: u64| inside >> 32 == u64::from(epoch) && inside & CLOSED == 0;
        let add = |inside: u64| open(inside).then_some(inside + 1);
        self.inside.0.fetch_update(Ordering::Acquire, Ordering::Relaxed, add).is_ok()
    }

    fn leave(&self) {
        self.finished.0.fetch_add(1, Ordering::Release);
        self.inside.0.fetch_sub(1, Ordering::Release);
    }
}

impl Claims {
    fn new() -> Self {
        Self(AtomicU64::new(0))
    }

    /// All of `phase` are to be had.
    fn forget(&self, phase: u32) {
        self.0.store(u64::from(phase) << 32, Ordering::Relaxed);
    }

    /// The next of `count` tasks of `phase`. Each number is given to one member only.
    fn next(&self, phase: u32, count: usize) -> Option<usize> {
        let mut seen = self.0.load(Ordering::Relaxed);
        loop {
            let claimed = match ((seen >> 32) as u32).wrapping_sub(phase) as i32 {
                0 => seen & 0xffff_ffff,
                // Of a phase before.
                ..0 => 0,
                // This member is late: all of its phase are long done.
                1.. => return None,
            };
            if claimed >= count as u64 {
                return None;
            }
            let next = u64::from(phase) << 32 | (claimed + 1);
            match self.0.compare_exchange_weak(seen, next, Ordering::Relaxed, Ordering::Relaxed) {
                Ok(_) => return Some(claimed as usize),
                Err(now) => seen = now,
            }
        }
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

    /// A phase of `0..count`, whoever is free takes the next. What its tasks write is visible to
    /// all later ones.
    ///
    /// # Panics
    /// If another member has panicked, so that nobody waits for it.
    pub fn for_each(&self, count: usize, mut task: impl FnMut(usize)) {
        if self.shared.members == 1 {
            return (0..count).for_each(task);
        }
        self.phase(count, |phase| {
            let mut done = 0;
            while let Some(index) = self.shared.tasks.0.next(phase, count) {
                task(index);
                done += 1;
            }
            done
        });
    }

    /// As `for_each`, but a member takes its own share of the tasks first, the same one in every
    /// phase of so many tasks: what it wrote in one is near it in the next. Then it helps others.
    ///
    /// # Panics
    /// As `for_each`.
    pub fn for_each_near(&self, count: usize, mut task: impl FnMut(usize)) {
        let members = self.shared.members;
        if members == 1 {
            return (0..count).for_each(task);
        }
        self.phase(count, |phase| {
            let mut done = 0;
            for owner in (self.index..members).chain(0..self.index) {
                let share = count * owner / members..count * (owner + 1) / members;
                while let Some(index) = self.shared.near[owner].0.next(phase, share.len()) {
                    task(share.start + index);
                    done += 1;
                }
            }
            done
        });
    }

    /// A phase of one task, which one member does.
    ///
    /// # Panics
    /// As `for_each`.
    pub fn once(&self, task: impl FnOnce()) {
        let mut task = Some(task);
        self.for_each(1, |_| task.take().expect("invariant: one task is claimed once")());
    }

    /// Goes through a phase of `count` tasks: `work` does what it can claim and says how many.
    fn phase(&self, count: usize, work: impl FnOnce(u32) -> usize) {
        let (shared, phase) = (self.shared, self.phase.get());
        self.phase.set(phase.wrapping_add(1));
        if shared.phase.0.load(Ordering::Acquire) != phase {
            return; // Late.
        }
        let done = work(phase);
        let is_last = match count {
            // Whoever comes first.
            0 => true,
            _ => done > 0 && shared.done.0.fetch_add(done, Ordering::AcqRel) + done == count,
        };
        if is_last {
            if count > 0 {
                shared.done.0.store(0, Ordering::Relaxed);
            }
            let (success, failure) = (Ordering::Release, Ordering::Relaxed);
            // Fails only where another has closed a phase without tasks already.
            let next = phase.wrapping_add(1);
            let _ = shared.phase.0.compare_exchange(phase, next, success, failure);
            return;
        }
        let mut spins = 0;
        while shared.phase.0.load(Ordering::Acquire) == phase {
            if shared.poisoned.load(Ordering::Relaxed) {
                resume_unwind(Box::new(TeamPoisoned));
            }
            relax(&mut spins, shared.phase_spins);
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
        if !shared.enter(seen) {
            continue;
        }
        let pointer = shared.job.0.load(Ordering::Relaxed).cast::<&Job<'_>>();
        // SAFETY: `run` stored the address of a live `&Job` before it opened the run that this
        // member has entered, and keeps it alive until this member has left.
        let job = unsafe { *pointer };
        shared.execute(index, job);
        shared.leave();
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
    use std::time::{Duration, Instant};

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
    fn all_members_run_where_they_must() {
        let team = Team::new(3).unwrap();
        for _ in 0..20 {
            let ran: Vec<AtomicUsize> = (0..3).map(|_| AtomicUsize::new(0)).collect();
            team.run_on_all(&|worker| _ = ran[worker.index()].fetch_add(1, Ordering::Relaxed));
            assert!(ran.iter().all(|count| count.load(Ordering::Relaxed) == 1));
        }
    }

    /// A member that is put aside between phases, here until the caller has done all of them, holds
    /// nobody up, and goes through the rest without a task done twice.
    #[test]
    fn a_member_that_is_away_holds_nobody_up() {
        let team = Team::new(2).unwrap();
        for round in 0..50 {
            let is_done = AtomicBool::new(false);
            let counts: Vec<AtomicUsize> = (0..200).map(|_| AtomicUsize::new(0)).collect();
            team.run(&|worker| {
                for phase in 0..counts.len() / 4 {
                    if worker.index() == 1 && phase == round % 7 {
                        let patience = Instant::now() + Duration::from_secs(60);
                        while !is_done.load(Ordering::Relaxed) && Instant::now() < patience {
                            yield_now();
                        }
                        assert!(is_done.load(Ordering::Relaxed), "the caller waits");
                    }
                    worker.for_each_near(3, |task| {
                        let before = counts[4 * phase + task].fetch_add(1, Ordering::Relaxed);
                        assert_eq!(before, 0, "task {task} of phase {phase}");
                    });
                    worker.once(|| _ = counts[4 * phase + 3].fetch_add(1, Ordering::Relaxed));
                }
                if worker.index() == 0 {
                    is_done.store(true, Ordering::Relaxed);
                }
            });
            assert!(counts.iter().all(|count| count.load(Ordering::Relaxed) == 1), "round {round}");
        }
    }

    #[test]
    fn phases_without_tasks_pass() {
        let team = Team::new(3).unwrap();
        let sum = AtomicUsize::new(0);
        team.run(&|worker| {
            for count in [0, 2, 0, 0, 1, 0] {
                worker.for_each(count, |_| _ = sum.fetch_add(1, Ordering::Relaxed));
                worker.for_each_near(0, |_| unreachable!("there is none"));
            }
        });
        assert_eq!(sum.load(Ordering::Relaxed), 3);
    }

    #[test]
    fn a_panic_reaches_the_caller_and_the_team_survives() {
        let team = Team::new(3).unwrap();
        for culprit in 0..3 {
            let outcome = catch_unwind(AssertUnwindSafe(|| {
                team.run_on_all(&|worker| {
                    worker.for_each(7, |_| ());
                    assert_ne!(worker.index(), culprit, "the culprit");
                    worker.for_each(7, |_| ());
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
            std::thread::sleep(Duration::from_millis(3));
            let sum = AtomicUsize::new(0);
            team.run_on_all(&|_| _ = sum.fetch_add(1, Ordering::Relaxed));
            assert_eq!(sum.load(Ordering::Relaxed), 2);
        }
    }
}
