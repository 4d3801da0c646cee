//! Hears other agents.

use std::io::Read as _;
use std::sync::Arc;
use std::sync::mpsc::SyncSender;
use std::time::Duration;

use dprof_common::model::RunId;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::{Instant, sleep, timeout};

use super::frame::{FRAME_BYTES_MAX, Greeting, NONCE_BYTES, SEAL_BYTES, Sealer, Secret};
use super::{PEERS_MAX, Shared, count};
use crate::keep::Word;

/// Words that one connection may bring in a second: twenty times what an agent at its budget says.
const WORDS_PER_S: f64 = 50_000.0;
/// A frame that has begun is whole after this long, or the connection ends.
const FRAME_WITHIN: Duration = Duration::from_secs(2);
/// Pause after `accept` failed (no file descriptors).
const PAUSE: Duration = Duration::from_millis(100);

/// Accepts until the runtime ends.
pub(super) async fn listen(
    listener: TcpListener,
    run: RunId,
    secret: Secret,
    heard: SyncSender<Word>,
    counters: Arc<Shared>,
) {
    let room = Arc::new(Semaphore::new(PEERS_MAX));
    loop {
        let Ok((stream, address)) = listener.accept().await else {
            sleep(PAUSE).await;
            continue;
        };
        let Ok(place) = Arc::clone(&room).try_acquire_owned() else {
            count(&counters.refused, 1);
            continue;
        };
        let (secret, heard, counters) = (secret.clone(), heard.clone(), Arc::clone(&counters));
        tokio::spawn(async move {
            if let Err(reason) = hear(stream, run, secret, &heard, &counters).await {
                count(&counters.refused, 1);
                log::warn!("refused {address}, which speaks as an agent: {reason}");
            }
            drop(place);
        });
    }
}

/// Hears one connection to its end; the error says why it was ended here.
async fn hear(
    mut stream: TcpStream,
    run: RunId,
    secret: Secret,
    heard: &SyncSender<Word>,
    counters: &Shared,
) -> Result<(), &'static str> {
    let mut nonce = [0; NONCE_BYTES];
    let random = std::fs::File::open("/dev/urandom").and_then(|mut file| file.read_exact(&mut nonce));
    if random.is_err() {
        return Err("no random number is to be had");
    }
    let greeting = Greeting { nonce, run };
    if stream.write_all(&greeting.to_bytes()).await.is_err() {
        return Ok(());
    }
    let mut sealer = Sealer::new(secret, greeting);
    let (mut may_say, mut filled) = (WORDS_PER_S, Instant::now());
    let mut frame = Vec::new();
    loop {
        let Ok(length) = stream.read_u32().await else { return Ok(()) };
        let length = length as usize;
        if !(SEAL_BYTES..=FRAME_BYTES_MAX).contains(&length) {
            return Err("a frame of impossible length");
        }
        frame.resize(length, 0);
        match timeout(FRAME_WITHIN, stream.read_exact(&mut frame)).await {
            Err(_) => return Err("a frame that does not end"),
            Ok(Err(_)) => return Ok(()),
            Ok(Ok(_)) => {}
        }
        let Some(words) = sealer.open(&frame) else { return Err("a frame that our secret does not open") };
        may_say = (may_say + filled.elapsed().as_secs_f64() * WORDS_PER_S).min(WORDS_PER_S);
        filled = Instant::now();
        for word in words {
            let is_heard = may_say >= 1.0 && heard.try_send(word).is_ok();
            may_say -= f64::from(u8::from(may_say >= 1.0));
            count(if is_heard { &counters.received } else { &counters.ignored }, 1);
        }
    }
}
