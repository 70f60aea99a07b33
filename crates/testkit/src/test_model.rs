//! Where is the model that tests run on?

use std::path::PathBuf;

/// The default model's file: `PELTON_TEST_MODEL`, or where `pelton pull` puts it.
///
/// `None` when it is not there; a test then says so and passes, and `.ci/run` makes sure that it
/// is there.
pub fn default_model() -> Option<PathBuf> {
    let given = std::env::var_os("PELTON_TEST_MODEL").map(PathBuf::from);
    let home = || {
        let root = std::env::var_os("PELTON_HOME").map(PathBuf::from).or_else(|| {
            let cache = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
            let home = std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".cache"));
            cache.or(home).map(|cache| cache.join("pelton"))
        })?;
        Some(root.join("models/smollm2-135m-instruct-q4_1.gguf"))
    };
    given.or_else(home).filter(|path| path.is_file())
}
