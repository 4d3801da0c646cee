//! DNODE as text: inputs in the notation of `testing`, and what the parser says of them. The messages are those of
//! a real three-node ring, cut and joined.

use proptest::prelude::*;

use super::Dnode;
use crate::protocol::testing::{self, Step};
use crate::protocol::{Correlation, Direction, MessageKind, Parsed};

#[track_caller]
fn check(input: &str, expected: &str) {
    testing::check(&Dnode, false, input, expected);
}

/// The payload behind its header.
fn frame(id: u64, kind: u8, flags: u8, payload: &[u8]) -> Vec<u8> {
    let mut bytes = format!("   $2014$ {id} {kind} {flags} 1 1 *1 d *{}\r\n", payload.len()).into_bytes();
    bytes.extend_from_slice(payload);
    bytes
}

#[test]
fn a_connection_that_was_joined_between_messages_shows_its_first_one() {
    testing::check(
        &Dnode,
        true,
        ">\" \\s\\s\\s$2014$ 7 3 0 1 1 *1 d *14\\r\\n*1\\r\\n$4\\r\\nPING\\r\\n
         <\" \\s\\s\\s$2014$ 7 5 0 1 1 *1 d *7\\r\\n+PONG\\r\\n",
        "> 0..44 req [PING] [PING] #7
         < 0..36 res #7",
    );
}

#[test]
fn a_request_and_its_reply_are_named_by_what_they_carry() {
    check(
        ">\" \\s\\s\\s$2014$ 240042 3 0 1 1 *1 d *37\\r\\n*3\\r\\n$3\\r\\nset\\r\\n$7\\r\\nuser:42\\r\\n$5\\r\\nhello\\r\\n
         <\" \\s\\s\\s$2014$ 240042 5 0 1 1 *1 d *5\\r\\n+OK\\r\\n",
        "> 0..72 req [SET] [SET user:42 ?] #240042
         < 0..39 res #240042",
    );
    check(
        ">\" \\s\\s\\s$2014$ 7 3 0 1 1 *1 d *22\\r\\n*2\\r\\n$3\\r\\nGET\\r\\n$3\\r\\nabc\\r\\n
         <\" \\s\\s\\s$2014$ 7 5 0 1 1 *1 d *14\\r\\n-WRONGTYPE\\sx\\r\\n",
        "> 0..52 req [GET] [GET abc] #7
         < 0..44 res [WRONGTYPE] #7 error",
    );
}

#[test]
fn memcached_is_carried_as_well() {
    check(
        ">\" \\s\\s\\s$2014$ 1 3 0 1 1 *1 d *9\\r\\nget abc\\r\\n
         <\" \\s\\s\\s$2014$ 1 5 0 1 1 *1 d *23\\r\\nVALUE abc 0 1\\r\\nx\\r\\nEND\\r\\n
         >\" \\s\\s\\s$2014$ 2 3 0 1 1 *1 d *18\\r\\nset abc 0 0 1\\r\\ny\\r\\n
         <\" \\s\\s\\s$2014$ 2 5 0 1 1 *1 d *8\\r\\nSTORED\\r\\n
         >\" \\s\\s\\s$2014$ 3 3 0 1 1 *1 d *11\\r\\nincr n 10\\r\\n
         <\" \\s\\s\\s$2014$ 3 5 0 1 1 *1 d *4\\r\\n17\\r\\n",
        "> 0..38 req [get] [get abc] #1
         < 0..53 res dprof.cache.hit=true #1
         > 38..86 req [set] [set abc ? ? ?] #2
         < 53..90 res #2
         > 86..127 req [incr] [incr n ?] #3
         < 90..123 res dprof.cache.hit=true #3",
    );
}

