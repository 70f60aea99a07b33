//! models (skeleton).
