//! chat (skeleton).

mod message;

pub use message::Message;
