//! Which model is served first?

use std::path::{Path, PathBuf};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Which model is served.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct ModelConfig {
    /// A catalogue name, `org/name` on the hub, or the path of a file; absent: the default model.
    pub name: Option<String>,
    /// Longest sequence; absent: as long as the model and the memory allow.
    #[schemars(range(min = 1))]
    pub context_tokens: Option<u32>,
    /// What it gives: words (`none`), a vector of each text, the `mean` of its tokens' or that of
    /// its `last`, or how well a text answers another (`rank`); absent: what its files say.
    pub pooling: Option<PoolingConfig>,
    /// Adapters that requests may name, each `NAME=FOLDER`.
    pub adapters: Vec<String>,
    /// How the model writes calls of tools: `deepseek`, `deepseek-fenced`, `gemma`, `glm`,
    /// `glm-lines`, `harmony`, `hermes`, `llama`, `mistral`, `mistral-named`, `olmo`, `phi`,
    /// `pythonic`, `qwen-xml` or `seed`; absent: as its chat template says.
    pub tool_calls: Option<String>,
    /// Whether weights as the device laid them out are kept for the next start: `true` keeps them
    /// beside the model, a path in that file. They take as much space as the model. On the CPU;
    /// weights for a GPU are laid out at each load.
    pub repack_cache: RepackCache,
}

/// What a model gives of a text.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum PoolingConfig {
    None,
    Mean,
    Last,
    Rank,
}

/// `true`, `false`, or the path of a file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged, expecting = "it must be `true`, `false` or the path of a file")]
pub enum RepackCache {
    Beside(bool),
    At(PathBuf),
}

impl Default for RepackCache {
    fn default() -> Self {
        Self::Beside(false)
    }
}

impl RepackCache {
    /// The file for the model at `model`, if there is to be one.
    pub fn path(&self, model: &Path) -> Option<PathBuf> {
        match self {
            Self::Beside(false) => None,
            Self::Beside(true) => {
                let mut name = model.as_os_str().to_owned();
                name.push(".packed");
                Some(PathBuf::from(name))
            }
            Self::At(path) => Some(path.clone()),
        }
    }
}
