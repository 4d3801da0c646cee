//! Redis: RESP 2 and 3, as Redis, Valkey, KeyDB, Dragonfly and the proxies before them speak it.
//!
//! What a reader would get wrong: replies carry no number, so everything rests on their order. After a loss a
//! reply's boundary is believed only where the connection turned: at the first byte after requests were sent.

mod arguments;
mod boundary;
mod command;
#[cfg_attr(not(test), allow(dead_code, reason = "the interface for protocols that wrap RESP"))]
pub(in crate::protocol) mod embedded;
mod inline;
mod number;
pub(in crate::protocol) mod redact;
mod reply;
mod request;
mod subscriptions;
#[cfg(test)]
mod tests;

use dprof_common::limits::PAYLOAD_BYTES_MAX;

use super::answers::{Answers, Next};
use super::capture::Capture;
use super::{Detected, Direction, Head, Parsed, Parser, Protocol, Verdict};
use arguments::{Current, ReplyMode};
use boundary::{Boundary, reply_boundary, request_boundary};
use command::Effect;
use reply::Replies;
use request::{Requests, Special};
use subscriptions::Subscriptions;

/// Payload worth capturing of one call: pipelined commands fill calls, and each must be seen.
const PAYLOAD_BYTES: u32 = PAYLOAD_BYTES_MAX as u32;

/// Longest first line of an inline command that detection waits for, bytes.
const INLINE_LINE_BYTES_MAX: usize = 64;

/// The protocol.
#[derive(Debug)]
pub(super) struct Resp;

impl Protocol for Resp {
    fn name(&self) -> &'static str {
        "redis"
    }

    fn ports(&self) -> &'static [u16] {
        &[6379, 6380, 16379, 26379]
    }

    fn detect(&self, head: &Head<'_>) -> Detected {
        let judged = head.bytes.map(|bytes| judge(bytes, head.joined));
        let direction = [Direction::Out, Direction::In];
        let detected = |verdict, request_direction| Detected { verdict, request_direction };
        if judged.contains(&Looks::Other) && !head.joined {
            return detected(Verdict::No, None);
        }
        let mut verdict = Verdict::No;
        for (idx, &this) in direction.iter().enumerate() {
            let other = judged[1 - idx];
            // A reply may be an array that begins like a command; of a connection that was not seen from its
            // first byte the role, if known, says which it is.
            let by_role = head.request_direction;
            let role_fits = by_role.is_none_or(|role| role == this);
            match judged[idx] {
                Looks::Command if head.joined && !role_fits => return detected(Verdict::Yes, by_role),
                Looks::Command => return detected(Verdict::Yes, Some(this)),
                Looks::Array if by_role.is_some() && (role_fits || head.joined) => {
                    return detected(Verdict::Yes, by_role);
                }
                Looks::Array | Looks::Inline if other == Looks::Reply => {
                    return detected(Verdict::Yes, Some(this));
                }
                Looks::Inline => return detected(Verdict::Maybe, Some(this)),
                Looks::Array => verdict = verdict.max(Verdict::Maybe),
                Looks::Reply if head.joined && matches!(other, Looks::Nothing | Looks::Unclear) => {
                    verdict = verdict.max(Verdict::Maybe);
                }
                Looks::Unclear => verdict = verdict.max(Verdict::NeedMore),
                Looks::Nothing if other == Looks::Nothing => verdict = verdict.max(Verdict::NeedMore),
                Looks::Nothing | Looks::Reply => {}
                Looks::Other => verdict = verdict.max(Verdict::NeedMore),
            }
        }
        detected(verdict, None)
    }

    fn parser(&self, request_direction: Direction, start: [u64; 2], joined: bool) -> Box<dyn Parser> {
        let replies = request_direction.reverse();
        Box::new(RespParser {
            request_direction,
            requests: Requests::new(request_direction, start[request_direction.idx()], joined),
            replies: Replies::new(replies, start[replies.idx()], joined),
            session: Session::new(joined),
            last: request_direction,
            over: false,
        })
    }
}

