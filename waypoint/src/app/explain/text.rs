//! An explanation for people.

use std::fmt::{self, Write as _};

use super::endpoints::Endpoint;
use super::judge::{Explanation, Filter, Shown};

pub(super) fn of(explanation: &Explanation) -> String {
    let mut out = String::new();
    write(explanation, &mut out).expect("writing to a text cannot fail");
    out
}

fn write(all: &Explanation, out: &mut String) -> fmt::Result {
    let verdict = &all.verdict;
    let status = verdict.status.map_or(String::new(), |status| format!(" with {status}"));
    writeln!(out, "{}{status}: {}\n", if verdict.passes { "PASSES" } else { "REFUSED" }, verdict.because)?;
    let to = all.destination.map_or(String::new(), |address| format!("  (destination {address})"));
    writeln!(out, "chain   {}{to}", all.chain)?;
    if let Some(path) = &all.path {
        writeln!(out, "path    {path}")?;
    }
    if let Some(tokens) = &all.tokens {
        writeln!(out, "tokens  {tokens}")?;
    }
    for asked in &all.asked {
        writeln!(out, "asks    {asked}")?;
    }
    for filter in &all.filters {
        write_filter(filter, out)?;
    }
    if let Some(route) = &all.route {
        let name = route.name.as_deref().unwrap_or("without a name");
        writeln!(out, "\nroute   {name}: {}{}", route.does, if verdict.passes { "" } else { ", were it not refused" })?;
    }
    for cluster in &all.clusters {
        let subset = cluster.subset.as_ref().map_or(String::new(), |subset| format!("  subset {subset}"));
        writeln!(out, "\ncluster {}  weight {}  {}{subset}", cluster.name, cluster.weight, cluster.state)?;
        for endpoint in &cluster.endpoints {
            let Endpoint { host, health, weight, active, not_chosen, .. } = endpoint;
            let why = not_chosen.as_ref().map_or(String::new(), |why| format!("  not chosen: {why}"));
            writeln!(out, "        {host}  {health}  weight {weight}  active {active}{why}")?;
        }
        write_rest(cluster.not_shown, "endpoints", out)?;
    }
    Ok(())
}

fn write_filter(filter: &Filter, out: &mut String) -> fmt::Result {
    let would = if filter.dry_run { "  dry run: only told, not done" } else { "" };
    writeln!(out, "\n{}  {}{would}", filter.action, filter.says)?;
    for policy in &filter.policies {
        write_policy(policy, out)?;
    }
    write_rest(filter.not_shown, "rules", out)
}

fn write_policy(policy: &Shown, out: &mut String) -> fmt::Result {
    let rule = policy.rule.map_or(String::new(), |rule| format!(" rule {rule}"));
    writeln!(out, "  {}{rule}: {}", policy.policy, if policy.matches { "matches" } else { "does not match" })?;
    for condition in &policy.conditions {
        writeln!(out, "    {} {}", if condition.met { "+" } else { "-" }, condition.text)?;
    }
    Ok(())
}

fn write_rest(count: usize, what: &str, out: &mut String) -> fmt::Result {
    if count > 0 { writeln!(out, "  … and {count} {what} more") } else { Ok(()) }
}
