//! What if the device fails? Planned faults, so that tests and operators can see what happens.
//!
//! A plan is a text such as `fault@5` (the step numbered 5 fails), `hang:200@3` (step 3 takes
//! 200 ms longer), `nan@4` (its first row cannot be sampled) or `fault@5,fault@6`.

use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

use ops::sample_rows::SampleError;

use crate::{
    BlockCopier, BlockForm, Fault, HeapPool, MemoryUse, OwnCopies, PartClock, Program, StepInputs,
    StepOutputs,
};

/// Steps that are to go wrong.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FailPlan {
    points: Vec<(u64, Trouble)>,
    gate: Option<Gate>,
}

/// Holds all steps back while it is closed, so that a test decides what comes before the next one.
/// Open at first.
#[derive(Clone, Debug, Default)]
pub struct Gate(Arc<(Mutex<bool>, Condvar)>);

impl Gate {
    pub fn close(&self) {
        self.set(true);
    }

    pub fn open(&self) {
        self.set(false);
    }

    fn set(&self, closed: bool) {
        let (state, changed) = &*self.0;
        *state.lock().unwrap_or_else(PoisonError::into_inner) = closed;
        changed.notify_all();
    }

    fn pass(&self) {
        let (state, changed) = &*self.0;
        let closed = state.lock().unwrap_or_else(PoisonError::into_inner);
        drop(changed.wait_while(closed, |closed| *closed));
    }
}

impl PartialEq for Gate {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl Eq for Gate {}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Trouble {
    Fault,
    Hang(Duration),
    Nan,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a failpoint: write `fault@STEP`, `nan@STEP` or `hang:MILLISECONDS@STEP`")]
pub struct FailPlanError(String);

impl FailPlan {
    /// # Errors
    /// [`FailPlanError`] naming the part that cannot be read.
    pub fn parse(text: &str) -> Result<Self, FailPlanError> {
        let parse = |part: &str| {
            let (what, step) = part.trim().split_once('@')?;
            let trouble = match what.split_once(':') {
                None if what == "fault" => Trouble::Fault,
                None if what == "nan" => Trouble::Nan,
                Some(("hang", ms)) => Trouble::Hang(Duration::from_millis(ms.parse().ok()?)),
                _ => return None,
            };
            Some((step.parse().ok()?, trouble))
        };
        let points = text
            .split(',')
            .filter(|part| !part.trim().is_empty())
            .map(|part| parse(part).ok_or_else(|| FailPlanError(part.to_owned())))
            .collect::<Result<_, _>>()?;
        Ok(Self { points, gate: None })
    }

    /// Steps wait for this gate, too.
    pub fn behind(self, gate: &Gate) -> Self {
        Self { gate: Some(gate.clone()), ..self }
    }

    /// Lets all steps through that wait for a gate: nobody is left to open it.
    pub fn let_go(&self) {
        if let Some(gate) = &self.gate {
            gate.open();
        }
    }

    pub fn is_empty(&self) -> bool {
        self.points.is_empty() && self.gate.is_none()
    }
}

/// A program that goes wrong as planned and otherwise runs the one inside.
pub struct Failing {
    inner: Box<dyn Program>,
    plan: FailPlan,
}

impl Failing {
    pub fn new(inner: Box<dyn Program>, plan: FailPlan) -> Self {
        Self { inner, plan }
    }
}

impl Program for Failing {
    fn run(&mut self, inputs: &StepInputs, outputs: &mut StepOutputs) -> Result<(), Fault> {
        if let Some(gate) = &self.plan.gate {
            gate.pass();
        }
        for (step, trouble) in &self.plan.points {
            match trouble {
                Trouble::Fault if *step == inputs.step => {
                    return Err(Fault(format!("planned failure of step {step}")));
                }
                Trouble::Hang(time) if *step == inputs.step => std::thread::sleep(*time),
                Trouble::Fault | Trouble::Hang(_) | Trouble::Nan => {}
            }
        }
        self.inner.run(inputs, outputs)?;
        let nan = (inputs.step, Trouble::Nan);
        if self.plan.points.contains(&nan)
            && let Some(first) = outputs.samples.first_mut()
        {
            first.sampled = Err(SampleError::NotFinite);
        }
        Ok(())
    }

    fn block_form(&self) -> BlockForm {
        self.inner.block_form()
    }

    fn read_block(&mut self, block: u32, bytes: &mut [u8]) {
        self.inner.read_block(block, bytes);
    }

    fn write_block(&mut self, block: u32, bytes: &[u8]) {
        self.inner.write_block(block, bytes);
    }

    fn state_bytes(&self) -> Option<usize> {
        self.inner.state_bytes()
    }

    fn read_state(&mut self, place: u32, offset: usize, bytes: &mut [u8]) {
        self.inner.read_state(place, offset, bytes);
    }

    fn copier(&self) -> Option<Arc<dyn BlockCopier>> {
        self.inner.copier()
    }

    fn memory(&self) -> MemoryUse {
        self.inner.memory()
    }

    fn heap_pools(&self) -> Vec<HeapPool> {
        self.inner.heap_pools()
    }

    fn own_copies(&self) -> OwnCopies {
        self.inner.own_copies()
    }

    fn clocks(&self) -> Vec<PartClock> {
        self.inner.clocks()
    }
}

#[cfg(test)]
mod tests {
    use super::FailPlan;

    #[test]
    fn plans_are_read_or_refused() {
        let plan = FailPlan::parse("fault@5, hang:20@3,nan@1").expect("a plan");
        assert_eq!(plan.points.len(), 3);
        assert!(FailPlan::parse("").is_ok_and(|plan| plan.is_empty()));
        for wrong in ["fault", "fault@x", "hang@3", "melt@1", "hang:x@1"] {
            assert!(FailPlan::parse(wrong).is_err(), "{wrong}");
        }
    }
}
