//! Which requests wait for which intake threads? Short texts never wait behind long ones.
//!
//! Texts are short or long by their bytes. One thread takes short ones only, the other takes both:
//! however many long texts are here, one thread is free of them. Long ones lose little by it, for
//! encoding shares each of them between threads of its own.

use crossbeam_channel::{Receiver, Sender, TrySendError, bounded, select};

/// Encoding this much takes one thread a millisecond or a few (see `EncodeSettings`): a short text
/// may wait so long for another.
const SHORT_BYTES_MAX: usize = 64 << 10;

/// Where jobs are put.
pub(crate) struct Lanes<J> {
    short: Sender<J>,
    long: Sender<J>,
}

/// Where one thread takes its jobs from.
pub(crate) struct Lane<J> {
    short: Receiver<J>,
    /// `None`: it takes short ones only.
    long: Option<Receiver<J>>,
}

/// Whether encoding a text takes so long that others should not wait for it.
pub(crate) fn is_long(text_bytes: usize) -> bool {
    text_bytes > SHORT_BYTES_MAX
}

/// Lanes that hold `jobs_max` jobs each, for two threads.
pub(crate) fn lanes<J>(jobs_max: usize) -> (Lanes<J>, [Lane<J>; 2]) {
    let (short, short_jobs) = bounded(jobs_max);
    let (long, long_jobs) = bounded(jobs_max);
    let for_short = Lane { short: short_jobs.clone(), long: None };
    let for_both = Lane { short: short_jobs, long: Some(long_jobs) };
    (Lanes { short, long }, [for_short, for_both])
}

impl<J> Lanes<J> {
    /// # Errors
    /// When the lane is full, or nobody takes from it any more.
    pub(crate) fn put(&self, job: J, text_bytes: usize) -> Result<(), TrySendError<J>> {
        let lane = if is_long(text_bytes) { &self.long } else { &self.short };
        lane.try_send(job)
    }
}

impl<J> Lane<J> {
    /// The next job; `None` when all are done and no more can come.
    pub(crate) fn next(&self) -> Option<J> {
        let Some(long) = &self.long else { return self.short.recv().ok() };
        select! {
            recv(self.short) -> job => job.or_else(|_| long.recv()).ok(),
            recv(long) -> job => job.or_else(|_| self.short.recv()).ok(),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::{SHORT_BYTES_MAX, lanes};

    #[test]
    fn one_thread_never_takes_long_texts_and_the_other_takes_all() {
        let (put, [short, both]) = lanes(4);
        for job in 0..4 {
            put.put(job, SHORT_BYTES_MAX + 1).unwrap();
        }
        assert!(put.put(9, SHORT_BYTES_MAX + 1).is_err(), "the lane is full");
        for job in 10..13 {
            put.put(job, SHORT_BYTES_MAX).unwrap();
        }
        assert_eq!(short.next(), Some(10));
        drop(put);
        let mut rest: Vec<u32> = std::iter::from_fn(|| both.next()).collect();
        rest.sort_unstable();
        assert_eq!(rest, [0, 1, 2, 3, 11, 12], "all that was put is taken, also at the end");
        assert_eq!(short.next(), None);
    }
}
