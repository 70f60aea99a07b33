//! Does each device compute what the reference does, and how fast? A report to be sent by anybody
//! who has a device that we have not.

use engine::{SelfTest, self_test};

use super::Finding;
use crate::units;

/// One device, or the processor and all that there is beside it.
pub(super) fn examine(device: Option<&str>) -> Vec<Finding> {
    let version = format!("version {}", env!("CARGO_PKG_VERSION"));
    let mut findings = vec![Finding::good("pelton", version)];
    let devices = match device {
        Some("auto") | None => all(),
        Some(device) => vec![device.to_owned()],
    };
    for device in devices {
        findings.extend(match self_test(&device) {
            Ok(tested) => of(&device, &tested),
            Err(error) => {
                let said = format!("{device}: {error}");
                let remedy = "mend it as the text says, or choose another with --device";
                vec![Finding::problem("self-test", said, remedy)]
            }
        });
    }
    findings
}

fn all() -> Vec<String> {
    let mut devices = vec!["cpu".to_owned()];
    if engine::probe_device("cuda:0").is_ok() {
        devices.push("cuda:0".to_owned());
    }
    for api in ["vulkan", "metal", "dx12"] {
        let count = engine::adapters().iter().filter(|facts| facts.api == api).count();
        devices.extend((0..count).map(|number| format!("{api}:{number}")));
    }
    devices
}

fn of(name: &str, tested: &SelfTest) -> Vec<Finding> {
    let mut findings = Vec::new();
    let mut good = Vec::new();
    for check in &tested.checks {
        let format = check.format;
        match &check.difference {
            Ok(difference) if check.is_good() => good.push(format!("{format} {difference:.1e}")),
            Ok(difference) => findings.push(wrong(format!(
                "{name}: {format}: logits differ by {difference:.1e} of the largest from the \
                 reference's"
            ))),
            Err(error) => findings.push(wrong(format!("{name}: {format}: {error}"))),
        }
    }
    let said = format!("{name}: as the reference says but for {}", good.join(", "));
    findings.push(Finding::good("self-test", said));
    let said = format!(
        "{name}: reads {} of weights a second for one token, {:.0} tokens a second of a prompt in \
         a model of {} million weights",
        units::bytes(tested.decode_bytes_per_second as u64),
        tested.prompt_tokens_per_second,
        tested.weights / 1_000_000
    );
    findings.push(Finding::good("speed", said));
    findings
}

fn wrong(said: String) -> Finding {
    let remedy = "do not use this device; tell us, with all of this report";
    Finding::problem("self-test", said, remedy)
}
