//! How does a kernel say what WGSL cannot? A few of its functions get other bodies in SPIR-V.
//!
//! WGSL hides which lane of a subgroup has which element of a matrix, so weights would have to go
//! by way of workgroup memory. SPIR-V tells, and Vulkan takes it as it is.

use std::collections::BTreeMap;

use naga::back::spv;
use naga::valid::{Capabilities, ValidationFlags, Validator};

/// Names of functions that are filled, see `kernels/fragments.wgsli`.
const FRAGMENTS: [&str; 2] = ["fragment_a", "fragment_b"];
const HALVES: &str = "halves_in";
const RESULTS: &str = "results_of";
/// Each with the first of a lane's four elements.
const OF_RESULTS: [(&str, usize); 2] = [("upper_of", 0), ("lower_of", 4)];

/// Where a lane has its elements of a matrix of results: row g, columns 2 t, 2 t + 1 and those
/// eight on; then row g + 8.
pub(crate) type ResultsOrder = [u8; 8];
/// What the driver's compiler is told of a kernel's loops.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Loops {
    AsTheyAre,
    /// To write them out: else it keeps lists in memory that loops walk.
    WrittenOut,
}

/// To ask the device.
pub(crate) const IN_ORDER: ResultsOrder = [0, 1, 2, 3, 4, 5, 6, 7];

const OP_UNDEF: u32 = 1;
const OP_NAME: u32 = 5;
const OP_TYPE_INT: u32 = 21;
const OP_TYPE_FLOAT: u32 = 22;
const OP_TYPE_VECTOR: u32 = 23;
const OP_FUNCTION: u32 = 54;
const OP_FUNCTION_PARAMETER: u32 = 55;
const OP_FUNCTION_END: u32 = 56;
const OP_COMPOSITE_CONSTRUCT: u32 = 80;
const OP_COMPOSITE_EXTRACT: u32 = 81;
const OP_COMPOSITE_INSERT: u32 = 82;
const OP_BITCAST: u32 = 124;
const OP_LOOP_MERGE: u32 = 246;
const OP_LABEL: u32 = 248;
const OP_RETURN_VALUE: u32 = 254;

/// Of a loop's controls, which are its last word.
const UNROLL: u32 = 1;

const HEADER_WORDS: usize = 5;
/// Of the header: the first id that is not used.
const BOUND: usize = 3;

/// A kernel in SPIR-V with its functions filled.
///
/// # Errors
/// What is wrong with the kernel.
pub(crate) fn filled(wgsl: &str, order: &ResultsOrder, loops: Loops) -> Result<Vec<u32>, String> {
    let module = naga::front::wgsl::parse_str(wgsl).map_err(|e| e.emit_to_string(wgsl))?;
    let info = Validator::new(ValidationFlags::all(), Capabilities::all())
        .validate(&module)
        .map_err(|error| error.emit_to_string(wgsl))?;
    let words = spv::write_vec(&module, &info, &options(), None).map_err(|e| e.to_string())?;
    let mut filled = fill(&words, order);
    if loops == Loops::WrittenOut {
        write_out_loops(&mut filled);
    }
    Ok(filled)
}

/// As wgpu has it written for kernels that it is told to trust, and with names.
fn options() -> spv::Options<'static> {
    spv::Options {
        lang_version: (1, 6),
        flags: spv::WriterFlags::DEBUG,
        capabilities: None,
        bounds_check_policies: naga::proc::BoundsCheckPolicies::default(),
        zero_initialize_workgroup_memory: spv::ZeroInitializeWorkgroupMemoryMode::None,
        force_loop_bounding: false,
        ..spv::Options::default()
    }
}

/// One instruction's words, its length and name in the first.
fn instruction(op: u32, operands: &[u32]) -> Vec<u32> {
    let mut words = vec![(operands.len() as u32 + 1) << 16 | op];
    words.extend_from_slice(operands);
    words
}

fn instructions(words: &[u32]) -> impl Iterator<Item = (u32, &[u32])> {
    let mut rest = &words[HEADER_WORDS..];
    std::iter::from_fn(move || {
        let first = *rest.first()?;
        let (own, after) = rest.split_at((first >> 16) as usize);
        rest = after;
        Some((first & 0xffff, own))
    })
}

/// A string's bytes are packed into words and end with a zero.
fn text_of(words: &[u32]) -> String {
    let bytes = words.iter().flat_map(|word| word.to_le_bytes());
    bytes.take_while(|&byte| byte != 0).map(char::from).collect()
}

#[derive(Default)]
struct Types {
    uint: u32,
    float: u32,
    half: u32,
    two_halves: u32,
}

