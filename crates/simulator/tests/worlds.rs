//! Do hundreds of seeded worlds keep every invariant?
//!
//! `SIMULATOR_SEED=n` runs that world alone; `SIMULATOR_SEEDS=count` and `SIMULATOR_TURNS=count`
//! run more or longer ones.

use scheduler::STEPS_IN_FLIGHT_MAX;
use simulator::Outcome;

fn number(name: &str, default: u64) -> u64 {
    let Ok(text) = std::env::var(name) else { return default };
    text.parse().unwrap_or_else(|_| panic!("{name} is '{text}', it must be a number"))
}

fn world(seed: u64) -> Outcome {
    let turns = number("SIMULATOR_TURNS", 400) as u32;
    simulator::run(seed, turns).unwrap_or_else(|line| panic!("{line}"))
}

/// A world, or all of them when none is named.
fn worlds() -> Vec<Outcome> {
    match std::env::var("SIMULATOR_SEED") {
        Ok(_) => vec![world(number("SIMULATOR_SEED", 0))],
        Err(_) => (0..number("SIMULATOR_SEEDS", 300)).map(world).collect(),
    }
}

#[test]
fn no_starvation() {
    let outcomes = worlds();
    if outcomes.len() < 100 {
        return;
    }
    // The worlds must reach what they are there to test.
    let total = |field: fn(&Outcome) -> u64| outcomes.iter().map(field).sum::<u64>();
    let worlds = outcomes.len() as u64;
    assert!(total(|outcome| outcome.steps) > 100 * worlds);
    assert!(total(|outcome| outcome.finished) > 10 * worlds);
    assert!(total(|outcome| outcome.cancelled) > worlds);
    assert!(total(|outcome| outcome.preemptions) > 2 * worlds);
    assert!(total(|outcome| outcome.expired) > worlds / 2);
    assert!(total(|outcome| outcome.failed) > worlds / 4);
    assert!(total(|outcome| outcome.left_out) > worlds / 4);
    assert!(total(|outcome| outcome.paced) > 10 * worlds);
    assert!(total(|outcome| outcome.returned) > worlds / 4);
    assert!(total(|outcome| outcome.cached_tokens) > 5 * worlds);
    assert!(total(|outcome| outcome.carried_tokens) > worlds / 4);
    assert!(total(|outcome| outcome.evictions) > 100 * worlds);
    assert!(total(|outcome| outcome.restored) > worlds);
    assert!(total(|outcome| outcome.restored_states) > worlds / 10);
    assert!(total(|outcome| outcome.refused_busy) > worlds);
    assert!(total(|outcome| outcome.refused_invalid) > worlds);
    assert!(outcomes.iter().any(|outcome| outcome.in_flight_max == STEPS_IN_FLIGHT_MAX));
    assert!(outcomes.iter().all(|outcome| outcome.in_flight_max <= STEPS_IN_FLIGHT_MAX));
}

/// Every answer is compared with that of its request alone, which guesses nothing.
#[test]
fn speculation_exact() {
    let outcomes = worlds();
    if outcomes.len() < 100 {
        return;
    }
    let (mut accepted, mut rejected, mut with_preemptions) = (0, 0, 0);
    for outcome in &outcomes {
        accepted += u64::from(outcome.proposals.accepted);
        rejected += u64::from(outcome.proposals.rejected);
        let both = outcome.preemptions > 0 && outcome.proposals.rejected > 0;
        with_preemptions += u32::from(both);
    }
    let worlds = outcomes.len() as u64;
    assert!(accepted > 20 * worlds, "{accepted} guesses were right");
    assert!(rejected > 10 * worlds, "{rejected} guesses were wrong");
    assert!(with_preemptions > 20, "{with_preemptions} worlds preempt and guess wrongly");
}

#[test]
fn a_seed_repeats_its_world() {
    let seed = number("SIMULATOR_SEED", 17);
    assert_eq!(world(seed), world(seed));
    assert_ne!(world(seed).trace, world(seed + 1).trace);
}
