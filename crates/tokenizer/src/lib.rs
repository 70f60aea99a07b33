//! tokenizer (skeleton).
