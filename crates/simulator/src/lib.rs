//! Does the serving core keep its promises in worlds nobody thought of?
//!
//! A seed makes a world: limits, arrivals, lengths, priorities, tenants, cancellations, deadlines,
//! slow readers, paces, failed steps, a device that is late. The world runs the scheduler with no
//! model, with random guesses at what comes next, and audits every invariant at each turn. The
//! device computes each token from the KV blocks, slots and numbers it is given, so a wrong table,
//! a lost token or a wrong sample number changes an answer, and every answer is compared with that
//! of the same request run alone. A failure comes back as one line with the seed that repeats it.
//!
//! Reading order: `random`, `fake_device` (what a token is), `client` (what is asked and expected),
//! `tier` (what is kept outside the device), `world` (the turns), `sharing_world` (the same with
//! readers who share answers).

#![forbid(unsafe_code)]

mod client;
mod fake_device;
mod random;
mod sharing_world;
mod tier;
mod world;

use std::panic::{AssertUnwindSafe, catch_unwind};

pub use sharing_world::SharingOutcome;
pub use world::Outcome;

/// Runs the world of `seed` for `turns` turns, then until it is empty.
///
/// # Errors
/// One line: what broke and how to repeat it.
pub fn run(seed: u64, turns: u32) -> Result<Outcome, String> {
    one_line(seed, || world::World::new(seed).run(turns))
}

/// The same for a world in which requests share answers.
///
/// # Errors
/// One line: what broke and how to repeat it.
pub fn run_sharing(seed: u64, turns: u32) -> Result<SharingOutcome, String> {
    one_line(seed, || sharing_world::SharingWorld::new(seed).run(turns))
}

fn one_line<T>(seed: u64, run: impl FnOnce() -> T) -> Result<T, String> {
    // The world is dropped with the panic: nothing half-changed is seen again.
    catch_unwind(AssertUnwindSafe(run)).map_err(|panic| {
        let text = panic.downcast_ref::<String>().map(String::as_str);
        let text = text.or(panic.downcast_ref::<&str>().copied()).unwrap_or("a panic without text");
        let text = text.replace('\n', " ");
        format!("seed {seed}: {text}; repeat: cargo xtask sim --seed {seed}")
    })
}
