//! What does the child process do? It gives up what it does not need, then renders, one request
//! after the other, until its input ends.

use std::io::{self, Write};
use std::process::ExitCode;

use rustix::process::{Resource, Rlimit, setrlimit};

use crate::RenderRequest;
use crate::engine::Engine;
use crate::protocol::{Reply, Setup, read_frame, write_frame};

/// The whole life of a worker: the product's hidden subcommand calls this and nothing else.
pub fn worker_main() -> ExitCode {
    limit_resources();
    let (mut input, mut output) = (io::stdin().lock(), io::stdout().lock());
    match serve(&mut input, &mut output) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}

/// Ceilings of the operating system, for whatever the engine's own budgets do not see.
fn limit_resources() {
    let limits = [
        // The engine's fuel allows some 128 MB; frames and fragmentation take a part as well.
        (Resource::As, 512 << 20),
        // Over the process's whole life, for an orphan in an endless loop. A worker that ends
        // this way after some 100,000 good renders is replaced unseen.
        (Resource::Cpu, 60),
        (Resource::Core, 0),
        // Standard input, output and error are open; nothing else ever will be.
        (Resource::Nofile, 3),
        (Resource::Fsize, 0),
    ];
    for (resource, maximum) in limits {
        // A system without one of these limits still has the others and the parent's deadline.
        let _ = setrlimit(resource, Rlimit { current: Some(maximum), maximum: Some(maximum) });
    }
}

fn serve(input: &mut impl io::Read, output: &mut impl Write) -> io::Result<()> {
    let setup: Setup = read_frame(input)?;
    let engine = match Engine::new(setup) {
        Ok(engine) => engine,
        Err(why) => return reply(output, &Reply::InvalidTemplate(why)),
    };
    reply(output, &Reply::Ready)?;
    loop {
        let request: RenderRequest = match read_frame(input) {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(()),
            request => request?,
        };
        reply(output, &engine.render(&request))?;
    }
}

fn reply(output: &mut impl Write, reply: &Reply) -> io::Result<()> {
    write_frame(output, &serde_json::to_vec(reply)?)
}
