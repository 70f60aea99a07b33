//! How much memory may this process still take? What the machine has, and what its control groups
//! allow.
//!
//! Linux only; elsewhere nobody is asked and nothing is refused.

use std::path::{Path, PathBuf};

/// Bytes that can be had without swapping and without meeting a limit, where the system tells.
pub fn available_memory() -> Option<u64> {
    below(Path::new("/"))
}

fn below(root: &Path) -> Option<u64> {
    let machine = machine(&read(&root.join("proc/meminfo"))?);
    let groups = read(&root.join("proc/self/cgroup")).unwrap_or_default();
    let limits = groups.lines().filter_map(|line| group(root, line));
    machine.into_iter().chain(limits).min()
}

fn read(path: &Path) -> Option<String> {
    std::fs::read_to_string(path).ok()
}

fn machine(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find(|line| line.starts_with("MemAvailable:"))?;
    let kilobytes: u64 = line.split_whitespace().nth(1)?.parse().ok()?;
    kilobytes.checked_mul(1024)
}

/// What is left in a control group and all those around it. A line is `0::/path` in version 2 and
/// `number:controllers:/path` in version 1.
fn group(root: &Path, line: &str) -> Option<u64> {
    let mut fields = line.splitn(3, ':');
    let (number, controllers, path) = (fields.next()?, fields.next()?, fields.next()?);
    let (mount, limit, usage) = if number == "0" && controllers.is_empty() {
        ("sys/fs/cgroup", "memory.max", "memory.current")
    } else if controllers.split(',').any(|name| name == "memory") {
        ("sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes")
    } else {
        return None;
    };
    let mount = root.join(mount);
    // In a container the path may be that of the host: then only the mount itself is there.
    let inner: PathBuf = mount.join(path.trim_start_matches('/'));
    let folders = inner.ancestors().take_while(|folder| folder.starts_with(&mount));
    folders.filter_map(|folder| left_in(folder, limit, usage)).min()
}

fn left_in(folder: &Path, limit: &str, usage: &str) -> Option<u64> {
    // `max` is no number: no limit here.
    let limit: u64 = read(&folder.join(limit))?.trim().parse().ok()?;
    let usage: u64 = read(&folder.join(usage))?.trim().parse().ok()?;
    // Cached file pages count as used and are given up when memory is asked for.
    let statistics = read(&folder.join("memory.stat")).unwrap_or_default();
    let inactive = statistics.lines().find_map(|line| line.strip_prefix("inactive_file "));
    let inactive: u64 = inactive.and_then(|bytes| bytes.trim().parse().ok()).unwrap_or(0);
    Some(limit.saturating_sub(usage.saturating_sub(inactive)))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    fn root(files: &[(&str, &str)]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for (path, text) in files {
            let path = folder.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }
        folder
    }

    const MEMINFO: (&str, &str) = ("proc/meminfo", "MemTotal: 9000 kB\nMemAvailable:  5000 kB\n");

    #[test]
    fn the_tightest_limit_counts() {
        assert_eq!(below(root(&[MEMINFO]).path()), Some(5_120_000));
        let version_2 = [
            MEMINFO,
            ("proc/self/cgroup", "0::/pod/box\n"),
            ("sys/fs/cgroup/pod/memory.max", "3000000\n"),
            ("sys/fs/cgroup/pod/memory.current", "2500000\n"),
            ("sys/fs/cgroup/pod/memory.stat", "anon 5\ninactive_file 400000\n"),
            ("sys/fs/cgroup/pod/box/memory.max", "max\n"),
            ("sys/fs/cgroup/pod/box/memory.current", "100\n"),
        ];
        assert_eq!(below(root(&version_2).path()), Some(900_000));
        let namespaced = [
            MEMINFO,
            ("proc/self/cgroup", "0::/../elsewhere\n"),
            ("sys/fs/cgroup/memory.max", "1000\n"),
            ("sys/fs/cgroup/memory.current", "2000\n"),
        ];
        assert_eq!(below(root(&namespaced).path()), Some(0));
        let version_1 = [
            MEMINFO,
            ("proc/self/cgroup", "4:cpu,memory:/pod\n2:pids:/\n"),
            ("sys/fs/cgroup/memory/pod/memory.limit_in_bytes", "9223372036854771712\n"),
            ("sys/fs/cgroup/memory/pod/memory.usage_in_bytes", "1000\n"),
            ("sys/fs/cgroup/memory/memory.limit_in_bytes", "70000\n"),
            ("sys/fs/cgroup/memory/memory.usage_in_bytes", "50000\n"),
        ];
        assert_eq!(below(root(&version_1).path()), Some(20_000));
    }

    #[test]
    fn a_system_that_does_not_tell_limits_nothing() {
        assert_eq!(below(root(&[]).path()), None);
    }
}