fn types_in(words: &[u32]) -> Types {
    let mut types = Types::default();
    for (op, own) in instructions(words) {
        match (op, &own[1..]) {
            (OP_TYPE_INT, &[id, 32, 0]) => types.uint = id,
            (OP_TYPE_FLOAT, &[id, 16]) => types.half = id,
            (OP_TYPE_FLOAT, &[id, 32]) => types.float = id,
            (OP_TYPE_VECTOR, &[id, of, 2]) if of == types.half => types.two_halves = id,
            _ => {}
        }
    }
    types
}

fn write_out_loops(words: &mut [u32]) {
    let mut at = HEADER_WORDS;
    while at < words.len() {
        if words[at] & 0xffff == OP_LOOP_MERGE {
            words[at + 3] |= UNROLL;
        }
        at += (words[at] >> 16) as usize;
    }
}

fn fill(words: &[u32], order: &ResultsOrder) -> Vec<u32> {
    let types = types_in(words);
    let names: BTreeMap<u32, String> = instructions(words)
        .filter(|&(op, _)| op == OP_NAME)
        .map(|(_, own)| (own[1], text_of(&own[2..])))
        .collect();
    let mut filled = words[..HEADER_WORDS].to_vec();
    let mut body: Option<Body<'_>> = None;
    for (op, own) in instructions(words) {
        if op == OP_FUNCTION {
            let name = names.get(&own[2]).map_or("", String::as_str);
            let is_filled = [HALVES, RESULTS].contains(&name)
                || FRAGMENTS.contains(&name)
                || OF_RESULTS.iter().any(|(known, _)| *known == name);
            body = is_filled.then(|| Body {
                name,
                result: own[1],
                parameters: Vec::new(),
                is_written: false,
            });
        }
        match &mut body {
            Some(body) if op == OP_FUNCTION_PARAMETER => body.parameters.push(own[2]),
            Some(body) if op == OP_LABEL && !body.is_written => {
                filled.extend_from_slice(own);
                let next = filled[BOUND];
                filled[BOUND] = body.write(&types, order, next, &mut filled);
                body.is_written = true;
                continue;
            }
            Some(_) if op == OP_FUNCTION_END => body = None,
            Some(_) if op != OP_FUNCTION => continue,
            _ => {}
        }
        filled.extend_from_slice(own);
    }
    filled
}

/// A function to be filled.
struct Body<'a> {
    name: &'a str,
    result: u32,
    parameters: Vec<u32>,
    is_written: bool,
}

