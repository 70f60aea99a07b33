//! Folders of every family and every published form, damaged in their settings, in the headers of
//! their weights and in the texts beside them.

use std::path::{Path, PathBuf};

use serde_json::{Map, Value as Json, json};

use crate::trying::{Outcome, Random, try_all, turn, unharmed};

/// What a key of settings is made to say.
fn values() -> Vec<String> {
    let written = |value: &Json| value.to_string();
    let values = [
        json!(null),
        json!(true),
        json!(false),
        json!(-1),
        json!(0),
        json!(1),
        json!(2),
        json!(3),
        json!(7),
        json!(0.5),
        json!(-0.0),
        json!(1e300),
        json!(1e-300),
        json!(1 << 20),
        json!((1u64 << 31) - 1),
        json!(u32::MAX),
        json!(1u64 << 32),
        json!(u64::MAX),
        json!(""),
        json!("x"),
        json!("../../etc/passwd"),
        json!("\u{0}\u{1b}[2J\n"),
        json!([]),
        json!([0]),
        json!([1e39, -1, "x", null]),
        json!({}),
        json!({"rope_type": "yarn"}),
        json!({"": {"": {}}}),
    ];
    let mut all: Vec<String> = values.iter().map(written).collect();
    // As Python writes them, and what is deeper than anybody nests.
    all.extend(["NaN", "-Infinity", "1e999"].map(str::to_owned));
    all.push(format!("{}{}", "[".repeat(100_000), "]".repeat(100_000)));
    all
}

/// One file of a folder, damaged, or gone.
struct Damage {
    file: String,
    bytes: Option<Vec<u8>>,
}

type Cases = Vec<(String, Damage)>;

struct Folder {
    name: String,
    files: Vec<(String, Vec<u8>)>,
}

impl Folder {
    /// All golden folders, each with a tokenizer.
    fn all() -> Vec<Self> {
        let golden = format!("{}/../testkit/golden", env!("CARGO_MANIFEST_DIR"));
        let mut all = Vec::new();
        for kind in ["families", "mlx", "published"] {
            let entries = std::fs::read_dir(format!("{golden}/{kind}")).unwrap();
            let paths = entries.map(|entry| entry.unwrap().path()).filter(|path| path.is_dir());
            all.extend(paths.map(|path| Self::read(kind, &path)));
        }
        all.sort_by(|one, other| one.name.cmp(&other.name));
        all
    }

    fn read(kind: &str, path: &Path) -> Self {
        let name = |path: &Path| path.file_name().unwrap().to_str().unwrap().to_owned();
        let entries = std::fs::read_dir(path).unwrap().map(|entry| entry.unwrap().path());
        let mut files: Vec<_> =
            entries.map(|path| (name(&path), std::fs::read(&path).unwrap())).collect();
        files.sort();
        let mut folder = Self { name: format!("{kind}/{}", name(path)), files };
        let config: Json = serde_json::from_slice(folder.file("config.json")).unwrap();
        let text = config.get("text_config").unwrap_or(&config);
        let rows = text["vocab_size"].as_u64().unwrap();
        let ends = json!({"eos_token_id": rows - 1}).to_string().into_bytes();
        folder.files.push(("generation_config.json".to_owned(), ends));
        folder.files.push(("tokenizer.json".to_owned(), tokenizer(rows).to_string().into_bytes()));
        let template = b"{{ messages[0].content }}".to_vec();
        folder.files.push(("chat_template.jinja".to_owned(), template));
        folder
    }

    fn file(&self, wanted: &str) -> &[u8] {
        &self.files.iter().find(|(name, _)| name == wanted).unwrap().1
    }

    /// Files of weights.
    fn weights(&self) -> impl Iterator<Item = &(String, Vec<u8>)> {
        self.files.iter().filter(|(name, _)| name.ends_with(".safetensors"))
    }

