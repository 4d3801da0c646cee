//! Agents that tell each other over loopback, and others who would like to.

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, TcpListener as StdListener, TcpStream};
use std::sync::mpsc::{Receiver, sync_channel};
use std::time::Duration;

use dprof_common::model::{KeepReason, RunId, SpanId, TraceId};

use super::frame::{GREETING_BYTES, Greeting, Sealer};
use super::*;
use crate::keep::Reach as _;

const WITHIN: Duration = Duration::from_secs(20);
const PAUSE: Duration = Duration::from_millis(5);

fn secret() -> Secret {
    Secret::new(b"a secret of some length")
}

fn word(n: u64) -> Word {
    Word {
        rpc: SpanId(n),
        trace: (!n.is_multiple_of(3)).then_some(TraceId(u128::from(n) << 60 | 1)),
        probability: 0.25,
        reason: KeepReason::Slow,
    }
}

/// Runs of those who listen and of those who speak.
const EAR: RunId = RunId(1 << 100 | 1);
const MOUTH: RunId = RunId(2);

fn loopback(port: u16) -> SocketAddr {
    (Ipv4Addr::LOCALHOST, port).into()
}

/// An agent that listens, and what it hears.
fn listener(room: usize) -> (Exchange, Receiver<Word>) {
    let (heard, words) = sync_channel(room);
    let options = WordOptions { listen: Some(loopback(0)), peers: Vec::new(), run: EAR, secret: secret() };
    (Exchange::start(&options, heard).expect("start"), words)
}

fn mouth(peers: Vec<SocketAddr>, secret: Secret) -> Exchange {
    let (heard, _) = sync_channel(1);
    Exchange::start(&WordOptions { listen: None, peers, run: MOUTH, secret }, heard).expect("start")
}

fn speaker(to: SocketAddr, secret: Secret) -> Exchange {
    mouth(vec![to], secret)
}

#[track_caller]
fn until(mut is_so: impl FnMut() -> bool) {
    let came = (0..WITHIN.as_millis() / PAUSE.as_millis()).any(|_| {
        let is_so = is_so();
        if !is_so {
            std::thread::sleep(PAUSE);
        }
        is_so
    });
    assert!(came, "it does not come");
}

/// Connects as an agent would: the stream after the greeting, and its seal.
fn connect(to: SocketAddr, key: Secret) -> (TcpStream, Sealer) {
    let mut stream = TcpStream::connect(to).expect("connect");
    stream.set_read_timeout(Some(WITHIN)).expect("time-out");
    let mut bytes = [0; GREETING_BYTES];
    stream.read_exact(&mut bytes).expect("greeting");
    let greeting = Greeting::of(&bytes).expect("a greeting");
    assert_eq!((greeting.run, greeting.to_bytes()), (EAR, bytes));
    (stream, Sealer::new(key, greeting))
}

/// The other end has ended the connection.
#[track_caller]
fn check_ended(stream: &mut TcpStream) {
    // Ended with unread bytes it may be reset.
    assert!(!matches!(stream.read(&mut [0; 1]), Ok(n) if n > 0));
}

#[test]
fn words_arrive_as_they_were_said_and_in_order() {
    let (ear, heard) = listener(10_000);
    let mouth = speaker(ear.listens().expect("listens"), secret());
    for n in 0..3_000 {
        mouth.say(Ipv4Addr::LOCALHOST.into(), word(n));
    }
    let words: Vec<Word> = (0..3_000).map(|_| heard.recv_timeout(WITHIN).expect("a word")).collect();
    assert_eq!(words, (0..3_000).map(word).collect::<Vec<_>>());
    until(|| mouth.counters().sent == 3_000);
    let bytes_per_word = mouth.counters().sent_bytes as f64 / 3_000.0;
    assert!(bytes_per_word < 60.0, "{bytes_per_word}");
    assert_eq!((ear.counters().received, ear.counters().refused), (3_000, 0));
}

#[test]
fn who_is_not_known_by_address_is_told_by_telling_all() {
    let (first, second) = (listener(100), listener(100));
    let peers = vec![first.0.listens().expect("listens"), second.0.listens().expect("listens")];
    let mouth = mouth(peers, secret());
    mouth.say(Ipv4Addr::new(192, 0, 2, 1).into(), word(1));
    assert_eq!(first.1.recv_timeout(WITHIN), Ok(word(1)));
    assert_eq!(second.1.recv_timeout(WITHIN), Ok(word(1)));
}

