//! How fast could this machine be at best? Prints the roofs of `backend_cpu::ceilings`.
//!
//! `cargo run --release -p backend-cpu --example ceilings [instruction set]`
#![allow(clippy::print_stdout, clippy::unwrap_used, reason = "a benchmark prints its figures")]

use std::time::Duration;

use backend_cpu::{Isa, Team, ceilings};

fn main() {
    let isa = std::env::args().nth(1).map_or_else(Isa::detect, |name| Isa::forced(&name).unwrap());
    let patience = Duration::from_millis(700);
    let mut counts = vec![1, Team::default_threads()];
    counts.dedup();
    for threads in counts {
        let team = Team::new(threads).unwrap();
        println!("{threads} threads, {}", isa.name());
        for (name, bytes) in
            [("1 MB a thread", threads << 20), ("90 MB", 90_000_000), ("2 GB", 2_000_000_000)]
        {
            let rate = ceilings::read_bytes_per_second(&team, isa, bytes, patience).unwrap();
            println!("  read, {name:14} {:8.1} GB/s", rate / 1e9);
        }
        let rates = [
            ("f32 multiply-add", Some(ceilings::float_ops_per_second(&team, isa, patience))),
            ("int8 dot", ceilings::integer_ops_per_second(&team, isa, patience)),
            ("bf16 dot", ceilings::bfloat_ops_per_second(&team, isa, patience)),
        ];
        for (name, rate) in rates {
            let text = rate.map_or("none".to_owned(), |rate| format!("{:8.1}", rate / 1e9));
            println!("  {name:20} {text} G operations/s");
        }
    }
}
