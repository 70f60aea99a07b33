//! Which packed weights may not leave memory? Those that the source's rules want, as far as the
//! system allows; pinning is undone before the memory is given back.

use device::Pinning;

#[derive(Default)]
pub(crate) struct Pins {
    /// Address and length.
    ranges: Vec<(usize, usize)>,
}

impl Pins {
    /// Pins these bytes if `rules` want it.
    pub(crate) fn pin(&mut self, rules: Option<&dyn Pinning>, name: &str, bytes: &[u8]) {
        let Some(rules) = rules.filter(|rules| rules.wants(name, bytes.len() as u64)) else {
            return;
        };
        match lock(bytes) {
            Ok(()) => {
                self.ranges.push((bytes.as_ptr() as usize, bytes.len()));
                rules.pinned(bytes.len() as u64);
            }
            Err(error) => rules.refused(name, bytes.len() as u64, &error),
        }
    }
}

#[cfg(unix)]
fn lock(bytes: &[u8]) -> std::io::Result<()> {
    // SAFETY: pinning changes where pages are, not what is in them; the range is that of a slice.
    let locked = unsafe { rustix::mm::mlock(bytes.as_ptr().cast_mut().cast(), bytes.len()) };
    Ok(locked?)
}

#[cfg(not(unix))]
fn lock(_bytes: &[u8]) -> std::io::Result<()> {
    Err(std::io::ErrorKind::Unsupported.into())
}

impl Drop for Pins {
    fn drop(&mut self) {
        for &(_address, _length) in &self.ranges {
            // SAFETY: as in `lock`; where the memory has gone already, so has the pin, and another
            // pin that a neighbor put on a shared page is on the same weights.
            #[cfg(unix)]
            let _ = unsafe { rustix::mm::munlock(_address as *mut core::ffi::c_void, _length) };
        }
    }
}

#[cfg(all(test, unix))]
mod tests {
    use std::sync::Mutex;

    use super::*;
    use crate::LargeBuffer;

    #[derive(Default)]
    struct Rules {
        log: Mutex<Vec<String>>,
    }

    impl Rules {
        fn note(&self, text: String) {
            self.log.lock().expect("nobody broke it").push(text);
        }
    }

    impl Pinning for Rules {
        fn wants(&self, name: &str, bytes: u64) -> bool {
            self.note(format!("asked {name} {bytes}"));
            name != "unwanted"
        }

        fn pinned(&self, bytes: u64) {
            self.note(format!("pinned {bytes}"));
        }

        fn refused(&self, name: &str, bytes: u64, _reason: &std::io::Error) {
            self.note(format!("refused {name} {bytes}"));
        }
    }

    /// KiB that the system says this process has pinned.
    fn pinned_kb() -> u64 {
        let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
        let line = status.lines().find_map(|line| line.strip_prefix("VmLck:"));
        line.and_then(|line| line.trim().trim_end_matches(" kB").parse().ok()).unwrap_or(0)
    }

    #[test]
    fn what_is_wanted_is_pinned_until_it_goes() {
        let mut buffer = LargeBuffer::zeroed(64 << 10).expect("memory");
        let bytes = &*buffer.bytes_mut();
        let rules = Rules::default();
        let before = pinned_kb();
        let mut pins = Pins::default();
        pins.pin(None, "any", bytes);
        pins.pin(Some(&rules), "unwanted", bytes);
        assert_eq!(pinned_kb(), before);
        pins.pin(Some(&rules), "weight", bytes);
        let log = rules.log.lock().expect("nobody broke it").clone();
        assert_eq!(log[..2], ["asked unwanted 65536", "asked weight 65536"]);
        match log[2].as_str() {
            "pinned 65536" => assert!(pinned_kb() >= before + 64),
            // Where the limit is smaller than this.
            other => assert_eq!(other, "refused weight 65536"),
        }
        drop(pins);
        assert_eq!(pinned_kb(), before);
    }
}
