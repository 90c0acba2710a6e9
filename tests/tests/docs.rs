//! The documents and the code say the same: settings, limits, metrics, labels, who imports whom.
//!
//! Not for: prose. A table whose rows begin with a name in backticks is compared with what the code has under that name.
#![expect(clippy::unwrap_used, reason = "tests")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use regex::Regex;

/// Words of a constant's name that make it a limit, which has to be documented.
const LIMIT_WORDS: [&str; 4] = ["MAX", "TIMEOUT", "INTERVAL", "BYTES"];
/// Crates whose limits concern users.
const LIMITED: [&str; 5] = ["model", "filters", "telemetry", "xds-client", "waypoint"];
/// What no document speaks of, since a reader cannot have it.
const NOT_FOR_READERS: [&str; 3] = ["/home/", "/root/", "/tmp/"];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

fn read(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// What stands before the inline tests of a file.
fn production(text: &str) -> &str {
    text.split("#[cfg(test)]\nmod tests {").next().unwrap_or_default()
}

/// Paths below a folder with this ending, relative to the repository; build output and hidden folders left out.
fn files(folder: &str, ending: &str) -> Vec<String> {
    let mut found = Vec::new();
    let mut folders = vec![root().join(folder)];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).unwrap().map(Result::unwrap) {
            let (path, name) = (entry.path(), entry.file_name().into_string().unwrap());
            if path.is_dir() && !name.starts_with('.') && name != "target" {
                folders.push(path);
            } else if name.ends_with(ending) {
                found.push(path.strip_prefix(root()).unwrap().to_str().unwrap().to_owned());
            }
        }
    }
    found.sort();
    found
}

/// The production part of every source file of a crate.
fn sources(folder: &str) -> BTreeMap<String, String> {
    let is_test = |path: &String| {
        ["/tests.rs", "/testing.rs", "/fixture.rs", "/build.rs"].iter().any(|end| path.ends_with(end)) || path.contains("/tests/")
    };
    files(folder, ".rs").into_iter().filter(|path| !is_test(path)).map(|path| (path.clone(), production(&read(&path)).to_owned())).collect()
}

/// The first group of every match.
fn all(pattern: &str, text: &str) -> BTreeSet<String> {
    Regex::new(pattern).unwrap().captures_iter(text).map(|found| found[1].to_owned()).collect()
}

/// Names in backticks that begin a table's row.
fn rows(pattern: &str, text: &str) -> BTreeSet<String> {
    all(&format!(r"(?m)^\| `({pattern})` \|"), text)
}

/// The part of a document under a heading.
fn section<'a>(text: &'a str, heading: &str) -> &'a str {
    let from = text.find(&format!("\n## {heading}\n")).unwrap_or_else(|| panic!("no section {heading}"));
    let part = &text[from + 1..];
    part.find("\n## ").map_or(part, |end| &part[..end])
}

