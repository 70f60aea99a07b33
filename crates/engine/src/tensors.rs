//! How does a backend see a model's file? As tensors by name, those of adapters among them, some of
//! which may be looked at behind the load.

use std::sync::Arc;

use device::{LoadError, PackedStore, Pinning, StoredBytes, WeightShape, WeightSource, WeightView};
use weights::{TensorShape, TensorView, WeightFile};

use crate::adapters::Adapters;
use crate::failpoints::{DiskPlan, Failpoints};
use crate::packed_store::FileStore;
use crate::weight_manager::WeightManager;

/// A model file as a backend sees it.
pub(crate) struct Tensors<'a> {
    pub(crate) file: &'a WeightFile,
    /// The same where it may be looked at behind the load, too.
    pub(crate) lasting: Option<&'a Arc<WeightFile>>,
    /// What the model is loaded with.
    pub(crate) adapters: Option<&'a Adapters>,
    pub(crate) disk: DiskPlan,
    pub(crate) store: Option<FileStore>,
    /// Who reads them and keeps them in memory; `None`: the system, as they are looked at.
    pub(crate) manager: Option<&'a WeightManager<'a>>,
}

impl<'a> Tensors<'a> {
    /// As they lie in the file.
    pub(crate) fn of(file: &'a WeightFile) -> Self {
        let disk = Failpoints::default().disk();
        Self { file, lasting: None, adapters: None, disk, store: None, manager: None }
    }

    /// The adapters, where the tensor is of one of them.
    fn adapters_of(&self, name: &str) -> Option<&'a Adapters> {
        self.adapters.filter(|adapters| adapters.holds(name))
    }
}

impl WeightSource for Tensors<'_> {
    fn weight(&self, name: &str) -> Result<WeightView<'_>, LoadError> {
        self.disk.read(name)?;
        if let Some(adapters) = self.adapters_of(name) {
            return adapters.weight(name);
        }
        let tensor = self.file.tensor(name).map_err(|error| LoadError(error.to_string()))?;
        let TensorView { format, rows, cols, bytes, .. } = tensor;
        Ok(WeightView { format, rows, cols, bytes })
    }

    fn own_name(&self, name: &str) -> String {
        self.file.own_name(name)
    }

    fn shape(&self, name: &str) -> Result<WeightShape, LoadError> {
        self.disk.read(name)?;
        if let Some(adapters) = self.adapters_of(name) {
            return adapters.shape(name);
        }
        let shape = self.file.shape(name).map_err(|error| LoadError(error.to_string()))?;
        let TensorShape { format, rows, cols, bytes, .. } = shape;
        Ok(WeightShape { format, rows, cols, bytes })
    }

    fn lend(&self, name: &str, take: &mut dyn FnMut(WeightView<'_>)) -> Result<(), LoadError> {
        match self.manager {
            Some(manager) if self.adapters_of(name).is_none() => manager.lend(name, take),
            _ => {
                take(self.weight(name)?);
                Ok(())
            }
        }
    }

    fn lasting(&self, name: &str) -> Option<Arc<dyn StoredBytes>> {
        let file = self.lasting.filter(|_| self.adapters_of(name).is_none())?;
        let shape = file.shape(name).ok().filter(|shape| shape.is_stored)?;
        self.manager.iter().for_each(|manager| manager.count(shape.bytes));
        Some(Arc::new(StoredTensor { file: Arc::clone(file), name: name.to_owned() }))
    }

    fn pinning(&self) -> Option<&dyn Pinning> {
        self.manager.map(|manager| manager as &dyn Pinning)
    }

    fn packed_store(&self) -> Option<&dyn PackedStore> {
        self.store.as_ref().map(|store| store as &dyn PackedStore)
    }
}

/// A tensor in the model's file, which is mapped as long as any of them is there.
struct StoredTensor {
    file: Arc<WeightFile>,
    name: String,
}

impl StoredBytes for StoredTensor {
    fn bytes(&self) -> &[u8] {
        self.file.tensor(&self.name).expect("invariant: `lasting` found it").bytes
    }

    fn release(&self) {
        self.file.release(&self.name);
    }

    fn are_wanted(&self) -> bool {
        self.file.is_wanted()
    }
}
