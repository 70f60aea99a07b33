//! How do two devices serve as one? Each loads its part of the tape.

use device::{
    Backend, Capacity, DeviceMemory, LoadError, MemorySetting, MemoryUse, Program, Tape,
    WeightSource,
};
use ops::WeightId;

use crate::cut::{Share, cut};
use crate::program::SplitProgram;

/// Two devices, the first of which has a share of a model.
pub struct SplitBackend {
    parts: [Box<dyn Backend>; 2],
    share: Share,
    name: String,
}

impl SplitBackend {
    /// A `share` on the `first` device, all else on the `second`.
    pub fn new(first: Box<dyn Backend>, second: Box<dyn Backend>, share: Share) -> Self {
        let mut split = Self { parts: [first, second], share, name: String::new() };
        split.cut(share);
        split
    }

    /// Another cut from here on.
    pub fn cut(&mut self, share: Share) {
        let [first, second] = &self.parts;
        let Share { layers, experts } = share;
        // What is where changes the last bits of answers, so it is part of the name.
        self.name = format!("{}+{} from layer {layers} on", first.name(), second.name());
        if experts > layers {
            self.name += &format!(", without experts before layer {experts}");
        }
        self.share = share;
    }

    /// What each device alone can do at best.
    pub fn read_rates(&self) -> [Option<f64>; 2] {
        self.parts.each_ref().map(|part| part.read_bytes_per_second())
    }

    /// Both devices, each for itself again.
    pub fn into_parts(self) -> [Box<dyn Backend>; 2] {
        self.parts
    }

    fn each<T>(
        &self,
        tape: &Tape,
        mut of: impl FnMut(&dyn Backend, Tape) -> Result<T, LoadError>,
    ) -> Result<[T; 2], LoadError> {
        let [first, second] = cut(tape, self.share)?;
        let [on_first, on_second] = &self.parts;
        Ok([of(on_first.as_ref(), first)?, of(on_second.as_ref(), second)?])
    }
}

impl Backend for SplitBackend {
    fn name(&self) -> &str {
        &self.name
    }

    fn load(
        &self,
        tape: Tape,
        weights: &dyn WeightSource,
        capacity: Capacity,
    ) -> Result<Box<dyn Program>, LoadError> {
        let layers = [self.share.layers, tape.layer_starts.len() as u32 - self.share.layers];
        let programs = self.each(&tape, |backend, part| {
            let turns = part.segments().len();
            Ok((backend.load(part, weights, capacity)?, turns))
        })?;
        let names = self.parts.each_ref().map(|backend| backend.name().to_owned());
        let own = self.parts.each_ref().map(|backend| backend.own_memory().is_some());
        Ok(Box::new(SplitProgram::new(programs, names, layers, own, &capacity)))
    }

    fn memory(
        &self,
        tape: &Tape,
        weights: &dyn WeightSource,
        capacity: &Capacity,
    ) -> Result<MemoryUse, LoadError> {
        let parts = self.each(tape, |backend, part| backend.memory(&part, weights, capacity))?;
        let own = self.parts.each_ref().map(|backend| backend.own_memory().is_some());
        Ok(sum(parts, own))
    }

    fn memory_of_each(
        &self,
        tape: &Tape,
        weights: &dyn WeightSource,
        capacity: &Capacity,
    ) -> Result<Vec<DeviceMemory>, LoadError> {
        let parts =
            self.each(tape, |backend, part| backend.memory_of_each(&part, weights, capacity))?;
        Ok(parts.into_iter().flatten().collect())
    }

    /// Of the part that samples.
    fn follows_grammars(&self) -> bool {
        self.parts[1].follows_grammars()
    }

    fn copies_states(&self) -> bool {
        self.parts.iter().all(|backend| backend.copies_states())
    }

    /// A step is over when the slower part is.
    fn step_tokens_best(&self) -> u32 {
        let [first, second] = self.parts.each_ref().map(|backend| backend.step_tokens_best());
        first.min(second)
    }

    /// What neither part can do anything about.
    fn without_effect(&self) -> &'static [(MemorySetting, &'static str)] {
        let [first, second] = self.parts.each_ref().map(|backend| backend.without_effect());
        let is_in = |all: &[(MemorySetting, &str)], asked: MemorySetting| {
            all.iter().any(|(setting, _)| *setting == asked)
        };
        let both = first.iter().all(|(setting, _)| is_in(second, *setting));
        if both { first } else { second }
    }

    /// Of the one that has some.
    fn own_memory(&self) -> Option<u64> {
        self.parts.iter().find_map(|backend| backend.own_memory())
    }

    fn load_order(&self, tape: &Tape) -> Vec<WeightId> {
        let Ok(parts) = cut(tape, self.share) else { return Vec::new() };
        let names = parts.iter().flat_map(|part| &part.weights);
        let places = names.map(|spec| tape.weights.iter().position(|known| known == spec));
        places.flatten().map(|place| WeightId(place as u32)).collect()
    }
}

/// What two programs hold; `own` says which of them hold it in memory of their device's own.
pub(crate) fn sum([first, second]: [MemoryUse; 2], own: [bool; 2]) -> MemoryUse {
    let held = |of: &MemoryUse| of.weights_bytes + of.kv_bytes + of.activations_bytes;
    MemoryUse {
        weights_bytes: first.weights_bytes + second.weights_bytes,
        kv_bytes: first.kv_bytes + second.kv_bytes,
        activations_bytes: first.activations_bytes + second.activations_bytes,
        // They are loaded one after the other.
        staging_bytes: first.staging_bytes.max(second.staging_bytes),
        host_bytes: match own {
            [false, true] => held(&first),
            [true, false] => held(&second),
            [true, true] | [false, false] => 0,
        },
    }
}
