//! A span to bytes and back, for both stores: protobuf, compressed above a size, with repeated things (names,
//! processes, hosts) replaced by numbers of a dictionary.
//!
//! What a reader would get wrong: times are stored as signed differences, each to the last known one before it,
//! so that a half costs 2 to 4 bytes per time; the chain starts at `base_ns`, which is *not* in the bytes. Any
//! `u64` survives, since the differences wrap. Bytes may come from a damaged disk: nothing here panics on them.

use std::borrow::Cow;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6};
use std::sync::Arc;

use dprof_common::model::{
    EvidenceKind, Half, HalfFlags, HalfTimes, HostInfo, KeepReason, Link, MessageId, ProcessInfo, RootKind,
    RunId, Span, SpanFlags, SpanId, Status, TraceId,
};
use prost::Message;

/// Bodies longer than this are compressed; most are 60 to 250 bytes, where zstd gains nothing.
const COMPRESS_ABOVE_BYTES: usize = 1024;
/// A body that claims to be longer after decompression is damage.
const BODY_BYTES_MAX: usize = 16 << 20;
/// First byte of a body: protobuf as it is…
const RAW: u8 = 0;
/// …or compressed with zstd.
const ZSTD: u8 = 1;
/// zstd's fastest ordinary level: rows are written at 100,000 a second.
const ZSTD_LEVEL: i32 = 1;

/// Why bytes are not a row.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a span row: {0}")]
pub struct RowError(pub Cow<'static, str>);

fn damaged(cause: &'static str) -> RowError {
    RowError(Cow::Borrowed(cause))
}

/// Where a half was seen: host, process and network namespace, which thousands of halves share.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Origin {
    /// Host and run.
    pub host: Arc<HostInfo>,
    /// Process.
    pub process: Arc<ProcessInfo>,
    /// Network namespace.
    pub netns: u32,
}

/// Numbers for repeated things, while packing.
pub trait Dictionary {
    /// What can fail (a dictionary may live in a file).
    type Error;
    /// The number of `text`.
    fn text_id(&mut self, text: &str) -> Result<u32, Self::Error>;
    /// The number of the half's host, process and namespace.
    fn origin_id(&mut self, half: &Half) -> Result<u32, Self::Error>;
}

/// The things behind the numbers, while unpacking.
pub trait Lookup {
    /// What can fail.
    type Error: From<RowError>;
    /// The text of this number.
    fn text(&mut self, id: u32) -> Result<Arc<str>, Self::Error>;
    /// The origin of this number.
    fn origin(&mut self, id: u32) -> Result<Origin, Self::Error>;
}

#[derive(Clone, PartialEq, Message)]
struct PackedSpan {
    #[prost(fixed64, tag = "1")]
    parent: u64,
    /// [`EvidenceKind`]; 0 = no link.
    #[prost(uint32, tag = "2")]
    evidence: u32,
    #[prost(float, optional, tag = "3")]
    confidence: Option<f32>,
    #[prost(uint32, tag = "4")]
    root: u32,
    #[prost(uint32, tag = "5")]
    flags: u32,
    /// Absent = 1.
    #[prost(double, optional, tag = "6")]
    probability: Option<f64>,
    #[prost(uint32, tag = "7")]
    reason: u32,
    #[prost(message, optional, tag = "8")]
    client: Option<PackedHalf>,
    #[prost(message, optional, tag = "9")]
    server: Option<PackedHalf>,
    /// Causes beyond the first, of a call that serves several requests.
    #[prost(message, repeated, tag = "10")]
    further: Vec<PackedLink>,
}

#[derive(Clone, PartialEq, Message)]
struct PackedLink {
    #[prost(fixed64, tag = "1")]
    parent: u64,
    /// [`EvidenceKind`].
    #[prost(uint32, tag = "2")]
    evidence: u32,
    #[prost(float, optional, tag = "3")]
    confidence: Option<f32>,
}

