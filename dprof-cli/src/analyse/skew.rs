//! How far the clocks of two hosts are apart, from RPCs that both saw: offset, drift, and how far those may be off.
//!
//! A request that leaves host a at ta on its clock and arrives at host b at tb on b's says that b is at most tb - ta
//! ahead, since nothing arrives before it left. A response on its way back says by how much b is at least ahead. Over
//! many RPCs the offset is a line below all of the first points and above all of the second. The points that matter
//! are on convex hulls (Zhang, Liu, Xia: "Clock synchronization algorithms for network measurements", INFOCOM 2002);
//! a line with the same room on either side is what Huygens finds (Geng et al., NSDI 2018); the smallest delays count,
//! as Paxson has it ("On calibrating measurements of packet transit times", SIGMETRICS 1998).
//!
//! What a reader would get wrong: the error is a bound, not a deviation. Whatever the delays are, also if one way takes
//! longer than the other, the truth is within it, as long as a clock runs evenly and is not set meanwhile. Stored times
//! are never changed: this is for drawing.

use std::collections::BTreeMap;

use dprof_common::model::{Half, HalfFlags, Span};
use serde::Serialize;

/// Clocks that drift more are broken; what slews a clock to the right time stays below 500 ppm.
const DRIFT_MAX: f64 = 1e-3;

/// Halvings and thirdings of a range of drifts: the last ones move the offset of a day by less than a nanosecond.
const STEPS: u32 = 100;

/// One RPC alone says as much as drawing it evenly does.
const RPCS_MIN: u64 = 2;

/// A pair of hosts. Field names are the JSON schema.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ClockRow {
    /// The two, in the order of their names.
    pub hosts: [String; 2],
    /// RPCs between them that both saw.
    pub rpcs: u64,
    /// The middle of their time, on the first one's clock, nanoseconds since the epoch.
    pub at_unix_ns: u64,
    /// How far the second clock is ahead of the first at that time; null if no even clocks explain the
    /// times: one was set meanwhile.
    pub offset_ns: Option<i64>,
    /// At most so far off.
    pub error_ns: u64,
    /// How fast the second clock gains on the first, millionths.
    pub drift_ppm: f64,
    /// At most so far off.
    pub drift_error_ppm: f64,
}

/// At a time on the first clock the second one is at most, or at least, so far ahead; nanoseconds.
type Point = (i64, i64);

#[derive(Clone, Debug, Default)]
struct Bounds {
    rpcs: u64,
    upper: Vec<Point>,
    lower: Vec<Point>,
}

/// Offset and error at a time, nanoseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Offset {
    /// How far the second clock is ahead.
    pub ns: i64,
    /// At most so far off.
    pub error_ns: u64,
}

/// A pair of clocks.
#[derive(Clone, Debug)]
struct Clocks {
    rpcs: u64,
    /// Time and offset that everything below is relative to.
    origin: Point,
    middle_ns: i64,
    upper: Vec<(f64, f64)>,
    lower: Vec<(f64, f64)>,
    /// Drifts that some line has.
    drifts: Option<[f64; 2]>,
}

/// Clocks of hosts, by pairs.
#[derive(Clone, Debug, Default)]
pub struct Skew(BTreeMap<[String; 2], Clocks>);

/// Offsets of pairs of hosts that do not change meanwhile.
#[derive(Clone, Debug, Default)]
pub struct SteadySkew(BTreeMap<[String; 2], Offset>);

/// Adds up RPCs.
#[derive(Clone, Debug, Default)]
pub struct SkewSum(BTreeMap<[String; 2], Bounds>);

