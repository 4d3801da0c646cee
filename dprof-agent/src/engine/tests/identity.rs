//! Both ends compute the same id, alone.

use dprof_common::model::Span;

use super::stage::{check, run};

/// The span ids of both sides' halves, each computed from one end's events only.
#[track_caller]
fn same_ids(client_open: &str, server_open: &str, n: usize) {
    let calls = |name: &str, first: &str, second: &str| -> String {
        (0..n).map(|i| format!("{} {name} {first}\n{} {name} {second}\n", 10 + i, 11 + i)).collect()
    };
    let (request, answer) = ("Q3:get", "A1:x");
    let client =
        run(&format!("{client_open}\n{}", calls("c", &format!("send {request}"), &format!("recv {answer}"))));
    let server =
        run(&format!("{server_open}\n{}", calls("s", &format!("recv {request}"), &format!("send {answer}"))));
    let ids = |spans: &[Span]| spans.iter().map(|span| span.span_id).collect::<Vec<_>>();
    assert_eq!(ids(&client.out.spans).len(), n);
    let (client, server) = (ids(&client.out.spans), ids(&server.out.spans));
    assert_eq!(client, server);
    let mut distinct = client.clone();
    distinct.sort_unstable();
    distinct.dedup();
    assert_eq!(distinct.len(), n);
}

#[test]
fn on_new_connections() {
    same_ids(
        "0 c open active 10.0.0.1:5000 10.0.0.2:6379",
        "0 s open passive 10.0.0.2:6379 10.0.0.1:5000",
        3,
    );
}

#[test]
fn on_old_connections_whose_role_is_known_or_guessed() {
    let client = "0 c open old_active 10.0.0.1:5000 10.0.0.2:6379 at=700/900";
    let server = "0 s open old_passive 10.0.0.2:6379 10.0.0.1:5000 at=900/700";
    same_ids(client, server, 3);
    same_ids(client, &format!("0 - listen 6379\n{server}"), 3);
}

#[test]
fn past_four_gibibytes() {
    let at = 5_u64 << 30;
    same_ids(
        &format!("0 c open old_active 10.0.0.1:5000 10.0.0.2:6379 at={at}/{at}"),
        &format!("0 s open old_passive 10.0.0.2:6379 10.0.0.1:5000 at={at}/{at}"),
        3,
    );
}

#[test]
fn where_one_end_is_dual_stack() {
    same_ids(
        "0 c open active 10.0.0.1:5000 10.0.0.2:6379",
        "0 s open passive [::ffff:10.0.0.2]:6379 [::ffff:10.0.0.1]:5000",
        2,
    );
}

#[test]
fn where_the_accepting_side_asks() {
    // Requests flow from the accepted socket to the one that connected.
    same_ids(
        "0 c open passive 10.0.0.2:6379 10.0.0.1:5000",
        "0 s open active 10.0.0.1:5000 10.0.0.2:6379",
        2,
    );
}

#[test]
fn a_guessed_role_is_flagged_and_a_listener_makes_it_sure() {
    let calls = "10 s recv Q1:a\n 12 s send A1:x";
    let open = "0 s open old_passive 10.0.0.2:6379 10.0.0.1:5000";
    check(
        &format!("{open}\n{calls}"),
        "a ok s=9..12 edge fragment s:incomplete+paired_across_gap+role_guessed",
    );
    check(
        &format!("{open}\n0 - listen 6379\n{calls}"),
        "a ok s=9..12 edge fragment s:incomplete+paired_across_gap",
    );
}

#[test]
fn halves_of_far_peers_carry_the_tuple_key_and_agree_on_it() {
    let client = run("0 c open active 10.0.0.1:5000 192.0.2.2:6379\n 10 c send Q1:a\n 20 c recv A1:x");
    let server = run("0 s open passive 192.0.2.2:6379 10.0.0.1:5000\n 10 s recv Q1:a\n 20 s send A1:x");
    let key = |spans: &[Span]| spans[0].widest().expect("a half").tuple_key;
    assert_ne!(key(&client.out.spans), 0);
    assert_eq!(key(&client.out.spans), key(&server.out.spans));
}
