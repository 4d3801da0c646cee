//! `why`: the one-minute answer. What changed, since when, against what, on which hop, host and part, and what to
//! type next.

use std::collections::{BTreeMap, HashSet};

use dprof_common::model::{Rollup, RollupKey, Side, SpanId, TraceId};
use dprof_store::{HalfQuery, Order, Reader};
use serde::Serialize;

use super::stats::load_rollups;
use crate::analyse::diagnosis::{Diagnosis, Request, diagnose};
use crate::analyse::estimate::weight;
use crate::analyse::symptom::{Metric, Symptom, n_steps, symptoms};
use crate::args::{Format, FormatArgs, NameArgs, SpanArgs, WindowArgs};
use crate::context::{Context, Failure};
use crate::load::{self, Window};
use crate::render::text::{clean, wrap};
use crate::render::{Tone, json};
use crate::{sample, units};

/// Requests looked at on each side of the change: means are known to a few percent, and reading their traces takes
/// a fraction of a second.
const REQUESTS: usize = 200;

/// Causes, symptoms and shared values told; the answer is to fit ten lines.
const CAUSES_SHOWN: usize = 3;
const OTHERS_SHOWN: usize = 3;
const SHARED_SHOWN: usize = 3;

/// What goes on in a further line stands under the text after "1. ".
const CONTINUED_COLUMNS: usize = 3;

/// Fewer minutes than this tell no change: then seconds are counted, of so many spans at most, in so many steps.
const MINUTES_MIN: u64 = 8;
const SPANS_MAX: usize = 60_000;
const STEPS_MAX: u64 = 60;

/// Seconds to nanoseconds.
const NS: u64 = 1_000_000_000;

/// Says what got worse, since when, and why: operation, hop, host and part, in ten lines, with what to type next.
///
/// Changes are found in the counts per minute (E-divisive with a t-test, as in Hunter, ICPE 2023); the stretch before
/// is the baseline. Requests of both stretches are compared by their critical paths, and the slow RPCs of the first
/// hop with the others. Steady noise is no change: then it says so.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Only changes of this service [default: the change that adds most time]
    #[arg(value_name = "SERVICE")]
    service: Option<String>,
    #[command(flatten)]
    window: WindowArgs,
    #[command(flatten)]
    output: FormatArgs,
}

/// What is printed for programs.
#[derive(Serialize)]
struct Why<'a> {
    /// Null: nothing got worse.
    symptom: Option<&'a Symptom>,
    /// Other operations that got worse at the same time.
    also: &'a [Symptom],
    /// Those of other times.
    other_changes: &'a [Symptom],
    /// What is behind the symptom; null if no stored request shows it.
    diagnosis: Option<&'a Diagnosis>,
    /// What to type next.
    next: Option<&'a str>,
    /// Operations looked at.
    series: usize,
    /// Minutes, or longer steps, looked at.
    steps: usize,
}

/// Runs it.
pub(crate) async fn run(args: Args, context: &mut Context<'_>) -> Result<(), Failure> {
    let window = Window::new(args.window, context.now_unix_ns)?;
    let reader = context.reader().await?;
    let mut rollups = load_rollups(context, &*reader, &window, &NameArgs::default()).await?;
    let mut unit_s = 60;
    if n_steps(&rollups, unit_s) < MINUTES_MIN {
        (rollups, unit_s) = by_seconds(context, &*reader, &window).await?;
    }
    let names = NameArgs { service: args.service.clone(), ..NameArgs::default() };
    let found = symptoms(&rollups, unit_s, args.service.as_deref());
    if found.series == 0 {
        load::explain_nothing(context, &*reader, &window, &names, args.service.is_some()).await?;
    }
    let Some(main) = main_symptom(&found.event) else {
        if args.output.format == Format::Json {
            let none = Why {
                symptom: None,
                also: &[],
                other_changes: &found.others,
                diagnosis: None,
                next: None,
                series: found.series,
                steps: found.steps,
            };
            return json::document("why", &none, context.out);
        }
        return steady(&found.event, found.series, found.steps, &window, context);
    };
    let diagnosis = investigate(main, context, &*reader).await?;
    let next = context.command(&next_command(main, &diagnosis));
    let also: Vec<Symptom> = found.event.iter().filter(|other| *other != main).cloned().collect();
    if args.output.format == Format::Json {
        let why = Why {
            symptom: Some(main),
            also: &also,
            other_changes: &found.others,
            diagnosis: (diagnosis.requests > 0).then_some(&diagnosis),
            next: Some(&next),
            series: found.series,
            steps: found.steps,
        };
        return json::document("why", &why, context.out);
    }
    let mut lines = vec![headline(main, context.now_unix_ns), baseline(main)];
    lines.extend(causes(&diagnosis));
    lines.extend(also_worse(&also, &found.others));
    for (idx, line) in lines.iter().enumerate() {
        let tone = if idx == 0 { Tone::Bold } else { Tone::Plain };
        for line in fitted(line, context) {
            writeln!(context.out, "{}", tone.paint(context.screen.colour, &line))?;
        }
    }
    writeln!(context.out, "next: {}", clean(&next))?;
    Ok(())
}