    /// Writes it with the damage at a place where a folder was before.
    fn put(&self, place: &Path, damage: &Damage) -> PathBuf {
        let _ = std::fs::remove_dir_all(place);
        std::fs::create_dir(place).unwrap();
        for (name, bytes) in &self.files {
            if *name != damage.file {
                std::fs::write(place.join(name), bytes).unwrap();
            }
        }
        if let Some(bytes) = &damage.bytes {
            std::fs::write(place.join(&damage.file), bytes).unwrap();
        }
        place.to_owned()
    }
}

/// As many tokens as there are rows.
fn tokenizer(rows: u64) -> Json {
    let token = |id: u64| (char::from_u32(0x21 + id as u32).unwrap().to_string(), json!(id));
    let mut vocabulary: Map<String, Json> = (0..rows - 1).map(token).collect();
    vocabulary.insert("AB".to_owned(), json!(rows - 1));
    json!({
        "version": "1.0",
        "added_tokens": [],
        "normalizer": null,
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "use_regex": true},
        "post_processor": null,
        "decoder": {"type": "ByteLevel"},
        "model": {"type": "BPE", "vocab": vocabulary, "merges": ["A B"]},
    })
}

/// Where a document has values: the keys and indices that lead to each.
fn places(json: &Json) -> Vec<Vec<String>> {
    let inner: Vec<(String, &Json)> = match json {
        Json::Object(object) => object.iter().map(|(key, value)| (key.clone(), value)).collect(),
        Json::Array(list) => {
            list.iter().enumerate().map(|(index, value)| (index.to_string(), value)).collect()
        }
        _ => Vec::new(),
    };
    let mut all = Vec::new();
    for (key, value) in inner {
        let below = places(value).into_iter();
        all.extend(below.map(|place| [vec![key.clone()], place].concat()));
        all.push(vec![key]);
    }
    all
}

/// Stands for a value that no document of JSON can hold.
const MARK: &str = "\"<here>\"";

/// The document with something else at a place, or without what is there.
fn replaced(json: &Json, place: &[String], with: Option<&str>) -> Vec<u8> {
    let mut document = json.clone();
    let (last, path) = place.split_last().unwrap();
    let step = |at: &str| format!("/{}", at.replace('~', "~0").replace('/', "~1"));
    let parent: String = path.iter().map(|at| step(at)).collect();
    let mark = || Json::String("<here>".to_owned());
    match (document.pointer_mut(&parent).unwrap(), with) {
        (Json::Object(object), None) => {
            object.remove(last);
        }
        (Json::Array(list), None) => {
            list.remove(last.parse().unwrap());
        }
        (Json::Object(object), Some(_)) => {
            object.insert(last.clone(), mark());
        }
        (Json::Array(list), Some(_)) => list[last.parse::<usize>().unwrap()] = mark(),
        _ => panic!("{place:?} is nowhere"),
    }
    document.to_string().replacen(MARK, with.unwrap_or_default(), 1).into_bytes()
}

/// Every second key, by lot: without its value, with some of all values, and with others near its
/// own.
fn settings_damage(file: &str, text: &[u8], each: usize, random: &mut Random, cases: &mut Cases) {
    let json: Json = serde_json::from_slice(text).unwrap();
    let values = values();
    let mut push = |what: String, bytes| {
        cases.push((what, Damage { file: file.to_owned(), bytes: Some(bytes) }));
    };
    for place in places(&json) {
        if random.below(2) == 0 {
            continue;
        }
        let name = place.join(".");
        push(format!("{file} without {name}"), replaced(&json, &place, None));
        let pointer: String = place.iter().map(|at| format!("/{at}")).collect();
        let number = json.pointer(&pointer).and_then(Json::as_u64);
        let near = number.map(|n| [n.wrapping_sub(1), n + 1, n.wrapping_mul(2), n / 2]);
        // Two of them.
        let near = near.map(|near| {
            let first = random.below(3);
            [near[first], near[first + 1]]
        });
        let near = near.into_iter().flatten().map(|n| n.to_string());
        let picked: Vec<String> =
            (0..each).map(|_| values[random.below(values.len())].clone()).collect();
        for value in near.chain(picked) {
            let shown: String = value.chars().take(40).collect();
            push(format!("{file}: {name} is {shown}"), replaced(&json, &place, Some(&value)));
        }
    }
}

