//! What does an answer consist of?

/// A piece of an answer, in the order in which it was written. Neighbors of one kind belong
/// together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Part {
    Thought(String),
    Text(String),
    /// A call begins: the function's name.
    CallName(String),
    /// More of the latest call's arguments, which are a JSON object.
    CallArguments(String),
}

/// A call that is complete.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Call {
    pub name: String,
    /// A JSON object, as the model wrote it where it wrote JSON.
    pub arguments: String,
}
