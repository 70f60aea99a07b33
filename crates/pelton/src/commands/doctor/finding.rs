//! What did a check find, and what is to be done about it?

use serde_json::{Value, json};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Grade {
    Good,
    /// It works, and could work better.
    Advice,
    /// A server would not start, or fail later.
    Problem,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Finding {
    pub(crate) area: &'static str,
    pub(crate) grade: Grade,
    pub(crate) said: String,
    pub(crate) remedy: Option<String>,
}

impl Finding {
    pub(super) fn good(area: &'static str, said: impl Into<String>) -> Self {
        Self { area, grade: Grade::Good, said: said.into(), remedy: None }
    }

    pub(super) fn advice(
        area: &'static str,
        said: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Self {
        Self { area, grade: Grade::Advice, said: said.into(), remedy: Some(remedy.into()) }
    }

    pub(super) fn problem(
        area: &'static str,
        said: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Self {
        Self { area, grade: Grade::Problem, said: said.into(), remedy: Some(remedy.into()) }
    }

    pub(super) fn to_json(&self) -> Value {
        let grade = match self.grade {
            Grade::Good => "good",
            Grade::Advice => "advice",
            Grade::Problem => "problem",
        };
        json!({"area": self.area, "grade": grade, "said": self.said, "remedy": self.remedy})
    }
}
