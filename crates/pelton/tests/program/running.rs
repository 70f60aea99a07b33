//! How do tests run the program? Its own home, a tiny model, and servers that end with the test.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::{Arc, Mutex};

use serde_json::Value;
use testkit::tiny_model::TinyModel;

/// A folder with a tiny model and a `PELTON_HOME` in it.
pub(crate) struct Home {
    folder: tempfile::TempDir,
}

impl Home {
    pub(crate) fn new() -> Self {
        let home = Self { folder: tempfile::tempdir().unwrap() };
        std::fs::write(home.tiny(), TinyModel::default().to_bytes()).unwrap();
        home
    }

    pub(crate) fn path(&self) -> &Path {
        self.folder.path()
    }

    pub(crate) fn tiny(&self) -> PathBuf {
        self.folder.path().join("tiny.gguf")
    }

    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_pelton"));
        command
            .args(arguments)
            .env("PELTON_HOME", self.path())
            .env("XDG_CONFIG_HOME", self.path())
            .env("PELTON_OFFLINE", "1")
            .env("NO_COLOR", "1")
            .stdin(Stdio::null());
        command
    }

    pub(crate) fn run(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().unwrap()
    }
}

pub(crate) fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

/// A running `pelton serve`; killed when dropped.
pub(crate) struct Server {
    pub(crate) child: Child,
    pub(crate) url: String,
    said: Arc<Mutex<String>>,
}

impl Server {
    pub(crate) fn start(home: &Home, model: &Path, more: &[&str]) -> Self {
        let model = model.to_str().unwrap();
        Self::start_with(home, &[&["--model", model], more].concat())
    }

    pub(crate) fn start_with(home: &Home, arguments: &[&str]) -> Self {
        let mut command = home.command(&["serve", "--port", "0"]);
        let mut child = command.args(arguments).stderr(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap());
        let mut seen = String::new();
        let url = loop {
            let mut line = String::new();
            assert!(lines.read_line(&mut line).unwrap() > 0, "the server ended: {seen}");
            seen.push_str(&line);
            if let Some(at) = ["http://", "https://"].iter().find_map(|start| line.find(start)) {
                break line[at..].trim().to_owned();
            }
        };
        // Read on, so that the server never waits for its own log.
        let said = Arc::new(Mutex::new(seen));
        let heard = Arc::clone(&said);
        std::thread::spawn(move || {
            for line in lines.lines().map_while(Result::ok) {
                heard.lock().unwrap().push_str(&format!("{line}\n"));
            }
        });
        Self { child, url, said }
    }

    /// Everything on its stderr so far.
    pub(crate) fn said(&self) -> String {
        self.said.lock().unwrap().clone()
    }

    pub(crate) fn get(&self, path: &str) -> String {
        let url = format!("{}{path}", self.url.trim_end_matches("/v1"));
        ureq::get(&url).call().unwrap().body_mut().read_to_string().unwrap()
    }

    /// The data of every event of a streamed request.
    pub(crate) fn stream(&self, path: &str, body: &Value) -> Vec<String> {
        let mut response = ureq::post(&format!("{}{path}", self.url))
            .content_type("application/json")
            .send(body.to_string())
            .unwrap();
        let lines = BufReader::new(response.body_mut().as_reader()).lines();
        lines
            .map(|line| line.unwrap())
            .filter_map(|line| line.strip_prefix("data: ").map(str::to_owned))
            .collect()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
