//! How are the files of a Hugging Face repository found: on the hub, and in the cache that other
//! tools keep on this machine?

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::Checksum;
use crate::asked_name::{RepoName, is_gguf};
use crate::http::{HttpClient, status_text};
use crate::partial_file::Expected;

/// One GGUF file of a repository.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct RepoFile {
    /// Relative to the repository's root.
    pub(crate) path: String,
    pub(crate) expected: Expected,
}

/// The address that gives a file's bytes.
pub(crate) fn file_url(endpoint: &str, repo: &str, revision: &str, file: &str) -> String {
    // `+` is the one character that `check_component` allows and a server may read differently.
    format!("{endpoint}/{repo}/resolve/{revision}/{}", file.replace('+', "%2B"))
}

/// Lists the GGUF files of a repository, by name.
pub(crate) fn list_files(
    client: &HttpClient,
    endpoint: &str,
    repo: &RepoName,
) -> Result<Vec<RepoFile>, String> {
    // The listing of a repository with 1,000 files is about 300 KB.
    const LISTING_BYTES_MAX: u64 = 8 << 20;
    let url = format!("{endpoint}/api/models/{repo}/tree/main?recursive=true");
    let reply = client.get(&url, &[])?;
    if !reply.response.status().is_success() {
        return Err(status_text(&url, reply.response.status(), &None));
    }
    let mut json = Vec::new();
    let mut body = reply.response.into_body().into_reader().take(LISTING_BYTES_MAX);
    body.read_to_end(&mut json).map_err(|error| format!("{url}: {error}"))?;
    read_listing(&json).map_err(|error| format!("{url} gives no list of files: {error}"))
}

#[derive(Deserialize)]
struct TreeEntry {
    path: String,
    #[serde(default)]
    size: Option<u64>,
    #[serde(default)]
    lfs: Option<LargeFile>,
}

#[derive(Deserialize)]
struct LargeFile {
    oid: String,
    size: u64,
}

fn read_listing(json: &[u8]) -> Result<Vec<RepoFile>, serde_json::Error> {
    let entries: Vec<TreeEntry> = serde_json::from_slice(json)?;
    let mut files: Vec<RepoFile> = entries
        .into_iter()
        .filter(|entry| is_gguf(Path::new(&entry.path)))
        .map(|entry| RepoFile {
            expected: Expected {
                bytes: entry.lfs.as_ref().map(|lfs| lfs.size).or(entry.size),
                sha256: entry.lfs.as_ref().and_then(|lfs| Checksum::parse(&lfs.oid)),
            },
            path: entry.path,
        })
        .collect();
    files.sort_by(|left, right| left.path.cmp(&right.path));
    Ok(files)
}

/// The paths that make up the model `quant` of a repository: one file, or every part of a split.
///
/// Without a tag: Q4_K_M, the usual compromise of size and quality, else the first by name.
pub(crate) fn pick<'a>(paths: &[&'a str], quant: Option<&str>) -> Vec<&'a str> {
    let is_model = |path: &str| {
        let name = file_name(path).to_ascii_lowercase();
        !name.starts_with("mmproj") && !name.contains("imatrix")
    };
    let models: Vec<&str> = paths.iter().copied().filter(|path| is_model(path)).collect();
    let tagged = |tag: &str| models.iter().copied().find(|path| has_tag(path, tag));
    let chosen = match quant {
        Some(tag) => tagged(tag),
        None => tagged("Q4_K_M").or(models.first().copied()),
    };
    let Some(chosen) = chosen else { return Vec::new() };
    match split_stem(chosen) {
        Some(stem) => {
            models.iter().copied().filter(|path| split_stem(path) == Some(stem)).collect()
        }
        None => vec![chosen],
    }
}

fn file_name(path: &str) -> &str {
    path.rsplit('/').next().unwrap_or(path)
}

/// Whether the file's name holds `tag` as a whole word: `Q4_K` must not find `Q4_K_M`.
fn has_tag(path: &str, tag: &str) -> bool {
    let name = file_name(path).to_ascii_lowercase();
    let stem = name.strip_suffix(".gguf").unwrap_or(&name);
    let tag = tag.to_ascii_lowercase();
    let is_word = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    stem.match_indices(&tag).any(|(start, _)| {
        let end = start + tag.len();
        !stem[..start].bytes().next_back().is_some_and(|byte| byte.is_ascii_alphanumeric())
            && !stem[end..].bytes().next().is_some_and(is_word)
    })
}

/// `name` of `name-00001-of-00003.gguf` with the count, the same for every part.
pub(crate) fn split_stem(path: &str) -> Option<(&str, &str)> {
    let stem = path.strip_suffix(".gguf")?;
    let (rest, count) = stem.rsplit_once("-of-")?;
    let (name, part) = rest.rsplit_once('-')?;
    let digits = |text: &str| text.len() == 5 && text.bytes().all(|byte| byte.is_ascii_digit());
    (digits(count) && digits(part)).then_some((name, count))
}

