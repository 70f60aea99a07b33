//! Which limits of this process would a server meet?

use config::Config;

use super::Finding;

#[cfg(not(target_os = "linux"))]
pub(super) fn examine(_: &Config) -> Vec<Finding> {
    Vec::new()
}

#[cfg(target_os = "linux")]
pub(super) fn examine(config: &Config) -> Vec<Finding> {
    use rustix::process::{Resource, getrlimit};
    let soft = |resource| getrlimit(resource).current;
    let mut findings = vec![open_files(config, soft(Resource::Nofile))];
    let weights = &config.weights;
    if weights.pin_critical_weights || weights.pin_all_weights {
        findings.push(locked_memory(soft(Resource::Memlock), weights.pin_all_weights));
    }
    findings.extend(address_space(soft(Resource::As)));
    findings
}

/// Files that a server has open besides its connections: models, logs, tiers, caches.
#[cfg(any(target_os = "linux", test))]
const OTHER_FILES: u64 = 64;

/// `None` is no limit, here and below.
#[cfg(any(target_os = "linux", test))]
fn open_files(config: &Config, limit: Option<u64>) -> Finding {
    const AREA: &str = "open files";
    let needed = config.server.connections_max as u64 + OTHER_FILES;
    match limit {
        Some(limit) if limit < needed => Finding::advice(
            AREA,
            format!(
                "{limit} may be open, and {} connections with the rest need {needed}",
                config.server.connections_max
            ),
            format!(
                "raise the limit (`ulimit -n {needed}`, LimitNOFILE={needed} in a systemd unit) \
                 or lower server.connections_max"
            ),
        ),
        Some(limit) => Finding::good(AREA, format!("{limit} may be open, {needed} are enough")),
        None => Finding::good(AREA, "no limit"),
    }
}

/// Weights that steps read first should not leave memory; a container's usual limit is 64 KiB.
#[cfg(any(target_os = "linux", test))]
const LOCKED_BYTES_MIN: u64 = 64 << 20;

#[cfg(any(target_os = "linux", test))]
fn locked_memory(limit: Option<u64>, needs_all: bool) -> Finding {
    const AREA: &str = "locked memory";
    let remedy = "raise the limit (`ulimit -l unlimited`, LimitMEMLOCK=infinity in a systemd \
                  unit), or leave weights where they are with --set \
                  weights.pin_critical_weights=false";
    match limit {
        None => Finding::good(AREA, "no limit"),
        Some(limit) if needs_all || limit < LOCKED_BYTES_MIN => {
            let said = format!("{} may be locked: weights are pinned so far", shown(limit));
            Finding::advice(AREA, said, remedy)
        }
        Some(limit) => Finding::good(AREA, format!("{} may be locked", shown(limit))),
    }
}

#[cfg(any(target_os = "linux", test))]
fn shown(limit: u64) -> String {
    crate::units::bytes(limit)
}

/// Files are mapped, so addresses are used that are no memory.
#[cfg(target_os = "linux")]
fn address_space(limit: Option<u64>) -> Option<Finding> {
    let said = format!("{} of addresses may be used", shown(limit?));
    Some(Finding::advice("addresses", said, "lift the limit: `ulimit -v unlimited`"))
}

#[cfg(test)]
mod tests {
    use super::super::Grade;
    use super::*;

    #[test]
    fn a_limit_that_connections_would_meet_is_told() {
        let mut config = Config::default();
        config.server.connections_max = 1000;
        for (limit, grade) in
            [(Some(1063), Grade::Advice), (Some(1064), Grade::Good), (None, Grade::Good)]
        {
            assert_eq!(open_files(&config, limit).grade, grade, "{limit:?}");
        }
    }

    #[test]
    fn weights_that_are_to_stay_need_room_to() {
        for (limit, needs_all, grade) in [
            (None, true, Grade::Good),
            (Some(64 << 10), false, Grade::Advice),
            (Some(1 << 30), false, Grade::Good),
            (Some(1 << 30), true, Grade::Advice),
        ] {
            assert_eq!(locked_memory(limit, needs_all).grade, grade, "{limit:?} {needs_all}");
        }
    }
}