impl Body<'_> {
    /// Gives the first id that is not used afterwards.
    fn write(&self, types: &Types, order: &ResultsOrder, mut next: u32, to: &mut Vec<u32>) -> u32 {
        let mut add = |op: u32, kind: u32, operands: &[u32]| {
            let mut all = vec![kind, next];
            all.extend_from_slice(operands);
            to.extend(instruction(op, &all));
            next += 1;
            next - 1
        };
        let given = &self.parameters;
        let value = if self.name == HALVES {
            add(OP_BITCAST, types.two_halves, &[given[0]])
        } else if let Some((_, first)) = OF_RESULTS.iter().find(|(name, _)| *name == self.name) {
            let mut element =
                |place: &u8| add(OP_COMPOSITE_EXTRACT, types.float, &[given[0], (*place).into()]);
            let values: Vec<u32> = order[*first..][..4].iter().map(&mut element).collect();
            add(OP_COMPOSITE_CONSTRUCT, self.result, &values)
        } else {
            // Four pairs of halves, or twice four numbers.
            let (each, kind) =
                if self.name == RESULTS { (4, types.float) } else { (2, types.half) };
            let mut matrix = add(OP_UNDEF, self.result, &[]);
            for index in 0..8 {
                let value =
                    add(OP_COMPOSITE_EXTRACT, kind, &[given[index / each], (index % each) as u32]);
                let place = if self.name == RESULTS { order[index].into() } else { index as u32 };
                matrix = add(OP_COMPOSITE_INSERT, self.result, &[value, matrix, place]);
            }
            matrix
        };
        to.extend(instruction(OP_RETURN_VALUE, &[value]));
        next
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use crate::kernels::PROBE;

    const CALLS: &str = "
@group(0) @binding(0) var<storage, read_write> rounded: array<f16>;
@group(0) @binding(1) var<storage, read_write> work: array<f32>;
@compute @workgroup_size(32)
fn main(@builtin(local_invocation_index) local: u32) {
    let a = halves_in(local);
    let results = results_of(vec4<f32>(1.0), vec4<f32>(2.0));
    work[local] = dot(upper_of(results), lower_of(results));
    coopStore(fragment_a(a, a, a, a), &rounded[0], 16u);
    coopStore(fragment_b(a, a, a, a), &rounded[256], 16u);
}
";

    const LOOPS: &str = "
fn loops(most: u32) -> u32 {
    var sum = 0u;
    for (var i = 0u; i < most; i++) {
        for (var j = 0u; j < 4u; j++) {
            sum += i * j;
        }
    }
    return sum;
}
";

    /// Instructions of each function, by its name.
    fn functions(words: &[u32]) -> BTreeMap<String, Vec<u32>> {
        let mut names = BTreeMap::new();
        let mut functions: BTreeMap<String, Vec<u32>> = BTreeMap::new();
        let mut name = String::new();
        for (op, own) in instructions(words) {
            match op {
                OP_NAME => drop(names.insert(own[1], text_of(&own[2..]))),
                OP_FUNCTION => name = names.get(&own[2]).cloned().unwrap_or_default(),
                _ => {}
            }
            functions.entry(name.clone()).or_default().push(op);
        }
        functions
    }

    /// Which elements a function takes out of a matrix.
    fn places_of(words: &[u32], wanted: &str) -> Vec<u32> {
        let named = |&(op, own): &(u32, &[u32])| op == OP_NAME && text_of(&own[2..]) == wanted;
        let id = instructions(words).find(named).unwrap().1[1];
        instructions(words)
            .skip_while(|(op, own)| *op != OP_FUNCTION || own[2] != id)
            .take_while(|(op, _)| *op != OP_FUNCTION_END)
            .filter(|(op, _)| *op == OP_COMPOSITE_EXTRACT)
            .map(|(_, own)| own[4])
            .collect()
    }

    #[test]
    fn functions_are_filled_and_all_else_stays() {
        let wgsl = [PROBE[0], PROBE[2], CALLS].concat();
        let module = naga::front::wgsl::parse_str(&wgsl).unwrap();
        let info =
            Validator::new(ValidationFlags::all(), Capabilities::all()).validate(&module).unwrap();
        let plain = spv::write_vec(&module, &info, &options(), None).unwrap();
        let order = [0, 1, 4, 5, 2, 3, 6, 7];
        let filled = filled(&wgsl, &order, Loops::AsTheyAre).unwrap();
        let (before, after) = (functions(&plain), functions(&filled));
        assert!(before.keys().eq(after.keys()));
        for (name, own) in &after {
            let count = |wanted: u32| own.iter().filter(|&&op| op == wanted).count();
            match name.as_str() {
                HALVES => assert_eq!((count(OP_BITCAST), own.len()), (1, 6), "{own:?}"),
                "upper_of" | "lower_of" => {
                    let counts = (count(OP_COMPOSITE_EXTRACT), count(OP_COMPOSITE_CONSTRUCT));
                    assert_eq!(counts, (4, 1));
                }
                "fragment_a" | "fragment_b" | RESULTS => {
                    assert_eq!((count(OP_COMPOSITE_EXTRACT), count(OP_COMPOSITE_INSERT)), (8, 8));
                    assert_eq!((count(OP_UNDEF), count(OP_RETURN_VALUE)), (1, 1));
                }
                other => assert_eq!(Some(own), before.get(other), "{other}"),
            }
        }
        // Ids are new, and none is used twice.
        let bound = filled[BOUND];
        assert_eq!(bound - plain[BOUND], 1 + 3 * (1 + 8 + 8) + 2 * (4 + 1));
        // Elements are where the device has them.
        assert_eq!(places_of(&filled, "upper_of"), [0, 1, 4, 5]);
        assert_eq!(places_of(&filled, "lower_of"), [2, 3, 6, 7]);
    }

    #[test]
    fn loops_are_written_out_where_the_driver_is_to() {
        let wgsl = [PROBE[0], PROBE[2], CALLS].concat() + LOOPS;
        let controls = |loops| -> Vec<u32> {
            let words = filled(&wgsl, &IN_ORDER, loops).unwrap();
            let merges = instructions(&words).filter(|&(op, _)| op == OP_LOOP_MERGE);
            merges.map(|(_, own)| own[3]).collect()
        };
        assert_eq!(controls(Loops::AsTheyAre), [0, 0]);
        assert_eq!(controls(Loops::WrittenOut), [UNROLL, UNROLL]);
    }

    #[test]
    fn what_is_wrong_with_a_kernel_is_said() {
        let error = filled("fn main() { nothing(); }", &IN_ORDER, Loops::AsTheyAre).unwrap_err();
        assert!(error.contains("nothing"), "{error}");
    }
}