/// Counts of the window's newest spans by steps of seconds, and how many: where there are few minutes yet. Spans that
/// were kept for being slow or failed count for nothing.
async fn by_seconds(
    context: &mut Context<'_>,
    reader: &dyn Reader,
    window: &Window,
) -> Result<(Vec<Rollup>, u64), Failure> {
    let query = load::query(window, &SpanArgs::default(), Order::Newest, SPANS_MAX);
    let mut rollups: BTreeMap<RollupKey, Rollup> = BTreeMap::new();
    sample::every(context, reader, query, |page| {
        for rollup in Rollup::of_steps(page.iter().filter(|span| weight(span).is_some()), 1) {
            match rollups.get_mut(&rollup.key) {
                Some(sum) => sum.merge(&rollup),
                None => drop(rollups.insert(rollup.key.clone(), rollup)),
            }
        }
    })
    .await?;
    let mut rollups: Vec<Rollup> = rollups.into_values().collect();
    let unit_s = n_steps(&rollups, 1).div_ceil(STEPS_MAX).max(1);
    for rollup in &mut rollups {
        rollup.key.minute_unix_s = rollup.key.minute_unix_s / unit_s * unit_s;
    }
    Ok((rollups, unit_s))
}

/// The symptom that is told: requests that a service answers rather than calls that it makes, since the calls that
/// it makes are among the causes. The worst comes first in the event.
fn main_symptom(event: &[Symptom]) -> Option<&Symptom> {
    let worst = event.first()?;
    // A caller that nobody calls sees most of it; it has no requests of its own.
    let added = |symptom: &&Symptom| symptom.added_ns_per_s >= 0.5 * worst.added_ns_per_s;
    event.iter().filter(added).find(|symptom| symptom.kind == Side::Server).or(Some(worst))
}

/// A line as wide as the screen at most: broken where the terminal would break words. What to type stays whole.
fn fitted(line: &str, context: &Context<'_>) -> Vec<String> {
    wrap(&clean(line), context.screen.width.unwrap_or(usize::MAX), CONTINUED_COLUMNS)
}

fn steady(
    event: &[Symptom],
    series: usize,
    steps: usize,
    window: &Window,
    context: &mut Context<'_>,
) -> Result<(), Failure> {
    debug_assert!(event.is_empty());
    if series == 0 {
        return Ok(());
    }
    let of = window.describe(context.now_unix_ns);
    let steady = format!(
        "nothing got worse: latency and failures of {series} operations are steady in {steps} steps of {of}"
    );
    for line in fitted(&steady, context) {
        writeln!(context.out, "{line}")?;
    }
    let hint = if steps < 8 {
        "a change shows after some minutes on either side: try a longer --since, or dprof-cli compare"
    } else {
        "what the slowest share anyway: dprof-cli critical-path, dprof-cli compare"
    };
    for line in fitted(&format!("next: {hint}"), context) {
        writeln!(context.out, "{line}")?;
    }
    Ok(())
}

