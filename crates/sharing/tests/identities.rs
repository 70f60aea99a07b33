//! Which differences keep two requests apart, and which do not?

use messages::{CacheNamespace, Constraint, SamplingParams};
use sharing::{Identity, Work};

#[derive(Clone)]
struct Request {
    model: [u8; 32],
    namespace: CacheNamespace,
    prompt: Vec<u32>,
    params: SamplingParams,
    stop_tokens: Vec<u32>,
}

fn names(tenant: &str, salt: &str) -> CacheNamespace {
    CacheNamespace { tenant: tenant.to_owned(), salt: salt.to_owned(), adapter: String::new() }
}

fn request() -> Request {
    Request {
        model: [1; 32],
        namespace: names("key", "s"),
        prompt: vec![1, 2, 3],
        params: SamplingParams {
            temperature: 0.7,
            seed: Some(5),
            min_tokens: 2,
            logit_bias: vec![(4, 1.0)],
            ..SamplingParams::default()
        },
        stop_tokens: vec![0, 2],
    }
}

fn identity(request: &Request) -> Identity {
    Identity::of(&Work {
        model: &request.model,
        namespace: &request.namespace,
        prompt: &request.prompt,
        params: &request.params,
        stop_tokens: &request.stop_tokens,
    })
}

fn choice(texts: &[&str]) -> Constraint {
    Constraint::Choice(texts.iter().map(|&text| text.to_owned()).collect())
}

type Change = fn(&mut Request);

#[test]
fn what_changes_tokens_keeps_requests_apart() {
    let changes: &[Change] = &[
        |request| request.model[31] = 2,
        |request| request.namespace.tenant = "other".to_owned(),
        |request| request.namespace.salt = String::new(),
        // The same letters, parted otherwise.
        |request| request.namespace = names("keys", ""),
        |request| request.namespace.adapter = "poet".to_owned(),
        |request| request.prompt.push(4),
        |request| request.prompt = vec![3, 2, 1],
        |request| request.params.temperature = 0.71,
        |request| request.params.temperature = 0.0,
        |request| request.params.top_k = 5,
        |request| request.params.top_p = 0.5,
        |request| request.params.min_p = 0.1,
        |request| request.params.repetition_penalty = 1.5,
        |request| request.params.presence_penalty = 0.5,
        |request| request.params.frequency_penalty = 0.5,
        |request| request.params.logit_bias = vec![(4, 2.0)],
        |request| request.params.logit_bias.clear(),
        |request| request.params.seed = Some(6),
        |request| request.params.seed = None,
        |request| request.params.logprobs = Some(0),
        |request| request.params.logprobs = Some(1),
        |request| request.params.min_tokens = 3,
        |request| request.stop_tokens.push(7),
        |request| request.stop_tokens.clear(),
        |request| request.params.constraint = Some(Constraint::JsonObject),
        |request| request.params.constraint = Some(Constraint::JsonSchema("{}".into())),
        |request| request.params.constraint = Some(Constraint::Regex("{}".into())),
        |request| request.params.constraint = Some(Constraint::Grammar("{}".into())),
        |request| request.params.constraint = Some(Constraint::Grammar("{} ".into())),
        |request| request.params.constraint = Some(choice(&["ab", "c"])),
        |request| request.params.constraint = Some(choice(&["a", "bc"])),
        |request| request.params.constraint = Some(choice(&["abc"])),
        // A token moved from one list to its neighbour.
        |request| (request.prompt, request.stop_tokens) = (vec![1, 2], vec![3, 0, 2]),
    ];
    let mut seen = vec![identity(&request())];
    for (index, change) in changes.iter().enumerate() {
        let mut changed = request();
        change(&mut changed);
        let changed = identity(&changed);
        assert!(!seen.contains(&changed), "change {index} makes no difference");
        seen.push(changed);
    }
}

#[test]
fn what_changes_no_token_does_not() {
    let changes: &[Change] = &[
        |request| request.params.max_tokens = Some(9),
        |request| request.params.ignore_eos = true,
        |request| request.params.stop_token_ids = vec![9],
        |request| request.stop_tokens = vec![2, 0, 2],
        |request| request.params.presence_penalty = -0.0,
    ];
    for (index, change) in changes.iter().enumerate() {
        let mut changed = request();
        change(&mut changed);
        assert_eq!(identity(&changed), identity(&request()), "change {index}");
    }
    let greedy: &[Change] = &[
        |request| request.params.seed = None,
        |request| request.params.top_k = 7,
        |request| request.params.top_p = 0.5,
        |request| request.params.min_p = 0.5,
        |request| request.params.temperature = -0.0,
    ];
    let mut base = request();
    base.params.temperature = 0.0;
    for (index, change) in greedy.iter().enumerate() {
        let mut changed = base.clone();
        change(&mut changed);
        assert_eq!(identity(&changed), identity(&base), "greedy change {index}");
    }
    let unstoppable = |min_tokens| {
        let mut request = request();
        request.stop_tokens.clear();
        request.params.min_tokens = min_tokens;
        identity(&request)
    };
    assert_eq!(unstoppable(2), unstoppable(3), "nothing is banned");
}
