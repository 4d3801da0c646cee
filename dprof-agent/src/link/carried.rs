//! What few requests carry besides their content, kept apart so that the many stay small: a hundred thousand answered
//! ones have to fit the cache.

use super::Observation;

/// What a request carries besides its content.
#[derive(Debug, Default)]
pub(super) struct Carried {
    /// Parts of it under which it is listed.
    pub(super) parts: Box<[u64]>,
    /// Trace and span id.
    pub(super) explicit_id: Option<(u128, u64)>,
    /// Hash of its request id.
    pub(super) request_id: Option<u64>,
}

impl Carried {
    /// Of a request as it is read, if there is any.
    pub(super) fn of(seen: &Observation<'_>) -> Option<Box<Self>> {
        let (explicit_id, request_id) = (seen.explicit_id, seen.request_id);
        let has_any = explicit_id.is_some() || request_id.is_some();
        has_any.then(|| Box::new(Self { parts: Box::default(), explicit_id, request_id }))
    }
}