impl SkewSum {
    /// Adds an RPC if hosts at both ends saw it, with its exact times.
    pub fn add(&mut self, span: &Span) {
        const DOUBTFUL: u32 = HalfFlags::REQUEST_TIME_APPROXIMATE.0
            | HalfFlags::RESPONSE_TIME_APPROXIMATE.0
            | HalfFlags::PAIRED_ACROSS_GAP.0;
        let (Some(client), Some(server)) = (&span.client, &span.server) else { return };
        let is_exact = |half: &Half| half.flags.0 & DOUBTFUL == 0;
        if client.host.host == server.host.host || !is_exact(client) || !is_exact(server) {
            return;
        }
        let request = (client.times.request_last_ns, server.times.request_last_ns);
        let response = (client.times.response_first_ns, server.times.response_first_ns);
        let ((Some(asked), Some(arrived)), (Some(received), Some(answered))) = (request, response) else {
            return;
        };
        let is_forth = client.host.host < server.host.host;
        let mut hosts = [client.host.host.clone(), server.host.host.clone()];
        hosts.sort();
        let bounds = self.0.entry(hosts).or_default();
        let point = |first: u64, second: u64| (first as i64, second.wrapping_sub(first) as i64);
        bounds.rpcs += 1;
        if is_forth {
            bounds.upper.push(point(asked, arrived));
            bounds.lower.push(point(received, answered));
        } else {
            bounds.lower.push(point(arrived, asked));
            bounds.upper.push(point(answered, received));
        }
    }

    /// Offsets that are the same for all RPCs of a pair, as in the short time of a trace.
    pub fn steady(self) -> SteadySkew {
        let steady = |bounds: &Bounds| {
            let high = bounds.upper.iter().map(|(_, offset)| *offset).min()?;
            let low = bounds.lower.iter().map(|(_, offset)| *offset).max()?;
            let error_ns = u64::try_from(high.checked_sub(low)?).ok()?.div_ceil(2);
            (bounds.rpcs >= RPCS_MIN).then_some(Offset { ns: low + (high - low) / 2, error_ns })
        };
        SteadySkew(self.0.into_iter().filter_map(|(hosts, bounds)| Some((hosts, steady(&bounds)?))).collect())
    }

    /// The clocks of each pair.
    pub fn finish(self) -> Skew {
        Skew(self.0.into_iter().map(|(hosts, bounds)| (hosts, Clocks::new(bounds))).collect())
    }
}

impl SteadySkew {
    /// Of these spans.
    pub fn of<'a>(spans: impl IntoIterator<Item = &'a Span>) -> Self {
        let mut sum = SkewSum::default();
        spans.into_iter().for_each(|span| sum.add(span));
        sum.steady()
    }

    /// Pairs of hosts, and how far the second one's clock is ahead.
    pub fn pairs(&self) -> impl Iterator<Item = (&[String; 2], Offset)> {
        self.0.iter().map(|(hosts, offset)| (hosts, *offset))
    }

    /// How far `to`'s clock is ahead of `from`'s, nanoseconds.
    pub fn offset_ns(&self, from: &str, to: &str) -> Option<i64> {
        let of = |first: &str, second: &str| self.0.get(&[first.to_owned(), second.to_owned()]);
        if from < to { Some(of(from, to)?.ns) } else { Some(of(to, from)?.ns.wrapping_neg()) }
    }
}

impl Skew {
    /// How far `to`'s clock is ahead of `from`'s at a time on `from`'s; nothing if too little is known.
    pub fn offset(&self, from: &str, to: &str, at_ns: u64) -> Option<Offset> {
        if from > to {
            // The time is looked up on the other clock, which is as good: clocks drift little over an offset.
            let offset = self.offset(to, from, at_ns)?;
            return Some(Offset { ns: offset.ns.wrapping_neg(), ..offset });
        }
        self.0.get(&[from.to_owned(), to.to_owned()])?.at(at_ns as i64)
    }

    /// A row per pair.
    pub fn rows(&self) -> Vec<ClockRow> {
        self.0
            .iter()
            .map(|(hosts, clocks)| {
                let offset = clocks.at(clocks.middle_ns);
                let [slowest, fastest] = clocks.drifts.unwrap_or_default();
                ClockRow {
                    hosts: hosts.clone(),
                    rpcs: clocks.rpcs,
                    at_unix_ns: clocks.middle_ns as u64,
                    offset_ns: offset.map(|offset| offset.ns),
                    error_ns: offset.map_or(0, |offset| offset.error_ns),
                    drift_ppm: f64::midpoint(slowest, fastest) * 1e6,
                    drift_error_ppm: (fastest - slowest) / 2.0 * 1e6,
                }
            })
            .collect()
    }
}