/// A file of weights with another header, whose length is right.
fn with_header(bytes: &[u8], header: &[u8]) -> Vec<u8> {
    let length = u64::from_le_bytes(*bytes.first_chunk().unwrap()) as usize;
    [&(header.len() as u64).to_le_bytes(), header, &bytes[8 + length..]].concat()
}

fn header_of(bytes: &[u8]) -> Json {
    let length = u64::from_le_bytes(*bytes.first_chunk().unwrap()) as usize;
    serde_json::from_slice(&bytes[8..8 + length]).unwrap()
}

/// Types, shapes and places of tensors; their names; what they hold.
fn weights_damage(folder: &Folder, random: &mut Random, cases: &mut Cases) {
    for (file, bytes) in folder.weights() {
        let header = header_of(bytes);
        let object = header.as_object().unwrap();
        let names: Vec<&String> = object.keys().filter(|name| *name != "__metadata__").collect();
        let mut push = |what: String, bytes: Vec<u8>| {
            cases.push((what, Damage { file: file.clone(), bytes: Some(bytes) }));
        };
        for _ in 0..8 {
            let name = names[random.below(names.len())];
            let (key, value) = random.pick(&[
                ("dtype", "\"F32\""),
                ("dtype", "\"U32\""),
                ("dtype", "\"I8\""),
                ("dtype", "\"F8_E4M3\""),
                ("dtype", "\"F4\""),
                ("dtype", "\"\""),
                ("shape", "[]"),
                ("shape", "[0]"),
                ("shape", "[0, 0]"),
                ("shape", "[-1, 4]"),
                ("shape", "[1.5]"),
                ("shape", "[4294967296, 4294967296]"),
                ("shape", "[18446744073709551615, 2]"),
                ("shape", "[1, 1, 1, 1, 1, 1, 1, 1, 1]"),
                ("data_offsets", "[0, 0]"),
                ("data_offsets", "[0, 18446744073709551615]"),
                ("data_offsets", "[18446744073709551615, 0]"),
                ("data_offsets", "[0, 64]"),
                ("data_offsets", "null"),
            ]);
            let place = [name.clone(), key.to_owned()];
            let header = replaced(&header, &place, Some(value));
            push(format!("{file}: {key} of {name} is {value}"), with_header(bytes, &header));
        }
        for _ in 0..3 {
            // The same elements in another shape, or under another's name.
            let (one, other) = (names[random.below(names.len())], names[random.below(names.len())]);
            let shape = object[one]["shape"].as_array().unwrap();
            let turned: Vec<&Json> = shape.iter().rev().collect();
            let place = [one.clone(), "shape".to_owned()];
            for shape in [json!(turned), json!([&[json!(1)], &shape[..]].concat())] {
                let header = replaced(&header, &place, Some(&shape.to_string()));
                push(format!("{file}: {one} has shape {shape}"), with_header(bytes, &header));
            }
            let text = header.to_string();
            let swapped = text
                .replacen(&format!("\"{one}\""), MARK, 1)
                .replacen(&format!("\"{other}\""), &format!("\"{one}\""), 1)
                .replacen(MARK, &format!("\"{other}\""), 1);
            push(format!("{file}: {one} is {other}"), with_header(bytes, swapped.as_bytes()));
            let twice = text.replacen(&format!("\"{one}\""), &format!("\"{other}\""), 1);
            push(format!("{file}: {other} twice"), with_header(bytes, twice.as_bytes()));
            let renamed = text.replacen(&format!("\"{one}\""), "\"model.layers.9999999999.x\"", 1);
            push(format!("{file}: {one} unknown"), with_header(bytes, renamed.as_bytes()));
        }
        bytes_damage(file, bytes, random, cases);
        cases.push((format!("no {file}"), Damage { file: file.clone(), bytes: None }));
    }
}

