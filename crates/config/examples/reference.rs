//! Prints `docs/configuration.md`:
//! `cargo run -p config --example reference > docs/configuration.md`.

use std::io::Write;

fn main() -> std::io::Result<()> {
    std::io::stdout().write_all(config::reference().as_bytes())
}
