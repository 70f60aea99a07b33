//! Does a template written to harm end in an error, with the parent alive and the next request
//! served?

#![allow(clippy::unwrap_used, reason = "tests")]

use std::process::Command;
use std::time::{Duration, Instant};

use chat::{
    ChatError, Message, RenderRequest, TemplateLimits, TemplateSetup, TemplateWorker,
    builtin_template, builtin_template_names,
};
use serde_json::json;

const DEADLINE: Duration = Duration::from_secs(2);

fn spawn(source: &str) -> Result<TemplateWorker, ChatError> {
    let limits = TemplateLimits { deadline: DEADLINE, ..TemplateLimits::default() };
    let source = source.to_owned();
    let setup = TemplateSetup { source, limits, ..TemplateSetup::default() };
    TemplateWorker::spawn(Command::new(env!("CARGO_BIN_EXE_template-worker-test")), setup)
}

fn request(content: &str) -> RenderRequest {
    let messages = vec![Message::new("user", content)];
    RenderRequest { messages, add_generation_prompt: true, ..RenderRequest::default() }
}

/// Harms when the message says `harm`, answers when it says anything else.
fn harm(bomb: &str) -> ChatError {
    let source =
        format!("{{% if messages[0].content == 'harm' %}}{bomb}{{% else %}}fine{{% endif %}}");
    let worker = spawn(&source).unwrap();
    let started = Instant::now();
    let error = worker.render(&request("harm")).map(|text| text.len()).unwrap_err();
    // Two tries of a child that dies, and a margin for a busy machine.
    assert!(started.elapsed() < 3 * DEADLINE, "{bomb}: {:?}", started.elapsed());
    assert_eq!(worker.render(&request("hello")).unwrap(), "fine", "{bomb}");
    error
}

/// Nests the list in itself 60 times, then does `last` with it.
fn nested(last: &str) -> String {
    format!(
        "{{% set n = namespace(a=['x']) %}}\
         {{% for i in range(60) %}}{{% set n.a = [n.a, n.a] %}}{{% endfor %}}{last}"
    )
}

#[test]
fn bombs_end_and_the_next_request_is_served() {
    let grow = |step: &str| {
        format!(
            "{{% set n = namespace(a='aaaaaaaaaaaaaaaa') %}}\
             {{% for i in range(60) %}}{{% set n.a = {step} %}}{{% endfor %}}{{{{ n.a }}}}"
        )
    };
    let bombs = [
        grow("n.a.replace('a', n.a)"),
        grow("n.a.join(n.a.split(''))"),
        grow("n.a.join(n.a.replace('a', 'a ').split())"),
        grow("n.a ~ n.a"),
        grow("n.a * 16"),
        nested("{{ n.a }}"),
        nested("{{ n.a | tojson }}"),
        nested("{{ n.a | string }}"),
        nested("{{ n.a ~ '' }}"),
        nested(
            "{% set m = namespace(a=['x']) %}{% for i in range(60) %}\
                {% set m.a = [m.a, m.a] %}{% endfor %}{{ n.a == m.a }}",
        ),
        nested("{{ [n.a].index([n.a]) }}"),
        nested("{{ n.a | pprint }}"),
        "{% for i in range(1000000000) %}{% endfor %}".to_owned(),
        "{{ 'a' * 1000000000 }}".to_owned(),
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}".to_owned(),
        "{{ [1].append(2) }}".to_owned(),
        "{{ '7'.zfill(1000000000) }}".to_owned(),
    ];
    for bomb in bombs {
        let started = Instant::now();
        let error = harm(&bomb);
        eprintln!("{:>6.1?} {error}", started.elapsed());
    }
}

#[test]
fn python_s_way_out_leads_nowhere() {
    for probe in [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages.__class__.__init__.__globals__['os'].popen('id').read() }}",
        "{{ cycler.__init__.__globals__.os.system('id') }}",
        "{{ self._TemplateReference__context.cycler.__init__.__globals__.os }}",
        "{{ lipsum.__globals__['os'].popen('id').read() }}",
        "{{ request.application.__globals__ }}",
        "{{ ''['__class__']['__base__'] }}",
        "{{ (messages | attr('__class__')) | attr('__base__') }}",
        "{% include '/etc/passwd' %}",
        "{% import 'os' as os %}{{ os.environ }}",
        "{{ debug() }}",
    ] {
        match spawn(probe).and_then(|worker| worker.render(&request("x"))) {
            Ok(text) => assert_eq!(text.trim(), "", "{probe}"),
            Err(ChatError::RenderFailed { .. } | ChatError::InvalidTemplate { .. }) => {}
            Err(error) => panic!("{probe}: {error}"),
        }
    }
}

