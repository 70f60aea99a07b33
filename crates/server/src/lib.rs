//! server (skeleton).
