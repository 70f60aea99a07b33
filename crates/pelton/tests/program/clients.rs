//! The unmodified Python clients of OpenAI, Anthropic, Ollama, LangChain and Cohere against a
//! running server, and whatever its OpenAPI document allows and forbids.

use std::path::Path;
use std::process::Command;

use crate::python;
use crate::running::{Home, Server};

/// What the scripts were written for; later ones of the same major version do.
const PACKAGES: &[&str] =
    &["openai>=2,<4", "anthropic>=2,<3", "ollama>=0.6.1,<1", "langchain-openai>=1,<2"];

#[test]
fn clients_get_what_they_ask_for() {
    let home = Home::new();
    let Some(model) = testkit::default_model() else {
        eprintln!("skipped: the default model is not here; `pelton pull smollm2` brings it");
        return;
    };
    let imports = "openai, anthropic, ollama, langchain_openai";
    let Some(python) = python::environment("clients", PACKAGES, imports) else { return };
    let server = Server::start(&home, &model, &[]);
    for script in ["check_openai.py", "check_anthropic_ollama.py", "check_langchain.py"] {
        checks_pass(&python, script, &server);
    }
}

#[test]
fn coheres_client_ranks_documents() {
    let home = Home::new();
    let Some(python) = python::environment("cohere", &["cohere>=7,<8"], "cohere") else { return };
    let model =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../engine/golden/rerankers/xlm_roberta");
    checks_pass(&python, "check_cohere.py", &Server::start(&home, &model, &[]));
}

fn checks_pass(python: &Path, script: &str, server: &Server) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tools/clients").join(script);
    let output = Command::new(python).arg(path).arg(&server.url).output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{script}: {said}\n{errors}");
}

/// Fixed: whoever makes up other requests may find what is no fault of the change at hand.
const SCHEMATHESIS: &[&str] = &["schemathesis==4.32.5", "hypothesis==6.170.17"];

#[test]
fn the_server_holds_to_its_openapi_document() {
    let home = Home::new();
    let Some(python) = python::environment("openapi", SCHEMATHESIS, "schemathesis") else { return };
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tools/openapi/check.py");
    let program = env!("CARGO_BIN_EXE_pelton");
    let mut check = Command::new(python);
    check.arg(script).arg(program).arg(home.tiny()).args(["--requests", "1"]);
    let output = check.output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}\n{errors}");
    let tested = said.lines().find_map(|line| line.trim().strip_prefix("Tested: "));
    let tested = tested.and_then(|count| count.parse().ok());
    assert!(tested.is_some_and(|count: u32| count > 30), "every operation is asked: {said}");
}
