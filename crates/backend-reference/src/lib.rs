//! backend-reference (skeleton).
