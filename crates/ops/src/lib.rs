//! What does each operation mean? Formulas, shape rules and scalar references; no device, no speed.

pub mod quant_format;
