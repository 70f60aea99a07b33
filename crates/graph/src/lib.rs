//! How does a model become a tape? A builder that checks shapes, and the blocks models are made of.
//!
//! A model file says which blocks with which sizes; it never writes an op. What is fused, shared
//! or stored where is decided here, once for all models.

#![forbid(unsafe_code)]

mod adapters;
mod blocks;
mod builder;
mod delta;
mod encoder;
mod fitted;
mod per_layer;

pub use adapters::{Adapted, Adapter, adapt};
pub use blocks::{
    ApartNorms, AttentionBlock, AttentionInputs, Classifier, Decoder, ExpertsBlock,
    FeedForwardBlock, GatedBlock, HeadBlock, HeadOutput, LatentBlock, LayerBlock, Matrix,
    MixerBlock, NormedHeads, lower,
};
pub use builder::{Builder, ShapeError};
pub use delta::{DeltaBlock, DeltaMatrices};
pub use encoder::{
    Encoder, EncoderGate, EncoderLayer, EncoderMatrix, EncoderOutput, lower_encoder,
};
pub use fitted::{FittedBlock, FittedKeys};
pub use per_layer::{PerLayerBlock, PerLayerInputs};
