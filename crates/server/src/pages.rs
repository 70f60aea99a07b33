//! What does a browser get? The chat page, the dashboard, and the scripts and styles they are made
//! of, from inside the program.
//!
//! Nothing is fetched from elsewhere, and the headers hold the pages to it: scripts and styles are
//! these files only, requests go to this server only, and no page of others may frame them.

use std::sync::Arc;

use axum::RequestExt;
use axum::body::Body;
use axum::extract::{Path, Request};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::Response;
use sha2::{Digest, Sha256};

use crate::app::App;
use crate::reply::ApiError;
use crate::routes::{Answer, unknown_route};

/// One file of `pages/`.
struct Page {
    name: &'static str,
    text: &'static str,
}

macro_rules! pages {
    ($($name:literal,)*) => {
        &[$(Page { name: $name, text: include_str!(concat!("../pages/", $name)) },)*]
    };
}

/// In the order of their names.
const PAGES: &[Page] = pages![
    "answering.js",
    "api.js",
    "base.css",
    "branches.js",
    "charts.js",
    "chat.css",
    "chat.html",
    "chat.js",
    "composer.js",
    "counters.js",
    "dashboard.css",
    "dashboard.html",
    "dashboard.js",
    "dom.js",
    "highlight.js",
    "icon.svg",
    "inlines.js",
    "markdown.js",
    "maths.js",
    "maths_symbols.js",
    "messages.js",
    "render.js",
    "settings.js",
    "sidebar.js",
    "store.js",
    "text.css",
    "theme.js",
    "units.js",
];

/// `require-trusted-types-for` makes browsers refuse to read any text as markup, whoever asks.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; \
    connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; \
    require-trusted-types-for 'script'";

/// `GET /`.
pub(crate) fn chat(_: Arc<App>, request: Request) -> Answer {
    Box::pin(async move { send("chat.html", request.headers()) })
}

/// `GET /dashboard`.
pub(crate) fn dashboard(_: Arc<App>, request: Request) -> Answer {
    Box::pin(async move { send("dashboard.html", request.headers()) })
}

/// `GET /pages/{name}`.
pub(crate) fn asset(_: Arc<App>, mut request: Request) -> Answer {
    Box::pin(async move {
        let name = request.extract_parts::<Path<String>>().await;
        let Path(name) = name.map_err(|_| unknown_route(""))?;
        send(&name, request.headers())
    })
}

/// Whether a list of tags has this one. A proxy that compresses a page makes its tag a weak one.
fn names(tags: &HeaderValue, tag: &str) -> bool {
    let tags = tags.to_str().unwrap_or_default().split(',').map(str::trim);
    tags.map(|known| known.strip_prefix("W/").unwrap_or(known)).any(|known| known == tag)
}

fn send(name: &str, asked: &HeaderMap) -> Result<Response, ApiError> {
    let found = PAGES.binary_search_by(|page| page.name.cmp(name));
    let page = &PAGES[found.map_err(|_| unknown_route(""))?];
    let tag = entity_tag(page.text);
    let is_known = asked.get_all(header::IF_NONE_MATCH).iter().any(|tags| names(tags, &tag));
    let mut response = Response::new(if is_known { Body::empty() } else { page.text.into() });
    if is_known {
        *response.status_mut() = StatusCode::NOT_MODIFIED;
    }
    let headers = response.headers_mut();
    let mut tell = |name, value| headers.insert(name, HeaderValue::from_static(value));
    tell(header::CONTENT_TYPE, kind_of(page.name));
    tell(header::CONTENT_SECURITY_POLICY, POLICY);
    tell(header::REFERRER_POLICY, "no-referrer");
    tell(header::X_FRAME_OPTIONS, "DENY");
    // A new version of the program is a new version of all its pages, at the next load.
    tell(header::CACHE_CONTROL, "no-cache");
    headers.insert("cross-origin-opener-policy", HeaderValue::from_static("same-origin"));
    headers.insert("cross-origin-resource-policy", HeaderValue::from_static("same-origin"));
    if let Ok(tag) = HeaderValue::from_str(&tag) {
        headers.insert(header::ETAG, tag);
    }
    Ok(response)
}

/// Eight bytes tell the handful of versions of a file apart.
fn entity_tag(text: &str) -> String {
    let digest = Sha256::digest(text.as_bytes());
    let hex: String = digest.iter().take(8).map(|byte| format!("{byte:02x}")).collect();
    format!("\"{hex}\"")
}

