//! `pelton top`: what is a running server doing, from second to second?
//!
//! On a terminal it draws a screen until `q`; elsewhere, or with `--json`, it prints looks as they
//! come. All numbers are of the server's `/metrics` and `/v1/models`.

mod counters;
mod figures;
mod frame;
#[cfg(unix)]
mod screen;

use std::collections::VecDeque;
use std::io::IsTerminal;
use std::time::{Duration, Instant};

use anyhow::Result;
use clap::Args;

use self::counters::{Counters, Span};
use self::figures::Figures;
use self::frame::History;
use crate::asking::{Asked, ServerArguments};
use crate::printing::{self, say};
use crate::style::Paint;

#[derive(Args)]
pub(crate) struct TopArguments {
    #[command(flatten)]
    server: ServerArguments,
    /// Seconds between two looks
    #[arg(long, default_value_t = 1.0, value_parser = interval)]
    interval: f64,
    /// Print so many looks and end [default: on a terminal none, until `q` is pressed; else 1]
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..))]
    count: Option<u64>,
    /// Print each look as a line of JSON
    #[arg(long)]
    json: bool,
}

fn interval(text: &str) -> Result<f64, String> {
    let seconds: f64 = text.parse().map_err(|_| "write seconds, as in 2 or 0.5".to_owned())?;
    if (0.1..=3600.0).contains(&seconds) {
        Ok(seconds)
    } else {
        Err("it must be from 0.1 to 3600 seconds".to_owned())
    }
}

pub(crate) fn run(arguments: &TopArguments) -> Result<()> {
    let mut watch = Watch::start(arguments.server.open()?)?;
    let interval = Duration::from_secs_f64(arguments.interval);
    let is_terminal = std::io::stdin().is_terminal() && std::io::stdout().is_terminal();
    if is_terminal && !arguments.json && arguments.count.is_none() {
        return draw(&mut watch, interval);
    }
    for _ in 0..arguments.count.unwrap_or(1) {
        std::thread::sleep(interval);
        let figures = watch.look()?;
        if arguments.json {
            say!("{}", figures.to_json());
        } else {
            let lines = frame::lines(&watch.asked.url, &figures, &watch.history, Paint::stdout());
            printing::painted(&format!("{}\n\n", lines.join("\n")));
        }
    }
    Ok(())
}

#[cfg(unix)]
fn draw(watch: &mut Watch, interval: Duration) -> Result<()> {
    let screen = screen::Screen::take()?;
    let paint = Paint::stdout();
    loop {
        let mut lines = match watch.look() {
            Ok(figures) => frame::lines(&watch.asked.url, &figures, &watch.history, paint),
            // It may come back: a screen that ends would not show that.
            Err(error) => vec![printing::visible(&error.to_string())],
        };
        lines.push(String::new());
        lines.push(paint.paint(crate::style::Style::Faint, "q ends"));
        screen.draw(&lines)?;
        if screen.wait(interval)? {
            return Ok(());
        }
    }
}

#[cfg(not(unix))]
fn draw(_: &mut Watch, _: Duration) -> Result<()> {
    anyhow::bail!("a screen is drawn on Unix only: print looks with --count or --json")
}

fn since<'a>(look: &'a (Instant, Counters), now: Instant, after: &'a Counters) -> Span<'a> {
    Span { before: &look.1, after, seconds: (now - look.0).as_secs_f64() }
}

/// Percentiles and shares are of as much time: a second alone has too few events.
const WINDOW: Duration = Duration::from_secs(30);

/// A server that is looked at again and again.
struct Watch {
    asked: Asked,
    looks: VecDeque<(Instant, Counters)>,
    history: History,
}

impl Watch {
    fn start(asked: Asked) -> Result<Self> {
        let first = Counters::parse(&asked.text("/metrics")?);
        let looks = VecDeque::from([(Instant::now(), first)]);
        Ok(Self { asked, looks, history: History::default() })
    }

    fn look(&mut self) -> Result<Figures> {
        let counters = Counters::parse(&self.asked.text("/metrics")?);
        let models = self.asked.models()?;
        let now = Instant::now();
        while self.looks.len() > 1 && now - self.looks[0].0 > WINDOW {
            self.looks.pop_front();
        }
        let kept = "invariant: the latest look is kept";
        let step = since(self.looks.back().expect(kept), now, &counters);
        let window = since(self.looks.front().expect(kept), now, &counters);
        let figures = Figures::new(&step, &window, &models);
        self.history.add(&figures);
        self.looks.push_back((now, counters));
        Ok(figures)
    }
}