#[derive(Clone, PartialEq, Message)]
struct PackedHalf {
    #[prost(uint32, tag = "1")]
    origin: u32,
    #[prost(uint32, tag = "2")]
    tid: u32,
    #[prost(bytes = "vec", tag = "3")]
    local: Vec<u8>,
    #[prost(bytes = "vec", tag = "4")]
    peer: Vec<u8>,
    #[prost(fixed64, tag = "5")]
    tuple_key: u64,
    #[prost(uint32, tag = "6")]
    protocol: u32,
    #[prost(uint32, tag = "7")]
    operation: u32,
    #[prost(string, tag = "8")]
    query_text: String,
    #[prost(uint32, tag = "9")]
    status: u32,
    #[prost(string, tag = "10")]
    status_code: String,
    #[prost(message, repeated, tag = "11")]
    attributes: Vec<PackedAttribute>,
    #[prost(sint64, tag = "12")]
    start: i64,
    #[prost(sint64, tag = "13")]
    end: i64,
    #[prost(sint64, optional, tag = "14")]
    request_first: Option<i64>,
    #[prost(sint64, optional, tag = "15")]
    request_last: Option<i64>,
    #[prost(sint64, optional, tag = "16")]
    request_read: Option<i64>,
    #[prost(sint64, optional, tag = "17")]
    response_first: Option<i64>,
    #[prost(sint64, optional, tag = "18")]
    response_last: Option<i64>,
    #[prost(sint64, optional, tag = "19")]
    response_read: Option<i64>,
    #[prost(uint64, tag = "20")]
    request_bytes: u64,
    #[prost(uint64, tag = "21")]
    response_bytes: u64,
    #[prost(uint64, tag = "22")]
    request_message: u64,
    /// Difference to `request_message`.
    #[prost(sint64, tag = "23")]
    response_message: i64,
    /// One less than the batch, so that the usual 1 costs nothing.
    #[prost(sint32, tag = "24")]
    batch: i32,
    #[prost(uint32, tag = "25")]
    flags: u32,
    #[prost(uint32, tag = "26")]
    retransmits: u32,
    #[prost(uint32, tag = "27")]
    srtt_us: u32,
    #[prost(uint64, optional, tag = "28")]
    connect_ns: Option<u64>,
}

#[derive(Clone, PartialEq, Message)]
struct PackedAttribute {
    #[prost(uint32, tag = "1")]
    key: u32,
    #[prost(string, tag = "2")]
    value: String,
}

#[derive(Clone, PartialEq, Message)]
struct PackedOrigin {
    #[prost(string, tag = "1")]
    host: String,
    #[prost(bytes = "vec", tag = "2")]
    run_id: Vec<u8>,
    #[prost(btree_map = "string, string", tag = "3")]
    labels: std::collections::BTreeMap<String, String>,
    #[prost(uint32, tag = "4")]
    pid: u32,
    #[prost(string, tag = "5")]
    comm: String,
    #[prost(string, tag = "6")]
    service: String,
    #[prost(string, optional, tag = "7")]
    container: Option<String>,
    #[prost(uint32, tag = "8")]
    netns: u32,
}

/// Packs what [`Span`] holds besides its two ids. `base_ns` must be given again to [`unpack_body`]; the closer
/// to the span's start, the fewer bytes.
pub fn pack_body<D: Dictionary>(span: &Span, base_ns: u64, dictionary: &mut D) -> Result<Vec<u8>, D::Error> {
    let half = |half: &Option<Half>, dictionary: &mut D| {
        half.as_ref().map(|half| pack_half(half, base_ns, dictionary)).transpose()
    };
    let link = span.link.as_ref();
    let packed = PackedSpan {
        parent: link.map_or(0, |link| link.parent.0),
        evidence: link.map_or(0, |link| link.evidence as u32),
        confidence: link.and_then(|link| link.confidence),
        root: span.root.map_or(0, |root| root as u32),
        flags: span.flags.0,
        probability: (span.probability.to_bits() != 1.0_f64.to_bits()).then_some(span.probability),
        reason: span.reason as u32,
        client: half(&span.client, dictionary)?,
        server: half(&span.server, dictionary)?,
        further: span
            .further_links
            .iter()
            .map(|link| PackedLink {
                parent: link.parent.0,
                evidence: link.evidence as u32,
                confidence: link.confidence,
            })
            .collect(),
    };
    let len = packed.encoded_len();
    let mut body = Vec::with_capacity(1 + len);
    body.push(RAW);
    packed.encode_raw(&mut body);
    if len > COMPRESS_ABOVE_BYTES
        && let Ok(smaller) = zstd::bulk::compress(&body[1..], ZSTD_LEVEL)
        && smaller.len() < len
    {
        body.truncate(0);
        body.push(ZSTD);
        body.extend_from_slice(&smaller);
    }
    Ok(body)
}

