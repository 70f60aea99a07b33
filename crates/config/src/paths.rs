//! Is there what the configuration names? Only looked for by `pelton config check`: a place may
//! come later than the file that names it.

use std::path::Path;

use crate::keys::Place;
use crate::layers::Loaded;

impl Loaded {
    /// A sentence for each place that is not there.
    pub fn missing_places(&self) -> Vec<String> {
        let named = self.settings.iter().filter_map(|setting| {
            Some((&setting.key.path, setting.key.place?, setting.value.as_str()?))
        });
        let missing = named.filter_map(|(key, place, path)| {
            let problem = problem(place, Path::new(path))?;
            Some(format!("`{key}`: {path} {problem}"))
        });
        missing.collect()
    }
}

fn problem(place: Place, path: &Path) -> Option<&'static str> {
    match place {
        Place::File => (!path.is_file()).then_some("is no file"),
        Place::Folder => {
            let there = path.ancestors().find(|path| path.exists())?;
            (!there.is_dir()).then_some("cannot be made: a part of it is a file")
        }
    }
}
