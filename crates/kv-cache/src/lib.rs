//! kv-cache (skeleton).
