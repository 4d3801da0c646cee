//! Tells one peer: connects, and connects again, and sends what waits in batches.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, timeout};

use super::frame::{MAGIC, NONCE_BYTES, Sealer, Secret, WORDS_MAX};
use super::{Shared, count};
use crate::keep::Word;

/// Words are gathered for this long: a fraction of the time that the others hold their spans.
const GATHER: Duration = Duration::from_millis(20);
/// Connecting, greeting and sending take this long at most.
const WITHIN: Duration = Duration::from_secs(2);
/// Pauses between attempts, doubled up to the second.
const PAUSE: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));
/// After this long nobody holds the spans any more.
const USEFUL: Duration = Duration::from_secs(5);

/// A word and since when it waits.
#[derive(Clone, Copy, Debug)]
pub(super) struct Waiting {
    word: Word,
    since: Instant,
}

impl Waiting {
    pub(super) fn new(word: Word) -> Self {
        Self { word, since: Instant::now() }
    }
}

/// Tells the agent at `address` until `words` ends.
pub(super) async fn tell(
    address: SocketAddr,
    secret: Secret,
    mut words: mpsc::Receiver<Waiting>,
    counters: Arc<Shared>,
) {
    let mut pause = PAUSE.0;
    let mut was_there = true;
    loop {
        if let Ok(Ok((mut stream, mut sealer))) = timeout(WITHIN, connect(address, &secret)).await {
            if !was_there {
                log::info!("the agent at {address} is there again");
            }
            (pause, was_there) = (PAUSE.0, true);
            if send_all(&mut stream, &mut sealer, &mut words, &counters).await {
                return;
            }
        }
        if was_there {
            log::warn!("no word goes to the agent at {address}: parts of traces that it sees may be missing");
        }
        was_there = false;
        sleep(pause).await;
        pause = (pause * 2).min(PAUSE.1);
        // What waited too long is of no use; and whoever ended the queue waits for nothing.
        if words.is_closed() {
            return;
        }
    }
}

async fn connect(address: SocketAddr, secret: &Secret) -> std::io::Result<(TcpStream, Sealer)> {
    let mut stream = TcpStream::connect(address).await?;
    stream.set_nodelay(true)?;
    let mut greeting = [0; MAGIC.len() + NONCE_BYTES];
    stream.read_exact(&mut greeting).await?;
    let (magic, nonce) = greeting.split_at(MAGIC.len());
    let nonce = nonce.try_into().map_err(std::io::Error::other)?;
    if magic != MAGIC {
        return Err(std::io::Error::other("not an agent"));
    }
    Ok((stream, Sealer::new(secret.clone(), nonce)))
}

/// Sends until the queue ends (true) or the connection does.
async fn send_all(
    stream: &mut TcpStream,
    sealer: &mut Sealer,
    words: &mut mpsc::Receiver<Waiting>,
    counters: &Shared,
) -> bool {
    let mut batch = Vec::new();
    loop {
        batch.clear();
        let Some(first) = words.recv().await else { return true };
        batch.push(first);
        sleep(GATHER).await;
        while batch.len() < WORDS_MAX
            && let Ok(word) = words.try_recv()
        {
            batch.push(word);
        }
        let n_waited = batch.len();
        batch.retain(|waiting| waiting.since.elapsed() < USEFUL);
        count(&counters.unsent, (n_waited - batch.len()) as u64);
        if batch.is_empty() {
            continue;
        }
        let frame = sealer.seal(&batch.iter().map(|waiting| waiting.word).collect::<Vec<_>>());
        if !matches!(timeout(WITHIN, stream.write_all(&frame)).await, Ok(Ok(()))) {
            count(&counters.unsent, batch.len() as u64);
            return false;
        }
        count(&counters.sent, batch.len() as u64);
        count(&counters.sent_bytes, frame.len() as u64);
    }
}
