//! Ids that an application's own tracing put into a request: W3C `traceparent`, and B3 in one header or several.

/// A 128-bit trace id and the 64-bit id of the span that made the call.
pub(super) type ExplicitId = (u128, u64);

/// Headers that carry ids, as they come.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Ids {
    traceparent: Option<ExplicitId>,
    b3: Option<ExplicitId>,
    b3_trace: Option<u128>,
    b3_span: Option<u64>,
}

impl Ids {
    /// `traceparent`: `00-<32 hex>-<16 hex>-<2 hex>`.
    pub(super) fn traceparent(&mut self, value: &[u8]) {
        let mut parts = value.splitn(5, |byte| *byte == b'-');
        let (Some(version), Some(trace), Some(span), Some(flags)) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return;
        };
        let more = parts.next().is_some();
        let valid = hex(version, &[2]).is_some_and(|version| version != 0xff && !(version == 0 && more))
            && hex(flags, &[2]).is_some();
        self.traceparent =
            self.traceparent.or(if valid { pair(hex(trace, &[32]), hex(span, &[16])) } else { None });
    }

    /// `b3`: `<32 or 16 hex>-<16 hex>[-<sampled>[-<parent>]]`.
    pub(super) fn b3(&mut self, value: &[u8]) {
        let mut parts = value.split(|byte| *byte == b'-');
        let (trace, span) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
        self.b3 = self.b3.or(pair(hex(trace, &[32, 16]), hex(span, &[16])));
    }

    /// `X-B3-TraceId`
    pub(super) fn b3_trace(&mut self, value: &[u8]) {
        self.b3_trace = self.b3_trace.or(hex(value, &[32, 16]));
    }

    /// `X-B3-SpanId`
    pub(super) fn b3_span(&mut self, value: &[u8]) {
        self.b3_span = self.b3_span.or(hex(value, &[16]).map(|span| span as u64));
    }

    /// The id: `traceparent` before `b3` before the many B3 headers.
    pub(super) fn id(&self) -> Option<ExplicitId> {
        self.traceparent.or(self.b3).or(pair(self.b3_trace, self.b3_span.map(u128::from)))
    }
}

/// Neither may be zero.
fn pair(trace: Option<u128>, span: Option<u128>) -> Option<ExplicitId> {
    match (trace?, span? as u64) {
        (0, _) | (_, 0) => None,
        id => Some(id),
    }
}

fn hex(text: &[u8], lengths: &[usize]) -> Option<u128> {
    let fits = lengths.contains(&text.len()) && text.iter().all(u8::is_ascii_hexdigit);
    let text = str::from_utf8(text).ok().filter(|_| fits)?;
    u128::from_str_radix(text, 16).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(headers: &[(&str, &str)], expected: Option<ExplicitId>) {
        let mut ids = Ids::default();
        for (name, value) in headers {
            match *name {
                "traceparent" => ids.traceparent(value.as_bytes()),
                "b3" => ids.b3(value.as_bytes()),
                "trace" => ids.b3_trace(value.as_bytes()),
                _ => ids.b3_span(value.as_bytes()),
            }
        }
        assert_eq!(ids.id(), expected, "{headers:?}");
    }

    #[test]
    fn ids_are_taken_only_when_they_are_whole() {
        let w3c = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
        let id = Some((0x0af7_6519_16cd_43dd_8448_eb21_1c80_319c, 0xb7ad_6b71_6920_3331));
        check(&[("traceparent", w3c)], id);
        check(&[("traceparent", &w3c.replacen("00", "cc", 1)), ("traceparent", w3c)], id);
        check(&[("traceparent", &format!("cc{}-more", &w3c[2..]))], id);
        check(&[("traceparent", &format!("{w3c}-more"))], None);
        check(&[("traceparent", &w3c.replacen("00", "ff", 1))], None);
        check(&[("traceparent", &w3c[..54])], None);
        check(&[("traceparent", "00-00000000000000000000000000000000-b7ad6b7169203331-01")], None);
        check(&[("b3", "0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-1-05e3ac9a4f6e3b90")], id);
        check(
            &[("b3", "8448eb211c80319c-b7ad6b7169203331")],
            id.map(|(trace, span)| (trace & u128::from(u64::MAX), span)),
        );
        check(&[("b3", "0")], None);
        check(&[("b3", "1-1"), ("traceparent", w3c)], id);
        check(&[("trace", "0af7651916cd43dd8448eb211c80319c"), ("span", "b7ad6b7169203331")], id);
        check(&[("trace", "0af7651916cd43dd8448eb211c80319c")], None);
        check(&[("trace", "+af7651916cd43dd"), ("span", "b7ad6b7169203331")], None);
    }
}
