//! `pelton doctor`: would a server work here, and what would make it work better?
//!
//! Each check is a function that looks at one thing and says what it found, with what to do about
//! it. It changes nothing, and the network is not used.

mod finding;
mod limits;
mod machine;
mod model;
mod self_test;
mod serving;

use anyhow::{Result, bail};
use clap::Args;
use config::Config;

pub(super) use self::finding::{Finding, Grade};
use crate::printing::{self, say, visible};
use crate::settings::ModelArguments;
use crate::style::{Paint, Style};
use crate::wrapping;

#[derive(Args)]
pub(crate) struct DoctorArguments {
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// Instead, let each device compute small models of random weights, compare what they say with
    /// the reference, and measure how fast they are; --device chooses one
    #[arg(long)]
    self_test: bool,
    #[command(flatten)]
    pub(super) model: ModelArguments,
}

pub(crate) fn run(arguments: &DoctorArguments) -> Result<()> {
    #[cfg(target_os = "linux")]
    begin_without_desktop();
    let findings = if arguments.self_test {
        self_test::examine(arguments.model.device.as_deref())
    } else {
        examine(&arguments.model)
    };
    if arguments.json {
        let list: Vec<_> = findings.iter().map(Finding::to_json).collect();
        let count = |grade| findings.iter().filter(|finding| finding.grade == grade).count();
        let (problems, advice) = (count(Grade::Problem), count(Grade::Advice));
        say!("{:#}", serde_json::json!({"problems": problems, "advice": advice, "findings": list}));
    } else {
        printing::painted(&report(&findings, Paint::stdout(), wrapping::columns()));
    }
    let problems = findings.iter().filter(|finding| finding.grade == Grade::Problem).count();
    match problems {
        0 => Ok(()),
        1 => bail!("1 problem was found"),
        count => bail!("{count} problems were found"),
    }
}

/// Mesa's drivers of Vulkan ask the desktop which GPU it prefers, and where there is no desktop the
/// library that they ask by writes errors to stderr, which are none. Where a variable says so, they
/// do not ask; it is for them to see from the start, so the program begins anew.
#[cfg(target_os = "linux")]
fn begin_without_desktop() {
    use std::os::unix::process::CommandExt;

    const NO_DESKTOP: &str = "NODEVICE_SELECT";
    let is_set = |name: &str| std::env::var_os(name).is_some_and(|value| !value.is_empty());
    if is_set("XDG_RUNTIME_DIR") || is_set("WAYLAND_DISPLAY") || is_set(NO_DESKTOP) {
        return;
    }
    if let Ok(program) = std::env::current_exe() {
        let mut again = std::process::Command::new(program);
        // It comes back only where it could not begin: then there are lines too many.
        let _ = again.args(std::env::args_os().skip(1)).env(NO_DESKTOP, "1").exec();
    }
}

fn examine(arguments: &ModelArguments) -> Vec<Finding> {
    let mut findings = machine::examine();
    let (config, told) = configuration(arguments);
    findings.push(told);
    findings.extend(limits::examine(&config));
    findings.extend(serving::examine(&config));
    findings.extend(model::examine(arguments, &config));
    findings
}

/// What holds; where that is wrong, the rest is examined with the defaults.
fn configuration(arguments: &ModelArguments) -> (Config, Finding) {
    const AREA: &str = "configuration";
    let loaded = match arguments.load(Vec::new()) {
        Ok(loaded) => loaded,
        Err(error) => {
            let remedy = "mend it as the text says; `pelton config check` looks again";
            let finding = Finding::problem(AREA, format!("{error:#}"), remedy);
            return (Config::default(), finding);
        }
    };
    let missing = super::config::missing(&loaded);
    let finding = if !missing.is_empty() {
        let remedy = "make what is missing, or take the key out of the file";
        Finding::problem(AREA, missing.join("; "), remedy)
    } else if let Some(file) = &loaded.file {
        Finding::good(AREA, format!("{} is right", file.display()))
    } else {
        Finding::good(AREA, "no file, so the defaults hold; `pelton config init` writes one")
    };
    (loaded.config, finding)
}

fn report(findings: &[Finding], paint: Paint, columns: Option<usize>) -> String {
    let width = findings.iter().map(|finding| finding.area.len()).max().unwrap_or(0);
    let indent = width + 8;
    let mut text = String::new();
    for finding in findings {
        let (style, mark) = match finding.grade {
            Grade::Good => (Style::Good, "ok  "),
            Grade::Advice => (Style::Warn, "note"),
            Grade::Problem => (Style::Bad, "FAIL"),
        };
        let mark = paint.paint(style, mark);
        let area = paint.paint(Style::Strong, &format!("{:<width$}", finding.area));
        let said = wrapping::hanging(&visible(&finding.said), indent, columns);
        text.push_str(&format!("{mark}  {area}  {said}\n"));
        if let Some(remedy) = &finding.remedy {
            let remedy = wrapping::hanging(&visible(remedy), indent + 3, columns);
            let remedy = paint.paint(Style::Faint, &format!("-> {remedy}"));
            text.push_str(&format!("{:indent$}{remedy}\n", ""));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_finding_is_told_with_its_remedy() {
        let findings = [
            Finding::good("memory", "8.0 GB are free"),
            Finding::advice("limits", "few files\nmay be open", "ulimit -n 4096"),
            Finding::problem("port", "8080 is taken", "choose another"),
        ];
        assert_eq!(
            report(&findings, Paint::off(), Some(80)),
            "ok    memory  8.0 GB are free\n\
             note  limits  few files\n              may be open\n              -> ulimit -n 4096\n\
             FAIL  port    8080 is taken\n              -> choose another\n"
        );
    }
}
