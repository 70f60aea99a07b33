//! Would the model that is to be served fit?

use config::Config;
use engine::ModelPlan;

use super::Finding;
use crate::settings::{DEFAULT_MODEL, ModelArguments};
use crate::units;

pub(super) fn examine(arguments: &ModelArguments, config: &Config) -> Vec<Finding> {
    const AREA: &str = "model";
    let name = config.model.name.as_deref().unwrap_or(DEFAULT_MODEL);
    let found = hub::Store::open_default().and_then(|store| store.resolve(name));
    if let Err(error) = found {
        let is_catalogued = hub::catalogue().iter().any(|entry| entry.name == name);
        return vec![if is_catalogued {
            let remedy = format!("`pelton pull {name}` brings it; so does `pelton serve`");
            Finding::advice(AREA, error.to_string(), remedy)
        } else {
            let remedy = "`pelton list` shows the models that are here, `pelton pull` brings one";
            Finding::problem(AREA, error.to_string(), remedy)
        }];
    }
    if config.draft_model.as_deref().is_some_and(|draft| !is_here(draft)) {
        let remedy = "`pelton pull` brings it";
        return vec![Finding::advice("draft model", "it is not on this machine yet", remedy)];
    }
    vec![match plan(arguments, config) {
        Ok(plan) => fit(&plan, engine::available_memory()),
        Err(error) => {
            let remedy = match error.downcast_ref::<engine::EngineError>() {
                // Its text begins with the setting.
                Some(engine::EngineError::Option(_)) => {
                    "change the setting or mend what it names; `pelton check` tries to load the \
                     model"
                }
                _ => "choose another model or device; `pelton check` tries to load it",
            };
            Finding::problem(AREA, format!("{name}: {error:#}"), remedy)
        }
    }]
}

fn is_here(name: &str) -> bool {
    hub::Store::open_default().and_then(|store| store.resolve(name)).is_ok()
}

fn plan(arguments: &ModelArguments, config: &Config) -> anyhow::Result<ModelPlan> {
    Ok(ModelPlan::read(&arguments.engine_options(config)?)?)
}

fn fit(plan: &ModelPlan, free: Option<u64>) -> Finding {
    const AREA: &str = "model";
    let (card, needed) = (&plan.card, plan.memory.resident_bytes());
    let said = format!(
        "{} on {} needs {}, {} of it for {} tokens of keys and values at once",
        card.id,
        card.device,
        units::bytes(needed),
        units::bytes(plan.memory.kv_bytes()),
        card.context_tokens_max
    );
    // A GPU has memory of its own, which is asked for at load.
    let is_on_cpu = !card.device.contains("cuda");
    match free {
        Some(free) if is_on_cpu && needed > free => Finding::problem(
            AREA,
            format!("{said}, and only {} may be taken", units::bytes(free)),
            "give less to keys and values (--kv-cache-mb, --kv-dtype int8), shorten the context \
             (--context-tokens), take a smaller model or one of fewer bits, or free memory",
        ),
        _ => Finding::good(AREA, said),
    }
}
