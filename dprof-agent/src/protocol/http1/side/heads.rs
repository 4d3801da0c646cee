//! Heads → what a message says, and which body follows.
//!
//! What a reader would get wrong: after a loss it is not known which request a response answers, so whether it has a
//! body is not either: then the first bytes that follow decide.

use std::borrow::Cow;

use super::super::Session;
use super::super::body::Body;
use super::super::head::{request_line, status_line};
use super::super::names::{FRAMING_ATTRIBUTE, REQUEST_ID_ATTRIBUTE, known_method, push_host, status_text};
use super::super::target::Target;
use super::{BELIEVED_METHODS, Side, Special, State};
use crate::protocol::answers::Next;
use crate::protocol::hash::{ContentHasher, content_hash_of};
use crate::protocol::text::TEXT_BYTES_MAX;
use crate::protocol::{Message, MessageKind, Parsed};

/// Attributes of an ordinary request and its response: method, path, address, port, status.
const ATTRIBUTES_USUAL: usize = 5;

impl Side {
    /// Reads the request line.
    pub(super) fn begin_request(&mut self) -> bool {
        let (line, whole) = self.lines.line();
        let Some(request) = request_line(line, whole) else { return false };
        if self.lost && !BELIEVED_METHODS.contains(&request.method) {
            return false;
        }
        let connect = request.method == b"CONNECT";
        let target = Target::new(request.target, connect, self.capture);
        let method = known_method(request.method);
        let mut message = Message::new(self.direction, MessageKind::Request, self.start, self.start);
        message.operation =
            if connect { Cow::Borrowed("CONNECT") } else { Cow::Owned(target.operation(method)) };
        message.text.reserve_exact(method.len() + 1 + request.target.len().min(TEXT_BYTES_MAX));
        message.text.push_str(method);
        message.text.push(' ');
        target.push_text(&mut message.text);
        message.attributes.reserve_exact(ATTRIBUTES_USUAL);
        message.attributes.push((Cow::Borrowed("http.request.method"), method.to_owned()));
        if !connect {
            message.attributes.push((Cow::Borrowed("url.path"), target.path_text()));
        }
        if let Some(authority) = target.authority {
            push_host(&mut message, authority);
        }
        self.is_old = line.ends_with(b"HTTP/1.0");
        self.special = match request.method {
            b"HEAD" => Some(Special::Head),
            b"CONNECT" => Some(Special::Connect),
            _ => None,
        };
        self.hasher = ContentHasher::new();
        self.hasher.update(request.method);
        self.hasher.number(request.method.len() as u64);
        self.hasher.update(request.target);
        self.hasher.number(request.target.len() as u64);
        self.hash_known = whole;
        self.message = Some(message);
        true
    }

    /// Reads the status line.
    pub(super) fn begin_response(&mut self) -> bool {
        let Some(status) = status_line(self.lines.line().0) else { return false };
        let status_code = status_text(status);
        let mut message = Message::new(self.direction, MessageKind::Response, self.start, self.start);
        // As OpenTelemetry has it for a server: what the client did wrong is no failure of the request's server.
        message.is_error = status >= 500;
        message.attributes.reserve_exact(1);
        message
            .attributes
            .push((Cow::Borrowed("http.response.status_code"), status_code.clone().into_owned()));
        message.status_code = status_code;
        self.status = status;
        self.is_old = self.lines.line().0.starts_with(b"HTTP/1.0");
        self.hasher = ContentHasher::new();
        self.hasher.number(u64::from(status));
        self.hash_known = true;
        self.message = Some(message);
        true
    }

    pub(super) fn end_request_head(&mut self, end: u64, session: &mut Session, out: &mut Vec<Parsed>) {
        let head = &self.head;
        // A length that is not known, or a coding that has no end in a request.
        if head.bad_framing || (head.other_coding && self.special != Some(Special::Connect)) {
            self.lose(self.start, session, out);
            return;
        }
        if let Some(message) = &mut self.message {
            message.explicit_id = head.ids.id();
            if !head.host.is_empty() && message.attributes.iter().all(|(name, _)| name != "server.address") {
                push_host(message, &head.host);
            }
            if let Ok(id) = str::from_utf8(&head.request_id)
                && !id.is_empty()
            {
                message.attributes.push((Cow::Borrowed(REQUEST_ID_ATTRIBUTE), id.to_owned()));
                message.request_id = Some(content_hash_of(id.as_bytes()));
            }
            if head.is_ambiguous(self.is_old) {
                message.attributes.push((Cow::Borrowed(FRAMING_ATTRIBUTE), "ambiguous".to_owned()));
                message.answers_unknown = true;
            }
        }
        if self.special.is_none() && head.upgrade() {
            self.special = Some(Special::Upgrade);
        }
        session.answers.request(self.special);
        let body = match head.content_length {
            _ if self.special == Some(Special::Connect) => None,
            _ if head.chunked => Some(Body::chunked()),
            Some(length @ 1..) => Some(Body::Length(length)),
            _ => None,
        };
        self.begin_body(body, end, session, out);
    }

    pub(super) fn end_response_head(&mut self, end: u64, session: &mut Session, out: &mut Vec<Parsed>) {
        // After a loss, which request is answered next is a guess.
        let exact = session.answers.exact();
        let next = if exact { session.answers.next() } else { Next::Unknown };
        let interim = (100..200).contains(&self.status) && self.status != 101;
        if interim {
            if let Some(message) = &mut self.message {
                message.kind = MessageKind::Push;
            }
            self.begin_body(None, end, session, out);
            return;
        }
        let asked = match next {
            Next::Special(special) => Some(special),
            Next::Ordinary => None,
            Next::Unknown => session.held,
        };
        let success = (200..300).contains(&self.status);
        if self.status == 101 || (asked == Some(Special::Connect) && success) {
            session.switch = true;
            self.begin_body(None, end, session, out);
            return;
        }
        session.released |= matches!(asked, Some(Special::Connect | Special::Upgrade));
        let head = &self.head;
        if matches!(self.status, 204 | 304) || asked == Some(Special::Head) {
            self.begin_body(None, end, session, out);
            return;
        }
        if head.bad_framing {
            self.lose(self.start, session, out);
            return;
        }
        if head.is_ambiguous(self.is_old)
            && let Some(message) = &mut self.message
        {
            message.attributes.push((Cow::Borrowed(FRAMING_ATTRIBUTE), "ambiguous".to_owned()));
            message.incomplete = true;
        }
        let body = match head.content_length {
            _ if head.chunked => Body::chunked(),
            _ if head.other_coding => Body::Close,
            Some(length) => Body::Length(length),
            None => Body::Close,
        };
        if head.is_event_stream && body != Body::Length(0) && next != Next::Unknown {
            // The events that follow are no answer; all of them together are one push.
            self.end_message(end, session, out);
            self.start = end;
            self.message = Some(Message::new(self.direction, MessageKind::Push, end, end));
            self.begin_body(Some(body), end, session, out);
            return;
        }
        if next == Next::Unknown && body != Body::Length(0) {
            self.saw_chunks |= body == Body::chunked();
            self.state = State::Peek(body, 0);
        } else {
            self.begin_body(Some(body).filter(|body| *body != Body::Length(0)), end, session, out);
        }
    }
}
