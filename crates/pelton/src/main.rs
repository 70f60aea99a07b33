//! The `pelton` binary.

#![forbid(unsafe_code)]

fn main() -> std::process::ExitCode {
    pelton::main()
}
