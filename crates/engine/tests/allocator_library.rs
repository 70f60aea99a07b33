//! Can somebody else's memory serve a model? The examples of `docs/allocator.md`, built and run,
//! and libraries that misbehave.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::path::{Path, PathBuf};
use std::process::Command;

use engine::{
    End, Engine, EngineOptions, GenerateRequest, HeapSettings, Prompt, Service, Speculation,
    open_allocator,
};
use messages::{CacheNamespace, SamplingParams, SharingMode};
use testkit::tiny_model::TinyModel;

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize().unwrap()
}

fn run(program: &str, arguments: &[&str]) {
    let output = Command::new(program).args(arguments).current_dir(repository()).output();
    let output = output.unwrap_or_else(|error| panic!("{program}: {error}"));
    assert!(output.status.success(), "{program}: {}", String::from_utf8_lossy(&output.stderr));
}

/// Builds C code with the header; `define` chooses a variant.
fn build_c(source: &Path, folder: &Path, define: &str) -> PathBuf {
    let library = folder.join(format!("lib{define}.so"));
    let (define, output) = (format!("-D{define}"), library.display().to_string());
    let source = source.display().to_string();
    run(
        "cc",
        &[
            "-shared", "-fPIC", "-O2", "-Wall", "-Werror", "-I", "include", &define, "-o", &output,
            &source,
        ],
    );
    library
}

fn build_rust(source: &str, folder: &Path) -> PathBuf {
    let library = folder.join("libcounting.so");
    let rustc = std::env::var("RUSTC").unwrap_or_else(|_| "rustc".to_owned());
    let output = library.display().to_string();
    run(&rustc, &["--edition", "2024", "--crate-type", "cdylib", "-O", "-o", &output, source]);
    library
}

fn answer(engine: &Engine) -> Vec<u32> {
    let params =
        SamplingParams { max_tokens: Some(24), ignore_eos: true, ..SamplingParams::greedy() };
    let request = GenerateRequest {
        model: "default".to_owned(),
        prompt: Prompt::Text("The river".to_owned()),
        params,
        stop: Vec::new(),
        include_stop: false,
        namespace: CacheNamespace::default(),
        sharing: SharingMode::Off,
        urgency: engine::Urgency::default(),
    };
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let mut generation = runtime.block_on(engine.generate(request)).unwrap();
    let mut ids = Vec::new();
    loop {
        let delta = generation.next_blocking().expect("an end before the stream ends");
        ids.extend(delta.tokens.iter().map(|token| token.id));
        match delta.end {
            None => {}
            Some(End::Finished { .. }) => return ids,
            Some(End::Failed(fault)) => panic!("{fault}"),
            Some(End::Refused(refusal)) => panic!("{refusal}"),
            Some(End::Late(deadline)) => panic!("{}", deadline.text()),
        }
    }
}

/// What an example says of the bytes that it has given.
fn bytes_given(library: &libloading::Library, symbol: &str) -> u64 {
    // SAFETY: both examples export a function of this type under the name asked for.
    let function = unsafe { library.get::<extern "C" fn() -> u64>(symbol.as_bytes()) };
    function.unwrap()()
}

/// A whole answer out of memory of the library at `path`, the same as without.
fn check_serves(path: &Path, symbol: &str, name: &str, model: &Path) {
    // SAFETY: an example of this repository, without initializers. The same library as below.
    let library = unsafe { libloading::Library::new(path) }.unwrap();
    let options = EngineOptions {
        threads: Some(2),
        speculation: Speculation::Off,
        kv_cache_bytes: Some(64 << 20),
        ..EngineOptions::new(model.to_path_buf(), "model")
    };
    let expected = answer(&Engine::load(&options).unwrap());
    assert_eq!(bytes_given(&library, symbol), 0);
    let allocator = open_allocator(path).unwrap();
    assert_eq!(allocator.name(), name);
    let options = EngineOptions { heap_allocator: Some(allocator), ..options };
    let engine = Engine::load(&options).unwrap();
    assert_eq!(answer(&engine), expected, "{name}");
    let reserved = engine.status().resources.heap_pool.reserved_bytes;
    assert_eq!(bytes_given(&library, symbol), reserved, "all of it is the library's");
    let memory = engine.memory();
    assert!(reserved >= memory.resident_bytes() - memory.tokenizer_bytes());
    drop(engine);
    assert_eq!(bytes_given(&library, symbol), 0, "and all is given back");
}

#[test]
fn the_examples_serve_whole_answers() {
    let folder = tempfile::tempdir().unwrap();
    let tiny = folder.path().join("tiny.gguf");
    std::fs::write(&tiny, TinyModel::default().to_bytes()).unwrap();
    let in_c = build_c(Path::new("docs/allocator/mapped.c"), folder.path(), "mapped");
    let in_rust = build_rust("docs/allocator/counting.rs", folder.path());
    let smollm2 = testkit::default_model();
    for model in [Some(tiny), smollm2].iter().flatten() {
        check_serves(&in_c, "mapped_bytes_given", "mapped (C)", model);
        check_serves(&in_rust, "counting_bytes_given", "counting (Rust)", model);
    }
}

/// One way to misbehave for each name.
const BAD: &str = r#"
#include <pelton_allocator.h>
#include <stdlib.h>