/// Requests before and after, and what sets them apart.
async fn investigate(
    main: &Symptom,
    context: &mut Context<'_>,
    reader: &dyn Reader,
) -> Result<Diagnosis, Failure> {
    // Where only the tail rose, the slow few of after are held against all of before; the threshold is what that
    // share of the requests kept below before.
    let slow_only = matches!(main.metric, Metric::P90 | Metric::P99).then_some(main.before.quantile_ns);
    let after =
        requests(main, (main.after.since_unix_s, main.after.until_unix_s), slow_only, context, reader)
            .await?;
    let before =
        requests(main, (main.before.since_unix_s, main.before.until_unix_s), None, context, reader).await?;
    Ok(diagnose(&after, &before, main.metric == Metric::Errors))
}

async fn requests(
    main: &Symptom,
    (since_s, until_s): (u64, u64),
    min_duration: Option<u64>,
    context: &mut Context<'_>,
    reader: &dyn Reader,
) -> Result<Vec<Request>, Failure> {
    let query = HalfQuery {
        since_unix_ns: since_s * NS,
        until_unix_ns: until_s.saturating_mul(NS),
        side: main.kind,
        service: main.service.clone(),
        operation: main.operation.clone(),
        min_duration_ns: min_duration,
        limit: REQUESTS,
    };
    let sampled = reader.sample(&query).await?;
    context.warn(&sampled.warnings);
    let ids: Vec<TraceId> = sampled.rows.iter().map(|place| place.trace_id).collect();
    let traces = sample::traces(context, reader, &ids).await?;
    let at: HashSet<SpanId> = sampled.rows.iter().map(|place| place.span_id).collect();
    Ok(traces
        .into_iter()
        .filter_map(|spans| {
            // Of several in one trace any will do, but not always the first: that may be another kind of call. Ids are
            // hashes.
            let at = spans.iter().map(|span| span.span_id).filter(|id| at.contains(id)).min()?;
            Some(Request { spans, at })
        })
        .collect())
}

fn of(symptom: &Symptom) -> String {
    let who = match symptom.kind {
        Side::Server => "",
        Side::Client => "'s calls of",
    };
    format!("{}{who} {}", symptom.service, symptom.operation)
}

/// From what to what.
fn change(symptom: &Symptom) -> String {
    if symptom.metric == Metric::Errors {
        let share = |share: f64| format!("{:.1}%", share * 100.0);
        return format!(
            "failures rose from {} to {} of the requests",
            share(symptom.before.error_share),
            share(symptom.after.error_share)
        );
    }
    format!(
        "{} rose {:.1}x, from {} to {}",
        symptom.metric.name(),
        symptom.rise,
        units::duration(symptom.before.quantile_ns),
        units::duration(symptom.after.quantile_ns)
    )
}

/// `12:01`, with seconds where they are not zero.
fn clock_time(unix_s: u64) -> String {
    let until = if unix_s.is_multiple_of(60) { 16 } else { 19 };
    units::date_time(unix_s.saturating_mul(NS)).get(11..until).unwrap_or_default().to_owned()
}

fn headline(main: &Symptom, now_unix_ns: u64) -> String {
    let since = main.after.since_unix_s;
    let unit_ns = if since.is_multiple_of(60) { 60 * NS } else { NS };
    let ago = units::duration(now_unix_ns.saturating_sub(since * NS) / unit_ns * unit_ns);
    let until =
        if main.lasts { String::new() } else { format!(", until {}", clock_time(main.after.until_unix_s)) };
    format!("{} {} at {} UTC, {ago} ago{until}", of(main), change(main), clock_time(since))
}

fn baseline(main: &Symptom) -> String {
    let (before, after) = (&main.before, &main.after);
    let chance = if main.chance < 1e-9 { "<1e-9".to_owned() } else { format!("{:.0e}", main.chance) };
    format!(
        "against {} to {}: {} requests of {} on average, now {} of {}; rate {:.1}/s, now {:.1}/s; by chance {chance}",
        clock_time(before.since_unix_s),
        clock_time(before.until_unix_s),
        units::count(before.count),
        units::duration(before.avg_ns),
        units::count(after.count),
        units::duration(after.avg_ns),
        before.rate,
        after.rate
    )
}

