//! Does a browser get pages that it may trust?
#![allow(clippy::unwrap_used, reason = "tests")]

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::client::start;

const BROWSERS: [&str; 4] =
    ["chromium", "chromium-browser", "google-chrome", "google-chrome-stable"];
/// What `tools/web/check.py` was written for.
const PACKAGE: &str = "playwright>=1.40,<2";

/// The browser that the check is to use, if this machine has one.
fn browser() -> Option<PathBuf> {
    if let Some(named) = std::env::var_os("PELTON_BROWSER") {
        return Some(named.into());
    }
    let path = std::env::var_os("PATH")?;
    let folders = std::env::split_paths(&path);
    let mut places = folders.flat_map(|folder| BROWSERS.map(|name| folder.join(name)));
    places.find(|place| place.is_file())
}

/// A virtual environment that can drive it, made once and kept beside the build.
fn python() -> Option<PathBuf> {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("browser-driver");
    let python = folder.join("bin/python");
    let has_driver = |python: &Path| {
        let import = Command::new(python).args(["-c", "import playwright"]).output();
        import.is_ok_and(|output| output.status.success())
    };
    if has_driver(&python) {
        return Some(python);
    }
    let make = Command::new("python3").args(["-m", "venv"]).arg(&folder).output();
    if !make.is_ok_and(|output| output.status.success()) {
        return None;
    }
    let install = Command::new(&python).args(["-m", "pip", "install", "-q", PACKAGE]).output();
    (install.is_ok_and(|output| output.status.success()) && has_driver(&python)).then_some(python)
}

/// All of `tools/web/check.py`, against the scripted server.
#[tokio::test]
async fn a_browser_finds_the_pages_working_and_safe() {
    let Some(browser) = browser() else {
        eprintln!("skipped: there is no browser here ({})", BROWSERS.join(", "));
        return;
    };
    let Some(python) = python() else {
        eprintln!("skipped: python3 with {PACKAGE} could not be set up");
        return;
    };
    let running = start().await;
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tools/web/check.py");
    let mut check = Command::new(python);
    check.arg("-B").arg(script).arg(format!("http://{}", running.address));
    check.env("PELTON_BROWSER", browser);
    // On a thread of its own: this one answers the browser.
    let output = tokio::task::spawn_blocking(move || check.output()).await.unwrap().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}\n{errors}");
}

#[tokio::test]
async fn pages_come_with_a_strict_policy() {
    let running = start().await;
    for path in ["/", "/dashboard"] {
        let reply = running.get(path).await;
        assert_eq!(reply.status, 200, "{path}");
        assert_eq!(reply.header("content-type"), Some("text/html; charset=utf-8"));
        assert!(reply.text().starts_with("<!doctype html>"), "{}", reply.text());
        let policy = reply.header("content-security-policy").unwrap();
        for rule in ["default-src 'none'", "script-src 'self'", "frame-ancestors 'none'"] {
            assert!(policy.contains(rule), "{policy}");
        }
        assert!(!policy.contains("unsafe"), "{policy}");
        assert_eq!(reply.header("x-content-type-options"), Some("nosniff"));
    }
}

#[tokio::test]
async fn scripts_and_styles_come_as_what_they_are() {
    let running = start().await;
    for (path, kind) in [
        ("/pages/chat.js", "text/javascript; charset=utf-8"),
        ("/pages/base.css", "text/css; charset=utf-8"),
        ("/pages/icon.svg", "image/svg+xml"),
    ] {
        let reply = running.get(path).await;
        assert_eq!((reply.status, reply.header("content-type")), (200, Some(kind)), "{path}");
        assert!(!reply.body.is_empty(), "{path}");
    }
    for path in ["/pages/none.js", "/pages/", "/pages/..%2Fsrc%2Flib.rs", "/pages/%ff"] {
        let reply = running.get(path).await;
        assert_eq!(reply.status, 404, "{path}");
        assert_eq!(reply.json()["error"]["code"], "unknown_url", "{path}");
    }
}

#[tokio::test]
async fn pages_of_a_foreign_name_are_not_given() {
    let running = start().await;
    let text = b"GET / HTTP/1.1\r\nhost: evil.example\r\nconnection: close\r\n\r\n";
    assert_eq!(running.raw(text).await.unwrap().status, 403);
}
