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

/// A step of streams alone.
fn streams(rows: u32, seconds: f64) -> StepMeasure {
    StepMeasure { rows, streams: rows, seconds, elapsed_seconds: seconds, ..Default::default() }
}

/// Runs steps of as many rows as are allowed, until that settles.
fn settle(limiter: &mut Limiter, step: impl Fn(u32) -> f64) -> u32 {
    for _ in 0..400 {
        let rows = limiter.limit();
        limiter.note_step(&streams(rows, step(rows)));
    }
    limiter.limit()
}

fn work(unread_tokens: u32, answer_tokens_max: u32) -> Work {
    Work { unread_tokens, answer_tokens: 0, answer_tokens_max }
}

/// Who runs and who waits, each with so much to do.
#[derive(Default)]
struct World {
    running: Vec<Work>,
    waiting: Vec<Work>,
}

impl World {
    fn arrive(&mut self, limiter: &mut Limiter, own: Work) -> Result<Arrival, Rejection> {
        let (running, ahead) = (self.running.iter().copied(), self.waiting.iter().copied());
        let arrived = limiter.arrive(&own, Duration::ZERO, running, ahead);
        self.waiting.extend(arrived.is_ok().then_some(own));
        arrived
    }

    /// How many are let in until one is not.
    fn fill(&mut self, limiter: &mut Limiter, own: Work) -> u32 {
        let before = limiter.queued();
        while self.arrive(limiter, own).is_ok() {}
        limiter.queued() - before
    }
}

/// Four places, a queue of 10 s, and tokens every 80 ms.
fn of_four() -> Limiter {
    let rules = LimiterRules { running_max: 4, waiting_max: 100, ..RULES };
    let mut limiter = Limiter::new(rules);
    limiter.note_tokens(1, 1, 0.08);
    limiter.caution.factor = 1.0;
    limiter
}

