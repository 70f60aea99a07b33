//! Does a model on two devices say what it says on one?
//!
//! Every family, cut before every layer where it can be, and around the experts of each layer that
//! has some. Two parts on the same device must give the
//! same bits as the whole; on different ones they are as near to the authors' code as the device
//! that is farther from it alone (`families.rs`).

#![allow(clippy::unwrap_used, reason = "tests")]

use backend_cpu::CpuBackend;
use backend_cuda::CudaBackend;
use backend_reference::ReferenceBackend;
use backend_split::{Share, SplitBackend, cut, layers_with_experts, places};
use backend_wgpu::{Api, WgpuBackend};
use device::{
    Backend, BlockCopy, Capacity, HostBytes, LoadError, Program, Rows, StateCopy, StepInputs,
    StepOutputs, Tape, TokenInput, WeightShape, WeightSource, WeightView,
};
use models::LoadSettings;
use testkit::device_cases::{models, tape as case_tape};
use testkit::device_conformance::far_from;
use testkit::device_steps::{CAPACITY, schedule};
use testkit::device_tensors::Tensors;
use testkit::{StoredTensors, difference};
use weights::WeightFile;

const CONTEXT: u32 = 64;
/// No divisor of any length.
const STEP_TOKENS: u32 = 13;

fn families() -> Vec<(String, WeightFile)> {
    let folder = format!("{}/golden/families", env!("CARGO_MANIFEST_DIR"));
    let paths = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let files = paths.filter(|path| path.extension().is_some_and(|ending| ending == "gguf"));
    let mut files: Vec<_> = files
        .map(|path| {
            let name = path.file_stem().unwrap().to_str().unwrap().to_owned();
            (name, weights::open(&path).unwrap())
        })
        .collect();
    files.sort_by(|a, b| a.0.cmp(&b.0));
    assert!(files.len() >= 30, "{} families", files.len());
    files
}

fn tape_of(file: &WeightFile) -> Tape {
    models::lower(&models::read_spec(file, &LoadSettings::default()).unwrap()).unwrap()
}

fn logits(file: &WeightFile, backend: &dyn Backend) -> Vec<f32> {
    let tape = tape_of(file);
    let ids: Vec<u32> = (0..40).map(|index| (index * 7 + index * index) % 31).collect();
    let mut loaded = testkit::load_tape(tape, file, backend, CONTEXT, STEP_TOKENS).unwrap();
    let mut all = Vec::new();
    loaded.each(&ids, |_, row| all.extend_from_slice(row)).unwrap();
    all
}

/// Every number of whole layers, of layers without their experts, and one of both.
fn shares(tape: &Tape) -> Vec<Share> {
    let mut shares: Vec<Share> = places(tape).into_iter().map(whole_layers).collect();
    let mixtures = layers_with_experts(tape);
    shares.extend(mixtures.iter().map(|layer| Share { layers: 0, experts: layer + 1 }));
    let both = places(tape).into_iter().map(|layers| Share { layers, experts: u32::MAX });
    shares.extend(both.filter(|share| mixtures.last() >= Some(&share.layers)).take(1));
    shares
}

fn whole_layers(layers: u32) -> Share {
    Share { layers, experts: 0 }
}

fn reference() -> Box<dyn Backend> {
    Box::new(ReferenceBackend)
}

fn cpu() -> Box<dyn Backend> {
    Box::new(CpuBackend::open(Some(2), None).unwrap())
}

#[test]
fn parts_on_one_device_give_the_bits_of_the_whole() {
    let mut cuts = 0;
    for (name, file) in families() {
        for device in [reference, cpu] {
            let whole = logits(&file, device().as_ref());
            for share in shares(&tape_of(&file)) {
                let split = SplitBackend::new(device(), device(), share);
                assert!(logits(&file, &split) == whole, "{name}: {}", split.name());
                cuts += 1;
            }
        }
    }
    assert!(cuts > 100, "{cuts} cuts");
}

/// As in `families.rs`: keys and values of the processor are in 13 bits.
const CPU_MOST: f32 = 6e-3;

#[test]
fn parts_on_two_devices_are_near_the_reference() {
    for (name, file) in families() {
        let whole = logits(&file, &ReferenceBackend);
        for share in shares(&tape_of(&file)) {
            // Another choice of experts is no matter of the cut.
            let most = if share.experts > 0 { 2.0 * CPU_MOST } else { CPU_MOST };
            for (first, second) in [(reference(), cpu()), (cpu(), reference())] {
                let split = SplitBackend::new(first, second, share);
                let apart = difference(&logits(&file, &split), &whole);
                assert!(apart < most, "{name}: {}: {apart:e}", split.name());
            }
        }
    }
}

