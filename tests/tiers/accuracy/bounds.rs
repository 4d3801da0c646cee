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

/// Equal commands in flight: nothing can be certain, and nearly all must be right. The first command with each of the
/// three keys is alone until the second comes, so it may be certain.
const IDENTICAL: Bounds = Bounds {
    precision_min: 0.95,
    recall_min: 0.95,
    traces_min: 0.0,
    certain_min: 0.0,
    certain_max: 3,
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

/// Of the three links behind nginx one is of unique content; the service's own calls stand on the thread, which is
/// never certain.
const THREADS: Bounds = Bounds { certain_min: 0.30, ..UNIQUE };

/// A proxy that spreads requests over servers, without content: what is right there lies around the simpler rule.
const SPREAD: Bounds = Bounds { recall_min: 0.90, of_rule_max: f64::INFINITY, ..NO_CONTENT };

/// Equal commands in the ring: until its routes are known, the first ones are guessed; and the first command of all is
/// unique.
const RING_IDENTICAL: Bounds = Bounds { certain_max: 60, ..IDENTICAL };

/// The first command with each of the three keys is alone at both hops.
const TWO_HOPS_IDENTICAL: Bounds = Bounds { certain_max: 6, ..IDENTICAL };

/// The first request of a connection may be Redis's too, until it is answered; beside it none is certain.
const AMBIGUOUS: Bounds = Bounds { certain_min: 0.80, ..UNIQUE };

/// Every link is right, but of up to two in a hundred traces not all spans have its id.
const TWO_DCS: Bounds = Bounds { traces_min: 0.97, ..UNIQUE };

/// HAProxy reads and writes nothing, so half of the links have no end there.
const SPLICE: Bounds = Bounds { recall_min: 0.49, certain_min: 0.49, ..UNIQUE };

/// The same, of equal commands and without content.
const SPLICE_IDENTICAL: Bounds = Bounds { recall_min: 0.49, ..IDENTICAL };
const SPLICE_NO_CONTENT: Bounds = Bounds { recall_min: 0.40, ..SPREAD };

/// A request goes to one of two nodes, so it has no route, and nothing is said of most.
const NO_ROUTE: Bounds = Bounds { of_rule_max: f64::INFINITY, ..NO_CONTENT };

/// Where what must hold does not hold yet, by topology and load: what holds today.
const TODAY: [(&str, &str, Bounds); 17] = [
    ("nutcracker-redis", "no_content", SPREAD),
    ("nutcracker-memcached", "unique", AMBIGUOUS),
    ("nutcracker-memcached", "no_content", SPREAD),
    ("haproxy-nutcracker-redis", "identical", TWO_HOPS_IDENTICAL),
    ("haproxy-nutcracker-redis", "no_content", SPREAD),
    ("haproxy-nutcracker-memcached", "identical", TWO_HOPS_IDENTICAL),
    ("haproxy-nutcracker-memcached", "no_content", SPREAD),
    ("haproxy-splice-nutcracker-redis", "unique", SPLICE),
    ("haproxy-splice-nutcracker-redis", "identical", SPLICE_IDENTICAL),
    ("haproxy-splice-nutcracker-redis", "no_content", SPLICE_NO_CONTENT),
    ("nginx-service", "unique", THREADS),
    ("ring-3-racks", "identical", RING_IDENTICAL),
    ("ring-2-dcs", "unique", TWO_DCS),
    ("ring-2-dcs", "identical", RING_IDENTICAL),
    ("ring-shared-racks", "identical", RING_IDENTICAL),
    ("ring-shared-racks", "no_content", NO_ROUTE),
    ("ring-memcached", "identical", RING_IDENTICAL),
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
    // With one request in flight every rule is right.
    let of_rule_max = if score.in_flight == 1 { f64::INFINITY } else { bounds.of_rule_max };
    let no_worse_than_rule = 1.0 - of_rule_max * (1.0 - rule_recall);
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
