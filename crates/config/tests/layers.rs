//! Files, variables and flags as people write them, and what comes of it.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::path::{Path, PathBuf};

use config::{
    Config, ConfigError, Key, KeyConfig, Kind, Loaded, Origin, RepackCache, Sources,
    SpeculationMode,
};

fn sources(file: Option<PathBuf>, environment: &[(&str, &str)], flags: &[(&str, &str)]) -> Sources {
    let owned = |list: &[(&str, &str)]| {
        list.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    };
    Sources { file, environment: owned(environment), flags: owned(flags) }
}

fn of_environment(environment: &[(&str, &str)]) -> Result<Loaded, ConfigError> {
    sources(None, environment, &[]).load()
}

fn of_flags(flags: &[(&str, &str)]) -> Result<Loaded, ConfigError> {
    sources(None, &[], flags).load()
}

/// The file `pelton.yaml` with this text; its folder is left out of errors.
fn of_file(text: &str) -> Result<Loaded, String> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("pelton.yaml");
    std::fs::write(&path, text).unwrap();
    let loaded = sources(Some(path), &[], &[]).load();
    loaded.map_err(|error| error.to_string().replace(&format!("{}/", folder.path().display()), ""))
}

fn refusal(text: &str) -> String {
    of_file(text).unwrap_err()
}

/// A text that is a value of this key other than its default.
fn other_value(key: &Key) -> String {
    match (&key.kind, key.path.as_str()) {
        (_, "kv_tiers.disk_path") => "any".to_owned(),
        (Kind::Truth, _) => (!key.default.as_bool().unwrap()).to_string(),
        (Kind::Whole | Kind::Real, _) => {
            let least = key.least.as_ref().and_then(serde_json::Number::as_u64).unwrap_or_default();
            let is_default = key.default.as_u64() == Some(least);
            (least + u64::from(is_default)).to_string()
        }
        (Kind::TruthOrText, _) => "true".to_owned(),
        (Kind::Choice(names), _) => {
            let default = key.default.as_str();
            names.iter().find(|name| default != Some(name.as_str())).unwrap().clone()
        }
        (Kind::WholeOr(_), _) => "7".to_owned(),
        (Kind::List(_), "access.keys") => {
            format!("[{{name: a, sha256: \"{}\"}}]", "0".repeat(64))
        }
        (Kind::List(item), _) if matches!(item.kind, Kind::Record(_)) => "[{model: a}]".to_owned(),
        (Kind::List(_), _) => "7".to_owned(),
        (Kind::Text | Kind::Record(_), _) => "other".to_owned(),
    }
}

/// What another key must be so that this one may be set.
fn needed_by(key: &Key) -> &'static [(&'static str, &'static str)] {
    match key.path.as_str() {
        "heap_pool.num_heaps" => &[("heap_pool.heap_size_mb", "64")],
        "kv_tiers.disk_bytes" => &[("kv_tiers.disk_path", "any")],
        "server.tls_certificate_file" => &[("server.tls_key_file", "any")],
        "server.tls_key_file" => &[("server.tls_certificate_file", "any")],
        _ => &[],
    }
}

#[test]
fn every_key_is_set_by_its_variable_and_by_a_flag() {
    for key in config::keys() {
        let value = other_value(&key);
        let variable = format!("PELTON_{}", key.path.replace('.', "__").to_uppercase());
        let by_variable = sources(None, &[(&variable, &value)], needed_by(&key)).load().unwrap();
        let flags = [&[(key.path.as_str(), value.as_str())], needed_by(&key)].concat();
        let by_flag = of_flags(&flags).unwrap();
        for (loaded, origin) in [(by_variable, Origin::Variable(variable)), (by_flag, Origin::Flag)]
        {
            assert_ne!(loaded.config, Config::default(), "{} changes nothing", key.path);
            let setting = loaded.settings.iter().find(|setting| setting.key.path == key.path);
            assert_eq!(setting.unwrap().origin, origin, "{}", key.path);
        }
    }
}