/// Reads [`pack_body`]'s bytes.
pub fn unpack_body<L: Lookup>(
    trace_id: TraceId,
    span_id: SpanId,
    body: &[u8],
    base_ns: u64,
    lookup: &mut L,
) -> Result<Span, L::Error> {
    let packed = decode_body(body)?;
    let link = match packed.evidence {
        0 => None,
        evidence => {
            let (parent, confidence) = (packed.parent, packed.confidence);
            Some(unpack_link(&PackedLink { parent, evidence, confidence })?)
        }
    };
    let further_links = packed.further.iter().map(unpack_link).collect::<Result<_, _>>()?;
    let root = match packed.root {
        0 => None,
        number => Some(
            u8::try_from(number)
                .ok()
                .and_then(RootKind::from_u8)
                .ok_or_else(|| damaged("unknown root kind"))?,
        ),
    };
    if packed.client.is_none() && packed.server.is_none() {
        return Err(damaged("no half").into());
    }
    Ok(Span {
        trace_id,
        span_id,
        link,
        further_links,
        root,
        flags: SpanFlags(packed.flags),
        probability: packed.probability.unwrap_or(1.0),
        reason: u8::try_from(packed.reason)
            .ok()
            .and_then(KeepReason::from_u8)
            .ok_or_else(|| damaged("unknown reason"))?,
        client: packed.client.map(|half| unpack_half(half, base_ns, lookup)).transpose()?,
        server: packed.server.map(|half| unpack_half(half, base_ns, lookup)).transpose()?,
    })
}

fn unpack_link(packed: &PackedLink) -> Result<Link, RowError> {
    Ok(Link {
        parent: SpanId(packed.parent),
        evidence: u8::try_from(packed.evidence)
            .ok()
            .and_then(EvidenceKind::from_u8)
            .ok_or_else(|| damaged("unknown evidence"))?,
        confidence: packed.confidence,
    })
}

fn decode_body(body: &[u8]) -> Result<PackedSpan, RowError> {
    let (encoding, rest) = body.split_first().ok_or_else(|| damaged("empty"))?;
    let plain = match *encoding {
        RAW => Cow::Borrowed(rest),
        ZSTD => Cow::Owned(
            zstd::bulk::decompress(rest, BODY_BYTES_MAX).map_err(|_| damaged("does not decompress"))?,
        ),
        _ => return Err(damaged("unknown encoding")),
    };
    PackedSpan::decode(plain.as_ref()).map_err(|error| RowError(Cow::Owned(error.to_string())))
}

fn pack_half<D: Dictionary>(half: &Half, base_ns: u64, dictionary: &mut D) -> Result<PackedHalf, D::Error> {
    let t = &half.times;
    let mut last_ns = base_ns;
    let mut step = |time_ns: u64| {
        let difference = time_ns.wrapping_sub(last_ns) as i64;
        last_ns = time_ns;
        difference
    };
    let start = step(t.start_ns);
    let request_first = t.request_first_ns.map(&mut step);
    let request_last = t.request_last_ns.map(&mut step);
    let request_read = t.request_read_ns.map(&mut step);
    let response_first = t.response_first_ns.map(&mut step);
    let response_last = t.response_last_ns.map(&mut step);
    let response_read = t.response_read_ns.map(&mut step);
    let end = step(t.end_ns);
    let mut attributes = Vec::with_capacity(half.attributes.len());
    for (key, value) in &half.attributes {
        attributes.push(PackedAttribute { key: dictionary.text_id(key)?, value: value.clone() });
    }
    Ok(PackedHalf {
        origin: dictionary.origin_id(half)?,
        tid: half.tid,
        local: pack_addr(half.local),
        peer: pack_addr(half.peer),
        tuple_key: half.tuple_key,
        protocol: dictionary.text_id(&half.protocol)?,
        operation: dictionary.text_id(&half.operation)?,
        query_text: half.query_text.clone(),
        status: half.status as u32,
        status_code: half.status_code.clone(),
        attributes,
        start,
        end,
        request_first,
        request_last,
        request_read,
        response_first,
        response_last,
        response_read,
        request_bytes: half.request_bytes,
        response_bytes: half.response_bytes,
        request_message: half.request_message_id.0,
        response_message: half.response_message_id.0.wrapping_sub(half.request_message_id.0) as i64,
        batch: half.batch.wrapping_sub(1) as i32,
        flags: half.flags.0,
        retransmits: half.retransmits,
        srtt_us: half.srtt_us,
        connect_ns: half.connect_ns,
    })
}

