//! What holds where `config.json` leaves a key out? What the authors' configuration classes say, by
//! `model_type`.
//!
//! Published settings lack what their class fills in: those of Gemma 3 12B have neither the size of
//! a head nor an epsilon. `defaults.json` is made by `tools/golden/make_config_defaults.py`.

use serde_json::{Map, Value as Json};

const TABLE: &str = include_str!("defaults.json");

/// The defaults of all kinds of model.
pub(super) struct Defaults(Map<String, Json>);

impl Defaults {
    pub(super) fn new() -> Self {
        Self(serde_json::from_str(TABLE).expect("invariant: the table is an object"))
    }

    pub(super) fn of(&self, model_type: &str) -> Option<&Map<String, Json>> {
        self.0.get(model_type)?.as_object()
    }
}