#[test]
fn every_key_is_set_by_the_file() {
    for key in config::keys() {
        let value = other_value(&key);
        let value = if matches!(key.kind, Kind::List(_)) && !value.starts_with('[') {
            format!("['{value}']")
        } else {
            value
        };
        let text = match key.path.split_once('.') {
            None => format!("{}: {value}\n", key.path),
            Some((section, name)) => {
                let needed = needed_by(&key).iter().map(|(path, value)| {
                    format!("  {}: {value}\n", path.rsplit_once('.').unwrap().1)
                });
                format!("{section}:\n  {name}: {value}\n{}", needed.collect::<String>())
            }
        };
        let loaded = of_file(&text).unwrap();
        assert_ne!(loaded.config, Config::default(), "{text} changes nothing");
        let setting = loaded.settings.iter().find(|setting| setting.key.path == key.path).unwrap();
        let line = if key.path.contains('.') { 2 } else { 1 };
        assert_eq!(setting.origin, Origin::File(line), "{text}");
    }
}

#[test]
fn flags_override_variables_and_they_the_file() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("any.yaml");
    std::fs::write(&path, "server: {port: 1, host: a}\nthreads: 3\n").unwrap();
    let environment = [("PELTON_PORT", "2"), ("PELTON_SERVER__HOST", "b")];
    let loaded = sources(Some(path), &environment, &[("server.port", "4")]).load().unwrap();
    let server = &loaded.config.server;
    assert_eq!((server.port, server.host.as_str(), loaded.config.threads), (4, "b", Some(3)));
    let origin = |path: &str| {
        let setting = loaded.settings.iter().find(|setting| setting.key.path == path).unwrap();
        setting.origin.to_string()
    };
    assert_eq!(origin("server.port"), "flag");
    assert_eq!(origin("server.host"), "environment, PELTON_SERVER__HOST");
    assert_eq!(origin("threads"), "file, line 2");
    assert_eq!(origin("prefix_cache"), "default");
}

#[test]
fn what_kubernetes_says_of_a_service_is_no_setting() {
    let service = [
        ("PELTON_SERVICE_HOST", "10.0.0.1"),
        ("PELTON_SERVICE_PORT", "8000"),
        ("PELTON_SERVICE_PORT_HTTP", "8000"),
        ("PELTON_PORT", "tcp://10.0.0.1:8000"),
        ("PELTON_PORT_8000_TCP", "tcp://10.0.0.1:8000"),
        ("PELTON_PORT_8000_TCP_ADDR", "10.0.0.1"),
        ("PELTON_PORT_8000_TCP_PORT", "8000"),
        ("PELTON_PORT_8000_TCP_PROTO", "tcp"),
    ];
    let other = service.map(|(name, value)| (name.replace("PELTON", "PELTON_CHAT_2"), value));
    let other: Vec<_> = other.iter().map(|(name, value)| (name.as_str(), *value)).collect();
    let ours = ("PELTON_SERVER__PORT", "81");
    for environment in [&service[..], &other, &[&service[..], &other, &[ours]].concat()] {
        let loaded = sources(None, environment, &[]).load().unwrap();
        let is_ours = environment.contains(&ours);
        let port = if is_ours { 81 } else { Config::default().server.port };
        assert_eq!(loaded.config.server.port, port);
    }
    // Neither is anything else passed over, nor a wrong port believed.
    for environment in [
        &[("PELTON_PORT", "tcp://10.0.0.1:8000")][..],
        &[("PELTON_SERVICE_HOST", "10.0.0.1"), ("PELTON_PORT", "80000")],
        &[("PELTON_SERVICE_PORT", "8000")],
        &[&service[..], &[("PELTON_PORTS", "1")]].concat(),
    ] {
        sources(None, environment, &[]).load().unwrap_err();
    }
}

/// The texts below this folder whose names end so.
fn texts(folder: &Path, ending: &str) -> Vec<String> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(texts(&path, ending));
        } else if path.to_string_lossy().ends_with(ending) {
            found.extend(std::fs::read_to_string(path));
        }
    }
    found
}

