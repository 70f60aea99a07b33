//! testkit (skeleton).