impl Clocks {
    fn new(mut bounds: Bounds) -> Self {
        bounds.upper.sort_unstable();
        bounds.lower.sort_unstable();
        let origin = bounds.upper.first().copied().unwrap_or_default();
        let last_ns = bounds.upper.last().map_or(origin.0, |point| point.0);
        let relative = |point: &Point, sign: f64| {
            (point.0.wrapping_sub(origin.0) as f64, point.1.wrapping_sub(origin.1) as f64 * sign)
        };
        let lower = hull(bounds.lower.iter().map(|point| relative(point, -1.0)));
        let mut clocks = Self {
            rpcs: bounds.rpcs,
            origin,
            middle_ns: origin.0 + last_ns.wrapping_sub(origin.0) / 2,
            upper: hull(bounds.upper.iter().map(|point| relative(point, 1.0))),
            lower: lower.into_iter().map(|(t, offset)| (t, -offset)).collect(),
            drifts: None,
        };
        clocks.drifts = clocks.possible_drifts();
        clocks
    }

    /// The highest offset at `t` of a line with this drift that is below all upper points.
    fn highest(&self, drift: f64, t: f64) -> f64 {
        self.upper.iter().map(|(at, offset)| drift.mul_add(t - at, *offset)).fold(f64::INFINITY, f64::min)
    }

    /// The lowest one of a line above all lower points.
    fn lowest(&self, drift: f64, t: f64) -> f64 {
        self.lower.iter().map(|(at, offset)| drift.mul_add(t - at, *offset)).fold(f64::NEG_INFINITY, f64::max)
    }

    /// The least and the largest drift for which a line is between the points.
    fn possible_drifts(&self) -> Option<[f64; 2]> {
        let room = |drift: f64| self.highest(drift, 0.0) - self.lowest(drift, 0.0);
        let best = top([-DRIFT_MAX, DRIFT_MAX], room);
        if room(best) < 0.0 {
            return None;
        }
        let edge = |mut outside: f64| {
            let mut inside = best;
            if room(outside) >= 0.0 {
                return outside;
            }
            for _ in 0..STEPS {
                let middle = f64::midpoint(inside, outside);
                if room(middle) >= 0.0 { inside = middle } else { outside = middle }
            }
            inside
        };
        Some([edge(-DRIFT_MAX), edge(DRIFT_MAX)])
    }

    /// The middle of all offsets that some line has at a time, and how far the farthest is from it.
    fn at(&self, at_ns: i64) -> Option<Offset> {
        let drifts = self.drifts?;
        let t = at_ns.wrapping_sub(self.origin.0) as f64;
        let high = self.highest(top(drifts, |drift| self.highest(drift, t)), t);
        let low = self.lowest(top(drifts, |drift| -self.lowest(drift, t)), t);
        Some(Offset {
            ns: self.origin.1.wrapping_add(f64::midpoint(high, low).round() as i64),
            error_ns: ((high - low) / 2.0).max(0.0).ceil() as u64,
        })
    }
}

/// Where a concave function is largest in a range; the middle of where it is.
fn top([mut low, mut high]: [f64; 2], value: impl Fn(f64) -> f64) -> f64 {
    for _ in 0..STEPS {
        let third = (high - low) / 3.0;
        let (left, right) = (low + third, high - third);
        let (at_left, at_right) = (value(left), value(right));
        if at_left <= at_right {
            low = left;
        }
        if at_left >= at_right {
            high = right;
        }
    }
    f64::midpoint(low, high)
}

/// The points of the lower convex hull, of points in the order of time (Andrew's monotone chain, 1979).
fn hull(points: impl Iterator<Item = (f64, f64)>) -> Vec<(f64, f64)> {
    let mut hull: Vec<(f64, f64)> = Vec::new();
    for point in points {
        while let [.., before, last] = hull[..] {
            let turn =
                (last.0 - before.0) * (point.1 - before.1) - (last.1 - before.1) * (point.0 - before.0);
            if turn > 0.0 {
                break;
            }
            hull.pop();
        }
        hull.push(point);
    }
    hull
}

#[cfg(test)]
mod tests;