/// A variable that a build, a test or CI reads may be exported where the program runs.
#[test]
fn variables_that_the_project_reads_are_refused_nowhere() {
    let tree = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let name = |text: &str| {
        let end = text.find(|character: char| !character.is_ascii_uppercase() && character != '_');
        format!("PELTON_{}", &text[..end.unwrap_or(text.len())])
    };
    let mut read = Vec::new();
    for text in texts(&tree.join("crates"), ".rs") {
        for call in ["var(\"PELTON_", "var_os(\"PELTON_"] {
            read.extend(text.split(call).skip(1).map(name));
        }
    }
    let checks = std::fs::read_to_string(tree.join(".ci/run")).unwrap();
    read.extend(checks.split("PELTON_").skip(1).map(name));
    assert!(read.iter().any(|name| name == "PELTON_NVCC"), "{read:?}");
    for name in read {
        let unknown = of_environment(&[(&name, "somewhere")])
            .is_err_and(|error| matches!(error, ConfigError::UnknownVariable { .. }));
        assert!(!unknown, "{name} is read, and refused: crates/config/src/environment.rs lists it");
    }
}

#[test]
fn values_are_what_their_keys_are() {
    let text = "speculation: off\nmodel: {name: 7, repack_cache: /tmp/kept}\nthreads: null\n\
                models:\n  - model: other.gguf\n  - {name: b, model: b.gguf, pinned: true}\n";
    let config = of_file(text).unwrap().config;
    assert_eq!(config.speculation, SpeculationMode::Off);
    assert_eq!(config.model.name.as_deref(), Some("7"));
    assert_eq!(config.model.repack_cache, RepackCache::At("/tmp/kept".into()));
    assert_eq!(config.threads, None);
    let names: Vec<_> = config.models.iter().map(|model| model.name.as_deref()).collect();
    assert_eq!((names, config.models[1].pinned), (vec![None, Some("b")], true));
    let config = of_environment(&[("PELTON_SERVER__ALLOWED_HOSTS", "a, b")]).unwrap().config;
    assert_eq!(config.server.allowed_hosts, ["a", "b"]);
}

#[test]
fn an_absent_key_keeps_its_default() {
    let config = of_file("server: {port: 1}\n").unwrap().config;
    let default = Config::default();
    assert_eq!((config.server.port, config.server.host), (1, default.server.host.clone()));
    assert_eq!(config.limits, default.limits);
    for text in ["# nothing\n\n", ""] {
        assert_eq!(of_file(text).unwrap().config, default);
    }
    // An empty variable counts as not set.
    assert_eq!(of_environment(&[("PELTON_PORT", "")]).unwrap().config, default);
}

#[test]
fn the_users_file_is_found() {
    let folder = tempfile::tempdir().unwrap();
    let home = folder.path().join(".config").join("pelton");
    std::fs::create_dir_all(&home).unwrap();
    std::fs::write(home.join("pelton.yaml"), "device: reference\n").unwrap();
    let named = folder.path().join("named.yaml");
    std::fs::write(&named, "device: cpu\n").unwrap();
    let root = folder.path().to_str().unwrap();
    assert_eq!(of_environment(&[("HOME", root)]).unwrap().config.device, "reference");
    let both = [("HOME", root), ("PELTON_CONFIG", named.to_str().unwrap())];
    assert_eq!(of_environment(&both).unwrap().config.device, "cpu");
    assert_eq!(of_environment(&[]).unwrap().config, Config::default());
}

#[test]
fn an_unknown_key_is_named_with_its_place_and_neighbor() {
    for (text, expected) in [
        ("server:\n  prot: 1\n", "pelton.yaml:2:3: unknown key `prot`, did you mean `port`?"),
        ("modle: x\n", "pelton.yaml:1:1: unknown key `modle`, did you mean `model`?"),
        (
            "model:\n  zzzzzz: 1\n",
            "pelton.yaml:2:3: unknown key `zzzzzz`, the keys here are `name`, `context_tokens`, \
             `pooling`, `adapters`, `tool_calls`, `repack_cache`",
        ),
    ] {
        assert_eq!(refusal(text), expected);
    }
    let unknown = |name: &str| of_environment(&[(name, "1")]).unwrap_err().to_string();
    let text = unknown("PELTON_THREDS");
    assert!(text.contains("PELTON_THREDS") && text.contains("mean PELTON_THREADS?"), "{text}");
    let text = unknown("PELTON_LIMITS__WAITING_MAXX");
    assert!(text.contains("mean PELTON_LIMITS__WAITING_MAX?"), "{text}");
    let flag = |name: &str| of_flags(&[(name, "1")]).unwrap_err().to_string();
    assert!(flag("server.prot").contains("mean `server.port`?"), "{}", flag("server.prot"));
    assert!(flag("waiting_max").contains("`limits.waiting_max`"), "{}", flag("waiting_max"));
}