__attribute__((unused))
static int give(void *context, uint64_t bytes, uint64_t alignment, struct pelton_memory *memory)
{
#if defined(no_memory)
    return 7;
#endif
#if !defined(no_address)
    memory->address = aligned_alloc(alignment, bytes + alignment);
#endif
    memory->bytes = bytes;
#if defined(misaligned)
    memory->address = (char *)memory->address + 64;
#elif defined(too_small)
    memory->bytes = bytes - 1;
#elif defined(dirty)
    *(char *)memory->address = 1;
    memory->flags = PELTON_MEMORY_ZEROED;
#elif defined(odd_flags)
    memory->flags = 0xfe;
#elif defined(odd_reserved)
    memory->reserved = 3;
#elif defined(same)
    static void *only;
    if (bytes > 4096) {
        if (!only)
            only = memory->address;
        memory->address = only;
    }
#endif
    return 0;
}

static void take_back(void *context, const struct pelton_memory *memory)
{
    (void)memory;
}

#if defined(other_name)
const struct pelton_allocator_table pelton_allocator_v9 = {
#else
const struct pelton_allocator_table pelton_allocator_v1 = {
#endif
#if defined(version)
    .abi_version = 2,
#else
    .abi_version = PELTON_ALLOCATOR_ABI,
#endif
#if defined(size)
    .table_bytes = 40,
#else
    .table_bytes = sizeof(struct pelton_allocator_table),
#endif
#if defined(empty_name)
    .name = "",
#elif !defined(no_name)
    .name = "bad",
#endif
#if defined(reserved_word)
    .reserved = 1,
#endif
#if defined(kind)
    .memory_kind = 9,
#endif
#if !defined(no_function)
    .allocate = give,
#endif
    .free = take_back,
};
"#;

#[test]
fn libraries_that_misbehave_are_refused_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let source = folder.path().join("bad.c");
    std::fs::write(&source, BAD).unwrap();
    for (variant, expected) in [
        ("no_memory", "allocator `bad` has no 4096 bytes: its function answers 7"),
        ("no_address", "allocator `bad` gave no address for 4096 bytes"),
        ("misaligned", "no multiple of 4096"),
        ("too_small", "allocator `bad` gave 4095 bytes where 4096 were asked for"),
        ("dirty", "does not keep what is written to it, or is not the zeros that it is said to be"),
        ("other_name", "it has no symbol `pelton_allocator_v1`"),
        ("version", "its table is of version 2, this program has 1"),
        ("size", "its table has 40 bytes, version 1 has 48"),
        ("odd_flags", "it sets flags 0xfe and 0 in the reserved word"),
        ("odd_reserved", "it sets flags 0x0 and 3 in the reserved word"),
        ("no_name", "its table has no name"),
        ("empty_name", "its name is empty"),
        ("reserved_word", "the reserved word of its table is 1, not 0"),
        ("kind", "its memory is of the unknown kind 9"),
        ("no_function", "its table lacks a function"),
    ] {
        let library = build_c(&source, folder.path(), variant);
        let error = open_allocator(&library).err().unwrap().to_string();
        assert!(error.starts_with("heap_pool.allocator: the allocator "), "{variant}: {error}");
        assert!(error.contains(expected), "{variant}: {error}");
    }
    let pipe = folder.path().join("pipe");
    let kind = (rustix::fs::FileType::Fifo, rustix::fs::Mode::RWXU);
    rustix::fs::mknodat(rustix::fs::CWD, &pipe, kind.0, kind.1, 0).unwrap();
    for (path, expected) in [
        // The system's own words name the file, or what it lacks.
        (source.clone(), "does not open it as a library: "),
        (source.clone(), "bad.c: "),
        (folder.path().join("x"), "No such"),
        (folder.path().to_owned(), "it is no regular file"),
        (pipe, "it is no regular file"),
    ] {
        let error = open_allocator(&path).err().unwrap().to_string();
        assert!(error.contains(expected), "{error}");
    }
    let model = folder.path().join("tiny.gguf");
    std::fs::write(&model, TinyModel::default().to_bytes()).unwrap();
    // It works when it is tried, and gives every heap the same bytes.
    let allocator = open_allocator(&build_c(&source, folder.path(), "same")).unwrap();
    let heap_pool =
        HeapSettings { heap_bytes: Some(64 << 20), heaps: 2, ..HeapSettings::default() };
    let options = EngineOptions {
        heap_allocator: Some(allocator),
        heap_pool,
        ..EngineOptions::new(model.clone(), "tiny")
    };
    let error = Engine::load(&options).err().unwrap().to_string();
    assert!(error.contains("some of which it gave before"), "{error}");
    // It works when it is tried, and has less than the model needs.
    let fails_later = BAD.replace("#if defined(no_memory)", "#if 1\n    if (bytes > 4096)");
    let path = folder.path().join("later.c");
    std::fs::write(&path, fails_later).unwrap();
    let allocator = open_allocator(&build_c(&path, folder.path(), "later")).unwrap();
    let options =
        EngineOptions { heap_allocator: Some(allocator), ..EngineOptions::new(model, "tiny") };
    let error = Engine::load(&options).err().unwrap().to_string();
    assert!(error.contains("allocator `bad` has no"), "{error}");
}
