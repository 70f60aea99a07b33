//! Which models give way to another? Those whose absence costs least, and no more than needed.
//!
//! What a byte of memory is worth in a model: the seconds it takes to load one, halved for every
//! ten minutes that nobody asked. So of two models alike the one unused for longer goes, and one
//! that is slow to load for its size stays longer. Models with requests, and pinned ones, stay.

use std::time::Duration;

/// A conversation that has paused for this long is as likely to go on as not.
const HALF_LIFE: Duration = Duration::from_secs(600);

/// A model in memory.
#[derive(Clone, Debug)]
pub(crate) struct Resident {
    pub(crate) bytes: u64,
    pub(crate) load_time: Duration,
    /// Since the last request for it ended.
    pub(crate) idle: Duration,
    pub(crate) may_leave: bool,
}

/// The model does not fit beside what has to stay.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Shortage {
    pub(crate) needed_bytes: u64,
    pub(crate) budget_bytes: u64,
    /// Of pinned models and those with requests.
    pub(crate) kept_bytes: u64,
}

impl Resident {
    /// Seconds of loading lost for each byte given up.
    fn worth(&self) -> f64 {
        let halvings = self.idle.as_secs_f64() / HALF_LIFE.as_secs_f64();
        self.load_time.as_secs_f64() / self.bytes.max(1) as f64 * (-halvings).exp2()
    }
}

/// Indices of the residents to unload so that `needed_bytes` more fit into the budget.
pub(crate) fn make_room(
    residents: &[Resident],
    needed_bytes: u64,
    budget_bytes: u64,
) -> Result<Vec<usize>, Shortage> {
    let held: u64 = residents.iter().map(|resident| resident.bytes).sum();
    let mut excess = held.saturating_add(needed_bytes).saturating_sub(budget_bytes);
    let mut leaving: Vec<usize> =
        (0..residents.len()).filter(|&index| residents[index].may_leave).collect();
    let leaving_bytes: u64 = leaving.iter().map(|&index| residents[index].bytes).sum();
    if leaving_bytes < excess {
        let kept_bytes = held - leaving_bytes;
        return Err(Shortage { needed_bytes, budget_bytes, kept_bytes });
    }
    leaving.sort_by(|&one, &other| residents[one].worth().total_cmp(&residents[other].worth()));
    let mut taken = Vec::new();
    for index in leaving {
        if excess == 0 {
            break;
        }
        excess = excess.saturating_sub(residents[index].bytes);
        taken.push(index);
    }
    // A large one at the end may have made small ones before it unnecessary: the dearest stay.
    let mut spare = held + needed_bytes;
    spare -= taken.iter().map(|&index| residents[index].bytes).sum::<u64>();
    let mut spare = budget_bytes - spare;
    let mut kept = Vec::new();
    for &index in taken.iter().rev() {
        if residents[index].bytes <= spare {
            spare -= residents[index].bytes;
            kept.push(index);
        }
    }
    taken.retain(|index| !kept.contains(index));
    Ok(taken)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    fn resident(bytes: u64, load_s: u64, idle_s: u64) -> Resident {
        Resident {
            bytes,
            load_time: Duration::from_secs(load_s),
            idle: Duration::from_secs(idle_s),
            may_leave: true,
        }
    }

    #[test]
    fn the_least_worth_leaves() {
        let stale = [resident(10, 5, 60), resident(10, 5, 3600), resident(10, 5, 0)];
        assert_eq!(make_room(&stale, 10, 30).unwrap(), [1]);
        let dear = [resident(10, 5, 60), resident(10, 50, 120), resident(10, 6, 60)];
        assert_eq!(make_room(&dear, 10, 30).unwrap(), [0]);
        assert_eq!(make_room(&dear, 10, 40).unwrap(), Vec::<usize>::new());
    }

    #[test]
    fn small_ones_stay_when_a_large_one_must_leave_anyway() {
        let models = [resident(1, 1, 6000), resident(20, 20, 0)];
        assert_eq!(make_room(&models, 15, 21).unwrap(), [1]);
    }

    #[test]
    fn what_cannot_fit_is_refused_with_the_numbers() {
        let pinned = Resident { may_leave: false, ..resident(6, 1, 0) };
        let shortage = make_room(&[pinned, resident(3, 1, 0)], 5, 10).unwrap_err();
        assert_eq!(shortage, Shortage { needed_bytes: 5, budget_bytes: 10, kept_bytes: 6 });
    }

    /// Every subset, tried.
    #[test]
    fn room_is_made_exactly_when_there_is_any_and_nobody_leaves_in_vain() {
        let mut random = 3_u64;
        let mut draw = |count: u64| {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (random >> 33) % count
        };
        for _ in 0..2000 {
            let count = draw(7) as usize;
            let residents: Vec<Resident> = (0..count)
                .map(|_| Resident {
                    may_leave: draw(4) > 0,
                    ..resident(1 + draw(20), 1 + draw(30), draw(4000))
                })
                .collect();
            let (needed, budget) = (1 + draw(30), 1 + draw(60));
            let held: u64 = residents.iter().map(|resident| resident.bytes).sum();
            let fits = |leaving: &[usize]| {
                let freed: u64 = leaving.iter().map(|&index| residents[index].bytes).sum();
                held - freed + needed <= budget
            };
            let subsets = (0..1_usize << count).map(|bits| {
                (0..count).filter(|index| bits >> index & 1 == 1).collect::<Vec<usize>>()
            });
            let allowed = |leaving: &[usize]| leaving.iter().all(|&at| residents[at].may_leave);
            let is_possible = subsets.into_iter().any(|set| allowed(&set) && fits(&set));
            match make_room(&residents, needed, budget) {
                Err(_) => assert!(!is_possible, "{residents:?} {needed} {budget}"),
                Ok(leaving) => {
                    assert!(allowed(&leaving) && fits(&leaving), "{residents:?} {leaving:?}");
                    for without in &leaving {
                        let rest: Vec<usize> =
                            leaving.iter().copied().filter(|index| index != without).collect();
                        assert!(!fits(&rest), "{without} left in vain: {residents:?}");
                    }
                }
            }
        }
    }
}
