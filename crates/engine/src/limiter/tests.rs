//! Does the limiter follow what it measures, and is nobody kept out or waiting for ever?

use super::*;

const RULES: LimiterRules = LimiterRules {
    running_max: 32,
    waiting_max: 8,
    block_count: 1000,
    token_target: Some(Duration::from_millis(100)),
    queue_time_max: Some(Duration::from_secs(10)),
};

fn seconds(count: f64) -> Duration {
    Duration::from_secs_f64(count)
}

/// Runs steps of as many rows as are allowed, until that settles.
fn settle(limiter: &mut Limiter, step: impl Fn(u32) -> f64) -> u32 {
    for _ in 0..400 {
        let rows = limiter.limit();
        limiter.note_step(rows, step(rows));
    }
    limiter.limit()
}

#[test]
fn settings_are_the_bound_until_something_is_measured() {
    let mut limiter = Limiter::new(RULES);
    assert_eq!(limiter.limit(), 32);
    // A fast machine with much memory stays there.
    limiter.note_end(seconds(1.0), 4);
    assert_eq!(settle(&mut limiter, |rows| 0.002 + 0.0005 * f64::from(rows)), 32);
}

#[test]
fn latency_allows_what_fits_into_the_target_and_follows_the_machine() {
    let mut limiter = Limiter::new(RULES);
    // 20 ms and 10 ms a row: 8 rows take 100 ms.
    let of = |step: f64| move |rows: u32| step * (2.0 + f64::from(rows));
    let limit = settle(&mut limiter, of(0.01));
    assert!((7..=8).contains(&limit), "{limit}");
    // Other work leaves half of the machine: 3 rows take 100 ms.
    let limit = settle(&mut limiter, of(0.02));
    assert!((2..=3).contains(&limit), "{limit}");
    let limit = settle(&mut limiter, of(0.01));
    assert!((7..=8).contains(&limit), "{limit}");
}

#[test]
fn a_step_that_misses_the_target_alone_has_the_company_that_is_free() {
    let mut limiter = Limiter::new(RULES);
    // The weights take 200 ms to read, a row 2 ms: 25 % more are 25 rows.
    let of = |rows: u32| 0.2 + 0.002 * f64::from(rows);
    limiter.note_step(1, of(1));
    let limit = settle(&mut limiter, of);
    assert!((20..=26).contains(&limit), "{limit}");
    // A row costs as much as all before it: nothing is free, one runs.
    let mut limiter = Limiter::new(RULES);
    assert_eq!(settle(&mut limiter, |rows| 0.2 * f64::from(rows)), 1);
}

#[test]
fn memory_allows_what_sequences_turned_out_to_need() {
    let mut limiter = Limiter::new(RULES);
    (0..50).for_each(|_| limiter.note_end(seconds(1.0), 100));
    assert_eq!(limiter.limit(), 10);
    (0..50).for_each(|_| limiter.note_end(seconds(1.0), 2));
    assert_eq!(limiter.limit(), 32);
    // Where sizes differ, more is set aside than the average, and less for many than for each.
    for index in 0..50 {
        limiter.note_end(seconds(1.0), if index % 2 == 0 { 10 } else { 190 });
    }
    assert!((4..8).contains(&limiter.limit()), "{}", limiter.limit());
    // One sequence may take everything.
    (0..50).for_each(|_| limiter.note_end(seconds(1.0), 1000));
    assert_eq!(limiter.limit(), 1);
}

#[test]
fn bounds_of_the_queue_change_for_who_comes_next() {
    let mut limiter = Limiter::new(RULES);
    let let_in = |limiter: &mut Limiter| {
        let before = limiter.queued();
        while limiter.arrive().is_ok() {}
        limiter.queued() - before
    };
    // Those that could start at once, and those that may wait.
    assert_eq!(let_in(&mut limiter), 40);
    limiter.set_queue(3, None);
    assert_eq!(let_in(&mut limiter), 0, "who waits stays, and nobody comes");
    assert_eq!(limiter.queued(), 40);
    assert!(limiter.overdue(seconds(1e6)).is_none(), "nobody has waited too long any more");
    limiter.set_queue(10, Some(seconds(5.0)));
    assert_eq!(let_in(&mut limiter), 2);
    assert!(limiter.overdue(seconds(5.0)).is_some());
}

