//! What must hold, and where it does not hold yet.
//!
//! What a reader would get wrong: [`TODAY`] is a list of defects, not of exceptions. A line in it is what holds now;
//! it is tightened when more holds, and removed when what must hold does.

use super::report::{by_confidence, calibration_error};
use super::score::Score;

/// Bounds of a score.
#[derive(Clone, Copy, Debug)]
struct Bounds {
    precision_min: f64,
    recall_min: f64,
    traces_min: f64,
    /// Of the links expected, how many must be called certain at least.
    certain_min: f64,
    /// Links called certain at most, those by the place in a relayed stream left out: none where content cannot tell.
    certain_max: u64,
    /// Links not found or wrong, as a share of those of the better one of the two simple rules.
    of_rule_max: f64,
}

/// Each command in flight has a content of its own.
const UNIQUE: Bounds = Bounds {
    precision_min: 0.99,
    recall_min: 0.99,
    traces_min: 0.99,
    certain_min: 0.90,
    certain_max: u64::MAX,
    of_rule_max: f64::INFINITY,
};

/// Equal commands in flight: nothing can be certain, and nearly all must be right.
const IDENTICAL: Bounds = Bounds {
    precision_min: 0.95,
    recall_min: 0.95,
    traces_min: 0.0,
    certain_min: 0.0,
    certain_max: 0,
    of_rule_max: f64::INFINITY,
};

/// Content is not looked at: far above the simple rules, which here means at most half of their errors.
const NO_CONTENT: Bounds = Bounds {
    precision_min: 0.0,
    recall_min: 0.0,
    traces_min: 0.0,
    certain_min: 0.0,
    certain_max: u64::MAX,
    of_rule_max: 0.5,
};

/// Nothing of what must hold, but that no link called certain is wrong.
const NOTHING: Bounds = Bounds {
    precision_min: 0.0,
    recall_min: 0.0,
    traces_min: 0.0,
    certain_min: 0.0,
    certain_max: u64::MAX,
    of_rule_max: f64::INFINITY,
};

/// Of the three links behind nginx one is of unique content; the service's own calls stand on the thread, which is
/// never certain.
const THREADS: Bounds = Bounds { certain_min: 0.30, ..UNIQUE };

/// The first command with each of the three keys is alone until the second comes.
const FIRST_ALONE: Bounds = Bounds { certain_max: 3, ..IDENTICAL };

/// A proxy that spreads requests over servers, without content: what is right there lies around the simpler rule.
const SPREAD: Bounds = Bounds { recall_min: 0.90, of_rule_max: f64::INFINITY, ..NO_CONTENT };

/// Equal commands in the ring: until its routes are known, the first ones are guessed; and the first command of all is
/// unique.
const RING_IDENTICAL: Bounds = Bounds { precision_min: 0.90, recall_min: 0.90, certain_max: 60, ..IDENTICAL };

/// Where what must hold is not shown to hold yet, by topology and load: what holds today. The other rings, memcached
/// and splice have not been measured since evidence by content and the parsers of DNODE and memcached came together.
const TODAY: [(&str, &str, Bounds); 16] = [
    ("nutcracker-redis", "no_content", SPREAD),
    ("nginx-service", "unique", THREADS),
    ("haproxy-splice-nutcracker-redis", "unique", NOTHING),
    ("haproxy-splice-nutcracker-redis", "identical", NOTHING),
    ("nutcracker-memcached", "unique", NOTHING),
    ("nutcracker-memcached", "identical", NOTHING),
    ("haproxy-nutcracker-memcached", "unique", NOTHING),
    ("haproxy-nutcracker-memcached", "identical", NOTHING),
    ("nginx-service", "identical", FIRST_ALONE),
    ("ring-3-racks", "identical", RING_IDENTICAL),
    ("ring-2-dcs", "unique", NOTHING),
    ("ring-2-dcs", "identical", NOTHING),
    ("ring-shared-racks", "unique", NOTHING),
    ("ring-shared-racks", "identical", NOTHING),
    ("ring-memcached", "unique", NOTHING),
    ("ring-memcached", "identical", NOTHING),
];

/// Bounds hold up to this many in flight; above, figures are reported and only certainty is judged.
const JUDGED_IN_FLIGHT_MAX: usize = 100;

/// What is stated may differ from what is true by this much, per kind of evidence.
const CALIBRATION_ERROR_MAX: f64 = 0.05;

fn of(score: &Score) -> Bounds {
    let today = TODAY.iter().find(|(topology, load, _)| (*topology, *load) == (score.topology, score.load));
    match (today, score.load) {
        (Some((_, _, bounds)), _) => *bounds,
        (None, "unique") => UNIQUE,
        (None, "identical") => IDENTICAL,
        (None, _) => NO_CONTENT,
    }
}

/// What scores fall short of, a line each.
pub(super) fn broken(scores: &[Score]) -> Vec<String> {
    let mut found: Vec<String> = scores
        .iter()
        .filter(|score| score.method == "dprof")
        .flat_map(|score| {
            let rules = scores.iter().filter(|other| other.method != "dprof" && other.is_of_same_case(score));
            of_one(score, rules.map(Score::recall).fold(0.0, f64::max))
        })
        .collect();
    for (kind, bins) in by_confidence(scores) {
        if let Some(error) = calibration_error(&bins)
            && error > CALIBRATION_ERROR_MAX
        {
            found.push(format!("{kind}: calibration error is {error:.4}, more than {CALIBRATION_ERROR_MAX}"));
        }
    }
    found
}

fn of_one(score: &Score, rule_recall: f64) -> Vec<String> {
    let mut found = Vec::new();
    let name = format!("{} {} {}", score.topology, score.in_flight, score.load);
    let certain = score.certain();
    if certain.wrong > 0 {
        found.push(format!(
            "{name}: {} of {} links called certain are wrong",
            certain.wrong,
            certain.count()
        ));
    }
    if score.in_flight > JUDGED_IN_FLIGHT_MAX {
        return found;
    }
    let bounds = of(score);
    let by_content = score.certain_by_content();
    if by_content > bounds.certain_max {
        found.push(format!("{name}: {by_content} links are called certain by content or order"));
    }
    let certain_share = certain.count() as f64 / score.links_expected.max(1) as f64;
    let no_worse_than_rule = 1.0 - bounds.of_rule_max * (1.0 - rule_recall);
    for (what, is, min) in [
        ("precision", score.precision(), bounds.precision_min),
        ("recall", score.recall(), bounds.recall_min),
        ("recall beside the simple rules", score.recall(), no_worse_than_rule),
        ("share of traces that are right", score.traces(), bounds.traces_min),
        ("share of links called certain", certain_share, bounds.certain_min),
    ] {
        if is < min {
            found.push(format!("{name}: {what} is {is:.4}, less than {min:.4}"));
        }
    }
    found
}