/// Where the time went, what failed, and what the slow ones share.
fn causes(diagnosis: &Diagnosis) -> Vec<String> {
    let mut lines = Vec::new();
    if diagnosis.requests == 0 || diagnosis.requests_before == 0 {
        lines.push("no stored requests of both stretches: what is behind it cannot be said".to_owned());
        return lines;
    }
    let causes = diagnosis.causes.iter().take(CAUSES_SHOWN).enumerate();
    lines.extend(causes.map(|(idx, cause)| format!("{}. {}", idx + 1, cause.text)));
    if lines.is_empty() {
        lines.push("stored requests of both stretches take as long: nothing of it was kept".to_owned());
    }
    // A value tells nothing new if as many of the slow ones have it as one that was told.
    let mut told: Vec<(u64, u64)> = Vec::new();
    let mut shared = Vec::new();
    for row in &diagnosis.shared {
        if shared.len() == SHARED_SHOWN {
            break;
        }
        if !told.contains(&(row.slow, row.rest)) {
            told.push((row.slow, row.rest));
            shared.push(format!(
                "{} {} ({:.0}%, others {:.0}%)",
                row.field,
                row.value,
                row.slow_share * 100.0,
                row.rest_share * 100.0
            ));
        }
    }
    if !shared.is_empty() {
        lines.push(format!("the slow ones share: {}", shared.join(", ")));
    }
    lines
}

fn also_worse(also: &[Symptom], others: &[Symptom]) -> Vec<String> {
    let mut lines = Vec::new();
    let shown = |symptoms: &[Symptom], with_time: bool| {
        let mut texts: Vec<String> = symptoms
            .iter()
            .take(OTHERS_SHOWN)
            .map(|symptom| {
                let rise = if symptom.metric == Metric::Errors {
                    format!("failures +{:.1}%", symptom.rise * 100.0)
                } else {
                    format!("{} {:.1}x", symptom.metric.name(), symptom.rise)
                };
                let at = if with_time {
                    format!(" at {}", clock_time(symptom.after.since_unix_s))
                } else {
                    String::new()
                };
                format!("{} {rise}{at}", of(symptom))
            })
            .collect();
        if symptoms.len() > OTHERS_SHOWN {
            texts.push(format!("{} more", symptoms.len() - OTHERS_SHOWN));
        }
        texts.join(", ")
    };
    if !also.is_empty() {
        lines.push(format!("also worse since then: {}", shown(also, false)));
    }
    if !others.is_empty() {
        lines.push(format!("at other times: {}", shown(others, true)));
    }
    lines
}

fn next_command(main: &Symptom, diagnosis: &Diagnosis) -> String {
    let short = |id: &String| {
        id.parse().map_or_else(|_| id.clone(), |id: dprof_common::model::TraceId| load::short_id(id))
    };
    match &diagnosis.example {
        Some(id) => format!("trace {}", short(id)),
        None => format!(
            "compare --since @{} --against @{}..@{}",
            main.after.since_unix_s, main.before.since_unix_s, main.before.until_unix_s
        ),
    }
}

#[cfg(test)]
mod tests {
    use crate::testing::{Memory, rpc, run};
    use dprof_common::model::Span;

    /// Forty minutes of 40 requests each, until 8 minutes ago; in the last `slow_for`, redis on db-3 takes 20 ms.
    fn spans(slow_for: u64) -> Vec<Span> {
        let mut spans = Vec::new();
        for n in 0..1_600_u64 {
            let minute = n / 40;
            let host = ["db-1", "db-2", "db-3"][n as usize % 3];
            let call_us = if minute >= 40 - slow_for && host == "db-3" { 20_000 } else { 300 + n % 50 };
            let (id, at) = (n * 10 + 1, n * 1_500_000);
            let trace = u128::from(id);
            spans.push(
                rpc(id)
                    .trace(trace)
                    .of("web", "GET /")
                    .by("curl")
                    .hosts("lb", "lb")
                    .at(at, 1_000 + call_us)
                    .build(),
            );
            spans.push(
                rpc(id + 1)
                    .trace(trace)
                    .under(id)
                    .of("redis", "GET")
                    .by("web")
                    .hosts("lb", host)
                    .at(at + 500, call_us)
                    .build(),
            );
        }
        // They end when the test's clock stands still, ten minutes after the start.
        for span in &mut spans {
            for half in span.client.iter_mut().chain(span.server.iter_mut()) {
                let t = &mut half.times;
                let earlier = |ns: u64| ns - 30 * 60_000_000_000;
                t.start_ns = earlier(t.start_ns);
                t.end_ns = earlier(t.end_ns);
                for time in [
                    &mut t.request_first_ns,
                    &mut t.request_last_ns,
                    &mut t.request_read_ns,
                    &mut t.response_first_ns,
                    &mut t.response_last_ns,
                    &mut t.response_read_ns,
                ] {
                    *time = time.map(earlier);
                }
            }
        }
        spans
    }