/// What crosses is the stream, and the embeddings of layers where a model has them.
#[test]
fn nothing_crosses_that_is_written_anew() {
    for (name, file) in families() {
        let tape = tape_of(&file);
        for layer in places(&tape) {
            let [first, second] = cut(&tape, whole_layers(layer)).unwrap();
            let sent = specs(&first, &first.segments()[0].sent.clone().unwrap());
            assert_eq!(sent, specs(&second, &second.segments()[0].received), "{name}");
            assert!(sent.iter().all(|spec| spec.rows == Rows::Tokens), "{name}");
            let names: Vec<&str> = sent.iter().map(|spec| spec.name).collect();
            let is_known = names == ["stream"] || name.starts_with("gemma4") && names.len() == 2;
            assert!(is_known, "{name} before {layer}: {names:?}");
            assert_eq!(first.layers + second.layers, tape.layers, "{name}");
            let states = first.state.elements + second.state.elements;
            assert_eq!(states, tape.state.elements, "{name}");
            assert_eq!(first.layer_starts.len() as u32, layer, "{name}");
            // A part cut once more is a part.
            for layer in places(&second) {
                let [middle, last] = cut(&second, whole_layers(layer)).unwrap();
                assert_eq!(middle.segments()[0].received.len(), names.len(), "{name}");
                assert!(last.segments()[0].sent.is_none(), "{name}");
            }
        }
    }
}

fn specs(tape: &Tape, parts: &[ops::ActivationId]) -> Vec<device::ActivationSpec> {
    parts.iter().map(|&part| tape.activation(part).clone()).collect()
}

/// What experts read goes over, and what they give or add to comes back; all else stays.
#[test]
fn experts_alone_have_their_weights_and_nothing_else() {
    let mut mixtures = 0;
    for (name, file) in families() {
        let tape = tape_of(&file);
        let layers = layers_with_experts(&tape);
        let Some(last) = layers.last() else {
            let refused = cut(&tape, Share { layers: 0, experts: 1 }).unwrap_err().to_string();
            assert!(refused.contains("has experts"), "{name}: {refused}");
            continue;
        };
        mixtures += 1;
        let [first, second] = cut(&tape, Share { layers: 0, experts: last + 1 }).unwrap();
        let is_experts = |spec: &device::WeightSpec| {
            spec.name.contains("_exps") || spec.name.contains("exp_probs")
        };
        assert!(first.weights.iter().all(is_experts), "{name}: {:?}", first.weights);
        assert_eq!(first.weights.len() + second.weights.len(), tape.weights.len(), "{name}");
        assert_eq!((first.layers, second.layers), (0, tape.layers), "{name}");
        assert_eq!(second.layer_starts.len(), tape.layer_starts.len(), "{name}");
        let (ours, theirs) = (first.segments(), second.segments());
        assert_eq!((ours.len(), theirs.len()), (layers.len(), layers.len() + 1), "{name}");
        for (turn, segment) in ours.iter().enumerate() {
            let brought = specs(&first, &segment.received);
            let names: Vec<&str> = brought.iter().map(|spec| spec.name).collect();
            let is_known = names.contains(&"scores") && names.len() <= 3;
            assert!(is_known, "{name}: {names:?}");
            assert_eq!(brought, specs(&second, theirs[turn].sent.as_ref().unwrap()), "{name}");
            let given = segment.sent.as_ref().unwrap();
            assert_eq!(given.len(), 1, "{name}");
            assert_eq!(specs(&first, given), specs(&second, &theirs[turn + 1].received), "{name}");
        }
    }
    assert!(mixtures >= 8, "{mixtures} mixtures");
}

#[test]
fn a_tape_is_cut_between_its_layers_only() {
    let (_, file) = families().swap_remove(0);
    let tape = tape_of(&file);
    let layers = tape.layer_starts.len() as u32;
    for layer in [layers, layers + 1] {
        let refused =
            cut(&tape, whole_layers(layer)).map_err(|error| error.to_string()).unwrap_err();
        assert!(refused.contains("cannot be cut before its layer"), "{refused}");
    }
    // Later layers of this one read the keys of earlier ones.
    let shared = families().into_iter().find(|(name, _)| name == "gemma4").unwrap().1;
    let tape = tape_of(&shared);
    assert!(places(&tape).len() + 1 < tape.layer_starts.len(), "all cuts of {}", tape.layers);
}

/// As the GPUs' own tests allow.
const GPU_MOST: f32 = 2e-2;
/// The processor multiplies by 8-bit integers: of random weights that moves logits by 4e-2 at most
/// (measured with half of the layers there).
const INTEGERS_MOST: f32 = 6e-2;

