//! Which known name did the writer mean?

/// The name closest to `given`, if one is close enough to be a slip.
///
/// Close: at most a third of the letters differ (insert, delete, replace or swap of neighbours),
/// or one is the other's beginning. Letter case and `-` for `_` do not count.
pub fn nearest_name<'a>(given: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    // Nobody mistypes a name of 64 letters; the bound keeps the table below small.
    if given.is_empty() || given.chars().count() > 64 {
        return None;
    }
    let given = fold(given);
    let scored = known.into_iter().filter_map(|name| {
        let folded = fold(name);
        let distance = distance(&given, &folded);
        let is_part =
            given.len() >= 4 && (folded.starts_with(&given) || given.starts_with(&folded));
        let allowed = given.len().max(folded.len()).div_ceil(3);
        (distance <= allowed || is_part).then_some((distance, name))
    });
    scored.min_by_key(|&(distance, _)| distance).map(|(_, name)| name)
}

fn fold(name: &str) -> Vec<char> {
    let lowered = name.chars().flat_map(char::to_lowercase);
    lowered.map(|letter| if letter == '-' { '_' } else { letter }).collect()
}

/// Damerau-Levenshtein distance in its restricted form ("optimal string alignment").
fn distance(left: &[char], right: &[char]) -> usize {
    let mut before_last = vec![0; right.len() + 1];
    let mut last: Vec<usize> = (0..=right.len()).collect();
    for row in 1..=left.len() {
        let mut next = vec![row; right.len() + 1];
        for column in 1..=right.len() {
            let same = left[row - 1] == right[column - 1];
            let mut best = (last[column - 1] + usize::from(!same))
                .min(last[column] + 1)
                .min(next[column - 1] + 1);
            let swapped = row > 1
                && column > 1
                && left[row - 1] == right[column - 2]
                && left[row - 2] == right[column - 1];
            if swapped {
                best = best.min(before_last[column - 2] + 1);
            }
            next[column] = best;
        }
        before_last = std::mem::replace(&mut last, next);
    }
    last[right.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slips_are_recognised_and_strangers_are_not() {
        let known = ["temperature", "top_p", "top_k", "max_tokens", "port", "host"];
        let cases = [
            ("temprature", Some("temperature")),
            ("tempreature", Some("temperature")),
            ("Top-P", Some("top_p")),
            ("prot", Some("port")),
            ("max_token", Some("max_tokens")),
            ("frobnicate", None),
            ("", None),
        ];
        for (given, expected) in cases {
            assert_eq!(nearest_name(given, known), expected, "{given}");
        }
        assert_eq!(nearest_name(&"a".repeat(1_000_000), known), None);
    }

    #[test]
    fn distance_counts_single_edits() {
        let count = |left: &str, right: &str| distance(&fold(left), &fold(right));
        assert_eq!(count("", "abc"), 3);
        assert_eq!(count("abc", "abc"), 0);
        assert_eq!(count("abc", "acb"), 1);
        assert_eq!(count("kitten", "sitting"), 3);
    }
}
