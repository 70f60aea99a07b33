//! backend-cpu (skeleton).
