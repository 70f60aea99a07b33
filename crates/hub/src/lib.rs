//! hub (skeleton).
