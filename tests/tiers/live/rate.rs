//! A steady stream of events: nothing lost with default buffers, in bounded memory.

use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::thread;
use std::time::Duration;

use anyhow::Result;
use dprof_tests::clock;

use crate::harness::memory::peak_during;
use crate::harness::socket::pair;
use crate::harness::{Live, check_order, resp, stored};

/// RPCs per second at most; each is four events: both ends' sends and receives.
const RPCS_PER_S: u32 = 50_000;

/// All of them: four seconds' worth.
const RPCS: u32 = 4 * RPCS_PER_S;

/// Connections, used in turn.
const CONNECTIONS: usize = 8;

/// RPCs between two looks at the clock.
const BURST: u32 = 50;

/// Memory of the agent at 200,000 events a second, its kernel maps included, kB.
const AGENT_KB_MAX: u64 = 50 * 1024;

#[test]
#[expect(clippy::print_stdout, reason = "a figure for whoever runs it with --nocapture")]
fn two_hundred_thousand_events_a_second_lose_nothing_in_fifty_megabytes() -> Result<()> {
    let Some(live) = Live::begin()? else { return Ok(()) };
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let agent = live.agent_on(listener.local_addr()?.port())?;
    let pairs = (0..CONNECTIONS).map(|_| pair(&listener)).collect::<Result<Vec<_>, _>>()?;
    let (took, peak) = peak_during(agent.program.pid(), || paced(&pairs))?;
    drop(pairs);
    let store = agent.store.clone();
    let ended = agent.stop()?;
    let rate = f64::from(4 * RPCS) / took.as_secs_f64();
    let said = format!("{rate:.0} events/s, {peak:?}\n{}", ended.stderr);
    println!("{said}");
    assert!(ended.stderr.contains("lost: none"), "{said}");
    let spans = stored(&store)?;
    assert_eq!(spans.len(), RPCS as usize, "{said}");
    let halves = spans.iter().filter(|span| span.client.is_some() && span.server.is_some()).count();
    assert_eq!(halves, RPCS as usize, "{said}");
    check_order(&spans);
    assert!(peak.total_kb() <= AGENT_KB_MAX, "{said}");
    Ok(())
}

/// Both ends in one thread, so that nothing but system calls takes its time; how long it took.
fn paced(pairs: &[(TcpStream, TcpStream)]) -> Result<Duration> {
    let (ask, answer) = (resp::command(&["GET", "some-key"]), b"$5\r\nvalue\r\n");
    let mut buffer = vec![0; ask.len().max(answer.len())];
    let started = clock::now();
    for n in 0..RPCS {
        let (mut client, mut server) =
            (&pairs[n as usize % pairs.len()].0, &pairs[n as usize % pairs.len()].1);
        client.write_all(&ask)?;
        server.read_exact(&mut buffer[..ask.len()])?;
        server.write_all(answer)?;
        client.read_exact(&mut buffer[..answer.len()])?;
        if n % BURST == 0 {
            let due = Duration::from_secs(1) * n / RPCS_PER_S;
            thread::sleep(due.saturating_sub(started.elapsed()));
        }
    }
    Ok(started.elapsed())
}
