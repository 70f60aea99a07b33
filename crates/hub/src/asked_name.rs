//! What does the text a person typed stand for?

use std::path::{Path, PathBuf};

use crate::HubError;
use crate::catalogue::{CatalogueEntry, catalogue};

/// A name, taken apart and checked; nothing here touched the disk yet.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum AskedName {
    Catalogue(&'static CatalogueEntry),
    /// One file of a hub repository.
    HubFile {
        repo: RepoName,
        file: String,
    },
    /// A hub repository; the file is picked by `quant`, or by taste where none was given.
    HubRepo {
        repo: RepoName,
        quant: Option<String>,
    },
    /// Certainly a path: absolute, or starting with `.` or `~`.
    Path(PathBuf),
    /// One word that is not in the catalogue: a file put in the store by hand, or a mistake.
    Word(String),
}

/// `org/name` of the hub; both parts are safe as names of folders.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct RepoName {
    pub(crate) organization: String,
    pub(crate) name: String,
}

impl std::fmt::Display for RepoName {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "{}/{}", self.organization, self.name)
    }
}

impl AskedName {
    pub(crate) fn parse(asked: &str) -> Result<Self, HubError> {
        if let Some(entry) = catalogue().iter().find(|entry| entry.answers_to(asked)) {
            return Ok(Self::Catalogue(entry));
        }
        if asked.starts_with(['/', '.', '~']) {
            return Ok(Self::Path(PathBuf::from(asked)));
        }
        let named = asked.strip_prefix("hf:").unwrap_or(asked);
        let invalid = |why| HubError::InvalidName { asked: asked.to_owned(), why };
        let (base, quant) = match named.split_once(':') {
            Some((base, quant)) => (base, Some(quant)),
            None => (named, None),
        };
        for component in base.split('/').chain(quant) {
            check_component(component).map_err(invalid)?;
        }
        let parts: Vec<&str> = base.split('/').collect();
        match (parts.as_slice(), quant) {
            ([word], None) => Ok(Self::Word((*word).to_owned())),
            ([_], Some(_)) => Err(invalid("a tag after `:` needs `org/name` before it")),
            ([organization, name], quant) => Ok(Self::HubRepo {
                repo: RepoName::new(organization, name),
                quant: quant.map(str::to_owned),
            }),
            ([organization, name, file @ ..], None) => {
                if !is_gguf(Path::new(base)) {
                    return Err(invalid("a file of the hub must end in .gguf"));
                }
                Ok(Self::HubFile { repo: RepoName::new(organization, name), file: file.join("/") })
            }
            (_, Some(_)) => Err(invalid("give a file or a tag after `:`, not both")),
            ([], _) => Err(invalid("it is empty")),
        }
    }
}

impl RepoName {
    fn new(organization: &str, name: &str) -> Self {
        Self { organization: organization.to_owned(), name: name.to_owned() }
    }
}

pub(crate) fn is_gguf(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("gguf"))
}

/// One part of a name becomes one part of a path and of a URL: only what is plain in both.
///
/// Letters, digits, `-`, `_`, `.`, `+` are what the hub's own names use (its files may hold more;
/// those are reached by downloading them by hand). A leading dot would hide the file or mean a
/// parent folder; a trailing dot is dropped by some file systems.
pub(crate) fn check_component(component: &str) -> Result<(), &'static str> {
    // 200: file systems allow 255 bytes, and `.partial.etag` must still fit behind.
    const COMPONENT_BYTES_MAX: usize = 200;
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.+".contains(&byte);
    if component.is_empty() {
        return Err("a part of it is empty");
    }
    if component.len() > COMPONENT_BYTES_MAX {
        return Err("a part of it is longer than 200 bytes");
    }
    if component.starts_with('.') || component.ends_with('.') {
        return Err("a part of it starts or ends with a dot");
    }
    if !component.bytes().all(plain) {
        return Err("only letters, digits and `-_.+` can be part of it");
    }
    Ok(())
}

