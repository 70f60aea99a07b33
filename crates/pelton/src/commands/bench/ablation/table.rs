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
    say!("\n{:<18}{titles}   medians", "");
    for (arm, figures) in arms {
        let cells = Metric::ALL.map(|metric| {
            let median = samples(figures, metric).median();
            format!("{:>13}", metric.show(median))
        });
        say!("{:<18}{}", arm.to_string(), cells.concat());
    }
    let Some(with) = find(arms, &Arm::AllOn) else { return };
    say!("\n{:<18}{titles}   having it, against all others without it", "worth");
    for system in systems {
        if let Some(without) = find(arms, &Arm::Without(system.name)) {
            print_worth(system.name, &worths(with, without), with.len());
        }
    }
    if let Some(without) = find(arms, &Arm::AllOff) {
        print_worth("all together", &worths(with, without), with.len());
    }
}

fn print_worth(name: &str, worths: &[(Metric, Worth)], rounds: usize) {
    let cells: String =
        worths.iter().map(|(_, worth)| format!("{:>13}", format!("{:.2}x", worth.ratio))).collect();
    say!("{name:<18}{cells}   {}", conclusion(worths, rounds));
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
    let worth_of = |name: &str, arm: &Arm| {
        let worths = worths(find(arms, &Arm::AllOn)?, find(arms, arm)?);
        let ratios: serde_json::Map<_, _> = worths
            .iter()
            .map(|(metric, worth)| (metric.field().to_owned(), json!(worth.ratio)))
            .collect();
        Some(json!({"system": name, "worth": ratios, "conclusion": conclusion(&worths, rounds)}))
    };
    let mut worth: Vec<Value> = systems
        .iter()
        .filter_map(|system| worth_of(system.name, &Arm::Without(system.name)))
        .collect();
    worth.extend(worth_of("all together", &Arm::AllOff));
    json!({"model": model, "rounds": rounds, "arms": shown, "worth": worth})
}
