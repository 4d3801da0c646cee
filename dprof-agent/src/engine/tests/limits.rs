//! Everything is bounded, and what a bound cost is counted.

use super::stage::{PAIR, check_with, config, run_with};

#[test]
fn too_many_open_requests_end_the_oldest() {
    let mut config = config();
    config.open_requests_max = 2;
    let run = check_with(
        &config,
        &format!("{PAIR}\n 10 c send Q1:aQ1:bQ1:c\n 20 c recv A1:xA1:yA1:z"),
        "a timeout c=10..10 edge batch=3
         b ok c=10..20 edge batch=3
         c ok c=10..20 edge batch=3",
    );
    assert_eq!((run.counters.requests_beyond_limit, run.counters.responses_late), (1, 1));
}

#[test]
fn too_many_held_spans_leave_early() {
    let mut config = config();
    config.held_max = 2;
    let requests: String =
        (0..5).map(|n| format!("{} s recv Q1:a\n{} s send A1:x\n", 10 * n + 10, 10 * n + 12)).collect();
    let mut engine_run = run_with(config, &format!("{PAIR}\n{requests}"), usize::MAX);
    assert_eq!((engine_run.counters.spans_released_early, engine_run.out.spans.len()), (3, 5));
    engine_run.out.spans.clear();
}

#[test]
fn operations_beyond_the_limit_count_as_other() {
    use crate::rollup::{OPERATIONS_MAX, OTHER};
    let n = OPERATIONS_MAX + 10;
    let mut script = PAIR.to_owned();
    for i in 0..n {
        let operation = format!("op{i:04}");
        script += &format!("\n {} c send Q6:{operation}\n {} c recv A1:x", 10 + 10 * i, 15 + 10 * i);
    }
    let run = run_with(config(), &script, usize::MAX);
    assert_eq!(run.out.rollups.len(), OPERATIONS_MAX + 1);
    let other =
        run.out.rollups.iter().find(|rollup| rollup.key.operation == OTHER).expect("an entry for the rest");
    assert_eq!((other.count, run.counters.rollups_other), (10, 10));
    assert_eq!(run.out.rollups.iter().map(|rollup| rollup.count).sum::<u64>(), n as u64);
}

#[test]
fn counters_have_names() {
    let run = run_with(config(), &format!("{PAIR}\n 10 c send Q1:a\n 20 - lost 7"), usize::MAX);
    let value =
        |name: &str| run.counters.iter().find(|(counter, _)| *counter == name).map(|(_, value)| value);
    assert_eq!(value("events_lost"), Some(7));
    assert_eq!(value("connections"), Some(2));
    assert_eq!(value("nonsense"), None);
}