/// The paths of every part of the split that `path` belongs to, or `path` alone.
pub(crate) fn all_parts(path: &str) -> Vec<String> {
    // A split of more is a mistake: the largest public models have some 50 parts.
    const PARTS_MAX: u32 = 1_000;
    match split_stem(path) {
        Some((name, count)) => match count.parse::<u32>() {
            Ok(parts @ 1..=PARTS_MAX) => {
                (1..=parts).map(|part| format!("{name}-{part:05}-of-{count}.gguf")).collect()
            }
            _ => vec![path.to_owned()],
        },
        None => vec![path.to_owned()],
    }
}

/// The file in the Hugging Face cache of this machine, newest snapshot first.
///
/// Layout: `models--ORG--NAME/snapshots/REVISION/FILE`.
pub(crate) fn cached_file(cache: &Path, repo: &str, file: &str) -> Option<PathBuf> {
    let newest = snapshots(cache, repo).into_iter().map(|folder| folder.join(file));
    newest.into_iter().find(|path| path.is_file())
}

/// The GGUF files in the newest snapshot that has any: relative path and full path.
pub(crate) fn cached_files(cache: &Path, repo: &str) -> Vec<(String, PathBuf)> {
    snapshots(cache, repo)
        .into_iter()
        .map(|folder| gguf_files(&folder))
        .find(|files| !files.is_empty())
        .unwrap_or_default()
}

fn snapshots(cache: &Path, repo: &str) -> Vec<PathBuf> {
    let folder = cache.join(format!("models--{}", repo.replace('/', "--"))).join("snapshots");
    let mut found: Vec<_> = fs::read_dir(folder)
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| (entry.metadata().and_then(|data| data.modified()).ok(), entry.path()))
        .collect();
    found.sort();
    found.into_iter().rev().map(|(_, path)| path).collect()
}

/// The GGUF files of a folder and of the folders in it: relative path and full path, sorted.
pub(crate) fn gguf_files(folder: &Path) -> Vec<(String, PathBuf)> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        let Ok(name) = entry.file_name().into_string() else { continue };
        if path.is_dir() {
            // Two levels are what repositories use: `Q4_K_M/part.gguf`.
            for inner in fs::read_dir(&path).into_iter().flatten().flatten() {
                if let Ok(inner_name) = inner.file_name().into_string() {
                    files.push((format!("{name}/{inner_name}"), inner.path()));
                }
            }
        } else {
            files.push((name, path));
        }
    }
    files.retain(|(name, path)| is_gguf(Path::new(name)) && path.is_file());
    files.sort();
    files
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn a_tag_is_a_whole_word() {
        let paths = ["m-Q4_K_S.gguf", "m.Q4_K_M.gguf", "m-Q4_0.gguf", "mmproj-Q8_0.gguf"];
        assert_eq!(pick(&paths, None), ["m.Q4_K_M.gguf"]);
        assert_eq!(pick(&paths, Some("q4_0")), ["m-Q4_0.gguf"]);
        assert_eq!(pick(&paths, Some("Q4_K")), [""; 0]);
        assert_eq!(pick(&paths, Some("Q8_0")), [""; 0]);
        assert_eq!(pick(&["b-F16.gguf", "c-Q8_0.gguf"], None), ["b-F16.gguf"]);
        assert_eq!(pick(&[], None), [""; 0]);
    }

    #[test]
    fn a_split_model_is_all_its_parts() {
        let paths = [
            "Q4_K_M/m-Q4_K_M-00001-of-00002.gguf",
            "Q4_K_M/m-Q4_K_M-00002-of-00002.gguf",
            "Q8_0/m-Q8_0-00001-of-00002.gguf",
        ];
        assert_eq!(pick(&paths, None), &paths[..2]);
        assert_eq!(all_parts(paths[1]), &paths[..2]);
        assert_eq!(all_parts("m.gguf"), ["m.gguf"]);
    }

    #[test]
    fn a_listing_gives_sizes_and_checksums() {
        let sum = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53";
        let json = format!(
            r#"[{{"type":"file","path":"README.md","size":3}},
                {{"type":"directory","path":"x"}},
                {{"type":"file","path":"m.gguf","size":9,"lfs":{{"oid":"{sum}","size":9}}}}]"#
        );
        let files = read_listing(json.as_bytes()).unwrap();
        assert_eq!(files.len(), 1);
        assert_eq!(files[0].expected.sha256, Checksum::parse(sum));
        assert_eq!(files[0].expected.bytes, Some(9));
    }
}
