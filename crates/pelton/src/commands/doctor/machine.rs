//! What is this machine? Its processor, its memory, and a GPU if it has one.

use std::path::Path;

use engine::AdapterFacts;

use super::Finding;
use crate::units;

pub(super) fn examine() -> Vec<Finding> {
    let mut findings = vec![
        Finding::good("pelton", format!("version {}", env!("CARGO_PKG_VERSION"))),
        processor(),
        memory(),
    ];
    findings.extend(huge_pages());
    findings.push(gpu());
    findings.extend(engine::adapters().iter().map(adapter));
    findings
}

fn processor() -> Finding {
    const AREA: &str = "processor";
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let features = features();
    let said = format!("{threads} threads; {}", features.join(", "));
    if features.is_empty() {
        let said = format!("{threads} threads, and no vector instructions that have kernels");
        return Finding::advice(AREA, said, "answers come slowly here: a newer processor has them");
    }
    Finding::good(AREA, said)
}

/// Instructions that kernels are there for, as this processor has them.
#[cfg(target_arch = "x86_64")]
fn features() -> Vec<&'static str> {
    let mut features = Vec::new();
    if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
        features.push("AVX2");
    }
    if is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512bw") {
        features.push("AVX-512");
    }
    if is_x86_feature_detected!("avx512vnni") {
        features.push("AVX-512 VNNI");
    }
    if is_x86_feature_detected!("avx512bf16") {
        features.push("AVX-512 BF16");
    }
    features
}

#[cfg(target_arch = "aarch64")]
fn features() -> Vec<&'static str> {
    let mut features = vec!["NEON"];
    if std::arch::is_aarch64_feature_detected!("dotprod") {
        features.push("dot products");
    }
    if std::arch::is_aarch64_feature_detected!("i8mm") {
        features.push("i8mm");
    }
    features
}

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
fn features() -> Vec<&'static str> {
    Vec::new()
}

/// The default model with its cache of keys and values needs as much.
const MEMORY_BYTES_MIN: u64 = 1 << 30;

fn memory() -> Finding {
    const AREA: &str = "memory";
    match engine::available_memory() {
        None => Finding::good(AREA, "this system does not say how much is free"),
        Some(free) if free < MEMORY_BYTES_MIN => Finding::advice(
            AREA,
            format!("{} may still be taken", units::bytes(free)),
            "end other programs, raise the limit of the container or control group, or give less \
             to keys and values with --kv-cache-mb",
        ),
        Some(free) => Finding::good(AREA, format!("{} may still be taken", units::bytes(free))),
    }
}

/// Kernels read weights in order: with huge pages the processor looks up addresses less often.
fn huge_pages() -> Option<Finding> {
    const AREA: &str = "huge pages";
    let text = std::fs::read_to_string("/sys/kernel/mm/transparent_hugepage/enabled").ok()?;
    let chosen = text.split_once('[')?.1.split_once(']')?.0.to_owned();
    if chosen == "never" {
        let remedy = "as root: echo madvise > /sys/kernel/mm/transparent_hugepage/enabled";
        return Some(Finding::advice(AREA, "they are switched off", remedy));
    }
    Some(Finding::good(AREA, format!("given on `{chosen}`")))
}

fn gpu() -> Finding {
    const AREA: &str = "gpu";
    let has_driver = Path::new("/proc/driver/nvidia/version").exists();
    match engine::probe_device("cuda:0") {
        Ok(name) => Finding::good(AREA, name),
        Err(error) if has_driver => Finding::problem(
            AREA,
            format!("there is an NVIDIA driver, and it cannot be used: {error}"),
            "install a driver of CUDA 12.3 or later, give the container its GPUs (docker run \
             --gpus all), or choose the processor with --device cpu",
        ),
        Err(_) => Finding::good(AREA, "no NVIDIA GPU; models run on the processor"),
    }
}

/// An adapter of Vulkan, Metal or Direct3D, and what it lacks.
fn adapter(facts: &AdapterFacts) -> Finding {
    let area = facts.api;
    let kind = if facts.is_software { "computes on the processor" } else { "a GPU" };
    let AdapterFacts { name, driver, .. } = facts;
    let said = format!(
        "{name} ({driver}), {kind}: binds {} at once{}{}",
        units::bytes(facts.binding_bytes),
        if facts.is_unified { ", shares the machine's memory" } else { "" },
        if facts.has_matrix_units { ", multiplies by matrix units" } else { "" }
    );
    if facts.missing.is_empty() {
        return Finding::good(area, format!("{said}; --device {area} runs models there"));
    }
    let lacks = facts.missing.join(" and ");
    let remedy = "a newer driver may have it; models run on other devices";
    Finding::advice(area, format!("{said}, but it lacks {lacks}"), remedy)
}
