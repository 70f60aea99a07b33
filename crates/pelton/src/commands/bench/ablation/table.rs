//! How are the arms shown? As a table for people and as JSON with every turn.

use serde_json::{Value, json};

use super::systems::{Arm, System};
use super::worth::{Figures, Metric, Worth, conclusion};
use crate::commands::bench::samples::Samples;
use crate::printing::say;

type Arms = [(Arm, Vec<Figures>)];

fn find<'a>(arms: &'a Arms, arm: &Arm) -> Option<&'a [Figures]> {
    arms.iter().find(|(known, _)| known == arm).map(|(_, figures)| figures.as_slice())
}

fn samples(figures: &[Figures], metric: Metric) -> Samples {
    Samples::new(figures.iter().map(|turn| turn.get(metric)).collect())
}

fn worths(with: &[Figures], without: &[Figures]) -> Vec<(Metric, Worth)> {
    Metric::ALL.map(|metric| (metric, Worth::of(metric, with, without))).to_vec()
}

pub(super) fn print(systems: &[&System], arms: &Arms) {
    let titles = Metric::ALL.map(|metric| format!("{:>13}", metric.title())).concat();
    let names = arms.iter().map(|(arm, _)| arm.to_string().len());
    let width = names.max().unwrap_or(0).max(NAME_WIDTH);
    say!("\n{:<width$}{titles}   medians", "");
    for (arm, figures) in arms {
        let cells = Metric::ALL.map(|metric| {
            let median = samples(figures, metric).median();
            format!("{:>13}", metric.show(median))
        });
        say!("{:<width$}{}", arm.to_string(), cells.concat());
    }
    say!("\n{:<width$}{titles}   having it, against all others without it", "worth");
    for (name, rounds, worths) in compared(systems, arms) {
        let ratio =
            |(_, worth): &(Metric, Worth)| format!("{:>13}", format!("{:.2}x", worth.ratio));
        let cells: String = worths.iter().map(ratio).collect();
        say!("{name:<width$}{cells}   {}", conclusion(&worths, rounds));
    }
}

/// Of the first column.
const NAME_WIDTH: usize = 18;

/// A system, the rounds there were, and what having it is worth.
type Compared = (&'static str, usize, Vec<(Metric, Worth)>);

/// Each system, and all of them.
fn compared(systems: &[&System], arms: &Arms) -> Vec<Compared> {
    let alone = systems.iter().map(|system| (system.name, system.arms()));
    let all = ("all together", [Arm::ALL_ON, Arm::AllOff]);
    let each = alone.chain(std::iter::once(all)).filter_map(|(name, [with, without])| {
        let (with, without) = (find(arms, &with)?, find(arms, &without)?);
        Some((name, with.len(), worths(with, without)))
    });
    each.collect()
}

pub(super) fn to_json(model: &str, rounds: usize, systems: &[&System], arms: &Arms) -> Value {
    let turns = |figures: &[Figures]| {
        let turn = |figures: &Figures| {
            let fields =
                Metric::ALL.map(|metric| (metric.field().to_owned(), json!(figures.get(metric))));
            Value::Object(fields.into_iter().collect())
        };
        figures.iter().map(turn).collect::<Vec<_>>()
    };
    let shown: Vec<Value> = arms
        .iter()
        .map(|(arm, figures)| {
            let medians = Metric::ALL.map(|metric| {
                (metric.field().to_owned(), json!(samples(figures, metric).median()))
            });
            let medians: serde_json::Map<_, _> = medians.into_iter().collect();
            json!({"arm": arm.to_string(), "median": medians, "turns": turns(figures)})
        })
        .collect();
    let worth = compared(systems, arms).into_iter().map(|(name, _, worths)| {
        let ratios: serde_json::Map<_, _> = worths
            .iter()
            .map(|(metric, worth)| (metric.field().to_owned(), json!(worth.ratio)))
            .collect();
        json!({"system": name, "worth": ratios, "conclusion": conclusion(&worths, rounds)})
    });
    let worth: Vec<Value> = worth.collect();
    json!({"model": model, "rounds": rounds, "arms": shown, "worth": worth})
}
