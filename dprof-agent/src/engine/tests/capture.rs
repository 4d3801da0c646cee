//! The capture window: what crosses an edge is dropped and counted, what lies inside is exact.

use super::stage::{PAIR, check, nonzero};

/// Counters that the window moves, as text.
#[track_caller]
fn check_counted(run: &super::stage::Run, expected: &[(&str, u64)]) {
    let names =
        ["windows", "window_dropped", "window_gaps", "gaps", "boundaries_lost", "no_reply", "timeouts"];
    let counted: Vec<_> =
        nonzero(&run.counters).into_iter().filter(|(name, _)| names.contains(name)).collect();
    assert_eq!(counted, expected);
}

#[test]
fn requests_that_cross_an_edge_are_dropped_and_those_inside_are_exact() {
    let run = check(
        &format!(
            "1 - window opens
            {PAIR}
            10 c send Q1:a
            11 s recv Q1:a
            12 s send A1:a
            13 c recv A1:a
            20 c send Q1:b
            21 s recv Q1:b
            30 - window closes
            31 s send A1:b lost
            32 c recv A1:b lost
            33 c send Q1:c lost
            34 s recv Q1:c lost
            1000 - window opens
            1001 s send A1:c
            1002 c recv A1:c
            30010 c send Q1:d
            30011 s recv Q1:d
            30012 s send A1:d
            30013 c recv A1:d"
        ),
        "a ok c=10..13 s=10..12 edge
         d ok c=30010..30013 s=30010..30012 edge c:incomplete s:incomplete",
    );
    // The toy's parser calls the first message after a hole incomplete. `b` at both its ends; the answers to `b` and the requests `c` are the four gaps.
    check_counted(&run, &[("windows", 2), ("window_dropped", 2), ("window_gaps", 4)]);
}

#[test]
fn a_connection_known_to_ask_one_thing_at_a_time_needs_no_silence() {
    let turns = || (10..26).step_by(2).map(|us| (us, us + 1));
    let asked: String =
        turns().map(|(asked, done)| format!("{asked} c send Q1:a\n{done} c recv A1:a\n")).collect();
    let answered: String = turns().map(|(asked, done)| format!("a ok c={asked}..{done} edge\n")).collect();
    check(
        &format!(
            "1 - window opens
            {PAIR}
            {asked}
            30 - window closes
            33 c send Q1:c lost
            1000 - window opens
            1002 c recv A1:c
            1010 c send Q1:d
            1013 c recv A1:d"
        ),
        &format!("{answered} d ok c=1010..1013 edge c:incomplete"),
    );
}

#[test]
fn an_answer_that_was_slower_than_the_pause_is_given_to_nobody() {
    let run = check(
        &format!(
            "1 - window opens
            {PAIR}
            10 c send Q1:a
            30 - window closes
            1000 - window opens
            1001 c send Q1:b
            1010 c recv A1:a
            1020 c recv A1:b"
        ),
        "b ok c=1001..1020 edge",
    );
    check_counted(&run, &[("windows", 2), ("window_dropped", 1)]);
}

#[test]
fn a_pipelined_connection_pairs_again_only_once_it_was_idle() {
    let run = check(
        "1 - window opens
        2 c open active 10.0.0.1:5000 10.0.0.2:6379 th=1/1
        10 c send Q1:0Q1:1
        11 c recv A1:0A1:1
        20 - window closes
        21 c send Q1:xQ1:x lost
        1000 - window opens
        1001 c send Q1:yQ1:y
        1002 c recv A1:xA1:x
        1003 c recv A1:yA1:y
        1004 c send Q1:aQ1:a
        1005 c recv A1:aA1:a
        1006 c send Q1:bQ1:b
        1007 c recv A1:bA1:b
        1008 c send Q1:cQ1:d
        1009 c recv A1:cA1:d",
        "0 ok c=10..11 edge batch=2
         1 ok c=10..11 edge batch=2
         c ok c=1008..1009 edge batch=2 c:incomplete+paired_across_gap
         d ok c=1008..1009 edge batch=2 c:incomplete+paired_across_gap",
    );
    check_counted(&run, &[("windows", 2), ("window_dropped", 6), ("window_gaps", 1)]);
}

#[test]
fn a_connection_opened_between_windows_is_joined_in_the_middle() {
    let run = check(
        "1 - window opens
        2 - window closes
        1000 - window opens
        500 c open active 10.0.0.1:5000 10.0.0.2:6379 th=1/1 at=40/30
        1010 c send Q1:a
        1011 c recv A1:a
        1012 c send Q1:b
        1013 c recv A1:b
        1014 c send Q1:c
        1015 c recv A1:c
        1016 c send Q1:d
        1017 c recv A1:d",
        "d ok c=1016..1017 edge c:incomplete+paired_across_gap",
    );
    check_counted(&run, &[("windows", 2), ("window_dropped", 3), ("window_gaps", 2)]);
}

#[test]
fn an_idle_connection_goes_on_as_if_there_had_been_no_edge() {
    let run = check(
        &format!(
            "1 - window opens
            {PAIR}
            10 c send Q1:a
            11 c recv A1:a
            20 - window closes
            1000 - window opens
            1001 c send Q1:b
            1002 c recv A1:b
            1003 c close"
        ),
        "a ok c=10..11 edge
         b ok c=1001..1002 edge",
    );
    check_counted(&run, &[("windows", 2)]);
    assert_eq!((run.counters.windows_open_ms, run.counters.windows_closed_ms), (0, 0));
}

#[test]
fn a_connection_that_ends_between_windows_leaves_nothing_behind() {
    let run = check(
        &format!(
            "1 - window opens
            {PAIR}
            10 s recv Q1:a
            20 - window closes
            30 s send A1:a lost
            40 s close
            50000 - window opens"
        ),
        "",
    );
    check_counted(&run, &[("windows", 2), ("window_dropped", 1)]);
    assert_eq!(run.counters.connections, 1);
}
