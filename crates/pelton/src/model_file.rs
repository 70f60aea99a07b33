//! How does a name on the command line become a file? Pulled once, with a bar.

use anyhow::Result;
use hub::{Event, HubError, Origin, Pulled, Resolved, Store};
use indicatif::{ProgressBar, ProgressStyle};
use messages::{Refusal, RefusalKind};
use server::{ModelSource, PullStep};

/// The model's file; brought here first if it is not.
pub(crate) fn find(name: &str) -> Result<Resolved> {
    let store = Store::open_default()?;
    Ok(pull(&store, name)?.resolved)
}

pub(crate) fn pull(store: &Store, name: &str) -> Result<Pulled> {
    let mut bar = Bar::default();
    let pulled = store.pull(name, &mut |event: Event<'_>| bar.show(event))?;
    Ok(pulled)
}

/// The local store, for a server that is asked to bring a model.
#[derive(Debug)]
pub(crate) struct PullToStore;

impl ModelSource for PullToStore {
    fn pull(&self, name: &str, tell: &mut dyn FnMut(PullStep)) -> Result<Option<String>, Refusal> {
        let mut told = |event: Event<'_>| match event {
            Event::WaitingForOther => tell(PullStep::Waiting),
            Event::Source { place, .. } => tell(PullStep::From(place.to_owned())),
            Event::Bytes { done_bytes, total_bytes } => {
                tell(PullStep::Bytes { done: done_bytes, total: total_bytes });
            }
            Event::FellThrough { place, why, after } => {
                eprintln!("{place} did not work ({:.1} s): {why}", after.as_secs_f64());
            }
            Event::Verifying => tell(PullStep::Verifying),
            Event::Done { path } => eprintln!("kept as {}", path.display()),
        };
        let pulled = Store::open_default().and_then(|store| store.pull(name, &mut told));
        let Pulled { resolved, brought_from } = pulled.map_err(|error| refused(&error))?;
        match resolved.origin {
            Origin::Store => Ok(brought_from.map(|_| resolved.name)),
            Origin::HubCache | Origin::Path => {
                let text = format!(
                    "`{name}` is here, outside of the store, where a running server does not look: \
                     start a server with it"
                );
                Err(Refusal::invalid("model", text))
            }
        }
    }
}

fn refused(error: &HubError) -> Refusal {
    let kind = match error {
        HubError::UnknownName { .. }
        | HubError::NoSuchFile { .. }
        | HubError::NotAModelFolder { .. }
        | HubError::NotPulled { .. }
        | HubError::NoMatchingFile { .. } => RefusalKind::UnknownModel,
        HubError::InvalidName { .. }
        | HubError::NotGguf { .. }
        | HubError::NotOurs { .. }
        | HubError::Offline { .. } => RefusalKind::Invalid,
        HubError::EverySourceFailed { .. }
        | HubError::DiskFull { .. }
        | HubError::NoHome
        | HubError::Io { .. } => RefusalKind::Unavailable,
    };
    let field = Some("model".to_owned());
    Refusal { field, ..Refusal::new(kind, error.to_string()) }
}

/// Shows a pull on stderr: a bar on a terminal, a line an event elsewhere.
#[derive(Default)]
struct Bar {
    bar: Option<ProgressBar>,
}

impl Bar {
    fn show(&mut self, event: Event<'_>) {
        match event {
            Event::WaitingForOther => eprintln!("another process pulls this model; waiting for it"),
            Event::Source { place, total_bytes } => {
                eprintln!("getting it from {place}");
                self.start(total_bytes);
            }
            Event::Bytes { done_bytes, total_bytes } => {
                if let Some(bar) = &self.bar {
                    if let Some(total) = total_bytes {
                        bar.set_length(total);
                    }
                    bar.set_position(done_bytes);
                }
            }
            Event::FellThrough { place, why, after } => {
                self.finish();
                eprintln!("{place} did not work ({:.1} s): {why}", after.as_secs_f64());
            }
            Event::Verifying => {
                self.finish();
                eprintln!("checking its checksum");
            }
            Event::Done { path } => {
                self.finish();
                eprintln!("kept as {}", path.display());
            }
        }
    }

    fn start(&mut self, total_bytes: Option<u64>) {
        let style = "{bar:30} {bytes}/{total_bytes} {bytes_per_sec} {eta}";
        let bar = match total_bytes {
            Some(total) => ProgressBar::new(total),
            None => ProgressBar::new_spinner(),
        };
        if let Ok(style) = ProgressStyle::with_template(style) {
            bar.set_style(style);
        }
        self.bar = Some(bar);
    }

    fn finish(&mut self) {
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
    }
}