/// The catalogue's names that look most like `asked`, as `; did you mean ...` or nothing.
pub(crate) fn near_names(asked: &str, local: &[String]) -> String {
    let asked = asked.to_ascii_lowercase();
    // A third of the letters may be wrong: `smolm2`, `smollm-2` and `smolllm` are all near.
    let distance_max = asked.len().div_ceil(3).min(6);
    let listed = catalogue().iter().flat_map(|entry| entry.aliases.iter().chain([&entry.name]));
    let mut near: Vec<(usize, &str)> = listed
        .copied()
        .chain(local.iter().map(String::as_str))
        .map(|name| (edit_distance(&asked, &name.to_ascii_lowercase()), name))
        .filter(|(distance, _)| *distance <= distance_max)
        .collect();
    near.sort_unstable();
    // A model of the catalogue may be here, too.
    near.dedup();
    near.truncate(3);
    if near.is_empty() {
        return String::new();
    }
    let names: Vec<String> = near.iter().map(|(_, name)| format!("`{name}`")).collect();
    format!("; did you mean {}", names.join(" or "))
}

/// Levenshtein's distance in bytes, over at most 200 of them.
fn edit_distance(left: &str, right: &str) -> usize {
    let (left, right) = (left.as_bytes(), right.as_bytes());
    if left.len().max(right.len()) > 200 {
        return usize::MAX;
    }
    let mut row: Vec<usize> = (0..=right.len()).collect();
    for (i, a) in left.iter().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, b) in right.iter().enumerate() {
            let replaced = diagonal + usize::from(a != b);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[right.len()]
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    fn repo(organization: &str, name: &str) -> RepoName {
        RepoName::new(organization, name)
    }

    #[test]
    fn names_are_taken_apart() {
        let parse = |asked| AskedName::parse(asked).unwrap();
        assert!(matches!(parse("smollm2:135m"), AskedName::Catalogue(_)));
        assert!(matches!(parse("DEFAULT"), AskedName::Catalogue(_)));
        assert_eq!(
            parse("org/name:Q8_0"),
            AskedName::HubRepo { repo: repo("org", "name"), quant: Some("Q8_0".to_owned()) }
        );
        assert_eq!(
            parse("hf:org/name/sub/file.gguf"),
            AskedName::HubFile { repo: repo("org", "name"), file: "sub/file.gguf".to_owned() }
        );
        assert_eq!(parse("file.gguf"), AskedName::Word("file.gguf".to_owned()));
        assert_eq!(parse("./x.gguf"), AskedName::Path(PathBuf::from("./x.gguf")));
    }

    #[test]
    fn names_that_could_leave_the_folder_are_refused() {
        for asked in [
            "",
            "org/..",
            "org/../x.gguf",
            "org/name/../../x.gguf",
            "a//b",
            "org/name/",
            "a\\b",
            "org/na\0me",
            "org/name./x.gguf",
            "org/.hidden",
            "a b",
            "org/name:..",
            "smollm2:9",
            "org/name:a/b",
            "org/name/x.gguf:Q8_0",
            "org/name/x.bin",
            "org/n%2e%2e",
            "hf:/etc/x",
            "org/name?x",
            "org/name#x",
            "org/é",
        ] {
            let parsed = AskedName::parse(asked);
            assert!(matches!(parsed, Err(HubError::InvalidName { .. })), "{asked:?}: {parsed:?}");
        }
        assert!(AskedName::parse(&"a".repeat(201)).is_err());
    }

    #[test]
    fn near_names_are_found() {
        assert!(near_names("smolm2", &[]).contains("`smollm2`"));
        assert!(near_names("my-modl", &["my-model".to_owned()]).contains("`my-model`"));
        assert_eq!(near_names("gpt-oss", &[]), "");
        let both = near_names("smolm2", &["smollm2".to_owned()]);
        assert_eq!(both.matches("`smollm2`").count(), 1, "{both}");
        assert_eq!(edit_distance("kitten", "sitting"), 3);
    }
}
