//! weights (skeleton).
