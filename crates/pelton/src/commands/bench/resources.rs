//! What did heaps, copies and the ring do meanwhile? Three lines, or as much JSON.

use engine::{PartStatus, ResourceStatus};
use serde_json::{Value, json};

use crate::printing::say;

pub(super) fn print(resources: &ResourceStatus) {
    let ResourceStatus { heap_pool: heaps, blit_queue: blit, staging, command_ring: ring, parts } =
        resources;
    say!(
        "heap pool: {} heaps of {:.1} MB, {:.1} MB used, {} allocations, {} exhaustions, {:.0} % \
         of the free bytes in pieces",
        heaps.heaps,
        heaps.reserved_bytes as f64 / 1e6,
        heaps.used_bytes as f64 / 1e6,
        heaps.allocations_total,
        heaps.exhaustions_total,
        100.0 * heaps.fragmentation()
    );
    let overlap = blit.overlap().map_or("-".to_owned(), |share| format!("{:.1} %", 100.0 * share));
    say!(
        "blit queue: {} lanes, {} copies of {:.1} MB, {overlap} hidden, {} done by steps, {} \
         staging buffers",
        blit.lanes,
        blit.ops_total,
        blit.bytes_total as f64 / 1e6,
        blit.late_ops_total,
        staging.buffers
    );
    let steps = ring.steps_total.max(1) as f64;
    let idle = ring.idle_share().map_or("-".to_owned(), |share| format!("{:.2} %", 100.0 * share));
    say!(
        "command ring: {} steps deep, {} steps, device idle {idle}, a step is planned in {:.1} us, \
         waits {:.1} us and runs {:.1} us; {} timeouts",
        ring.depth,
        ring.steps_total,
        1e6 * ring.planning_seconds / steps,
        1e6 * ring.queued_seconds / steps,
        1e6 * ring.run_seconds / steps,
        ring.timeouts_total
    );
    for PartStatus { device, layers, run_seconds } in parts {
        say!("on {device}: {layers} layers, {:.3} ms a step", 1e3 * run_seconds / steps);
    }
}

pub(super) fn to_json(resources: &ResourceStatus) -> Value {
    let ResourceStatus { heap_pool: heaps, blit_queue: blit, staging, command_ring: ring, parts } =
        resources;
    let part = |part: &PartStatus| {
        let PartStatus { device, layers, run_seconds } = part;
        json!({ "device": device, "layers": layers, "run_seconds": run_seconds })
    };
    json!({
        "parts": parts.iter().map(part).collect::<Vec<_>>(),
        "heap_pool": {
            "heaps": heaps.heaps,
            "reserved_bytes": heaps.reserved_bytes,
            "used_bytes": heaps.used_bytes,
            "peak_used_bytes": heaps.peak_used_bytes,
            "largest_free_bytes": heaps.largest_free_bytes,
            "fragmentation": heaps.fragmentation(),
            "allocations": heaps.allocations_total,
            "carved": heaps.carved_total,
            "freed": heaps.freed_total,
            "exhaustions": heaps.exhaustions_total,
        },
        "blit_queue": {
            "lanes": blit.lanes,
            "ops": blit.ops_total,
            "bytes": blit.bytes_total,
            "busy_seconds": blit.busy_seconds,
            "waited_seconds": blit.waited_seconds,
            "overlap": blit.overlap(),
            "late_ops": blit.late_ops_total,
            "staging_buffers": staging.buffers,
            "staging_exhaustions": staging.exhaustions_total,
        },
        "command_ring": {
            "depth": ring.depth,
            "steps": ring.steps_total,
            "run_seconds": ring.run_seconds,
            "idle_seconds": ring.idle_seconds,
            "idle_share": ring.idle_share(),
            "queued_seconds": ring.queued_seconds,
            "planning_seconds": ring.planning_seconds,
            "timeouts": ring.timeouts_total,
        },
    })
}