#[test]
fn a_wrong_value_is_told_with_what_is_allowed() {
    for (text, expected) in [
        (
            "server:\n  port: 65536\n",
            "pelton.yaml:2: `server.port` must be a whole number, 0 to 65535",
        ),
        (
            "server:\n  port: http\n",
            "pelton.yaml:2: `server.port` must be a whole number, 0 to 65535",
        ),
        (
            "limits:\n  waiting_max: 0\n",
            "pelton.yaml:2: `limits.waiting_max` is 0, it must be a whole number, 1 to 65536",
        ),
        (
            "speculation: perhaps\n",
            "pelton.yaml:1: `speculation` must be `off`, `auto` or `always`",
        ),
        (
            "kv_dtype: f8\n",
            "pelton.yaml:1: `kv_dtype` is \"f8\", it must be `f16`, `bf16`, `int16` or `int8`, or \
             null",
        ),
        (
            "heap_pool: {warmup_sizes: [1, [2]]}\n",
            "pelton.yaml:1: `heap_pool.warmup_sizes[1]` must be a whole number, 1 to \
             17592186044416",
        ),
        (
            "heap_pool: {warmup_sizes: [18446744073709551615]}\n",
            "pelton.yaml:1: `heap_pool.warmup_sizes[0]` is 18446744073709551615, it must be a \
             whole number, 1 to 17592186044416",
        ),
        (
            "models:\n  - model: a\n  - model: b\n    idle_minutes: 0\n",
            "pelton.yaml:4: `models[1].idle_minutes` is 0, it must be a whole number, 1 to 525600, \
             or null",
        ),
    ] {
        assert_eq!(refusal(text), expected);
    }
    for (name, value) in [
        ("PELTON_PORT", "65536"),
        ("PELTON_SERVER__PORT", "http"),
        ("PELTON_THREADS", "0"),
        ("PELTON_KV_CACHE_MB", "99999999999999999999"),
        ("PELTON_ALLOW_PUBLIC", "maybe"),
        ("PELTON_KV_TIERS_RAM_BYTES", "1 GB"),
    ] {
        let error = of_environment(&[(name, value)]).unwrap_err().to_string();
        assert!(error.contains(name) && error.contains("it must be"), "{error}");
    }
    let error = of_flags(&[("server.port", "http")]).unwrap_err().to_string();
    assert!(error.contains("a whole number, 0 to 65535"), "{error}");
}

#[test]
fn contradictions_are_refused() {
    assert_eq!(
        refusal("server: {port: 1}\nserver: {port: 2}\n"),
        "pelton.yaml:2:1: `server` stands here a second time: keep one of the two"
    );
    let twice = [("PELTON_PORT", "1"), ("PELTON_SERVER__PORT", "2")];
    let text = of_environment(&twice).unwrap_err().to_string();
    assert!(text.contains("PELTON_PORT") && text.contains("PELTON_SERVER__PORT"), "{text}");
    let text = of_flags(&[("threads", "1"), ("threads", "2")]).unwrap_err().to_string();
    assert!(text.contains("`1` and to `2`"), "{text}");
    let text = refusal("heap_pool: {num_heaps: 4}\n");
    assert!(text.contains("heap_pool.heap_size_mb"), "{text}");
    let text = refusal("kv_tiers: {disk_bytes: 1}\n");
    assert!(text.contains("kv_tiers.disk_path"), "{text}");
    let text = refusal("kv_tiers: {ram_bytes: 1}\nprefix_cache: false\n");
    assert!(text.contains("prefix_cache"), "{text}");
}

