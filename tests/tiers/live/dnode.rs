//! DNODE between two ends of our own (Debian has no Dynomite): batches as a node writes them, replies that name what
//! they answer, on the machine's kernel.

use std::io::{IoSlice, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::thread;

use anyhow::{Context as _, Result};
use dprof_common::model::{Half, HalfFlags, Status};

use crate::harness::resp::command;
use crate::harness::socket::pair;
use crate::harness::{Live, check_order, finish};

const BATCHES: usize = 40;
/// Messages in one write: header and payload apart, as Dynomite writes them, up to the 128 parts of a call.
const PER_BATCH: usize = 60;

fn header(id: usize, kind: u8, payload: &[u8]) -> Vec<u8> {
    format!("   $2014$ {id} {kind} 0 1 1 *1 d *{}\r\n", payload.len()).into_bytes()
}

/// Writes messages in one call each batch.
fn write_batch(stream: &mut TcpStream, messages: &[(Vec<u8>, Vec<u8>)]) -> Result<()> {
    let parts: Vec<IoSlice<'_>> =
        messages.iter().flat_map(|(header, payload)| [IoSlice::new(header), IoSlice::new(payload)]).collect();
    let total: usize = parts.iter().map(|part| part.len()).sum();
    let written = stream.write_vectored(&parts)?;
    if written < total {
        let all: Vec<u8> = parts.iter().flat_map(|part| part.iter().copied()).collect();
        stream.write_all(&all[written..])?;
    }
    Ok(())
}

#[test]
fn batches_of_dnode_messages_are_paired_by_id() -> Result<()> {
    let Some(live) = Live::begin()? else { return Ok(()) };
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let agent = live.agent_on(listener.local_addr()?.port())?;
    let (mut asks, mut answers) = pair(&listener)?;
    let request = |id: usize| {
        let value = "v".repeat(id % 50 * if id % 200 == 7 { 1000 } else { 1 });
        command(&["SET", &format!("key{id}"), &value])
    };
    let replies = thread::spawn(move || -> Result<()> {
        // As much as Dynomite reads at once.
        let mut buffer = vec![0; 16_320];
        let (mut seen, mut next, mut is_full) = (Vec::new(), 0, false);
        while next < BATCHES * PER_BATCH {
            // Of what a full batch left over, some may be answered without reading more.
            if !is_full {
                let n = answers.read(&mut buffer)?;
                seen.extend_from_slice(&buffer[..n]);
            }
            let mut batch = Vec::new();
            // What follows the last header that was seen whole is on its way.
            // No call has more than 128 parts, here as in Dynomite.
            while batch.len() < PER_BATCH
                && let Some(at) = find(&seen, format!("   $2014$ {} 3 ", next + 1).as_bytes())
            {
                let payload = format!("-E{next} no\r\n").into_bytes();
                batch.push((header(next, 5, &payload), payload));
                next += 1;
                seen.drain(..at);
            }
            if next + 1 == BATCHES * PER_BATCH
                && batch.len() < PER_BATCH
                && seen.ends_with(b"\r\n")
                && seen.len() > 100
            {
                let payload = format!("-E{next} no\r\n").into_bytes();
                batch.push((header(next, 5, &payload), payload));
                next += 1;
            }
            is_full = batch.len() == PER_BATCH;
            write_batch(&mut answers, &batch)?;
        }
        Ok(())
    });
    for batch in 0..BATCHES {
        let ids = (0..PER_BATCH).map(|n| batch * PER_BATCH + n);
        let messages: Vec<_> = ids
            .map(|id| {
                let payload = request(id);
                (header(id, 3, &payload), payload)
            })
            .collect();
        write_batch(&mut asks, &messages)?;
    }
    let mut read = Vec::new();
    let last = format!("-E{} no\r\n", BATCHES * PER_BATCH - 1).into_bytes();
    let mut buffer = vec![0; 16_320];
    while !read.ends_with(&last) {
        let n = asks.read(&mut buffer)?;
        read.extend_from_slice(&buffer[..n]);
    }
    replies.join().expect("the thread does not panic")?;
    drop(asks);
    let (spans, ended) = finish(agent)?;
    assert_eq!(spans.len(), BATCHES * PER_BATCH, "{}", ended.stderr);
    for span in &spans {
        for half in [&span.client, &span.server] {
            let half: &Half =
                half.as_ref().with_context(|| format!("one end is missing: {span:#?} {}", ended.stderr))?;
            let id = half.query_text.trim_start_matches("SET key").trim_end_matches(" ?");
            let id: usize = id.parse().with_context(|| format!("{half:#?} {}", ended.stderr))?;
            assert_eq!(half.protocol, "dnode");
            assert_eq!(
                (half.status, half.status_code.as_str()),
                (Status::Error, format!("E{id}").as_str()),
                "{half:#?}"
            );
            let payload = request(id);
            assert_eq!(half.request_bytes, (header(id, 3, &payload).len() + payload.len()) as u64);
            assert!(!half.flags.contains(HalfFlags::INCOMPLETE));
        }
    }
    check_order(&spans);
    Ok(())
}

fn find(haystack: &[u8], needle: &[u8]) -> Option<usize> {
    haystack.windows(needle.len()).position(|window| window == needle)
}
