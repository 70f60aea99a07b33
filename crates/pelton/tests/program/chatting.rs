//! `pelton chat` at a terminal, as a person types.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::process::Stdio;
use std::time::{Duration, Instant};

use rustix::fs::{Mode, OFlags, open};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};

use crate::running::Home;

/// Both ends of a terminal.
pub(crate) fn terminal() -> (File, OwnedFd) {
    let ours = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
    grantpt(&ours).unwrap();
    unlockpt(&ours).unwrap();
    let name = ptsname(&ours, Vec::new()).unwrap();
    let theirs = open(name, OFlags::RDWR | OFlags::NOCTTY, Mode::empty()).unwrap();
    (File::from(ours), theirs)
}

#[test]
fn lines_typed_ahead_of_the_prompt_are_answered() {
    let home = Home::new();
    let tiny = home.tiny();
    let (mut keyboard, theirs) = terminal();
    let mut command =
        home.command(&["chat", "--model", tiny.to_str().unwrap(), "--max-tokens", "2"]);
    let twin = |end: &OwnedFd| Stdio::from(end.try_clone().unwrap());
    command.env("TERM", "xterm").stdin(twin(&theirs)).stdout(twin(&theirs)).stderr(theirs);
    let mut child = command.spawn().unwrap();
    drop(command);
    let mut screen = keyboard.try_clone().unwrap();
    // An error is how a terminal says that the other end is closed.
    std::thread::spawn(move || while screen.read(&mut [0; 4096]).is_ok_and(|bytes| bytes > 0) {});
    keyboard.write_all(b"one\rtwo\rthree\r/exit\r").unwrap();
    let deadline = Instant::now() + Duration::from_secs(60);
    while child.try_wait().unwrap().is_none() {
        if Instant::now() > deadline {
            child.kill().unwrap();
            panic!("the lines after the first were lost, `/exit` among them");
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    // Each line is in the history, in the order in which it was typed.
    let history = std::fs::read_to_string(home.path().join("chat_history")).unwrap();
    let lines: Vec<&str> = history.lines().filter(|line| !line.starts_with('#')).collect();
    assert_eq!(lines, ["one", "two", "three", "/exit"]);
}