#[test]
fn files_that_are_none_are_refused() {
    for (text, place) in [
        ("server: [\n", "pelton.yaml:1:9: "),
        ("server:\n\tport: 1\n", "pelton.yaml:2:2: "),
        ("server:\n  port: 1\n host: x\n", "pelton.yaml:3:2: "),
        ("threads: 'x\n", "pelton.yaml:1:10: "),
    ] {
        let told = refusal(text);
        assert!(told.starts_with(&format!("{place}this is no YAML (")), "{text:?}: {told}");
        assert!(told.ends_with("): mend this line or one above it"), "{text:?}: {told}");
    }
    for (text, told) in [
        ("server: *nobody\n", "pelton.yaml:1:9: there is no anchor of this name before it"),
        ("threads: 1\n---\nthreads: 2\n", "pelton.yaml:3:1: a second document begins above"),
    ] {
        assert!(refusal(text).starts_with(told), "{text:?}: {}", refusal(text));
    }
    assert_eq!(
        refusal("server: 8080\n"),
        "pelton.yaml:1: `server` is a section: write its keys below it, each on a line of its own \
         and indented"
    );
    let error = sources(Some("/nowhere/pelton.yaml".into()), &[], &[]).load().unwrap_err();
    assert!(error.to_string().contains("/nowhere/pelton.yaml"), "{error}");
    let mut text =
        "device: &a0 x\nmodel: &a1 [*a0,*a0,*a0,*a0,*a0,*a0,*a0,*a0,*a0,*a0]\n".to_owned();
    for level in 2..12 {
        let item = format!("*a{}", level - 1);
        let items = [item.as_str(); 10].join(",");
        text.push_str(&format!("k{level}: &a{level} [{items}]\n"));
    }
    assert!(!refusal(&text).is_empty());
    let many = format!("models: [{}]\n", vec!["{}"; 250_001].join(","));
    let error = refusal(&many);
    assert!(error.contains("more keys and values than any configuration"), "{error}");
}

/// What is left of a section of `config init` whose keys are all commented out.
#[test]
fn a_section_without_keys_says_nothing() {
    let sections = config::sections().into_iter().map(|section| section.name);
    for name in sections.filter(|name| !name.is_empty()).chain(["models".to_owned()]) {
        for text in [format!("{name}:\n"), format!("{name}:\n  # a_key: 1\nthreads: 3\n")] {
            let loaded = of_file(&text).unwrap_or_else(|error| panic!("{text}: {error}"));
            let threads = text.contains("threads").then_some(3);
            assert_eq!(loaded.config, Config { threads, ..Config::default() }, "{text}");
        }
    }
}

#[test]
fn keys_that_are_set_in_vain_are_named() {
    let of = |flags: &[(&str, &str)]| of_flags(flags).unwrap().without_effect();
    for (flags, key, because) in [
        (
            &[("heap_pool.enabled", "false"), ("heap_pool.heap_size_mb", "9")][..],
            "heap_pool.heap_size_mb",
            "heap_pool.enabled",
        ),
        (&[("weights.max_pinned_mb", "9")], "weights.max_pinned_mb", "nothing is pinned"),
        (
            &[("sharing.enabled", "false"), ("sharing.ttl_seconds", "9")],
            "sharing.ttl_seconds",
            "sharing.enabled",
        ),
    ] {
        let said = of(flags);
        assert_eq!(said.len(), 1, "{said:?}");
        assert!(said[0].starts_with(&format!("`{key}` has no effect: ")), "{said:?}");
        assert!(said[0].contains(because), "{said:?}");
    }
    assert_eq!(of(&[]), Vec::<String>::new());
}

#[test]
fn changes_say_what_a_running_server_takes_up() {
    let mut held = of_file("threads: 1\nserver: {drain_seconds: 3}\n").unwrap();
    let next = of_file("threads: 2\nserver: {drain_seconds: 4}\nlog: debug\n").unwrap();
    let changes = held.take_up(&next);
    assert_eq!(changes.taken_up, ["log", "server.drain_seconds"]);
    assert_eq!(changes.restart, ["threads"]);
    let config = &held.config;
    assert_eq!((config.threads, config.server.drain_seconds), (Some(1), 4));
    // Until it is started anew, the server says so each time.
    let changes = held.take_up(&next);
    assert_eq!((changes.taken_up.len(), changes.restart), (0, vec!["threads".to_owned()]));
}