fn kind_of(name: &str) -> &'static str {
    match name.rsplit_once('.').map_or("", |(_, ending)| ending) {
        "css" => "text/css; charset=utf-8",
        "html" => "text/html; charset=utf-8",
        "js" => "text/javascript; charset=utf-8",
        "svg" => "image/svg+xml",
        _ => "text/plain; charset=utf-8",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page(name: &str) -> &'static str {
        PAGES.iter().find(|page| page.name == name).unwrap_or_else(|| panic!("no {name}")).text
    }

    /// What stands between `before` and the next double quote, wherever `before` stands.
    fn quoted_after<'a>(text: &'a str, before: &str) -> Vec<&'a str> {
        let parts = text.split(before).skip(1);
        parts.filter_map(|part| part.split_once('"').map(|(found, _)| found)).collect()
    }

    #[test]
    fn every_file_is_listed_once_and_in_order() {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/pages");
        let entries = std::fs::read_dir(folder).expect("pages/ is there");
        let mut files: Vec<String> = entries
            .map(|entry| entry.expect("readable").file_name().into_string().expect("UTF-8"))
            .collect();
        files.sort_unstable();
        let listed: Vec<&str> = PAGES.iter().map(|page| page.name).collect();
        assert_eq!(files, listed);
    }

    #[test]
    fn what_a_page_names_is_there() {
        for html in PAGES.iter().filter(|page| page.name.ends_with(".html")) {
            let named = ["src=\"/pages/", "href=\"/pages/"].map(|at| quoted_after(html.text, at));
            assert!(named.iter().all(|names| !names.is_empty()), "{}", html.name);
            for name in named.iter().flatten() {
                page(name);
            }
        }
        for script in PAGES.iter().filter(|page| page.name.ends_with(".js")) {
            for name in quoted_after(script.text, "from \"./") {
                page(name);
            }
        }
    }

    /// A model's words must never be read as markup, and no page may reach for another machine.
    #[test]
    fn pages_make_no_markup_of_texts_and_name_no_other_machine() {
        let markup = [
            "innerHTML",
            "outerHTML",
            "insertAdjacentHTML",
            "document.write",
            "DOMParser",
            "eval(",
            "new Function",
            "srcdoc",
            "createContextualFragment",
            "setHTML",
            "javascript:",
        ];
        let namespaces = ["http://www.w3.org/2000/svg", "http://www.w3.org/1998/Math/MathML"];
        for page in PAGES {
            for word in markup {
                assert!(!page.text.contains(word), "{} has {word}", page.name);
            }
            let mut text = page.text.to_owned();
            for namespace in namespaces {
                text = text.replace(namespace, "");
            }
            assert!(!text.contains("http://"), "{}", page.name);
            for rest in text.split("https://").skip(1) {
                assert!(!rest.starts_with(char::is_alphanumeric), "{} has an address", page.name);
            }
            if page.name.ends_with(".html") {
                // The policy forbids them all; a page with one would be broken.
                let inline = ["style=", "<style", " onclick", " onload", "<script>"];
                assert!(!inline.iter().any(|word| page.text.contains(word)), "{}", page.name);
            }
        }
    }

    #[test]
    fn a_known_version_is_not_sent_again() {
        let tag = entity_tag(page("chat.js"));
        let mut asked = HeaderMap::new();
        let sent = send("chat.js", &asked).expect("is there");
        assert_eq!(sent.status(), StatusCode::OK);
        assert_eq!(sent.headers()[header::ETAG], tag);
        for (known, status) in [
            (tag.clone(), StatusCode::NOT_MODIFIED),
            (format!("W/{tag}"), StatusCode::NOT_MODIFIED),
            (format!("\"a\", W/{tag}, \"b\""), StatusCode::NOT_MODIFIED),
            (format!("\"a\", \"x{}", &tag[1..]), StatusCode::OK),
        ] {
            asked.insert(header::IF_NONE_MATCH, HeaderValue::from_str(&known).expect("hex"));
            let sent = send("chat.js", &asked).expect("is there");
            assert_eq!(sent.status(), status, "{known}");
        }
        assert!(send("../Cargo.toml", &asked).is_err());
    }
}
