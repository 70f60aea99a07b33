//! How often did this process touch a page that was not there? Zero where the system does not say.

/// Since the process began, of all its threads.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PageFaults {
    /// The page had to be made or found in the system's cache.
    pub minor: u64,
    /// The page had to be read from disk.
    pub major: u64,
}

/// As `/proc/self/stat` tells them: fields 10 and 12 of proc_pid_stat(5).
pub fn page_faults() -> PageFaults {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    parse(&stat).unwrap_or_default()
}

fn parse(stat: &str) -> Option<PageFaults> {
    // The second field is the program's name in parentheses, which may hold spaces and parentheses.
    let (_, fields) = stat.rsplit_once(')')?;
    let mut fields = fields.split_ascii_whitespace().skip(7);
    let minor = fields.next()?.parse().ok()?;
    let major = fields.nth(1)?.parse().ok()?;
    Some(PageFaults { minor, major })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_fields_are_found_behind_any_name() {
        let stat = "7 (a) b (c)) S 1 2 3 4 5 6 100 8 200 10 11";
        assert_eq!(parse(stat), Some(PageFaults { minor: 100, major: 200 }));
        assert_eq!(parse("7 (a) S 1"), None);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn touching_memory_is_counted() {
        let before = page_faults();
        let memory = vec![1u8; 8 << 20];
        assert!(std::hint::black_box(memory)[5] == 1 && page_faults().minor > before.minor);
    }
}
