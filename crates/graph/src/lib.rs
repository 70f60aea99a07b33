//! graph (skeleton).
