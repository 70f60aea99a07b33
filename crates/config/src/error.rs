//! What can be wrong with a configuration, and what should the user do?

use std::path::PathBuf;

/// A configuration that cannot be used; always the writer's to mend.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("cannot read the configuration {path}: {source}")]
    Read { path: PathBuf, source: std::io::Error },
    #[error("cannot write {path}: {source}")]
    Write { path: PathBuf, source: std::io::Error },
    #[error("the configuration {path} has more than {bytes_max} bytes, it cannot be one")]
    TooLong { path: PathBuf, bytes_max: u64 },
    #[error("{path}:{line}:{column}: unknown key `{key}`{hint}")]
    UnknownKey { path: PathBuf, line: u64, column: u64, key: String, hint: String },
    #[error("{path}:{line}: `{key}` {problem}")]
    WrongValue { path: PathBuf, line: u64, key: String, problem: String },
    #[error("{path}:{line}:{column}: {problem}")]
    Unreadable { path: PathBuf, line: u64, column: u64, problem: String },
    #[error("{path}: {problem}")]
    Syntax { path: PathBuf, problem: String },
    #[error("the environment variable {variable} is `{value}`, it must be {expected}")]
    Variable { variable: String, value: String, expected: String },
    #[error("there is no environment variable {variable} for Pelton{hint}; take it out")]
    UnknownVariable { variable: String, hint: String },
    #[error("the environment variables {one} and {other} say different things about `{key}`")]
    TwoVariables { one: String, other: String, key: String },
    #[error("there is no key `{key}`{hint}")]
    UnknownFlag { key: String, hint: String },
    #[error("`{key}` is set to `{value}` by a flag, it must be {expected}")]
    Flag { key: String, value: String, expected: String },
    #[error("`{key}` is set twice by flags, to `{one}` and to `{other}`")]
    TwoFlags { key: String, one: String, other: String },
    #[error("`{key}` {problem}")]
    Value { key: String, problem: String },
}