    #[test]
    fn the_slow_host_is_named_in_ten_lines() {
        let (result, out, _) = run(Memory::of(spans(9)), 200, "why");
        assert!(result.is_ok(), "{result:?}");
        let lines: Vec<&str> = out.lines().collect();
        assert!(lines.len() <= 10, "{out}");
        assert!(
            lines[0].starts_with("web GET / p90 rose ") && lines[0].contains("at 12:01 UTC, 9m 00s ago"),
            "{out}"
        );
        assert!(lines[1].starts_with("against 11:30 to 12:01: "), "{out}");
        assert!(lines[2].contains("is service of redis GET on db-3: "), "{out}");
        let shared = lines.iter().find(|line| line.starts_with("the slow ones share: ")).expect("told");
        assert!(shared.contains("host db-3 ("), "{out}");
        assert!(
            lines
                .iter()
                .any(|line| line.starts_with("also worse since then: ") && line.contains("redis GET p90")),
            "{out}"
        );
        assert!(lines.last().expect("a line").starts_with("next: dprof-cli trace "), "{out}");
    }

    #[test]
    fn on_a_narrow_screen_lines_are_broken_between_words_and_what_to_type_is_not() {
        let (_, wide, _) = run(Memory::of(spans(9)), 200, "why");
        let (_, narrow, _) = run(Memory::of(spans(9)), 80, "why");
        assert!(narrow.lines().count() > wide.lines().count(), "{narrow}");
        for line in narrow.lines().filter(|line| !line.starts_with("next: ")) {
            assert!(line.chars().count() <= 80 && line == line.trim_end(), "{line}");
        }
        assert_eq!(narrow.replace("\n   ", " "), wide);
    }

    #[test]
    fn one_service_may_be_asked_about_and_programs_get_all() {
        let (_, out, _) = run(Memory::of(spans(9)), 100, "why redis --format json");
        let why: serde_json::Value = serde_json::from_str(&out).expect("json");
        assert_eq!((&why["schema_version"], &why["kind"]), (&1.into(), &"why".into()));
        assert_eq!(
            (&why["symptom"]["service"], &why["symptom"]["operation"]),
            (&"redis".into(), &"GET".into())
        );
        assert_eq!(why["diagnosis"]["added"][0]["host"], "db-3");
        assert!(why["symptom"]["lasts"].as_bool().expect("known"));
        let (result, ..) = run(Memory::of(spans(9)), 80, "why reddis");
        assert!(result.expect_err("unknown").to_string().contains("did you mean 'redis'?"));
    }

    #[test]
    fn steady_traffic_raises_no_alarm() {
        let (result, out, _) = run(Memory::of(spans(0)), 100, "why");
        assert!(result.is_ok());
        assert!(out.starts_with("nothing got worse: latency and failures of 4 operations"), "{out}");
        let (_, out, _) = run(Memory::of(spans(0)), 100, "why --format json");
        let why: serde_json::Value = serde_json::from_str(&out).expect("json");
        assert_eq!(why["symptom"], serde_json::Value::Null);
        let (_, out, words) =
            run(Memory::of(spans(0)), 80, "why --since 2026-11-03T09:00:00Z --until 2026-11-03T10:00:00Z");
        assert_eq!(out, "");
        assert!(words.contains("nothing found in 2026-11-03 09:00:00.000 to"), "{words}");
    }
}