/// What tensors hold, where the file ends, and headers that are none.
fn bytes_damage(file: &str, bytes: &[u8], random: &mut Random, cases: &mut Cases) {
    let mut push = |what: String, bytes: Vec<u8>| {
        cases.push((what, Damage { file: file.to_owned(), bytes: Some(bytes) }));
    };
    let start = 8 + u64::from_le_bytes(*bytes.first_chunk().unwrap()) as usize;
    for fill in [0u8, 0xff, 0x7f, 0x7c] {
        let mut damaged = bytes.to_vec();
        let from = start + random.below(damaged.len() - start);
        damaged[from..].fill(fill);
        push(format!("{file}: {fill:#x} from {from}"), damaged);
    }
    for length in [0, 4, 8, start / 2, start, (start + bytes.len()) / 2, bytes.len() - 1] {
        push(format!("{file}: cut to {length}"), bytes[..length].to_vec());
    }
    let bombs =
        [format!("{{\"a\":{}1{}}}", "[".repeat(1 << 20), "]".repeat(1 << 20)), String::new()];
    for bomb in bombs {
        push(
            format!("{file}: {} bytes of header", bomb.len()),
            with_header(bytes, bomb.as_bytes()),
        );
    }
}

/// Indices that name what is elsewhere, nowhere, or no name.
fn index_damage(folder: &Folder, cases: &mut Cases) {
    let tensor = "model.embed_tokens.weight";
    for place in ["../0.safetensors", "/etc/passwd", "/dev/zero", ".", "", "none.safetensors"] {
        let text = json!({"weight_map": {tensor: place}}).to_string();
        let file = "model.safetensors.index.json".to_owned();
        cases.push((format!("index: {place}"), Damage { file, bytes: Some(text.into_bytes()) }));
    }
    for text in ["", "[]", "{\"weight_map\": {\"a\": 7}}", "{\"weight_map\": []}"] {
        let file = "model.safetensors.index.json".to_owned();
        cases.push((format!("index: {text}"), Damage { file, bytes: Some(text.into()) }));
    }
    for (file, bytes) in &folder.files {
        if !file.ends_with(".safetensors") {
            for text in [&b""[..], b"\xff\xfe", b"null", b"[]", b"{}", b"{\"\": "] {
                let damage = Damage { file: file.clone(), bytes: Some(text.to_vec()) };
                cases.push((format!("{file}: {text:?}"), damage));
            }
            let half = Some(bytes[..bytes.len() / 2].to_vec());
            cases.push((format!("half of {file}"), Damage { file: file.clone(), bytes: half }));
        }
    }
}

#[test]
fn no_damage_panics_hangs_or_grows() {
    let _turn = turn();
    let mut random = Random(3);
    let (mut all, mut refused, mut answered) = (0, 0, 0);
    let folders = Folder::all();
    assert!(folders.len() > 70, "{} folders", folders.len());
    unharmed(|| {
        for (place, folder) in folders.iter().enumerate() {
            let whole = Damage { file: String::new(), bytes: None };
            let mut cases = vec![("whole".to_owned(), whole)];
            let config = folder.file("config.json");
            settings_damage("config.json", config, 2, &mut random, &mut cases);
            weights_damage(folder, &mut random, &mut cases);
            if place % 20 == 0 {
                index_damage(folder, &mut cases);
                let text = folder.file("tokenizer.json");
                let mut json: Json = serde_json::from_slice(text).unwrap();
                // Of the vocabulary a few are enough.
                let vocabulary = json["model"]["vocab"].as_object_mut().unwrap();
                vocabulary.retain(|_, id| id.as_u64().unwrap() % 20 != 0);
                let text = json.to_string();
                settings_damage("tokenizer.json", text.as_bytes(), 2, &mut random, &mut cases);
            }
            let outcomes = try_all(&cases, |worker, damage| folder.put(worker, damage));
            for (name, outcome) in &outcomes {
                if name == "whole" {
                    assert_eq!(*outcome, Outcome::Answered, "{}", folder.name);
                }
                refused += usize::from(*outcome == Outcome::Refused);
                answered += usize::from(*outcome == Outcome::Answered);
            }
            all += outcomes.len();
        }
    });
    eprintln!("{all} cases, {refused} refused, {answered} answered");
    assert!(all > 5_000 && refused > all / 4 && answered > all / 8);
}
