//! What do this crate's tests start as the killable child? The same entry as the product's.

#![forbid(unsafe_code)]

fn main() -> std::process::ExitCode {
    chat::worker_main()
}