/// What the first bytes of a direction look like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Looks {
    Nothing,
    Unclear,
    /// A known command.
    Command,
    /// An array of bulk strings.
    Array,
    /// A known command as a line.
    Inline,
    Reply,
    Other,
}

fn judge(bytes: &[u8], joined: bool) -> Looks {
    let Some(&first) = bytes.first() else { return Looks::Nothing };
    let looks = match (first, request_boundary(bytes)) {
        (_, Boundary::Known) => Looks::Command,
        (_, Boundary::Array) => Looks::Array,
        (_, Boundary::NeedMore) => Looks::Unclear,
        (b'a'..=b'z' | b'A'..=b'Z', Boundary::No) => judge_inline(bytes),
        (_, Boundary::No) => match reply_boundary(bytes) {
            None => Looks::Unclear,
            Some(true) => Looks::Reply,
            Some(false) => Looks::Other,
        },
    };
    // In the middle of a value: look for a command that follows a line end.
    let starts = |window: &&[u8]| window.starts_with(b"\r\n*");
    let later = || (0..bytes.len()).map(|at| &bytes[at..]).filter(starts).map(|rest| &rest[2..]);
    if looks == Looks::Other && joined && later().any(|rest| request_boundary(rest) == Boundary::Known) {
        return Looks::Command;
    }
    looks
}

fn judge_inline(bytes: &[u8]) -> Looks {
    let line = &bytes[..bytes.len().min(INLINE_LINE_BYTES_MAX)];
    let end = line.iter().position(|byte| *byte == b'\n');
    if !line[..end.unwrap_or(line.len())].iter().all(|byte| matches!(byte, b' '..=b'~' | b'\r')) {
        return Looks::Other;
    }
    let Some(end) = end else {
        return if line.len() < INLINE_LINE_BYTES_MAX { Looks::Unclear } else { Looks::Other };
    };
    let line = line[..end].trim_ascii_end();
    let name = line.split(|byte| *byte == b' ').next().unwrap_or_default();
    let http = line.windows(5).any(|window| window == b"HTTP/");
    if command::find(name).is_some() && !http { Looks::Inline } else { Looks::Other }
}

/// What both directions share.
#[derive(Debug)]
struct Session {
    answers: Answers<Special>,
    subscriptions: Subscriptions,
    /// After `MONITOR`.
    monitor: bool,
    /// Between `MULTI` and `EXEC`, if that is known.
    in_multi: Option<bool>,
    /// Whether the last reply may have been one within a transaction.
    may_be_queued: bool,
    /// After `CLIENT REPLY OFF`.
    replies_off: bool,
    /// After `CLIENT REPLY SKIP`.
    skip_next: bool,
    /// Whether replies were ever to be left out: a server that refused to is believed to have done so.
    silenced: bool,
    /// Since the last request it was said that a reply's kind is a guess.
    guess_said: bool,
    /// Whether RESP3 is spoken, if that is known.
    is_resp3: Option<bool>,
    /// Whether any message was whole: what is garbage then is a loss, not another protocol.
    proved: bool,
    /// Set when this is another protocol.
    mistaken: bool,
    /// Set when a replication stream starts: where, in the direction that was being fed.
    opaque_from: Option<u64>,
}

impl Session {
    fn new(joined: bool) -> Self {
        Self {
            answers: Answers::new(!joined),
            subscriptions: Subscriptions::default(),
            monitor: false,
            in_multi: if joined { None } else { Some(false) },
            may_be_queued: false,
            replies_off: false,
            skip_next: false,
            silenced: false,
            guess_said: false,
            is_resp3: if joined { None } else { Some(false) },
            proved: false,
            mistaken: false,
            opaque_from: None,
        }
    }

    fn over(&self) -> bool {
        self.mistaken || self.opaque_from.is_some()
    }

    /// Requests were not seen: any of them may have changed the connection.
    fn lose_requests(&mut self) {
        self.answers.lose();
        self.in_multi = None;
        self.replies_off = false;
        self.skip_next = false;
        self.is_resp3 = None;
    }

    /// Replies were not seen.
    fn lose_replies(&mut self) {
        self.answers.lose();
        self.subscriptions.lose();
        self.is_resp3 = None;
    }