#[test]
fn who_would_wait_too_long_is_told_when_to_come_back() {
    let rules = LimiterRules { running_max: 4, waiting_max: 100, ..RULES };
    let mut limiter = Limiter::new(rules);
    // Each holds its place for 8 s, and 4 run: one comes free every 2 s.
    (0..50).for_each(|_| limiter.note_end(seconds(8.0), 1));
    let arrive = |limiter: &mut Limiter| limiter.arrive().map(|arrival| arrival.before);
    for before in 0..4 {
        assert_eq!(arrive(&mut limiter), Ok(before), "it starts at once");
    }
    (0..4).for_each(|_| limiter.leave_queue());
    limiter.note_running(4);
    for before in 0..5 {
        assert_eq!(arrive(&mut limiter), Ok(before), "after {} s", 2 * (before + 1));
    }
    let rejection = limiter.arrive();
    let why = Why::Late { wait: seconds(12.0) };
    assert_eq!(rejection, Err(Rejection { why, retry_after: seconds(2.0) }));
    assert_eq!(limiter.queued(), 5, "who is refused does not wait");
    limiter.leave_queue();
    assert_eq!(arrive(&mut limiter), Ok(4));
}

#[test]
fn expectations_that_were_wrong_count_for_the_next() {
    let rules = LimiterRules { running_max: 4, waiting_max: 100, ..RULES };
    let mut limiter = Limiter::new(rules);
    (0..50).for_each(|_| limiter.note_end(seconds(8.0), 1));
    limiter.note_running(4);
    let admitted = |limiter: &mut Limiter| {
        let mut arrivals = Vec::new();
        while let Ok(arrival) = limiter.arrive() {
            arrivals.push(arrival);
        }
        arrivals.iter().for_each(|_| limiter.leave_queue());
        arrivals
    };
    let arrivals = admitted(&mut limiter);
    assert_eq!(arrivals.len(), 5);
    // Each waits twice as long as expected.
    for arrival in arrivals.iter().cycle().take(50) {
        limiter.note_wait(*arrival, seconds(4.0 * f64::from(arrival.before + 1)));
    }
    assert_eq!(admitted(&mut limiter).len(), 2, "4 s each");
    // Waits scatter: none longer than allowed means fewer that are expected to be shorter.
    for (index, arrival) in arrivals.iter().cycle().take(200).enumerate() {
        let factor = if index % 2 == 0 { 1.6 } else { 2.4 };
        limiter.note_wait(*arrival, seconds(factor * f64::from(arrival.before + 1)));
    }
    let count = admitted(&mut limiter).len();
    assert_eq!(count, 3, "7 s are 10 s at worst");
}

#[test]
fn nobody_is_refused_for_what_is_not_known_but_all_who_have_waited() {
    let rules = LimiterRules { running_max: 1, waiting_max: 100, ..RULES };
    let mut limiter = Limiter::new(rules);
    limiter.note_running(1);
    (0..50).for_each(|before| assert_eq!(limiter.arrive().map(|one| one.before), Ok(before)));
    assert_eq!(limiter.overdue(seconds(9.9)), None);
    let rejection = limiter.overdue(seconds(10.0));
    assert!(rejection.is_some_and(|rejection| rejection.retry_after >= RETRY_MIN));
    let patient = LimiterRules { queue_time_max: None, ..rules };
    assert_eq!(Limiter::new(patient).overdue(seconds(1e6)), None);
}

/// Against any measurements: a bounded queue, somebody always runs, and settings are kept.
#[test]
fn queues_bounded() {
    let mut state = 3_u64;
    let mut draw = |count: u64| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (state >> 33) % count
    };
    let mut refused = [0, 0];
    for _ in 0..200 {
        let rules = LimiterRules {
            running_max: 1 + draw(40) as u32,
            waiting_max: draw(20) as u32,
            block_count: 1 + draw(500) as u32,
            token_target: (draw(3) > 0).then(|| Duration::from_micros(1 + draw(100_000))),
            queue_time_max: (draw(3) > 0).then(|| Duration::from_millis(draw(5000))),
        };
        let mut limiter = Limiter::new(rules);
        let mut running = 0;
        for _ in 0..300 {
            match draw(5) {
                0 => limiter.note_step(draw(200) as u32, draw(1_000_000) as f64 * 1e-6),
                1 => limiter.note_end(Duration::from_millis(draw(10_000)), draw(600) as u32),
                2 if limiter.queued() > 0 && running < limiter.limit() => {
                    limiter.leave_queue();
                    running += 1;
                }
                3 if running > 0 => running -= 1,
                _ => match limiter.arrive() {
                    Ok(arrival) => {
                        assert!(arrival.before <= rules.waiting_max + rules.running_max);
                        limiter.note_wait(arrival, Duration::from_millis(draw(20_000)));
                    }
                    Err(Rejection { why, retry_after }) => {
                        refused[usize::from(matches!(why, Why::Late { .. }))] += 1;
                        assert!(retry_after >= RETRY_MIN && retry_after <= RETRY_MAX);
                        assert!(running >= limiter.limit() || limiter.queued() > 0);
                    }
                },
            }
            limiter.note_running(running);
            assert!((1..=rules.running_max).contains(&limiter.limit()), "somebody runs");
            assert!(limiter.queued() <= rules.waiting_max + rules.running_max);
        }
    }
    assert!(refused.iter().all(|&count| count > 100), "{refused:?}");
}
