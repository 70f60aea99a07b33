//! What do heaps, copies and the ring look like to an operator? Their lines of the metrics page.

use engine::{PartStatus, ResourceStatus};

use crate::metrics::Page;

type Line = (&'static str, &'static str, &'static str, f64);

pub(crate) fn render(page: &mut Page, status: &ResourceStatus) {
    for (name, kind, help, value) in heaps(status).into_iter().chain(moves(status)) {
        page.single(&format!("pelton_{name}"), kind, help, value);
    }
    let name = "pelton_part_run_seconds_total";
    page.head(name, "counter", "Time that a device ran its layers of models that are on several.");
    for PartStatus { device, run_seconds, .. } in &status.parts {
        page.line(name, &format!("device=\"{device}\""), *run_seconds);
    }
    let name = "pelton_part_layers";
    page.head(name, "gauge", "Layers of them.");
    for PartStatus { device, layers, .. } in &status.parts {
        page.line(name, &format!("device=\"{device}\""), f64::from(*layers));
    }
    let classes = &status.heap_pool.classes;
    let name = "pelton_heap_pool_class_used_bytes";
    page.head(name, "gauge", "Of buffers, by the power of two that their size reaches.");
    for class in classes {
        page.line(name, &format!("class=\"{}\"", class.bytes), class.used_bytes as f64);
    }
    let name = "pelton_heap_pool_class_free_bytes";
    page.head(name, "gauge", "Of free pieces, likewise.");
    for class in classes {
        page.line(name, &format!("class=\"{}\"", class.bytes), class.free_bytes as f64);
    }
}

fn heaps(status: &ResourceStatus) -> Vec<Line> {
    let heaps = &status.heap_pool;
    vec![
        ("heap_pool_heaps", "gauge", "Heaps of all models.", heaps.heaps.into()),
        ("heap_pool_reserved_bytes", "gauge", "Bytes of them.", heaps.reserved_bytes as f64),
        ("heap_pool_used_bytes", "gauge", "Of those, in buffers.", heaps.used_bytes as f64),
        ("heap_pool_peak_used_bytes", "gauge", "The most so far.", heaps.peak_used_bytes as f64),
        (
            "heap_pool_largest_free_bytes",
            "gauge",
            "The largest buffer that fits now.",
            heaps.largest_free_bytes as f64,
        ),
        (
            "heap_pool_fragmentation_ratio",
            "gauge",
            "Share of the free bytes outside the largest free piece.",
            heaps.fragmentation(),
        ),
        (
            "heap_pool_allocations_total",
            "counter",
            "Heaps asked of the allocator.",
            heaps.allocations_total as f64,
        ),
        ("heap_pool_carved_total", "counter", "Buffers made.", heaps.carved_total as f64),
        ("heap_pool_freed_total", "counter", "Buffers given back.", heaps.freed_total as f64),
        (
            "heap_pool_exhaustions_total",
            "counter",
            "Requests for a buffer that found no room.",
            heaps.exhaustions_total as f64,
        ),
    ]
}

fn moves(status: &ResourceStatus) -> Vec<Line> {
    let (blit, staging, ring) = (&status.blit_queue, &status.staging, &status.command_ring);
    let staging_bytes = staging.buffers * staging.buffer_bytes;
    vec![
        ("blit_ops_total", "counter", "Copies beside steps.", blit.ops_total as f64),
        ("blit_bytes_total", "counter", "Bytes of them.", blit.bytes_total as f64),
        ("blit_ops_in_flight", "gauge", "Copies that wait or run.", blit.ops_in_flight as f64),
        ("blit_busy_seconds_total", "counter", "Time that copies took.", blit.busy_seconds),
        ("blit_waited_seconds_total", "counter", "Time waited for them.", blit.waited_seconds),
        ("blit_overlap_ratio", "gauge", "Share that was hidden.", blit.overlap().unwrap_or(0.0)),
        (
            "blit_late_ops_total",
            "counter",
            "Copies that a step had to do itself.",
            blit.late_ops_total as f64,
        ),
        ("blit_staging_bytes", "gauge", "Buffers of blocks.", staging_bytes as f64),
        (
            "blit_staging_exhaustions_total",
            "counter",
            "Times there was no buffer.",
            staging.exhaustions_total as f64,
        ),
        ("ring_size", "gauge", "Most steps in flight.", ring.depth.into()),
        ("ring_steps_in_flight", "gauge", "Steps in flight now.", ring.steps_in_flight.into()),
        ("ring_steps_total", "counter", "Steps collected.", ring.steps_total as f64),
        ("ring_run_seconds_total", "counter", "Time steps ran.", ring.run_seconds),
        (
            "ring_idle_seconds_total",
            "counter",
            "Time the device waited while there was work.",
            ring.idle_seconds,
        ),
        (
            "ring_idle_ratio",
            "gauge",
            "That, of all time with work.",
            ring.idle_share().unwrap_or(0.0),
        ),
        ("ring_queued_seconds_total", "counter", "Time steps waited.", ring.queued_seconds),
        ("ring_planning_seconds_total", "counter", "Time planning took.", ring.planning_seconds),
        ("ring_timeouts_total", "counter", "Times a device hung.", ring.timeouts_total as f64),
        ("ring_steps_stuck", "gauge", "Steps given up that run still.", ring.steps_stuck.into()),
    ]
}

#[cfg(test)]
mod tests {
    use engine::{ClassStatistics, EngineStatus, PartStatus};

    use crate::app::Outside;
    use crate::metrics::Metrics;

    #[test]
    fn each_system_has_its_lines() {
        let mut status = EngineStatus::default();
        let resources = &mut status.resources;
        resources.heap_pool.used_bytes = 5;
        resources.heap_pool.exhaustions_total = 2;
        let class = ClassStatistics { bytes: 64, used_bytes: 5, ..ClassStatistics::default() };
        resources.heap_pool.classes.push(class);
        (resources.blit_queue.busy_seconds, resources.blit_queue.waited_seconds) = (2.0, 0.5);
        (resources.command_ring.run_seconds, resources.command_ring.idle_seconds) = (3.0, 1.0);
        resources.command_ring.timeouts_total = 7;
        let (device, run_seconds) = ("cpu".to_owned(), 1.5);
        resources.parts.push(PartStatus { device, layers: 28, run_seconds });
        let text = Metrics::default().render(&status, &[], &Outside::default(), |_| true);
        for line in [
            "pelton_heap_pool_used_bytes 5",
            "pelton_heap_pool_exhaustions_total 2",
            "pelton_heap_pool_class_used_bytes{class=\"64\"} 5",
            "pelton_blit_overlap_ratio 0.75",
            "pelton_ring_idle_ratio 0.25",
            "pelton_ring_timeouts_total 7",
            "pelton_part_run_seconds_total{device=\"cpu\"} 1.5",
            "pelton_part_layers{device=\"cpu\"} 28",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} in {text}");
        }
    }
}
