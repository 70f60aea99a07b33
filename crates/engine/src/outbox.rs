//! How does what a sequence says reach its readers? By a queue with room for it from the start, so
//! that telling takes no memory in a step.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

use crate::readers::Outgoing;

/// Room made at the start: longer answers grow theirs if their reader is as far behind. What is
/// never written takes address space only.
const ROOM_MAX: usize = 4096;

/// Where one reader is told. Copies are the same outbox; it ends with the last of them.
pub(crate) struct Outbox(Arc<Queue>);

/// The reader's end.
pub(crate) struct Unread(Arc<Queue>);

#[derive(Default)]
struct Queue {
    state: Mutex<State>,
    /// For a reader that blocks its thread.
    changed: Condvar,
    /// For one that does not.
    notify: Notify,
}

#[derive(Default)]
struct State {
    waiting: VecDeque<Outgoing>,
    senders: usize,
    has_reader: bool,
}

/// An outbox for an answer of at most `tokens_max` tokens, and its reader's end.
pub(crate) fn outbox(tokens_max: Option<u32>) -> (Outbox, Unread) {
    // And one each for the start, a fault and what is known already.
    let room = tokens_max.map_or(ROOM_MAX, |tokens| tokens as usize + 3).min(ROOM_MAX);
    let state = State { waiting: VecDeque::with_capacity(room), senders: 1, has_reader: true };
    let queue = Arc::new(Queue { state: Mutex::new(state), ..Queue::default() });
    (Outbox(Arc::clone(&queue)), Unread(queue))
}

impl Outbox {
    /// Nothing happens where the reader has gone.
    pub(crate) fn send(&self, outgoing: Outgoing) {
        let mut state = self.0.state();
        if state.has_reader {
            state.waiting.push_back(outgoing);
            drop(state);
            self.0.wake();
        }
    }
}

impl Clone for Outbox {
    fn clone(&self) -> Self {
        self.0.state().senders += 1;
        Self(Arc::clone(&self.0))
    }
}

impl Drop for Outbox {
    fn drop(&mut self) {
        let mut state = self.0.state();
        state.senders -= 1;
        let is_last = state.senders == 0;
        drop(state);
        if is_last {
            self.0.wake();
        }
    }
}

impl Unread {
    /// Waits for what is told next; `None` when nothing will be.
    pub(crate) async fn recv(&mut self) -> Option<Outgoing> {
        loop {
            // A wake-up between the look and the wait is kept for the wait.
            match self.0.state().next() {
                Next::Some(outgoing) => return Some(outgoing),
                Next::Ended => return None,
                Next::Later => {}
            }
            self.0.notify.notified().await;
        }
    }

    /// The same for a thread that has nothing else to do.
    pub(crate) fn blocking_recv(&mut self) -> Option<Outgoing> {
        let mut state = self.0.state();
        loop {
            match state.next() {
                Next::Some(outgoing) => return Some(outgoing),
                Next::Ended => return None,
                Next::Later => {}
            }
            state = self.0.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

impl Drop for Unread {
    fn drop(&mut self) {
        let mut state = self.0.state();
        state.has_reader = false;
        let unread = std::mem::take(&mut state.waiting);
        drop(state);
        drop(unread);
    }
}

enum Next {
    Some(Outgoing),
    Later,
    Ended,
}

impl State {
    fn next(&mut self) -> Next {
        match self.waiting.pop_front() {
            Some(outgoing) => Next::Some(outgoing),
            None if self.senders > 0 => Next::Later,
            None => Next::Ended,
        }
    }
}

impl Queue {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wake(&self) {
        self.changed.notify_one();
        self.notify.notify_one();
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use messages::Fault;

    use super::*;

    fn fault(number: usize) -> Outgoing {
        Outgoing::Failed(Fault(number.to_string()))
    }

    fn number(told: Option<Outgoing>) -> Option<usize> {
        told.map(|outgoing| match outgoing {
            Outgoing::Failed(fault) => fault.0.parse().unwrap(),
            Outgoing::Token { .. }
            | Outgoing::Known(_)
            | Outgoing::Vector(_)
            | Outgoing::Started(_)
            | Outgoing::Refused(_)
            | Outgoing::Late(_) => panic!("nobody sent it"),
        })
    }

    #[test]
    fn all_is_told_in_order_and_then_it_ends() {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        for blocks in [false, true] {
            let (outbox, mut told) = outbox(Some(2));
            let other = outbox.clone();
            let sender = std::thread::spawn(move || {
                for index in 0..1000 {
                    if index % 100 == 0 {
                        std::thread::sleep(std::time::Duration::from_millis(1));
                    }
                    if index % 2 == 0 { &outbox } else { &other }.send(fault(index));
                }
            });
            for index in 0..1000 {
                let next =
                    if blocks { told.blocking_recv() } else { runtime.block_on(told.recv()) };
                assert_eq!(number(next), Some(index));
            }
            let end = if blocks { told.blocking_recv() } else { runtime.block_on(told.recv()) };
            assert_eq!(number(end), None);
            sender.join().unwrap();
        }
    }

    #[test]
    fn nothing_is_kept_for_a_reader_that_has_gone() {
        let (outbox, told) = outbox(None);
        outbox.send(fault(1));
        drop(told);
        outbox.send(fault(2));
        assert!(outbox.0.state().waiting.is_empty());
    }
}