/// Prompts in parts, decodes, guesses and many rows, on every kind of device that is here.
#[test]
fn devices_hand_over_every_step() {
    let named = ["Q4_0", "ragged", "norms behind blocks", "layers that differ", "mixed"];
    let is_mixture =
        |name: &str| name.starts_with("experts in groups") || name.starts_with("experts apart");
    let cases: Vec<_> = models()
        .into_iter()
        .filter(|(name, _)| named.contains(&name.as_str()) || is_mixture(name))
        .collect();
    assert_eq!(cases.len(), named.len() + 2);
    // The processor takes no ragged ones.
    let on_cpu: Vec<_> = cases.iter().filter(|(name, _)| name != "ragged").cloned().collect();
    // A layer before the other; or the experts of both, whose routers a GPU keeps.
    let shares = |name: &str, is_behind: bool| match is_behind && name.starts_with("experts") {
        true => vec![whole_layers(1), Share { layers: 0, experts: 2 }],
        false => vec![whole_layers(1)],
    };
    for device in gpus() {
        let name = device().name().to_owned();
        for (first, second, cases, most, is_behind) in [
            (reference(), device(), &cases, GPU_MOST, true),
            (device(), reference(), &cases, GPU_MOST, false),
            (cpu(), device(), &on_cpu, INTEGERS_MOST, true),
            (device(), cpu(), &on_cpu, INTEGERS_MOST, false),
        ] {
            let mut split = SplitBackend::new(first, second, whole_layers(1));
            for case in cases {
                for share in shares(&case.0, is_behind) {
                    split.cut(share);
                    let far = far_from(&ReferenceBackend, &split, [case.clone()], most);
                    assert_eq!(far, Vec::<String>::new(), "{}", split.name());
                }
            }
        }
        eprintln!("{name}: before and behind the processor");
    }
}

type Device = fn() -> Box<dyn Backend>;

fn gpus() -> Vec<Device> {
    let mut gpus: Vec<Device> = Vec::new();
    match WgpuBackend::open(Api::Any, 0) {
        Ok(_) => gpus.push(|| Box::new(WgpuBackend::open(Api::Any, 0).unwrap())),
        Err(error) => eprintln!("without wgpu: there is no adapter ({error})"),
    }
    match CudaBackend::open(0) {
        Ok(_) => gpus.push(|| Box::new(CudaBackend::open(0).unwrap())),
        Err(error) => eprintln!("without CUDA: there is no device ({error})"),
    }
    gpus
}

#[test]
fn blocks_and_clocks_are_of_both_parts() {
    let model = models().swap_remove(0).1;
    let tape = case_tape(&model);
    let tensors = Tensors::of(&model, &tape);
    let split = SplitBackend::new(reference(), reference(), whole_layers(1));
    let mut whole = ReferenceBackend.load(tape.clone(), &tensors, CAPACITY).unwrap();
    let planned = split.memory(&tape, &tensors, &CAPACITY).unwrap();
    let mut parts = split.load(tape.clone(), &tensors, CAPACITY).unwrap();
    assert_eq!(parts.memory(), planned);
    let (mut of_whole, mut of_parts) = (StepOutputs::default(), StepOutputs::default());
    for inputs in schedule() {
        whole.run(&inputs, &mut of_whole).unwrap();
        parts.run(&inputs, &mut of_parts).unwrap();
        // Logits, and which guesses were right.
        assert_eq!(of_parts, of_whole);
    }
    // What was sampled is known to the first part, too.
    let mut inputs =
        testkit::device_steps::step(&[(0, 160, 1, Some(0)), (2, 234, 1, Some(0))], &[]);
    inputs.tokens = vec![TokenInput::Slot(0), TokenInput::Slot(2)];
    whole.run(&inputs, &mut of_whole).unwrap();
    parts.run(&inputs, &mut of_parts).unwrap();
    assert_eq!(of_parts, of_whole);
    let form = parts.block_form();
    assert_eq!(form.bytes, whole.block_form().bytes);
    let (mut of_parts, mut of_whole) = (vec![0; form.bytes], vec![0; form.bytes]);
    for block in 0..CAPACITY.block_count {
        parts.read_block(block, &mut of_parts);
        whole.read_block(block, &mut of_whole);
        assert_eq!(of_parts, of_whole, "block {block}");
    }
    parts.write_block(3, &of_parts.iter().map(|byte| byte ^ 5).collect::<Vec<_>>());
    parts.read_block(3, &mut of_parts);
    assert!(of_parts.iter().zip(&of_whole).all(|(a, b)| *a == b ^ 5));
    let clocks = parts.clocks();
    assert_eq!(clocks.iter().map(|clock| clock.layers()).collect::<Vec<_>>(), [1, 1]);
    assert!(clocks.iter().all(|clock| clock.name() == "reference" && !clock.time().is_zero()));
    // Every tensor is asked for, those of the first part first.
    let order = split.load_order(&tape);
    assert!((0..tape.weights.len() as u32).all(|id| order.contains(&ops::WeightId(id))));
    // A slot that nobody set is a fault of the step.
    let mut inputs: StepInputs = testkit::device_steps::step(&[(9, 0, 1, Some(0))], &[]);
    inputs.tokens = vec![TokenInput::Slot(79)];
    let fault = parts.run(&inputs, &mut StepOutputs::default()).unwrap_err();
    assert!(fault.0.contains("slot 79 was read before it was set"), "{fault}");
}

