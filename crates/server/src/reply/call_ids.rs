//! How are calls named, so that their results can be told apart?

use std::sync::Arc;

use answer_format::CallFormat;
use engine::ModelCard;

use crate::app::App;

/// Makes ids for calls of one reply.
pub(crate) struct CallIds {
    app: Arc<App>,
    /// Templates of Mistral's take nine letters and digits only.
    is_short: bool,
}

impl CallIds {
    pub(crate) fn new(app: &Arc<App>, card: &ModelCard) -> Self {
        let calls = card.answer_format.calls;
        let is_short = matches!(calls, CallFormat::Mistral | CallFormat::MistralNamed);
        Self { app: Arc::clone(app), is_short }
    }

    pub(crate) fn fresh(&self) -> String {
        if self.is_short {
            let mut id = self.app.fresh_name("");
            id.truncate(9);
            return id;
        }
        self.app.fresh_name("call_")
    }

    /// In Anthropic's form.
    pub(crate) fn fresh_use(&self) -> String {
        if self.is_short { self.fresh() } else { self.app.fresh_name("toolu_") }
    }
}
