//! What can be wrong with a configuration, and what should the user do?

use std::path::PathBuf;

/// A configuration that cannot be used; always the writer's to mend.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("cannot read the configuration {path}: {source}")]
    Read { path: PathBuf, source: std::io::Error },
    #[error("the configuration {path} has more than {bytes_max} bytes, it cannot be one")]
    TooLong { path: PathBuf, bytes_max: u64 },
    #[error("{path}:{line}:{column}: unknown key `{key}`{hint}")]
    UnknownKey { path: PathBuf, line: u64, column: u64, key: String, hint: String },
    #[error("{path}: {problem}")]
    Syntax { path: PathBuf, problem: String },
    #[error("the environment variable {variable} is `{value}`, it must be {expected}")]
    Variable { variable: &'static str, value: String, expected: &'static str },
    #[error("`{key}` {problem}")]
    Value { key: String, problem: String },
}
