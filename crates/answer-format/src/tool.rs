//! What may be called?

use serde_json::Value;

/// A function that the caller offers.
#[derive(Clone, Debug, PartialEq)]
pub struct Tool {
    pub name: String,
    /// JSON schema of the arguments.
    pub parameters: Value,
}

/// Whether the answer must call.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum ToolChoice {
    #[default]
    Auto,
    /// Any tool, at least once.
    Required,
    /// This one.
    Named(String),
}

impl Tool {
    /// The schema of one parameter, where there is one.
    pub(crate) fn parameter(&self, name: &str) -> Option<&Value> {
        self.parameters.get("properties")?.get(name)
    }
}
