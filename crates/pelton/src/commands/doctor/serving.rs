//! Could a server listen where it is to, and keep what it is to keep?

use std::io::ErrorKind;
use std::net::{TcpListener, ToSocketAddrs};
use std::path::{Path, PathBuf};

use config::Config;

use super::Finding;
use crate::units;

pub(super) fn examine(config: &Config) -> Vec<Finding> {
    let mut findings = vec![port(config), store()];
    let folders = [
        ("kv tiers", config.kv_tiers.disk_path.clone(), config.kv_tiers.disk_bytes),
        (
            "answers",
            config.sharing.folder.clone().map(PathBuf::from),
            config.sharing.memory_mb << 20,
        ),
    ];
    for (area, folder, needed) in folders {
        if let Some(folder) = folder {
            findings.push(disk(area, &folder, needed));
        }
    }
    findings
}

fn port(config: &Config) -> Finding {
    const AREA: &str = "port";
    let (host, port) = (config.server.host.as_str(), config.server.port);
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    let addresses = match (bare, port).to_socket_addrs() {
        Ok(addresses) => addresses.collect::<Vec<_>>(),
        Err(error) => {
            let said = format!("the host `{host}` has no address: {error}");
            return Finding::problem(AREA, said, "set server.host to an address of this machine");
        }
    };
    match TcpListener::bind(addresses.as_slice()) {
        Ok(_) => Finding::good(AREA, format!("{host}:{port} is free")),
        Err(error) if error.kind() == ErrorKind::AddrInUse => Finding::advice(
            AREA,
            format!("{host}:{port} is in use, maybe by a server that runs: `pelton ps` asks it"),
            "stop it, or choose another with --port or server.port; 0 takes a free one",
        ),
        Err(error) if error.kind() == ErrorKind::PermissionDenied => Finding::problem(
            AREA,
            format!("{host}:{port} may not be opened by this user"),
            "choose a port from 1024 on with --port or server.port",
        ),
        Err(error) => Finding::problem(
            AREA,
            format!("{host}:{port} cannot be opened: {error}"),
            "set server.host to an address of this machine",
        ),
    }
}

fn store() -> Finding {
    const AREA: &str = "disk";
    // A model of everyday size and what is written beside it while it comes.
    const NEEDED: u64 = 5_000_000_000;
    match hub::Store::open_default() {
        Ok(store) => disk(AREA, &store.models_folder(), NEEDED),
        Err(error) => Finding::problem(AREA, error.to_string(), "set PELTON_HOME to a folder"),
    }
}

/// Whether a folder can be written to and has room.
fn disk(area: &'static str, folder: &Path, needed: u64) -> Finding {
    let shown = folder.display();
    // It is made when it is needed; until then its nearest parent stands for it.
    let Some(there) = folder.ancestors().find(|place| place.is_dir()) else {
        return Finding::problem(area, format!("{shown} is no folder"), "make it");
    };
    if let Err(error) = try_to_write(there) {
        let said = format!("{} cannot be written to: {error}", there.display());
        let remedy = "give this user the right to, or name another folder (PELTON_HOME, \
                      kv_tiers.disk_path, sharing.folder)";
        return Finding::problem(area, said, remedy);
    }
    match free_bytes(there) {
        None => Finding::good(area, format!("{shown} can be written to")),
        Some(free) if free < needed => Finding::advice(
            area,
            format!("{shown} has room for {} only", units::bytes(free)),
            "free some: `pelton list` shows models, `pelton rm` removes one",
        ),
        Some(free) => Finding::good(area, format!("{shown} has room for {}", units::bytes(free))),
    }
}

fn try_to_write(folder: &Path) -> std::io::Result<()> {
    let path = folder.join(format!(".pelton-doctor-{}", std::process::id()));
    std::fs::OpenOptions::new().write(true).create_new(true).open(&path)?;
    std::fs::remove_file(path)
}

#[cfg(unix)]
fn free_bytes(folder: &Path) -> Option<u64> {
    let status = rustix::fs::statvfs(folder).ok()?;
    status.f_bavail.checked_mul(status.f_frsize)
}

#[cfg(not(unix))]
fn free_bytes(_: &Path) -> Option<u64> {
    None
}
