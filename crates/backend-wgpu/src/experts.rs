//! How does a mixture of experts run? Chosen on the device, two products by choice, then weighed.

use std::collections::BTreeMap;

use device::{Capacity, LoadError, Tape};
use ops::experts::{Experts, Scoring};
use ops::{ActivationId, Op, Target};

use crate::dispatch::Parameters;
use crate::kernels::Kernel;
use crate::lowering::{
    Lowering, MatrixIndex, MatrixKey, PartMode, Pass, Vector, gate_mode, mode_of,
};
use crate::row_passes::{COLUMNS, RowsPass, at};
use crate::sizes::Place;

/// Experts of a mixture that `kernels/experts.route.wgsl` has room for.
pub(crate) const EXPERTS_MAX: u32 = 512;

/// Products of the experts that tokens go to.
#[derive(Clone, Debug)]
pub(crate) struct ExpertsPass {
    pub(crate) matrix: MatrixIndex,
    /// What [`Kernel::Experts`] is told, behind the matrix.
    pub(crate) parameters: Parameters,
    /// Rows of one expert.
    pub(crate) rows: u32,
    pub(crate) used: u32,
}

/// What a mixture keeps between its passes, for each token.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ExpertsRoom {
    /// `[tokens, used]` pairs: an expert's number and its weight.
    choices: Place,
    /// `[tokens * used, inner]`
    inner: Place,
    /// `[tokens * used, width]`
    given: Place,
}

/// What makes two mixtures have the same room.
pub(crate) type RoomKey = [u32; 3];

fn room_key(experts: &Experts, width: u32) -> RoomKey {
    [experts.routing.used, experts.inner, width]
}

/// Room for every shape of mixture in a tape, behind the `elements` that are taken.
pub(crate) fn rooms(
    tape: &Tape,
    capacity: &Capacity,
    elements: &mut u64,
) -> BTreeMap<RoomKey, ExpertsRoom> {
    let mut rooms = BTreeMap::new();
    for op in &tape.ops {
        let Op::Experts { experts, target, .. } = op else { continue };
        let width = tape.activations[usize::from(target.buffer().0)].width;
        let used = experts.routing.used;
        rooms.entry(room_key(experts, width)).or_insert_with(|| {
            let tokens = u64::from(capacity.step_tokens_max);
            let chosen = tokens * u64::from(used);
            ExpertsRoom {
                choices: Place::take(elements, tokens, 2 * used),
                inner: Place::take(elements, chosen, experts.inner),
                given: Place::take(elements, chosen, width),
            }
        });
    }
    rooms
}

impl Lowering<'_> {
    pub(crate) fn experts(
        &mut self,
        input: ActivationId,
        scores: ActivationId,
        experts: &Experts,
        target: Target,
    ) -> Result<(), LoadError> {
        let output = self.place(target.buffer());
        let room = self.plan.places.rooms[&room_key(experts, output.width)];
        let used = experts.routing.used;
        let route = self.route(self.place(scores), experts, room)?;
        self.plan.passes.push(Pass::Rows(route));
        let biases = experts.biases.map(|biases| biases.map(Some)).unwrap_or_default();
        let [gate, up, down] = biases.map(|bias| self.optional(bias));
        let key = MatrixKey::Alternating([experts.gate, experts.up]);
        let mut parameters = self.products(at(self.place(input)), false, room, 2 * experts.inner);
        parameters.extend(&at(room.inner));
        parameters.extend(&[gate_mode(experts.activation) as u32, gate?.0, up?.0, used]);
        self.push_experts(key, parameters, 2 * experts.inner, used)?;
        let mut parameters = self.products(at(room.inner), true, room, output.width);
        parameters.extend(&at(room.given));
        parameters.extend(&[PartMode::Store as u32, down?.0, Vector::NONE.0, used]);
        let key = MatrixKey::Stacked(vec![experts.down]);
        self.push_experts(key, parameters, output.width, used)?;
        let mut parameters = Parameters::new(&at(room.given));
        parameters.extend(&at(room.choices));
        parameters.extend(&[used]);
        parameters.extend(&at(output));
        parameters.extend(&[output.width, mode_of(target) as u32]);
        let across = output.width.div_ceil(COLUMNS);
        let (kernel, rows) = (Kernel::Combine, output.rows);
        self.plan.passes.push(Pass::Rows(RowsPass { kernel, parameters, rows, across }));
        Ok(())
    }

    fn route(
        &mut self,
        scores: Place,
        experts: &Experts,
        room: ExpertsRoom,
    ) -> Result<RowsPass, LoadError> {
        let routing = &experts.routing;
        if routing.experts > EXPERTS_MAX {
            let count = routing.experts;
            let text = format!("{count} experts of a layer: the wgpu device has {EXPERTS_MAX}");
            return Err(LoadError(text));
        }
        let bias = self.optional(experts.choice_bias)?;
        let mut parameters = Parameters::new(&at(scores));
        parameters.extend(&[bias.0]);
        parameters.extend(&at(room.choices));
        parameters.extend(&[routing.experts, routing.used, scoring_word(routing.scoring)]);
        parameters.extend(&[routing.groups, routing.groups_used, routing.scale.to_bits()]);
        let weight_scales = self.optional(experts.weight_scales)?;
        parameters.extend(&[routing.sharpness.to_bits(), weight_scales.0]);
        Ok(RowsPass { kernel: Kernel::Route, parameters, rows: scores.rows, across: 1 })
    }

    fn products(
        &self,
        input: [u32; 2],
        is_by_choice: bool,
        room: ExpertsRoom,
        rows: u32,
    ) -> Parameters {
        let mut parameters = Parameters::new(&input);
        parameters.extend(&[u32::from(is_by_choice)]);
        parameters.extend(&at(room.choices));
        parameters.extend(&[rows]);
        parameters
    }

    fn push_experts(
        &mut self,
        key: MatrixKey,
        parameters: Parameters,
        rows: u32,
        used: u32,
    ) -> Result<(), LoadError> {
        let matrix = self.matrix(key)?;
        self.plan.passes.push(Pass::Experts(ExpertsPass { matrix, parameters, rows, used }));
        Ok(())
    }
}

/// As `kernels/experts.route.wgsl` numbers them: what is normed over the chosen is one, by softmax.
fn scoring_word(scoring: Scoring) -> u32 {
    match scoring {
        Scoring::Softmax => 0,
        Scoring::SoftmaxNormed | Scoring::SoftmaxOfChosen => 1,
        Scoring::Sigmoid => 2,
        Scoring::SigmoidNormed => 3,
    }
}