fn unpack_half<L: Lookup>(packed: PackedHalf, base_ns: u64, lookup: &mut L) -> Result<Half, L::Error> {
    let origin = lookup.origin(packed.origin)?;
    let mut last_ns = base_ns;
    let mut step = |difference: i64| {
        last_ns = last_ns.wrapping_add(difference as u64);
        last_ns
    };
    let start_ns = step(packed.start);
    let request_first_ns = packed.request_first.map(&mut step);
    let request_last_ns = packed.request_last.map(&mut step);
    let request_read_ns = packed.request_read.map(&mut step);
    let response_first_ns = packed.response_first.map(&mut step);
    let response_last_ns = packed.response_last.map(&mut step);
    let response_read_ns = packed.response_read.map(&mut step);
    let end_ns = step(packed.end);
    let mut attributes = Vec::with_capacity(packed.attributes.len());
    for PackedAttribute { key, value } in packed.attributes {
        attributes.push((Cow::Owned(lookup.text(key)?.as_ref().to_owned()), value));
    }
    Ok(Half {
        host: origin.host,
        process: origin.process,
        tid: packed.tid,
        local: unpack_addr(&packed.local)?,
        peer: unpack_addr(&packed.peer)?,
        netns: origin.netns,
        tuple_key: packed.tuple_key,
        protocol: Cow::Owned(lookup.text(packed.protocol)?.as_ref().to_owned()),
        operation: lookup.text(packed.operation)?.as_ref().to_owned(),
        query_text: packed.query_text,
        status: u8::try_from(packed.status)
            .ok()
            .and_then(Status::from_u8)
            .ok_or_else(|| damaged("unknown status"))?,
        status_code: packed.status_code,
        attributes,
        times: HalfTimes {
            start_ns,
            end_ns,
            request_first_ns,
            request_last_ns,
            request_read_ns,
            response_first_ns,
            response_last_ns,
            response_read_ns,
        },
        request_bytes: packed.request_bytes,
        response_bytes: packed.response_bytes,
        request_message_id: MessageId(packed.request_message),
        response_message_id: MessageId(packed.request_message.wrapping_add(packed.response_message as u64)),
        batch: (packed.batch as u32).wrapping_add(1),
        flags: HalfFlags(packed.flags),
        retransmits: packed.retransmits,
        srtt_us: packed.srtt_us,
        connect_ns: packed.connect_ns,
    })
}

/// IPv4: 4 bytes and the port, big-endian; IPv6: 16 and the port, and flow info and scope when there are any.
fn pack_addr(addr: SocketAddr) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(26);
    match addr.ip() {
        IpAddr::V4(ip) => bytes.extend_from_slice(&ip.octets()),
        IpAddr::V6(ip) => bytes.extend_from_slice(&ip.octets()),
    }
    bytes.extend_from_slice(&addr.port().to_be_bytes());
    if let SocketAddr::V6(v6) = addr
        && (v6.flowinfo(), v6.scope_id()) != (0, 0)
    {
        bytes.extend_from_slice(&v6.flowinfo().to_be_bytes());
        bytes.extend_from_slice(&v6.scope_id().to_be_bytes());
    }
    bytes
}

fn unpack_addr(bytes: &[u8]) -> Result<SocketAddr, RowError> {
    let error = || damaged("not an address");
    if let Some((ip, port)) = bytes.split_first_chunk::<4>()
        && let Ok(port) = <[u8; 2]>::try_from(port)
    {
        return Ok(SocketAddr::new(Ipv4Addr::from(*ip).into(), u16::from_be_bytes(port)));
    }
    let (ip, rest) = bytes.split_first_chunk::<16>().ok_or_else(error)?;
    let (port, rest) = rest.split_first_chunk::<2>().ok_or_else(error)?;
    let (flow, scope) = match rest.split_first_chunk::<4>() {
        None if rest.is_empty() => (0, 0),
        Some((flow, scope)) => {
            (u32::from_be_bytes(*flow), u32::from_be_bytes(<[u8; 4]>::try_from(scope).map_err(|_| error())?))
        }
        None => return Err(error()),
    };
    Ok(SocketAddrV6::new(Ipv6Addr::from(*ip), u16::from_be_bytes(*port), flow, scope).into())
}