#[test]
fn settings_are_the_bound_until_something_is_measured() {
    let mut limiter = Limiter::new(RULES);
    assert_eq!(limiter.limit(), 32);
    // A fast machine with much memory stays there.
    limiter.note_end(100, 100, 4);
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
fn another_target_holds_at_once() {
    let mut limiter = Limiter::new(RULES);
    let limit = settle(&mut limiter, |rows| 0.01 * (2.0 + f64::from(rows)));
    limiter.set_token_target(Some(Duration::from_millis(60)));
    assert!((3..=4).contains(&limiter.limit()), "{} after {limit}", limiter.limit());
    limiter.set_token_target(None);
    assert_eq!(limiter.limit(), RULES.running_max);
}

#[test]
fn a_step_that_misses_the_target_alone_has_the_company_that_is_free() {
    let mut limiter = Limiter::new(RULES);
    // The weights take 200 ms to read, a row 2 ms: 25 % more are 25 rows.
    let of = |rows: u32| 0.2 + 0.002 * f64::from(rows);
    limiter.note_step(&streams(1, of(1)));
    let limit = settle(&mut limiter, of);
    assert!((20..=26).contains(&limit), "{limit}");
    // A row costs as much as all before it: nothing is free, one runs.
    let mut limiter = Limiter::new(RULES);
    assert_eq!(settle(&mut limiter, |rows| 0.2 * f64::from(rows)), 1);
}

#[test]
fn memory_allows_what_sequences_turned_out_to_need() {
    let mut limiter = Limiter::new(RULES);
    (0..50).for_each(|_| limiter.note_end(100, 100, 100));
    assert_eq!(limiter.limit(), 10);
    (0..50).for_each(|_| limiter.note_end(100, 100, 2));
    assert_eq!(limiter.limit(), 32);
    // Where sizes differ, more is set aside than the average, and less for many than for each.
    for index in 0..50 {
        limiter.note_end(100, 100, if index % 2 == 0 { 10 } else { 190 });
    }
    assert!((4..8).contains(&limiter.limit()), "{}", limiter.limit());
    // One sequence may take everything.
    (0..50).for_each(|_| limiter.note_end(100, 100, 1000));
    assert_eq!(limiter.limit(), 1);
}

#[test]
fn bounds_of_the_queue_change_for_who_comes_next() {
    let mut limiter = Limiter::new(RULES);
    let (mut world, own) = (World::default(), work(10, 10));
    // Those that could start at once, and those that may wait.
    assert_eq!(world.fill(&mut limiter, own), 40);
    limiter.set_queue(3, None);
    assert_eq!(world.fill(&mut limiter, own), 0, "who waits stays, and nobody comes");
    assert_eq!(limiter.queued(), 40);
    assert!(limiter.overdue(seconds(1e6)).is_none(), "nobody has waited too long any more");
    limiter.set_queue(10, Some(seconds(5.0)));
    assert_eq!(world.fill(&mut limiter, own), 2);
    assert!(limiter.overdue(seconds(5.0)).is_some());
}

#[test]
fn the_queues_time_bounds_first_tokens_but_for_long_prompts_and_who_comes_alone() {
    let mut limiter = of_four();
    let read = |elapsed_seconds: f64| StepMeasure {
        streams: 1,
        prompt_tokens: 100,
        left_unread: true,
        elapsed_seconds,
        ..Default::default()
    };
    (0..50).for_each(|_| limiter.note_step(&read(0.1)));
    let mut world = World::default();
    let bounds =
        |arrived: Result<Arrival, Rejection>| arrived.expect("it is let in").bounds_first_token;
    assert!(!bounds(world.arrive(&mut limiter, work(100, 10))), "nobody is before it");
    assert!(bounds(world.arrive(&mut limiter, work(100, 10))));
    // It takes 6 of the queue's 10 s to read.
    assert!(!bounds(world.arrive(&mut limiter, work(6000, 10))));
    limiter.set_queue(100, None);
    assert!(!bounds(world.arrive(&mut limiter, work(100, 10))));
}

#[test]
fn who_would_wait_too_long_is_told_when_to_come_back() {
    let mut limiter = of_four();
    // Each says 25 tokens in 2 s, and 4 places come free every 2 s.
    let mut world = World { running: vec![work(0, 25); 4], ..World::default() };
    limiter.note_running(4);
    let arrive = |world: &mut World, limiter: &mut Limiter| {
        world.arrive(limiter, work(0, 25)).map(|arrival| arrival.before)
    };
    for before in 0..16 {
        let wait = 2 * (before / 4 + 1);
        assert_eq!(arrive(&mut world, &mut limiter), Ok(before), "after {wait} s");
    }
    let rejection = arrive(&mut world, &mut limiter);
    let why = Why::Late { wait: seconds(10.08) };
    assert_eq!(rejection, Err(Rejection { why, retry_after: seconds(2.0) }));
    assert_eq!(limiter.queued(), 16, "who is refused does not wait");
    limiter.leave_queue();
    world.waiting.pop();
    assert_eq!(arrive(&mut world, &mut limiter), Ok(15));
}

#[test]
fn large_requests_count_for_more_than_small_ones() {
    let full = |answer: u32, unread: u32| {
        let mut limiter = of_four();
        for _ in 0..50 {
            let measure = StepMeasure {
                streams: 3,
                prompt_tokens: 20,
                left_unread: true,
                elapsed_seconds: 0.08,
                ..StepMeasure::default()
            };
            limiter.note_step(&measure);
        }
        let mut world = World { running: vec![work(0, 25); 4], ..World::default() };
        limiter.note_running(4);
        world.fill(&mut limiter, work(unread, answer))
    };
    let [small, long_answers, long_prompts] = [full(25, 25), full(100, 25), full(25, 800)];
    assert!((14..=16).contains(&small), "{small}");
    assert!((4..=6).contains(&long_answers), "{long_answers}");
    // Each takes 3.2 s to read, and one is read after another.
    assert!((1..=3).contains(&long_prompts), "{long_prompts}");
}

#[test]
fn a_long_prompt_is_not_refused_for_its_own_length() {
    let mut limiter = of_four();
    let step = StepMeasure { prompt_tokens: 10, left_unread: true, ..StepMeasure::default() };
    limiter.note_step(&StepMeasure { elapsed_seconds: 0.1, ..step });
    // It takes 100 s, and nobody is before it.
    let mut world = World::default();
    assert!(world.arrive(&mut limiter, work(10_000, 10)).is_ok());
    // Behind another like it it would wait for that.
    let rejection = world.arrive(&mut limiter, work(10_000, 10)).expect_err("100 s before it");
    assert!(rejection.retry_after > seconds(90.0), "{rejection:?}");
    // A short one overtakes it.
    assert!(world.arrive(&mut limiter, work(100, 10)).is_ok());
}

#[test]
fn forecasts_that_were_wrong_count_for_the_next() {
    let mut limiter = of_four();
    let admitted = |limiter: &mut Limiter| {
        let mut world = World { running: vec![work(0, 25); 4], ..World::default() };
        limiter.note_running(4);
        let mut arrivals = Vec::new();
        while let Ok(arrival) = world.arrive(limiter, work(0, 25)) {
            arrivals.push(arrival);
        }
        arrivals.iter().for_each(|_| limiter.leave_queue());
        arrivals
    };
    let arrivals = admitted(&mut limiter);
    assert_eq!(arrivals.len(), 16);
    let wait = |limiter: &mut Limiter, arrivals: &[Arrival], factor: f64| {
        for arrival in arrivals {
            limiter.note_first_token(arrival, arrival.forecast.first_token.mul_f64(factor));
        }
    };
    // All come late at once: that is one reason, and counts once.
    wait(&mut limiter, &arrivals, 2.0);
    assert!((limiter.caution.factor - 1.5).abs() < 1e-9, "half of the way");
    // As it goes on, fewer are let in, until none comes too late.
    for _ in 0..20 {
        let arrivals = admitted(&mut limiter);
        wait(&mut limiter, &arrivals, 2.0);
    }
    assert_eq!(admitted(&mut limiter).len(), 8, "6 s are 12 s at worst");
    for _ in 0..2000 {
        let arrivals = admitted(&mut limiter);
        wait(&mut limiter, &arrivals, 0.9);
    }
    assert_eq!(admitted(&mut limiter).len(), 16);
}

#[test]
fn nobody_is_refused_for_what_is_not_known_but_all_who_have_waited() {
    let rules = LimiterRules { running_max: 1, waiting_max: 100, ..RULES };
    let mut limiter = Limiter::new(rules);
    limiter.note_running(1);
    let mut world = World { running: vec![work(0, 10)], ..World::default() };
    for before in 0..50 {
        let arrival = world.arrive(&mut limiter, work(10, 10));
        assert_eq!(arrival.map(|one| one.before), Ok(before));
    }
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
            let taken = draw(1_000_000) as f64 * 1e-6;
            let read = StepMeasure {
                streams: draw(3) as u32,
                prompt_tokens: draw(300) as u32,
                left_unread: true,
                ..streams(draw(200) as u32, taken)
            };
            match draw(7) {
                0 => limiter.note_step(&streams(draw(200) as u32, taken)),
                1 => limiter.note_end(draw(600) as u32, draw(600) as u32, draw(600) as u32),
                5 => limiter.note_step(&read),
                6 => limiter.note_tokens(draw(32) as u32, draw(40) as u32, taken),
                2 if limiter.queued() > 0 && running < limiter.limit() => {
                    limiter.leave_queue();
                    running += 1;
                }
                3 if running > 0 => running -= 1,
                _ => {
                    let one = |draw: &mut dyn FnMut(u64) -> u64| {
                        work(draw(2000) as u32, 1 + draw(500) as u32)
                    };
                    let mut some =
                        |count: u64| -> Vec<Work> { (0..count).map(|_| one(&mut draw)).collect() };
                    let works = some(u64::from(running + limiter.queued()) + 1);
                    let (before, own) = works.split_at(works.len() - 1);
                    let (runs, waits) = before.split_at(running as usize);
                    let waited = Duration::from_millis(draw(100));
                    let (runs, waits) = (runs.iter().copied(), waits.iter().copied());
                    match limiter.arrive(&own[0], waited, runs, waits) {
                        Ok(arrival) => {
                            assert!(arrival.before <= rules.waiting_max + rules.running_max);
                            let waited = Duration::from_millis(draw(20_000));
                            limiter.note_first_token(&arrival, waited);
                        }
                        Err(Rejection { why, retry_after }) => {
                            assert!(running > 0 || limiter.queued() > 0, "somebody is before it");
                            refused[usize::from(matches!(why, Why::Late { .. }))] += 1;
                            assert!(retry_after >= RETRY_MIN && retry_after <= RETRY_MAX);
                        }
                    }
                }
            }
            limiter.note_running(running);
            assert!((1..=rules.running_max).contains(&limiter.limit()), "somebody runs");
            assert!(limiter.queued() <= rules.waiting_max + rules.running_max);
            assert!((CAUTION_MIN..=CAUTION_MAX).contains(&limiter.caution.factor));
        }
    }
    assert!(refused.iter().all(|&count| count > 100), "{refused:?}");
}
