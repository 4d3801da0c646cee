//! Just enough of Cassandra's native protocol (version 4, its specification's sections 2 and 4) to know whether a
//! node answers and how many peers it knows. The tests of the store use the real driver; this only waits.

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Result, bail, ensure};

/// Port of the native protocol.
pub(super) const PORT: u16 = 9042;

/// A node that hangs is not ready.
const ANSWER_WITHIN: Duration = Duration::from_secs(2);
/// A frame with a few addresses is some hundred bytes.
const FRAME_BYTES_MAX: usize = 1 << 20;

const REQUEST_V4: u8 = 4;
const STARTUP: u8 = 1;
const READY: u8 = 2;
const QUERY: u8 = 7;
const RESULT: u8 = 8;
const CONSISTENCY_ONE: u16 = 1;
/// Of a query: the answer needs no description of its columns.
const SKIP_METADATA: u8 = 2;
const RESULT_ROWS: u32 = 2;

/// How many peers the node at `address` knows. Fails while it does not answer queries.
pub(super) fn n_peers(address: Ipv4Addr) -> Result<u32> {
    let mut stream = TcpStream::connect_timeout(&SocketAddr::from((address, PORT)), ANSWER_WITHIN)?;
    stream.set_read_timeout(Some(ANSWER_WITHIN))?;
    stream.set_write_timeout(Some(ANSWER_WITHIN))?;
    let mut startup = 1_u16.to_be_bytes().to_vec();
    for text in ["CQL_VERSION", "3.0.0"] {
        startup.extend((text.len() as u16).to_be_bytes());
        startup.extend(text.as_bytes());
    }
    ask(&mut stream, STARTUP, &startup, READY)?;
    let text = "SELECT peer FROM system.peers";
    let mut query = (text.len() as u32).to_be_bytes().to_vec();
    query.extend(text.as_bytes());
    query.extend(CONSISTENCY_ONE.to_be_bytes());
    query.push(SKIP_METADATA);
    let rows = ask(&mut stream, QUERY, &query, RESULT)?;
    // Kind, flags, number of columns, number of rows.
    let number =
        |at: usize| rows.get(4 * at..4 * at + 4).map(|b| u32::from_be_bytes([b[0], b[1], b[2], b[3]]));
    match (number(0), number(3)) {
        (Some(RESULT_ROWS), Some(n_rows)) => Ok(n_rows),
        _ => bail!("no rows"),
    }
}

/// Sends one frame; the body of the answer.
fn ask(stream: &mut TcpStream, opcode: u8, body: &[u8], expected: u8) -> Result<Vec<u8>> {
    let mut frame = vec![REQUEST_V4, 0, 0, 0, opcode];
    frame.extend((body.len() as u32).to_be_bytes());
    frame.extend(body);
    stream.write_all(&frame)?;
    let mut head = [0; 9];
    stream.read_exact(&mut head)?;
    let len = u32::from_be_bytes([head[5], head[6], head[7], head[8]]) as usize;
    ensure!(len <= FRAME_BYTES_MAX, "a frame of {len} bytes");
    let mut body = vec![0; len];
    stream.read_exact(&mut body)?;
    ensure!(head[4] == expected, "answered with opcode {}", head[4]);
    Ok(body)
}
