//! Names as OpenTelemetry has them: methods, status codes, attributes.

use std::borrow::Cow;

use super::target::host_and_port;
use crate::protocol::Message;

/// The request's `X-Request-ID`: an id that proxies pass on, so a link's evidence.
pub(super) const REQUEST_ID_ATTRIBUTE: &str = "http.request.header.x-request-id";

/// `ambiguous`: the body's length can be read in two ways, as in request smuggling.
pub(super) const FRAMING_ATTRIBUTE: &str = "dprof.http.framing";

/// The method as OpenTelemetry names it: what is not registered is `_OTHER`.
pub(super) fn known_method(method: &[u8]) -> &'static str {
    const KNOWN: [&str; 17] = [
        "GET",
        "POST",
        "PUT",
        "DELETE",
        "HEAD",
        "OPTIONS",
        "PATCH",
        "CONNECT",
        "TRACE",
        "QUERY",
        "PROPFIND",
        "PROPPATCH",
        "MKCOL",
        "COPY",
        "MOVE",
        "LOCK",
        "UNLOCK",
    ];
    KNOWN.into_iter().find(|known| known.as_bytes() == method).unwrap_or("_OTHER")
}

/// A status as text; the common ones cost no allocation.
pub(super) fn status_text(status: u16) -> Cow<'static, str> {
    Cow::Borrowed(match status {
        100 => "100",
        101 => "101",
        200 => "200",
        201 => "201",
        202 => "202",
        204 => "204",
        206 => "206",
        301 => "301",
        302 => "302",
        304 => "304",
        400 => "400",
        401 => "401",
        403 => "403",
        404 => "404",
        409 => "409",
        429 => "429",
        500 => "500",
        502 => "502",
        503 => "503",
        504 => "504",
        other => return Cow::Owned(other.to_string()),
    })
}

/// `server.address` and `server.port`, if there are such.
pub(super) fn push_host(message: &mut Message, authority: &[u8]) {
    if let Some((host, port)) = host_and_port(authority) {
        message.attributes.push((Cow::Borrowed("server.address"), host.to_owned()));
        if let Some(port) = port {
            message.attributes.push((Cow::Borrowed("server.port"), port.to_owned()));
        }
    }
}