#[test]
fn who_is_there_is_known_and_who_goes_is_missed_at_once() {
    let (ear, _heard) = listener(100);
    let mouth = mouth(Vec::new(), secret());
    let meeting = mouth.meeting();
    let address = IpAddr::from([192, 0, 2, 1]);
    assert!(!meeting.reaches(address));
    meeting.meet(&[met(&ear, EAR, [192, 0, 2, 1])]);
    until(|| meeting.reaches(address));
    assert!(!meeting.reaches([192, 0, 2, 2].into()), "nobody watches it");
    drop(ear);
    until(|| !meeting.reaches(address));
}

/// As the table of agents would name the one that `ear` belongs to.
fn met(ear: &Exchange, run: RunId, watches: [u8; 4]) -> Met {
    let listens = ear.meeting().hears().to_vec();
    Met { host: "there".to_owned(), run, listens, watches: vec![watches.into()] }
}

#[test]
fn who_is_met_is_told_of_its_addresses_until_it_is_gone() {
    let (first, second) = (listener(100), listener(100));
    let mouth = mouth(Vec::new(), secret());
    let meeting = mouth.meeting();
    assert_eq!(meeting.hears(), []);
    let both = [met(&first.0, EAR, [192, 0, 2, 1]), met(&second.0, EAR, [192, 0, 2, 2])];
    // Twice is as once.
    meeting.meet(&both);
    meeting.meet(&both);
    assert_eq!(meeting.tells(), 2);
    mouth.say([192, 0, 2, 1].into(), word(1));
    assert_eq!(first.1.recv_timeout(WITHIN), Ok(word(1)));
    mouth.say([192, 0, 2, 9].into(), word(2));
    assert_eq!((first.1.recv_timeout(WITHIN), second.1.recv_timeout(WITHIN)), (Ok(word(2)), Ok(word(2))));
    // The second takes the first one's address over; the first goes.
    meeting.meet(&[met(&second.0, EAR, [192, 0, 2, 1])]);
    assert_eq!(meeting.tells(), 1);
    mouth.say([192, 0, 2, 1].into(), word(3));
    assert_eq!(second.1.recv_timeout(WITHIN), Ok(word(3)));
    assert!(first.1.try_recv().is_err());
    assert_eq!(mouth.counters().unsent, 0);
}

#[test]
fn an_address_that_leads_elsewhere_or_back_is_not_spoken_to() {
    let (ear, heard) = listener(100);
    let to = ear.listens().expect("listens");
    let elsewhere = mouth(Vec::new(), secret());
    elsewhere.meeting().meet(&[met(&ear, RunId(77), [192, 0, 2, 1])]);
    elsewhere.say([192, 0, 2, 1].into(), word(1));
    let (no_one, _) = sync_channel(1);
    let options = WordOptions { listen: None, peers: vec![to], run: EAR, secret: secret() };
    let itself = Exchange::start(&options, no_one).expect("start");
    itself.say(Ipv4Addr::LOCALHOST.into(), word(1));
    // One that it is looks past the address that leads elsewhere.
    let good = mouth(Vec::new(), secret());
    let (other, _unheard) = listener(1);
    let listens = [other.listens(), ear.listens()].map(|address| address.expect("listens")).to_vec();
    let run = RunId(5);
    let (told, told_words) = sync_channel(10);
    let options = WordOptions { listen: Some(loopback(0)), peers: Vec::new(), run, secret: secret() };
    let named = Exchange::start(&options, told).expect("start");
    let listens = [listens, named.meeting().hears().to_vec()].concat();
    good.meeting().meet(&[Met { host: "there".to_owned(), run, listens, watches: Vec::new() }]);
    good.say(Ipv4Addr::LOCALHOST.into(), word(2));
    assert_eq!(told_words.recv_timeout(WITHIN), Ok(word(2)));
    assert!(heard.try_recv().is_err());
}

#[test]
fn one_that_was_given_is_the_one_that_is_met_there() {
    let (ear, heard) = listener(100);
    let mouth = speaker(ear.listens().expect("listens"), secret());
    mouth.meeting().meet(&[met(&ear, EAR, [192, 0, 2, 1])]);
    assert_eq!(mouth.meeting().tells(), 1);
    mouth.say([192, 0, 2, 1].into(), word(1));
    assert_eq!(heard.recv_timeout(WITHIN), Ok(word(1)));
    mouth.meeting().meet(&[]);
    assert_eq!(mouth.meeting().tells(), 1);
}