/// Packs the half's host, process and namespace.
pub fn pack_origin(half: &Half) -> Vec<u8> {
    PackedOrigin {
        host: half.host.host.clone(),
        run_id: half.host.run_id.0.to_be_bytes().to_vec(),
        labels: half.host.labels.clone(),
        pid: half.process.pid,
        comm: half.process.comm.clone(),
        service: half.process.service.clone(),
        container: half.process.container.clone(),
        netns: half.netns,
    }
    .encode_to_vec()
}

/// Reads [`pack_origin`]'s bytes.
pub fn unpack_origin(bytes: &[u8]) -> Result<Origin, RowError> {
    let packed = PackedOrigin::decode(bytes).map_err(|error| RowError(Cow::Owned(error.to_string())))?;
    let run_id = <[u8; 16]>::try_from(packed.run_id.as_slice()).map_err(|_| damaged("not a run id"))?;
    Ok(Origin {
        host: Arc::new(HostInfo {
            host: packed.host,
            run_id: RunId(u128::from_be_bytes(run_id)),
            labels: packed.labels,
        }),
        process: Arc::new(ProcessInfo {
            pid: packed.pid,
            comm: packed.comm,
            service: packed.service,
            container: packed.container,
        }),
        netns: packed.netns,
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A dictionary in memory.
    #[derive(Default)]
    struct Words {
        texts: Vec<Arc<str>>,
        origins: Vec<Vec<u8>>,
    }

    impl Dictionary for Words {
        type Error = RowError;
        fn text_id(&mut self, text: &str) -> Result<u32, RowError> {
            let known = self.texts.iter().position(|known| known.as_ref() == text);
            Ok(known.unwrap_or_else(|| {
                self.texts.push(text.into());
                self.texts.len() - 1
            }) as u32)
        }
        fn origin_id(&mut self, half: &Half) -> Result<u32, RowError> {
            self.origins.push(pack_origin(half));
            Ok(self.origins.len() as u32 - 1)
        }
    }

    impl Lookup for Words {
        type Error = RowError;
        fn text(&mut self, id: u32) -> Result<Arc<str>, RowError> {
            self.texts.get(id as usize).cloned().ok_or_else(|| damaged("unknown text"))
        }
        fn origin(&mut self, id: u32) -> Result<Origin, RowError> {
            unpack_origin(self.origins.get(id as usize).ok_or_else(|| damaged("unknown origin"))?)
        }
    }

    fn addr() -> impl Strategy<Value = SocketAddr> {
        prop_oneof![
            any::<(u32, u16)>().prop_map(|(ip, port)| SocketAddr::new(Ipv4Addr::from(ip).into(), port)),
            any::<(u128, u16, u32, u32)>().prop_map(|(ip, port, flow, scope)| SocketAddrV6::new(
                ip.into(),
                port,
                flow,
                scope
            )
            .into()),
            any::<(u128, u16)>().prop_map(|(ip, port)| SocketAddrV6::new(ip.into(), port, 0, 0).into()),
        ]
    }

    fn times() -> impl Strategy<Value = HalfTimes> {
        (any::<(u64, u64)>(), prop::array::uniform6(any::<Option<u64>>())).prop_map(|((start, end), t)| {
            HalfTimes {
                start_ns: start,
                end_ns: end,
                request_first_ns: t[0],
                request_last_ns: t[1],
                request_read_ns: t[2],
                response_first_ns: t[3],
                response_last_ns: t[4],
                response_read_ns: t[5],
            }
        })
    }

    fn half() -> impl Strategy<Value = Half> {
        let host = (".{0,8}", any::<u128>(), prop::collection::btree_map(".{0,4}", ".{0,4}", 0..3))
            .prop_map(|(host, run, labels)| Arc::new(HostInfo { host, run_id: RunId(run), labels }));
        let process = (any::<u32>(), ".{0,8}", ".{0,8}", prop::option::of(".{0,8}")).prop_map(
            |(pid, comm, service, container)| Arc::new(ProcessInfo { pid, comm, service, container }),
        );
        let attribute = (".{0,8}", ".{0,900}").prop_map(|(key, value)| (Cow::Owned(key), value));
        let text = (".{0,8}", ".{0,8}", ".{0,40}", ".{0,4}", prop::collection::vec(attribute, 0..4));
        let numbers = (any::<[u64; 5]>(), any::<[u32; 6]>(), any::<Option<u64>>(), 0..7_usize);
        (host, process, addr(), addr(), text, times(), numbers).prop_map(
            |(
                host,
                process,
                local,
                peer,
                (protocol, operation, query_text, status_code, attributes),
                times,
                n,
            )| {
                let (
                    [tuple_key, request_bytes, response_bytes, request, response],
                    small,
                    connect_ns,
                    status,
                ) = n;
                Half {
                    host,
                    process,
                    tid: small[0],
                    local,
                    peer,
                    netns: small[1],
                    tuple_key,
                    protocol: Cow::Owned(protocol),
                    operation,
                    query_text,
                    status: Status::ALL[status],
                    status_code,
                    attributes,
                    times,
                    request_bytes,
                    response_bytes,
                    request_message_id: MessageId(request),
                    response_message_id: MessageId(response),
                    batch: small[2],
                    flags: HalfFlags(small[3]),
                    retransmits: small[4],
                    srtt_us: small[5],
                    connect_ns,
                }
            },
        )
    }

    fn span() -> impl Strategy<Value = Span> {
        let link = || {
            (any::<u64>(), 1..8_u8, prop::option::of(0.0..=1.0_f32)).prop_map(
                |(parent, evidence, confidence)| Link {
                    parent: SpanId(parent),
                    evidence: EvidenceKind::from_u8(evidence).expect("1 to 7"),
                    confidence,
                },
            )
        };
        let links = (prop::option::of(link()), prop::collection::vec(link(), 0..3));
        let halves = prop_oneof![
            half().prop_map(|half| (Some(half), None)),
            half().prop_map(|half| (None, Some(half))),
            (half(), half()).prop_map(|(client, server)| (Some(client), Some(server))),
        ];
        let numbers = (any::<u128>(), any::<u64>(), any::<u32>(), 0.0..=1.0_f64, 0..3_u8, 1..6_u8);
        (links, halves, numbers).prop_map(|((link, further_links), (client, server), n)| Span {
            trace_id: TraceId(n.0),
            span_id: SpanId(n.1),
            link,
            further_links,
            root: RootKind::from_u8(n.4),
            flags: SpanFlags(n.2),
            probability: n.3,
            reason: KeepReason::from_u8(n.5).expect("1 to 5"),
            client,
            server,
        })
    }

    proptest! {
        #[test]
        fn a_span_survives_packing(span in span(), base_ns in any::<u64>()) {
            let mut words = Words::default();
            let body = pack_body(&span, base_ns, &mut words).expect("in memory");
            let back = unpack_body(span.trace_id, span.span_id, &body, base_ns, &mut words);
            prop_assert_eq!(back, Ok(span));
        }

        #[test]
        fn damaged_bytes_are_refused_or_read_as_something_never_a_panic(
            span in span(), at in any::<prop::sample::Index>(), xor in 1..=255_u8, cut in any::<prop::sample::Index>(),
        ) {
            let mut words = Words::default();
            let mut body = pack_body(&span, 0, &mut words).expect("in memory");
            let at = at.index(body.len());
            body[at] ^= xor;
            let _ = unpack_body(span.trace_id, span.span_id, &body, 0, &mut words);
            body.truncate(cut.index(body.len()));
            let _ = unpack_body(span.trace_id, span.span_id, &body, 0, &mut words);
            let _ = unpack_origin(&body);
        }

        #[test]
        fn any_bytes_are_refused_or_read_never_a_panic(body in prop::collection::vec(any::<u8>(), 0..200)) {
            let mut words = Words::default();
            let _ = unpack_body(TraceId(1), SpanId(1), &body, 0, &mut words);
            let _ = unpack_origin(&body);
            let _ = unpack_addr(&body);
        }
    }

    #[test]
    fn empty_unknown_and_halfless_bodies_are_named() {
        let mut words = Words::default();
        for (body, cause) in
            [(&[][..], "empty"), (&[7], "encoding"), (&[RAW], "no half"), (&[ZSTD, 1, 2], "decompress")]
        {
            let error = unpack_body(TraceId(1), SpanId(1), body, 0, &mut words).unwrap_err();
            assert!(error.to_string().contains(cause), "{error} for {body:?}");
        }
    }
}
