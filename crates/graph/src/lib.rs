//! How does a model become a tape? A builder that checks shapes, and the blocks models are made of.
//!
//! A model file says which blocks with which sizes; it never writes an op. What is fused, shared
//! or stored where is decided here, once for all models.

#![forbid(unsafe_code)]

mod blocks;
mod builder;

pub use blocks::{
    AttentionBlock, AttentionInputs, Decoder, ExpertsBlock, FeedForwardBlock, GatedBlock,
    HeadBlock, HeadOutput, LatentBlock, LayerBlock, Matrix, lower,
};
pub use builder::{Builder, ShapeError};