#[test]
fn a_wrong_secret_is_refused() {
    let (ear, heard) = listener(100);
    let mouth = speaker(ear.listens().expect("listens"), Secret::new(b"another secret entirely"));
    mouth.say(Ipv4Addr::LOCALHOST.into(), word(1));
    until(|| ear.counters().refused > 0);
    assert!(heard.try_recv().is_err());
}

#[test]
fn a_frame_that_was_overheard_opens_nothing() {
    let (ear, heard) = listener(100);
    let to = ear.listens().expect("listens");
    let (mut stream, mut sealer) = connect(to, secret());
    let frame = sealer.seal(&[word(1)]);
    stream.write_all(&frame).expect("write");
    assert_eq!(heard.recv_timeout(WITHIN), Ok(word(1)));
    // Again on the same connection, and on another.
    stream.write_all(&frame).expect("write");
    check_ended(&mut stream);
    let (mut other, _) = connect(to, secret());
    other.write_all(&frame).expect("write");
    check_ended(&mut other);
    assert!(heard.try_recv().is_err());
    until(|| ear.counters().refused == 2);
}

#[test]
fn what_is_no_frame_ends_its_connection_only() {
    let (ear, heard) = listener(100);
    let to = ear.listens().expect("listens");
    let (mut honest, mut sealer) = connect(to, secret());
    for bytes in [&b"GET / HTTP/1.1\r\n\r\n"[..], &[0, 0, 0, 1, 0], &[0xff; 100], &[0, 0, 0, 40, 1]] {
        let (mut stream, _) = connect(to, secret());
        stream.write_all(bytes).expect("write");
        // It may have been ended already.
        let _ = stream.shutdown(std::net::Shutdown::Write);
        check_ended(&mut stream);
    }
    // Sealed, and nonsense all the same.
    let (mut stream, mut bad) = connect(to, secret());
    stream.write_all(&bad.seal(&[Word { probability: 7.0, ..word(1) }])).expect("write");
    check_ended(&mut stream);
    honest.write_all(&sealer.seal(&[word(5)])).expect("write");
    assert_eq!(heard.recv_timeout(WITHIN), Ok(word(5)));
}

#[test]
fn nobody_there_costs_words_and_no_time() {
    let gone = StdListener::bind(loopback(0)).expect("bind");
    let to = gone.local_addr().expect("address");
    drop(gone);
    let mouth = speaker(to, secret());
    for n in 0..2 * QUEUE_MAX as u64 {
        mouth.say(Ipv4Addr::LOCALHOST.into(), word(n));
    }
    assert!(mouth.counters().unsent >= QUEUE_MAX as u64);
    // It comes, and hears what is still of use.
    let (heard, words) = sync_channel(100_000);
    let options = WordOptions { listen: Some(to), peers: Vec::new(), run: EAR, secret: secret() };
    let _ear = Exchange::start(&options, heard).expect("start");
    mouth.say(Ipv4Addr::LOCALHOST.into(), word(7));
    assert!(words.recv_timeout(WITHIN).is_ok());
}

#[test]
fn a_flood_is_bounded() {
    let (ear, heard) = listener(100);
    let (mut stream, mut sealer) = connect(ear.listens().expect("listens"), secret());
    let words: Vec<Word> = (0..1_000).map(word).collect();
    for _ in 0..100 {
        stream.write_all(&sealer.seal(&words)).expect("write");
    }
    until(|| ear.counters().received + ear.counters().ignored == 100_000);
    assert_eq!(ear.counters().received, 100, "nobody takes them");
    assert_eq!(heard.try_iter().count(), 100);
}

#[test]
fn a_secret_that_others_can_read_is_none() {
    use std::os::unix::fs::PermissionsExt as _;
    let dir = tempfile::tempdir().expect("folder");
    let path = dir.path().join("secret");
    std::fs::write(&path, "0123456789abcdef\n").expect("write");
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).expect("mode");
    assert!(read_secret(&path).expect_err("readable").to_string().contains("chmod 600"));
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).expect("mode");
    assert_eq!(format!("{:?}", read_secret(&path).expect("good")), "Secret");
    std::fs::write(&path, "short").expect("write");
    assert!(read_secret(&path).expect_err("short").to_string().contains("shorter than"));
}
