//! Which responses can be gone on with, or asked for again? The latest, of each caller its own.
//!
//! Invariants: nobody finds what another tenant stored; entries, bytes and age are bounded.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use config::StoredResponsesConfig;
use serde_json::Value;

/// One response and the conversation up to it.
pub(crate) struct Stored {
    pub(crate) id: String,
    pub(crate) tenant: String,
    /// As it was sent.
    pub(crate) response: Value,
    /// The items that were asked with, as they were sent.
    pub(crate) input: Vec<Value>,
    /// All turns so far, the answer included; without instructions, which hold for one response.
    pub(crate) messages: Vec<chat::Message>,
}

/// The latest at the back.
pub(crate) struct StoredResponses {
    kept: Mutex<Kept>,
    entries_max: usize,
    bytes_max: usize,
}

struct Kept {
    entries: VecDeque<Entry>,
    bytes: usize,
    age_max: Duration,
}

struct Entry {
    stored: Arc<Stored>,
    bytes: usize,
    since: Instant,
}

impl StoredResponses {
    pub(crate) fn new(config: &StoredResponsesConfig) -> Self {
        let age_max = Duration::from_secs(config.age_max_seconds);
        Self {
            kept: Mutex::new(Kept { entries: VecDeque::new(), bytes: 0, age_max }),
            entries_max: config.entries_max as usize,
            bytes_max: usize::try_from(config.size_mb << 20).unwrap_or(usize::MAX),
        }
    }

    /// Keeps a response; the oldest go for it. One that is larger than all may be is not kept.
    pub(crate) fn put(&self, stored: Stored, now: Instant) {
        let bytes = size(&stored);
        let mut kept = self.lock();
        kept.forget(now);
        if bytes > self.bytes_max {
            return;
        }
        kept.bytes += bytes;
        kept.entries.push_back(Entry { stored: Arc::new(stored), bytes, since: now });
        while kept.entries.len() > self.entries_max || kept.bytes > self.bytes_max {
            kept.drop_first();
        }
    }

    /// A response of this tenant.
    pub(crate) fn find(&self, tenant: &str, id: &str, now: Instant) -> Option<Arc<Stored>> {
        let mut kept = self.lock();
        kept.forget(now);
        kept.place(tenant, id).map(|place| Arc::clone(&kept.entries[place].stored))
    }

    /// An item that a stored response of this tenant was asked with, or answered with.
    pub(crate) fn find_item(&self, tenant: &str, id: &str, now: Instant) -> Option<Value> {
        let mut kept = self.lock();
        kept.forget(now);
        let own = kept.entries.iter().rev().filter(|entry| entry.stored.tenant == tenant);
        own.map(|entry| &entry.stored).find_map(|stored| {
            let output = stored.response["output"].as_array().into_iter().flatten();
            output.chain(&stored.input).find(|item| item["id"] == id).cloned()
        })
    }

    /// Whether there was one to remove.
    pub(crate) fn remove(&self, tenant: &str, id: &str) -> bool {
        let mut kept = self.lock();
        let Some(place) = kept.place(tenant, id) else { return false };
        if let Some(entry) = kept.entries.remove(place) {
            kept.bytes -= entry.bytes;
        }
        true
    }

    fn lock(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Kept {
    fn place(&self, tenant: &str, id: &str) -> Option<usize> {
        let is_it = |entry: &Entry| entry.stored.id == id && entry.stored.tenant == tenant;
        self.entries.iter().rposition(is_it)
    }

    fn forget(&mut self, now: Instant) {
        let age_max = self.age_max;
        let is_old = |entry: &Entry| now.saturating_duration_since(entry.since) > age_max;
        while self.entries.front().is_some_and(is_old) {
            self.drop_first();
        }
    }

    fn drop_first(&mut self) {
        if let Some(entry) = self.entries.pop_front() {
            self.bytes -= entry.bytes;
        }
    }
}

/// About what a response takes: trees of values take some times their text.
fn size(stored: &Stored) -> usize {
    let text = |value: &Value| 4 * value.to_string().len();
    let messages = stored.messages.iter().map(|message| {
        let texts = [&message.content, &message.reasoning_content, &message.name];
        let texts: usize = texts.into_iter().flatten().map(String::len).sum();
        200 + texts + message.tool_calls.as_ref().map_or(0, text)
    });
    let input: usize = stored.input.iter().map(text).sum();
    500 + text(&stored.response) + input + messages.sum::<usize>()
}

#[cfg(test)]
mod tests {
    use super::*;

    const ENTRIES_MAX: usize = 20;
    const BYTES_MAX: usize = 1 << 20;
    const AGE_MAX: Duration = Duration::from_secs(60);

    fn empty() -> StoredResponses {
        let (size_mb, age_max_seconds) = (1, AGE_MAX.as_secs());
        let entries_max = ENTRIES_MAX as u32;
        StoredResponses::new(&StoredResponsesConfig { entries_max, size_mb, age_max_seconds })
    }

    fn stored(id: usize, tenant: &str, bytes: usize) -> Stored {
        Stored {
            id: format!("resp_{id}"),
            tenant: tenant.to_owned(),
            response: Value::Null,
            input: Vec::new(),
            messages: vec![chat::Message::new("user", &"x".repeat(bytes))],
        }
    }

    #[test]
    fn nobody_finds_anothers() {
        let (all, now) = (empty(), Instant::now());
        all.put(stored(1, "a", 1), now);
        assert!(all.find("a", "resp_1", now).is_some());
        assert!(all.find("b", "resp_1", now).is_none() && !all.remove("b", "resp_1"));
        assert!(all.remove("a", "resp_1") && all.find("a", "resp_1", now).is_none());
    }

    #[test]
    fn items_are_found_by_their_id() {
        let (all, now) = (empty(), Instant::now());
        let item = |id: &str| serde_json::json!({"id": id});
        let response = serde_json::json!({"output": [item("rs_1"), item("msg_1")]});
        all.put(Stored { response, input: vec![item("in_1")], ..stored(1, "a", 1) }, now);
        for id in ["msg_1", "in_1"] {
            assert_eq!(all.find_item("a", id, now), Some(item(id)));
            assert_eq!(all.find_item("b", id, now), None, "another's");
        }
        assert_eq!(all.find_item("a", "msg_2", now), None);
        assert_eq!(all.find_item("a", "msg_1", now + 2 * AGE_MAX), None);
    }

    #[test]
    fn the_oldest_go() {
        let (all, now) = (empty(), Instant::now());
        (0..=ENTRIES_MAX).for_each(|id| all.put(stored(id, "a", 1), now));
        assert!(all.find("a", "resp_0", now).is_none());
        assert!(all.find("a", "resp_1", now).is_some());
        all.put(stored(9999, "a", BYTES_MAX / 2), now);
        assert!(all.find("a", "resp_2", now).is_some());
        all.put(stored(10_000, "a", BYTES_MAX / 2), now);
        assert!(
            all.find("a", "resp_2", now).is_none() && all.find("a", "resp_9999", now).is_none()
        );
        assert!(all.find("a", "resp_10000", now).is_some());
        all.put(stored(10_001, "a", BYTES_MAX), now);
        assert!(all.find("a", "resp_10001", now).is_none(), "larger than all may be");
        assert!(all.find("a", "resp_10000", now + 2 * AGE_MAX).is_none());
        assert_eq!(all.lock().bytes, 0);
    }
}
