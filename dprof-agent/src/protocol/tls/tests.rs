//! TLS as bytes: hellos made here, and what is said of them.

use super::{Tls, hello};
use crate::protocol::testing;

/// A record of handshake type `kind` with this body, in the notation of tests; cut into records of `max` bytes.
fn handshake(kind: u8, body: &[u8], max: usize) -> String {
    let mut message = vec![kind];
    message.extend(&(body.len() as u32).to_be_bytes()[1..]);
    message.extend(body);
    let records = message.chunks(max).flat_map(|part| {
        let mut record = vec![22, 3, 1];
        record.extend((part.len() as u16).to_be_bytes());
        record.extend(part);
        record
    });
    records.map(|byte| format!("\\x{byte:02x}")).collect()
}

fn vector16(bytes: &[u8]) -> Vec<u8> {
    [&(bytes.len() as u16).to_be_bytes()[..], bytes].concat()
}

fn extension(kind: u16, body: &[u8]) -> Vec<u8> {
    [&kind.to_be_bytes()[..], &vector16(body)].concat()
}

fn client_hello(name: &str, alpn: &[&str]) -> Vec<u8> {
    let name = vector16(&[&[0][..], &vector16(name.as_bytes())].concat());
    let protocols: Vec<u8> =
        alpn.iter().flat_map(|name| [&[name.len() as u8][..], name.as_bytes()].concat()).collect();
    let extensions = [extension(0, &name), extension(16, &vector16(&protocols))].concat();
    [&[3, 3][..], &[7; 32], &[0], &vector16(&[0x13, 1]), &[1, 0], &vector16(&extensions)].concat()
}

fn server_hello(extensions: &[u8]) -> Vec<u8> {
    [&[3, 3][..], &[7; 32], &[0], &[0x13, 1, 0], &vector16(extensions)].concat()
}

#[track_caller]
fn check(input: &str, expected: &str) {
    testing::check(&Tls, false, input, expected);
}

#[test]
fn the_handshake_is_read_and_what_follows_is_not() {
    for max in [usize::MAX, 50] {
        let client = handshake(1, &client_hello("shop.example", &["h2", "http/1.1"]), max);
        let server = handshake(2, &server_hello(&extension(43, &[3, 4])), max);
        let (c, s) = (client.len() / 4, server.len() / 4);
        check(
            &format!(">\" {client}\n<\" {server}\n<\" \\x17\\x03\\x03\\x00\\x01a\n>\" \\x17\\x03\\x03\\x00\\x01b"),
            &format!(
                "> 0..{c} req [TLS handshake] tls.client.server_name=shop.example dprof.tls.alpn_offered=h2,http/1.1
                 < 0..{end} res tls.protocol.version=1.3
                 encrypted {c} {end} > tls.client.server_name=shop.example dprof.tls.alpn_offered=h2,http/1.1 tls.protocol.version=1.3",
                end = s + 6
            ),
        );
    }
}

#[test]
fn a_refused_handshake_failed() {
    let client = handshake(1, &client_hello("a", &[]), usize::MAX);
    let c = client.len() / 4;
    check(
        &format!(">\" {client}\n<\" \\x15\\x03\\x03\\x00\\x02\\x02\\x28\n<."),
        &format!("> 0..{c} req [TLS handshake] tls.client.server_name=a\n< 0..7 res [alert 40] error"),
    );
}

#[test]
fn a_joined_connection_is_encrypted_at_once() {
    testing::check(&Tls, true, "<\" \\x17\\x03\\x03\\x00\\x01a", "encrypted 0 0 >");
}

#[test]
fn damaged_hellos_are_survived() {
    let whole = client_hello("shop.example", &["h2"]);
    let mut bytes = vec![22, 3, 1, 0, 0, 1, 0, 0, 0];
    bytes.extend(&whole);
    for at in 0..bytes.len() {
        for value in [0, 1, 0x7f, 0xff] {
            let mut damaged = bytes.clone();
            damaged[at] = value;
            damaged[3..5].copy_from_slice(&(whole.len() as u16 + 4).to_be_bytes());
            damaged[8] = damaged[8].max(whole.len() as u8);
            let _ = hello::client(&damaged);
            let _ = hello::server(&damaged);
            let _ = hello::client(&damaged[..at]);
        }
    }
}