#[test]
fn what_cannot_be_read_still_has_its_header() {
    check(
        ">\" \\s\\s\\s$2014$ 1 3 1 1 0 *4 \\r\\n\\x00* *5\\r\\n\\x01\\x02\\x03\\x04\\x05
         <\" \\s\\s\\s$2014$ 1 5 1 1 0 *1 d *4\\r\\n\\x01\\x02\\x03\\x04",
        "> 0..37 req [(encrypted)] dprof.dnode.same_dc=false dprof.dnode.encrypted=true #1
         < 0..33 res #1",
    );
    check(
        ">\" \\s\\s\\s$2014$ 1 4 0 1 0 *1 d *14\\r\\n*1\\r\\n$4\\r\\nPING\\r\\n",
        "> 0..44 req [PING] [PING] dprof.dnode.forward=true dprof.dnode.same_dc=false #1",
    );
    // A payload that is not one command.
    check(
        ">\" \\s\\s\\s$2014$ 1 3 0 1 1 *1 d *3\\r\\n\\x00\\x01\\x02",
        "> 0..32 req [(unseen)] #1 incomplete",
    );
}

#[test]
fn gossip_is_told_apart_and_never_paired() {
    check(
        ">\" \\s\\s\\s$2014$ 9 7 0 1 1 *1 d *5\\r\\nhello\\s\\s\\s$2014$ 10 3 0 1 1 *1 d *14\\r\\n*1\\r\\n$4\\r\\nPING\\r\\n
         <\" \\s\\s\\s$2014$ 9 8 0 1 1 *1 d *2\\r\\nok",
        "> 0..34 one [GOSSIP SYN] #9
         > 34..79 req [PING] [PING] #10
         < 0..31 push [GOSSIP SYN REPLY] #9",
    );
}

#[test]
fn a_hole_in_a_value_costs_nothing_and_one_in_a_header_one_message() {
    check(
        ">\" \\s\\s\\s$2014$ 1 3 0 1 1 *1 d *128\\r\\n*3\\r\\n$3\\r\\nSET\\r\\n$1\\r\\na\\r\\n$100\\r\\n
         >~ 102
         >\" \\s\\s\\s$2014$ 2 3 0 1 1 *1 d *14\\r\\n*1\\r\\n$4\\r\\nPING\\r\\n",
        "> 0..159 req [SET] [SET a ?] #1
         > 159..203 req [PING] [PING] #2",
    );
    check(
        ">\" \\s\\s\\s$2014$ 1 3 0 1 1 *1 d *14\\r\\n*1\\r\\n$4\\r\\nPING\\r\\n
         >~ 10
         >\" 3 0 1 1 *1 d *14\\r\\n*1\\r\\n$4\\r\\nPING\\r\\n
         >\" \\s\\s\\s$2014$ 3 3 0 1 1 *1 d *14\\r\\n*1\\r\\n$4\\r\\nPING\\r\\n
         >\" \\s\\s\\s$2014$ 4 3 0 1 1 *1 d *14\\r\\n*1\\r\\n$4\\r\\nPING\\r\\n",
        "> 0..44 req [PING] [PING] #1
         > lost 44
         > 130..174 req [PING] [PING] #4",
    );
}

#[test]
fn a_message_within_a_value_is_not_taken_for_one_after_a_loss() {
    let inner = String::from_utf8(frame(5, 3, 0, b"*1\r\n$4\r\nPING\r\n")).expect("text");
    let inner = inner.replace(' ', "\\s").replace('\r', "\\r").replace('\n', "\\n");
    check(
        &format!(
            ">\" \\s\\s\\s$2014$ 6 3 0 1 1 *1 d *14\\r\\n*1\\r\\n$4\\r\\nPING\\r\\n
             >~ 70
             >\" ab{inner}cd\\r\\n
             >\" \\s\\s\\s$2014$ 8 3 0 1 1 *1 d *14\\r\\n*1\\r\\n$4\\r\\nPING\\r\\n
             >\" \\s\\s\\s$2014$ 9 3 0 1 1 *1 d *14\\r\\n*1\\r\\n$4\\r\\nPING\\r\\n"
        ),
        "> 0..44 req [PING] [PING] #6
         > lost 44
         > 208..252 req [PING] [PING] #9",
    );
}

#[test]
fn other_bytes_are_another_protocol() {
    check("> *1 $4 PING", "mistaken");
    check(">\" \\s\\s\\s$2015$", "mistaken");
}

