//! Is every reader of a shared answer told what its request alone would be told?
//!
//! `SIMULATOR_SEED=n` runs that world alone; `SIMULATOR_SEEDS=count` and `SIMULATOR_TURNS=count`
//! run more or longer ones.

use simulator::SharingOutcome;

fn number(name: &str, default: u64) -> u64 {
    let Ok(text) = std::env::var(name) else { return default };
    text.parse().unwrap_or_else(|_| panic!("{name} is '{text}', it must be a number"))
}

fn world(seed: u64) -> SharingOutcome {
    let turns = number("SIMULATOR_TURNS", 400) as u32;
    simulator::run_sharing(seed, turns).unwrap_or_else(|line| panic!("{line}"))
}

#[test]
fn sharing_exact() {
    if std::env::var("SIMULATOR_SEED").is_ok() {
        world(number("SIMULATOR_SEED", 0));
        return;
    }
    let outcomes: Vec<SharingOutcome> = (0..number("SIMULATOR_SEEDS", 300)).map(world).collect();
    let worlds = outcomes.len() as u64;
    if worlds < 100 {
        return;
    }
    // The worlds must reach what they are there to test.
    let total = |field: fn(&SharingOutcome) -> u64| outcomes.iter().map(field).sum::<u64>();
    assert!(total(|outcome| outcome.hits) > 5 * worlds);
    assert!(total(|outcome| outcome.joins) > 5 * worlds);
    assert!(total(|outcome| outcome.misses) > 5 * worlds);
    assert!(total(|outcome| outcome.stopped) > worlds);
    assert!(total(|outcome| outcome.left) > worlds);
    assert!(total(|outcome| outcome.failed) > worlds);
    assert!(total(|outcome| outcome.finished) > 10 * worlds);
    let computed = total(|outcome| outcome.tokens_computed);
    assert!(total(|outcome| outcome.tokens_told) > computed, "sharing saves work");
}

#[test]
fn a_seed_repeats_its_world() {
    let seed = number("SIMULATOR_SEED", 17);
    assert_eq!(world(seed), world(seed));
    assert_ne!(world(seed).trace, world(seed + 1).trace);
}
