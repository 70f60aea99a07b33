//! What does the query of a URL ask for? Each parameter is read once, and none is passed over.

use axum::http::Uri;

use crate::reply::ApiError;

/// The parameters that have not been read yet.
pub(crate) struct Query<'a>(Vec<(&'a str, &'a str)>);

impl<'a> Query<'a> {
    /// # Errors
    /// 400 where one is given twice.
    pub(crate) fn parse(uri: &'a Uri) -> Result<Self, ApiError> {
        let query = uri.query().unwrap_or_default();
        let mut given: Vec<(&str, &str)> = Vec::new();
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            if given.iter().any(|(before, _)| *before == name) {
                return Err(ApiError::invalid(Some(name), format!("`{name}` is given twice")));
            }
            given.push((name, value));
        }
        Ok(Self(given))
    }

    /// A value as it stands in the URL: those that are asked for here have no letters to escape.
    pub(crate) fn take(&mut self, name: &str) -> Option<&'a str> {
        let place = self.0.iter().position(|(given, _)| *given == name)?;
        Some(self.0.swap_remove(place).1)
    }

    /// # Errors
    /// 400 for a parameter that nobody asked for.
    pub(crate) fn finish(self) -> Result<(), ApiError> {
        let Some((name, _)) = self.0.first() else { return Ok(()) };
        let name: String = name.chars().take(100).collect();
        let text = format!("there is no query parameter `{name}` here: leave it out");
        Err(ApiError::unknown_field(&name, &text))
    }
}