/// A conversation: what each message is, and how both streams are cut.
fn conversation() -> impl Strategy<Value = Vec<(bool, Vec<u8>)>> {
    let payload = prop::sample::select(vec![
        (b"*2\r\n$3\r\nGET\r\n$1\r\na\r\n".to_vec(), b"$3\r\nxyz\r\n".to_vec()),
        (
            b"*3\r\n$3\r\nSET\r\n$1\r\na\r\n$31\r\n   $2014$ 1 5 0 1 1 *1 d *0\r\n\r\n\r\n".to_vec(),
            b"+OK\r\n".to_vec(),
        ),
        (b"get k\r\n".to_vec(), b"END\r\n".to_vec()),
        (b"\0\x01\x02".to_vec(), b"\xff".to_vec()),
    ]);
    prop::collection::vec((payload, 0u8..2, 0usize..4), 1..12).prop_map(|messages| {
        let (mut steps, mut waiting) = (Vec::new(), Vec::new());
        for (id, ((request, reply), flags, keep_open)) in messages.into_iter().enumerate() {
            steps.push((true, frame(id as u64, 3, flags, &request)));
            waiting.push(frame(id as u64, 5, flags, &reply));
            while waiting.len() > keep_open {
                steps.push((false, waiting.remove(0)));
            }
        }
        steps
    })
}

fn steps_of(conversation: &[(bool, Vec<u8>)]) -> Vec<Step> {
    let direction = |is_request| if is_request { Direction::Out } else { Direction::In };
    conversation
        .iter()
        .map(|(is_request, bytes)| Step::Bytes(direction(*is_request), bytes.clone()))
        .collect()
}

/// What matters of each message.
fn messages(out: &[Parsed]) -> Vec<(Direction, u64, u64, Correlation, MessageKind, String)> {
    out.iter()
        .filter_map(|parsed| match parsed {
            Parsed::Message(m) => {
                Some((m.direction, m.start, m.end, m.correlation, m.kind, m.operation.to_string()))
            }
            _ => None,
        })
        .collect()
}

proptest! {
    #[test]
    fn any_split_gives_the_same_messages(conversation in conversation(), cuts in prop::collection::vec(1usize..60, 1..9)) {
        let steps = steps_of(&conversation);
        let whole = testing::run(&Dnode, false, &steps);
        prop_assert_eq!(messages(&whole).len(), conversation.len());
        let mut cuts = cuts.into_iter().cycle();
        let parts = testing::cut(&steps, |_| cuts.next().unwrap_or(1));
        prop_assert_eq!(testing::run(&Dnode, false, &parts), whole);
    }

    #[test]
    fn any_hole_leaves_true_messages_only(conversation in conversation(), at: prop::sample::Index, from: prop::sample::Index, len in 1usize..200) {
        let steps = steps_of(&conversation);
        let truth = messages(&testing::run(&Dnode, false, &steps));
        let at = at.index(steps.len());
        let Step::Bytes(direction, bytes) = steps[at].clone() else { unreachable!() };
        let from = from.index(bytes.len());
        let to = (from + len).min(bytes.len());
        let mut holed = steps[..at].to_vec();
        holed.push(Step::Bytes(direction, bytes[..from].to_vec()));
        holed.push(Step::Gap(direction, (to - from) as u64));
        holed.push(Step::Bytes(direction, bytes[to..].to_vec()));
        holed.extend_from_slice(&steps[at + 1..]);
        for found in testing::run(&Dnode, false, &holed) {
            if let Parsed::Message(m) = found {
                let same = |known: &(Direction, u64, u64, Correlation, MessageKind, String)| {
                    (known.0, known.1, known.2, known.3, known.4) == (m.direction, m.start, m.end, m.correlation, m.kind)
                        && (m.incomplete || known.5 == m.operation)
                };
                prop_assert!(truth.iter().any(same), "{:?}", m);
            }
        }
    }

    #[test]
    fn any_bytes_are_survived(parts in prop::collection::vec((any::<bool>(), prop::collection::vec(any::<u8>(), 0..200), any::<bool>()), 0..20), joined: bool) {
        let steps: Vec<Step> = parts.into_iter().map(|(out, bytes, frame_it)| {
            let direction = if out { Direction::Out } else { Direction::In };
            let bytes = if frame_it { frame(bytes.len() as u64, 3, 0, &bytes) } else { bytes };
            Step::Bytes(direction, bytes)
        }).collect();
        let whole = testing::run(&Dnode, joined, &steps);
        prop_assert_eq!(testing::run(&Dnode, joined, &testing::cut(&steps, |_| 1)), whole);
    }
}