/// A file's layers over and over.
struct Repeated<'a>(StoredTensors<'a>, u32);

impl Repeated<'_> {
    fn name(&self, name: &str) -> String {
        let number = name.strip_prefix("blk.").and_then(|rest| rest.split_once('.'));
        let Some((layer, rest)) = number else { return name.to_owned() };
        format!("blk.{}.{rest}", layer.parse::<u32>().unwrap() % self.1)
    }
}

impl WeightSource for Repeated<'_> {
    fn weight(&self, name: &str) -> Result<WeightView<'_>, LoadError> {
        self.0.weight(&self.name(name))
    }

    fn shape(&self, name: &str) -> Result<WeightShape, LoadError> {
        self.0.shape(&self.name(name))
    }
}

const STATES: Capacity = Capacity { slots: 3, states: 2, ..CAPACITY };

/// Tokens of a text from `start` on, in a slot.
fn row_of(slot: u32, start: u32, length: u32, resets: &[u32]) -> StepInputs {
    let mut inputs = testkit::device_steps::step(&[(slot, start, length, Some(0))], resets);
    let token = |position: u32| TokenInput::Known((position * 7 + position * position) % 31);
    inputs.tokens = (start..start + length).map(token).collect();
    inputs
}

fn logits_of(program: &mut dyn Program, inputs: &StepInputs) -> Vec<f32> {
    let mut outputs = StepOutputs::default();
    program.run(inputs, &mut outputs).unwrap();
    outputs.logits
}

/// A state is kept, leaves the device in pieces that end anywhere, and comes back to another slot.
#[test]
fn states_of_both_parts_move_as_one() {
    for name in ["qwen35", "qwen3next"] {
        let file = families().into_iter().find(|(known, _)| known == name).unwrap().1;
        let mut spec = models::read_spec(&file, &LoadSettings::default()).unwrap();
        let layers = spec.dims.layers;
        spec.dims.layers = 3 * layers;
        spec.layers = std::iter::repeat_n(spec.layers, 3).flatten().collect();
        let tape = models::lower(&spec).unwrap();
        let source = Repeated(StoredTensors(&file), layers);
        let mut whole = ReferenceBackend.load(tape.clone(), &source, STATES).unwrap();
        let expected = logits_of(whole.as_mut(), &row_of(0, 0, 40, &[0]));
        for layer in places(&tape) {
            let share = whole_layers(layer);
            let split = SplitBackend::new(reference(), reference(), share);
            let states = cut(&tape, share).unwrap().map(|part| part.state.elements);
            let mut parts = split.load(tape.clone(), &source, STATES).unwrap();
            let bytes = parts.state_bytes().unwrap();
            assert_eq!(Some(bytes), whole.state_bytes());
            let mut first = row_of(0, 0, 16, &[0]);
            first.states.push(StateCopy::Save { slot: 0, place: 1 });
            logits_of(parts.as_mut(), &first);
            let piece = |offset: usize| {
                let mut piece = vec![7; 260];
                parts.read_state(1, offset, &mut piece);
                let (slot, position) = (0, 16);
                let bytes = HostBytes(std::sync::Arc::new(piece));
                BlockCopy::StateIn { slot, position, offset, bytes }
            };
            let pieces: Vec<BlockCopy> = (0..bytes).step_by(260).map(piece).collect();
            // Something else meanwhile; its keys and values are made anew.
            logits_of(parts.as_mut(), &row_of(0, 0, 23, &[0]));
            let mut second = row_of(0, 16, 24, &[0]);
            second.copies = pieces;
            let got = logits_of(parts.as_mut(), &second);
            assert_eq!(got, expected, "{name} before {layer}: states of {states:?}");
        }
        let both = places(&tape).iter().any(|&layer| {
            cut(&tape, whole_layers(layer)).unwrap().iter().all(|part| part.state.elements > 0)
        });
        assert!(both, "{name}: no cut has states on both sides");
    }
}