#[test]
fn places_that_are_not_there_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("file");
    std::fs::write(&file, "").unwrap();
    let below = file.join("below");
    let flags = [("sharing.folder", below.to_str().unwrap())];
    let missing = of_flags(&flags).unwrap().missing_places();
    assert_eq!(missing.len(), 1);
    assert!(missing[0].contains("sharing.folder"), "{}", missing[0]);
    let flags = [("sharing.folder", folder.path().to_str().unwrap())];
    assert_eq!(of_flags(&flags).unwrap().missing_places(), Vec::<String>::new());
}

/// `docs/configuration.md` is what the code says.
#[test]
fn the_reference_is_true() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/configuration.md");
    let written = std::fs::read_to_string(path).unwrap_or_default();
    assert!(
        written == config::reference(),
        "docs/configuration.md is out of date: \
         cargo run -p config --example reference > docs/configuration.md"
    );
}

#[test]
fn keys_stand_in_the_configuration_and_in_a_file_of_their_own() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("keys.yaml");
    let key = |name: &str, digit: &str| KeyConfig {
        models: vec!["a/b".to_owned()],
        tokens_per_day: Some(5),
        ..serde_json::from_value(
            serde_json::json!({"name": name, "sha256": digit.repeat(64), "admin": true}),
        )
        .unwrap()
    };
    config::add_key(&path, &key("one", "1")).unwrap();
    config::add_key(&path, &key("two", "2")).unwrap();
    for (name, digit, named) in
        [("one", "3", "`one`"), ("three", "2", "twice"), ("a b", "4", "a b")]
    {
        let error = config::add_key(&path, &key(name, digit)).unwrap_err().to_string();
        assert!(error.contains(named), "{error}");
    }
    let digest = "5".repeat(64);
    let text = format!(
        "access:\n  keys_file: {}\n  keys: [{{name: zero, sha256: \"{digest}\"}}]\n",
        path.display()
    );
    let loaded = of_file(&text).unwrap();
    assert_eq!(loaded.config.access.keys.len(), 1, "the file is read by those who serve");
    let loaded = loaded.with_keys_file().unwrap();
    let keys = &loaded.config.access.keys;
    assert_eq!(keys[1..], [key("one", "1"), key("two", "2")]);
    let setting = loaded.settings.iter().find(|setting| setting.key.path == "access.keys");
    assert_eq!(setting.unwrap().value.as_array().unwrap().len(), 3, "so that a reload sees them");

    std::fs::write(&path, "- {name: one, sha256: abc}\n").unwrap();
    let error = of_file(&text).unwrap().with_keys_file().unwrap_err().to_string();
    assert!(error.contains("keys.yaml:1:23: ") && error.contains("64 hex digits"), "{error}");
    std::fs::write(&path, format!("- {{name: one, sha265: \"{digest}\"}}\n")).unwrap();
    let error = of_file(&text).unwrap().with_keys_file().unwrap_err().to_string();
    assert!(error.contains("keys.yaml:1:") && error.contains("did you mean `sha256`"), "{error}");
    std::fs::write(&path, format!("- {{name: one, sha256: \"{digest}\"}}\n")).unwrap();
    let error = of_file(&text).unwrap().with_keys_file().unwrap_err().to_string();
    assert!(error.contains("twice"), "{error}");
    let none = format!("- {{name: x, sha256: \"{}\", tokens_per_day: 0}}\n", "6".repeat(64));
    std::fs::write(&path, none).unwrap();
    let error = of_file(&text).unwrap().with_keys_file().unwrap_err().to_string();
    assert!(error.contains("tokens_per_day"), "{error}");
    std::fs::remove_file(&path).unwrap();
    let error = of_file(&text).unwrap().with_keys_file().unwrap_err().to_string();
    assert!(error.contains("keys.yaml"), "{error}");
}