    fn awaits_replication(&self) -> bool {
        self.answers.next() == Next::Special(Special::Replicate)
            || (!self.answers.exact() && self.answers.find(|special| special == Special::Replicate).is_some())
    }

    /// Whether a command is answered; `CLIENT REPLY` changes that for those after it.
    fn is_answered(&mut self, effect: Effect, current: &mut Current) -> bool {
        match (effect, current.reply_mode) {
            // Queued: when it comes into force, and whether at all, shows nowhere.
            (Effect::Reply, Some(_)) if self.in_multi != Some(false) => {
                current.incomplete = true;
                true
            }
            (Effect::Reply, Some(ReplyMode::Off)) => {
                self.replies_off = true;
                self.silenced = true;
                false
            }
            (Effect::Reply, Some(ReplyMode::Skip)) => {
                self.skip_next = !self.replies_off;
                self.silenced = true;
                false
            }
            (Effect::Reply, Some(ReplyMode::On)) | (Effect::Reset, _) => {
                self.replies_off = false;
                self.skip_next = false;
                true
            }
            _ => !self.replies_off && !std::mem::take(&mut self.skip_next),
        }
    }
}

/// Both directions of a connection.
#[derive(Debug)]
struct RespParser {
    request_direction: Direction,
    requests: Requests,
    replies: Replies,
    session: Session,
    /// Direction of the last bytes.
    last: Direction,
    /// Nothing more will be said.
    over: bool,
}

impl RespParser {
    /// Bytes of `direction` come, seen or not.
    fn turn(&mut self, direction: Direction) {
        if direction == self.request_direction {
            self.replies.turned();
            // The other side wrote last and both are between messages: taken as idle after a loss.
            let turned = self.last != direction && self.requests.at_boundary() && self.replies.idle();
            let answers = &mut self.session.answers;
            if turned && (!answers.certain() || answers.overdrawn()) {
                answers.idle();
            }
            if turned && self.session.in_multi.is_none() && !self.session.may_be_queued {
                self.session.in_multi = Some(false);
            }
        }
        self.last = direction;
    }

    /// Says what ended the messages, once.
    fn settle(&mut self, direction: Direction, out: &mut Vec<Parsed>) {
        if self.session.mistaken {
            out.push(Parsed::Mistaken);
        } else if let Some(from) = self.session.opaque_from {
            let mut at = [0; 2];
            at[direction.idx()] = from;
            at[direction.reverse().idx()] = self.unfinished_from(direction.reverse());
            out.push(Parsed::Opaque { at });
        }
        self.over = self.session.over();
    }
}

impl Parser for RespParser {
    fn feed(&mut self, direction: Direction, _pos: u64, bytes: &[u8], out: &mut Vec<Parsed>) {
        if self.over || bytes.is_empty() {
            return;
        }
        self.turn(direction);
        if direction == self.request_direction {
            self.requests.feed(bytes, &mut self.session, out);
        } else {
            self.replies.feed(bytes, &mut self.session, out);
        }
        self.settle(direction, out);
    }

    fn gap(&mut self, direction: Direction, _pos: u64, len: u64, out: &mut Vec<Parsed>) {
        if self.over || len == 0 {
            return;
        }
        self.turn(direction);
        if direction == self.request_direction {
            self.requests.gap(len, &mut self.session, out);
        } else {
            self.replies.gap(len, &mut self.session, out);
        }
        self.settle(direction, out);
    }

    /// No message of Redis ends with the connection.
    fn end(&mut self, _direction: Direction, _pos: u64, _out: &mut Vec<Parsed>) {}

    fn unfinished_from(&self, direction: Direction) -> u64 {
        if direction == self.request_direction {
            self.requests.unfinished_from()
        } else {
            self.replies.unfinished_from()
        }
    }

    fn set_capture(&mut self, capture: Capture) {
        self.requests.set_capture(capture);
    }

    fn payload_limit(&self, _direction: Direction) -> u32 {
        if self.over { 0 } else { PAYLOAD_BYTES }
    }
}
