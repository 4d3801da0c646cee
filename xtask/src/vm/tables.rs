//! What the machines said, as tables.

use super::tier::{Report, WAYS};

/// Instructions of every program on every kernel, those that the verifier looked at after a slash.
pub(crate) fn programs(reports: &[(&str, Report)]) -> String {
    let mut names: Vec<&str> = Vec::new();
    for program in reports.iter().flat_map(|(_, report)| &report.programs) {
        if !names.contains(&program.name.as_str()) {
            names.push(&program.name);
        }
    }
    let mut table = format!("\n{:<24}", "instructions/verified");
    for (kernel, _) in reports {
        table += &format!("{kernel:>14}");
    }
    table.push('\n');
    for name in names {
        table += &format!("{name:<24}");
        for (_, report) in reports {
            let of = report.programs.iter().find(|program| program.name == name);
            let cell = of.map_or_else(
                || "-".to_owned(),
                |program| match &program.loaded {
                    Ok((run, 0)) => run.to_string(),
                    Ok((run, verified)) => format!("{run}/{verified}"),
                    Err(_) => "refused".to_owned(),
                },
            );
            table += &format!("{cell:>14}");
        }
        table.push('\n');
    }
    table
}

/// Results of every test on every kernel, a column for each way.
pub(crate) fn tests(reports: &[(&str, Report)]) -> String {
    let mut names: Vec<&str> =
        reports.iter().flat_map(|(_, report)| report.tests.keys()).map(|(_, test)| test.as_str()).collect();
    names.sort_unstable();
    names.dedup();
    let width = names.iter().map(|name| name.len()).max().unwrap_or(0);
    let mut table = String::new();
    for (kernel, report) in reports {
        let done = report.done_s.map_or_else(|| "not done".to_owned(), |s| format!("{s:.0} s"));
        table +=
            &format!("\nkernel {kernel} ({}): booted in {:.0} s, {done}\n", report.release, report.booted_s);
        for (backend, said) in &report.backends {
            table += &format!("  {backend}: {said}\n");
        }
        table += &format!("  {:<width$}", "");
        let ways = || {
            WAYS.into_iter()
                .chain([("all", "together")])
                .map(|(backend, events)| format!("{backend} {events}"))
        };
        for way in ways() {
            table += &format!("  {way:>12}");
        }
        table.push('\n');
        for name in &names {
            table += &format!("  {name:<width$}");
            for way in ways() {
                let cell = match report.tests.get(&(way, (*name).to_owned())) {
                    Some(true) => "ok",
                    Some(false) => "FAILED",
                    None => "-",
                };
                table += &format!("  {cell:>12}");
            }
            table.push('\n');
        }
    }
    table
}