#[test]
fn templates_that_are_none_are_refused_at_the_start() {
    let nested_ifs = "{% if 1 %}".repeat(5_500);
    for source in ["{% if %}", "{{ 'a' ", "{% unknown %}", &nested_ifs] {
        let error = spawn(source).unwrap_err();
        assert!(
            matches!(error, ChatError::InvalidTemplate { .. } | ChatError::WorkerDied),
            "{error}"
        );
    }
    let error = spawn(&" ".repeat(300 << 10)).unwrap_err();
    assert!(matches!(error, ChatError::TemplateTooLarge { .. }));
}

#[test]
fn the_caller_s_faults_are_named() {
    let worker = spawn("{{ messages[0].content }}{{ raise_exception('no ' ~ secret) }}").unwrap();
    let mut asked = request("x");
    asked.extra.insert("secret".to_owned(), json!(7));
    let error = worker.render(&asked).unwrap_err();
    assert_eq!(error, ChatError::Raised { text: "no 7".to_owned() });
    asked.extra.insert("messages".to_owned(), json!([]));
    let error = worker.render(&asked).unwrap_err();
    assert_eq!(error, ChatError::ReservedName { name: "messages".to_owned() });
    let error = worker.render(&request(&"x".repeat(9 << 20))).unwrap_err();
    assert!(matches!(error, ChatError::ConversationTooLarge { .. }));
}

#[test]
fn a_worker_that_is_no_worker_is_an_error() {
    let setup = |limits| {
        let source = "x".to_owned();
        TemplateSetup { source, limits, ..TemplateSetup::default() }
    };
    let absent = Command::new("/no/such/program");
    let error = TemplateWorker::spawn(absent, setup(TemplateLimits::default())).unwrap_err();
    assert!(matches!(error, ChatError::CannotStart { .. }), "{error}");
    let mut silent = Command::new("/bin/sleep");
    silent.arg("60");
    let limits = TemplateLimits { deadline: Duration::from_millis(100), workers_max: 1 };
    let error = TemplateWorker::spawn(silent, setup(limits)).unwrap_err();
    assert_eq!(error, ChatError::TooSlow { deadline_ms: 100 });
}

#[test]
fn a_child_that_was_killed_is_replaced_unseen() {
    let folder = tempfile::tempdir().unwrap();
    let pid_path = folder.path().join("pid");
    let mut command = Command::new("/bin/sh");
    let program = env!("CARGO_BIN_EXE_template-worker-test");
    command.args(["-c", "echo $$ > \"$0\"; exec \"$1\""]).arg(&pid_path).arg(program);
    let setup = TemplateSetup {
        source: "{{ messages[0].content }}".to_owned(),
        limits: TemplateLimits { deadline: DEADLINE, workers_max: 1 },
        ..TemplateSetup::default()
    };
    let worker = TemplateWorker::spawn(command, setup).unwrap();
    for round in 0..3 {
        let content = format!("round {round}");
        assert_eq!(worker.render(&request(&content)).unwrap(), content);
        let pid = std::fs::read_to_string(&pid_path).unwrap();
        assert!(Command::new("kill").args(["-9", pid.trim()]).status().unwrap().success());
    }
    let limits = TemplateLimits::default();
    let source = "x".to_owned();
    let setup = TemplateSetup { source, limits, ..TemplateSetup::default() };
    let error = TemplateWorker::spawn(Command::new("/bin/true"), setup).unwrap_err();
    assert_eq!(error, ChatError::WorkerDied);
}

#[test]
fn many_threads_share_the_workers() {
    let worker = spawn("{{ messages[0].content }}").unwrap();
    std::thread::scope(|scope| {
        for thread in 0..8 {
            let worker = &worker;
            scope.spawn(move || {
                for round in 0..50 {
                    let content = format!("{thread}-{round}");
                    assert_eq!(worker.render(&request(&content)).unwrap(), content);
                }
            });
        }
    });
}

#[test]
fn built_in_templates_render() {
    for name in builtin_template_names() {
        let prompt =
            spawn(builtin_template(name).unwrap()).unwrap().render(&request("Hi")).unwrap();
        assert!(prompt.contains("user") && prompt.contains("Hi"), "{name}: {prompt}");
        assert!(prompt.ends_with('\n'), "{name}: {prompt}");
    }
    assert_eq!(builtin_template("none"), None);
}
