//! Which known name is most like one that is not known?

/// Below this likeness (Jaro-Winkler's, 0 to 1) names have nothing to do with each other: those of
/// one family are above 0.85, `mamba` and `llama` at 0.73.
const LIKENESS_MIN: f64 = 0.8;

/// Of several that are alike, the last.
pub fn nearest_name<'a>(found: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    // Longer ones than any name are no misspelling, and would take long to compare.
    let found: String = found.chars().take(64).flat_map(char::to_lowercase).collect();
    let likeness = |name: &str| strsim::jaro_winkler(&found, name);
    let nearest = known.into_iter().max_by(|a, b| likeness(a).total_cmp(&likeness(b)))?;
    (likeness(nearest) >= LIKENESS_MIN).then_some(nearest)
}