#[test]
fn every_variable_that_is_read_is_documented_and_no_other() {
    let code = read("waypoint/src/config.rs");
    let code = production(&code);
    // The metadata of `ISTIO_META_` variables is looked up without that prefix; a prefix stands for all that begin with it.
    let meta = all(r#"meta\.get\("([A-Z_]+)"\)"#, code);
    let literals = all(r#""([A-Z][A-Z0-9_]{3,})""#, code).difference(&meta).cloned().collect::<BTreeSet<_>>();
    let read: BTreeSet<String> = literals.into_iter().chain(meta.iter().map(|key| format!("ISTIO_META_{key}"))).collect();
    let documented = rows("[A-Z][A-Z0-9_]+…?", &self::read("docs/configuration.md")).iter().map(|name| name.replace('…', "")).collect();
    assert_eq!(read, documented);
}

#[test]
fn every_flag_and_field_of_proxy_config_is_documented_and_no_other() {
    let document = read("docs/configuration.md");
    let args = read("waypoint/src/config/args.rs");
    let known = args[args.find("const WITH_VALUE").unwrap()..args.find("/// What to do.").unwrap()].to_owned();
    assert_eq!(all(r#""(\w+)""#, &known), rows("--[a-zA-Z_]+", &document).iter().map(|flag| flag[2..].to_owned()).collect());
    let fields = all(r#"object\.get\("(\w+)"\)"#, production(&read("waypoint/src/config/proxy_config.rs")));
    assert_eq!(fields, rows("[a-z][a-zA-Z]+", section(&document, "ProxyConfig")));
}

/// Constants with a number or a duration, by file and name, as they are written.
fn constants() -> BTreeMap<(String, String), String> {
    let pattern = Regex::new(r"const ([A-Z0-9_]+): (?:usize|u8|u16|u32|u64|i32|Duration) =\s*([^;]+);").unwrap();
    let mut found = BTreeMap::new();
    for folder in LIMITED {
        for (path, text) in sources(folder) {
            for constant in pattern.captures_iter(&text) {
                found.insert((path.clone(), constant[1].to_owned()), constant[2].to_owned());
            }
        }
    }
    found
}

#[test]
fn every_limit_is_documented_with_the_value_that_it_has() {
    let constants = constants();
    let row = Regex::new(r"(?m)^\| `([A-Z0-9_]+)` \| `([^`]+)` \| `([^`]+)` \|").unwrap();
    let document = read("docs/limits.md");
    let documented: BTreeMap<_, _> =
        row.captures_iter(&document).map(|found| ((found[3].to_owned(), found[1].to_owned()), found[2].to_owned())).collect();
    let is_limit = |name: &str| name.split('_').any(|word| LIMIT_WORDS.contains(&word));
    let missing: Vec<_> = constants.keys().filter(|at| is_limit(&at.1) && !documented.contains_key(at)).collect();
    assert!(missing.is_empty(), "not in docs/limits.md: {missing:#?}");
    let wrong: Vec<_> = documented.iter().filter(|(at, value)| constants.get(*at) != Some(value)).collect();
    assert!(wrong.is_empty(), "docs/limits.md has what the code has not: {wrong:#?}");
}

#[test]
fn defaults_of_options_are_documented_as_they_are() {
    let row = Regex::new(r"(?m)^\| `([a-z_]+)` \| `([^`]+)` \| `([^`]+)` \|").unwrap();
    let document = read("docs/limits.md");
    let found: Vec<_> = row.captures_iter(&document).collect();
    assert!(found.len() > 10, "rows were not recognised");
    for option in found {
        let (name, value, path) = (&option[1], &option[2], &option[3]);
        assert!(read(path).contains(&format!("{name}: {value}")), "{path} has no {name}: {value}");
    }
}

#[test]
fn every_difference_has_a_name_of_its_own() {
    let text = read("docs/differences.md");
    let mut names = BTreeSet::new();
    for name in text.lines().filter_map(|line| line.strip_prefix("| `")?.split_once("` |")).map(|(name, _)| name) {
        assert!(names.insert(name), "{name} stands twice");
    }
    assert!(!names.is_empty());
}

#[test]
fn every_metric_is_documented_and_no_other() {
    let code: String =
        sources("telemetry").into_values().chain(sources("waypoint").into_values()).chain([read("model/src/metrics.rs")]).collect();
    let exposed = all(r#""((?:waypoint|istio|envoy)_[a-z_]+)""#, &code);
    assert_eq!(exposed, rows("(?:waypoint|istio|envoy)_[a-z_]+", &read("docs/metrics.md")));
}

#[test]
fn labels_are_documented_in_their_order() {
    let document = read("docs/metrics.md");
    let row = Regex::new(r"(?m)^\| (\d+) \| `([a-z_]+)` \|").unwrap();
    let documented: Vec<_> = row.captures_iter(&document).map(|found| (found[1].to_owned(), found[2].to_owned())).collect();
    let labels: Vec<_> =
        (1..).zip(model::metrics::Label::ALL).map(|(at, label): (u8, _)| (at.to_string(), label.name().to_owned())).collect();
    assert_eq!(documented, labels);
}

#[test]
fn response_flags_are_documented_and_no_other() {
    let flags: BTreeSet<String> = model::flags::ResponseFlag::ALL.into_iter().map(|flag| flag.as_str().to_owned()).collect();
    let documented = rows("[A-Z]+", section(&read("docs/contracts.md"), "Response flags and details"));
    assert_eq!(flags, documented);
}

/// Names of tests that begin with a row of the golden tests.
fn golden_tests() -> BTreeSet<String> {
    let pattern = r"(?m)^ *(?:pub )?(?:async )?fn ([mlte][0-9]{2}b?_[a-z0-9_]+)\(";
    files("", ".rs").iter().flat_map(|path| all(pattern, &read(path))).collect()
}

#[test]
fn every_golden_test_stands_in_the_contract_and_every_row_has_one() {
    let document = read("docs/contracts.md");
    let section = section(&document, "Golden tests of telemetry");
    let row = Regex::new(r"(?m)^\| `([mlte][0-9]{2}b?)` \| [^|]* \| ([^|]*) \|$").unwrap();
    let rows: BTreeMap<String, BTreeSet<String>> =
        row.captures_iter(section).map(|found| (found[1].to_owned(), all("`([^`]+)`", &found[2]))).collect();
    assert!(rows.len() > 30, "rows were not recognised");
    let named: BTreeSet<String> = rows.values().flatten().cloned().collect();
    assert_eq!(named, golden_tests());
    for (id, tests) in rows {
        assert!(tests.iter().any(|test| test.starts_with(&format!("{id}_"))), "no name of a test begins with {id}");
    }
}

#[test]
fn the_table_of_imports_is_the_one_that_is_checked() {
    let names = |text: &str, pattern: &str| -> Vec<String> {
        Regex::new(pattern).unwrap().captures_iter(text).map(|found| found[1].to_owned()).collect()
    };
    let tidy = read("tests/tests/tidy.rs");
    let entry = Regex::new(r#"(?s)\("([a-z0-9/-]+)", &\[([^\]]*)\], &\[([^\]]*)\]\)"#).unwrap();
    let checked: BTreeMap<_, _> = entry
        .captures_iter(&tidy)
        .map(|found| (found[1].to_owned(), (names(&found[2], r#""([^"]+)""#), names(&found[3], r#""([^"]+)""#))))
        .collect();
    let document = read("ARCHITECTURE.md");
    let row = Regex::new(r"(?m)^\| `([a-z0-9/-]+)`[^|]*\| ([^|]*) \| ([^|]*) \| [^|]* \|$").unwrap();
    let documented: BTreeMap<_, _> = row
        .captures_iter(section(&document, "Who may import whom"))
        .map(|found| (found[1].to_owned(), (names(&found[2], "`([^`]+)`"), names(&found[3], r"([a-z0-9-]+)"))))
        .collect();
    assert_eq!(documented, checked);
}

#[test]
fn every_row_of_the_guard_is_documented_and_has_a_baseline() {
    let measured = all(r#"Row \{ name: "([a-z0-9_]+)""#, &read("tests/src/bin/costs/rows.rs"));
    assert!(!measured.is_empty(), "rows were not recognised");
    assert_eq!(measured, rows("[a-z0-9_]+", section(&read("docs/performance.md"), "The guard")));
    assert_eq!(measured, all(r"(?m)^\[([a-z0-9_]+)\]$", &read("tests/costs.toml")));
}

#[test]
fn links_lead_somewhere_and_nothing_unreachable_is_named() {
    let link = Regex::new(r"\]\(([^)#:]+)(?:#[^)]*)?\)").unwrap();
    let mut wrong = Vec::new();
    for path in files("", ".md").into_iter().filter(|path| !path.contains("/fixtures/")) {
        let text = read(&path);
        let folder = root().join(&path).parent().unwrap().to_owned();
        let dead = link.captures_iter(&text).map(|found| found[1].to_owned()).filter(|target| !folder.join(target).exists());
        wrong.extend(dead.map(|target| format!("{path}: {target} is not there")));
        wrong.extend(NOT_FOR_READERS.iter().filter(|word| text.contains(**word)).map(|word| format!("{path}: speaks of {word}")));
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}
