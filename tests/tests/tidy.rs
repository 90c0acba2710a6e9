//! The repository's rules, checked: who imports whom, sizes, how files begin, what never appears.
//!
//! An exception is named here, with its reason, or it is none.
#![expect(clippy::unwrap_used, reason = "tests")]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// Lines of a function at most.
const FUNCTION_LINES_MAX: usize = 70;
/// Lines of a file's production part at most.
const FILE_LINES_MAX: usize = 600;
/// Arguments of a function at most, `self` left out.
const ARGUMENTS_MAX: usize = 5;

/// `file: function`, or `file` for its length, and why it may be larger.
const EXCEPTIONS: &[(&str, &str)] = &[];

/// Folder, the crates of ours it may name, and the others it must not.
const MAY_IMPORT: &[(&str, &[&str], &[&str])] = &[
    ("model", &[], &["tokio", "hyper", "h2", "prost", "tonic", "tracing", "prometheus", "serde"]),
    ("filters", &["model"], &["tokio", "tonic", "tracing", "prometheus"]),
    ("telemetry", &["model"], &["hyper", "h2", "pingora-core"]),
    ("xds-client", &["model", "xds-proto"], &["prometheus", "pingora-core", "h2"]),
    ("xds-client/proto", &[], &["tokio", "hyper", "h2", "prometheus"]),
    ("k8s", &["xds-proto"], &["tonic"]),
    ("waypoint", &["model", "filters", "telemetry", "xds-client", "xds-proto", "k8s"], &[]),
    ("loadtest", &[], &["pingora-core"]),
    ("tests", &["model", "filters", "telemetry", "xds-client", "xds-proto", "k8s", "waypoint"], &[]),
];

const OURS: [&str; 9] = ["model", "filters", "telemetry", "xds-client", "xds-proto", "k8s", "waypoint", "loadtest", "tests"];

/// Modules of `waypoint` that may name the control plane's crates.
const MAY_NAME_CONTROL_PLANE: [&str; 4] = ["app", "state", "identity", "main"];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

fn files_below(folder: &Path, extension: &str, found: &mut Vec<PathBuf>) {
    let Ok(entries) = fs::read_dir(folder) else { return };
    for entry in entries.map(Result::unwrap) {
        let path = entry.path();
        let name = entry.file_name().into_string().unwrap();
        if path.is_dir() && !name.starts_with('.') && name != "target" {
            files_below(&path, extension, found);
        } else if path.extension().is_some_and(|is| is == extension) {
            found.push(path);
        }
    }
}

fn sources() -> BTreeMap<String, String> {
    let mut paths = Vec::new();
    files_below(&root(), "rs", &mut paths);
    paths
        .into_iter()
        .map(|path| (path.strip_prefix(root()).unwrap().to_string_lossy().into_owned(), fs::read_to_string(&path).unwrap()))
        .collect()
}

fn is_test(file: &str) -> bool {
    file.starts_with("tests/")
        || ["/tests.rs", "/testing.rs", "/fixture.rs"].iter().any(|end| file.ends_with(end))
        || file.contains("/tests/")
        || file.contains("/examples/")
}

/// The part of a file before its inline tests.
fn production(text: &str) -> Vec<&str> {
    text.lines().take_while(|line| line.trim() != "#[cfg(test)]").collect()
}

fn is_excepted(what: &str) -> bool {
    EXCEPTIONS.iter().any(|(named, _)| *named == what)
}

#[test]
fn crates_import_only_what_the_plan_allows() {
    let mut wrong = Vec::new();
    for (folder, ours, banned) in MAY_IMPORT {
        let manifest = fs::read_to_string(root().join(folder).join("Cargo.toml")).unwrap();
        let parsed: toml::Table = manifest.parse().unwrap();
        let names = parsed.get("dependencies").and_then(toml::Value::as_table).map(|table| table.keys().cloned().collect::<Vec<_>>());
        for name in names.unwrap_or_default() {
            let is_ours = OURS.contains(&name.as_str());
            if (is_ours && !ours.contains(&name.as_str())) || banned.contains(&name.as_str()) {
                wrong.push(format!("{folder} must not depend on {name}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn the_data_plane_never_names_the_control_plane() {
    let mut wrong = Vec::new();
    for (file, text) in sources().iter().filter(|(file, _)| file.starts_with("waypoint/src/")) {
        let module = file.trim_start_matches("waypoint/src/").split(['/', '.']).next().unwrap_or_default();
        let names = ["xds_client", "xds_proto", "k8s::"]
            .into_iter()
            .find(|name| production(text).iter().any(|line| !line.trim_start().starts_with("//") && line.contains(name)));
        if let Some(name) = names
            && !MAY_NAME_CONTROL_PLANE.contains(&module)
        {
            wrong.push(format!("{file} names {name}"));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn every_file_begins_with_what_it_is_for() {
    let sources = sources();
    let silent: Vec<_> = sources
        .iter()
        .filter(|(file, text)| !(text.starts_with("//!") || file.ends_with("tests.rs") && text.starts_with("#![")))
        .map(|(file, _)| file)
        .collect();
    assert!(silent.is_empty(), "these files do not begin with `//!`: {silent:#?}");
}

#[test]
fn files_stay_short_enough_to_read() {
    let sources = sources();
    let long: Vec<_> = sources
        .iter()
        .filter(|(file, text)| !is_test(file) && !is_excepted(file) && production(text).len() > FILE_LINES_MAX)
        .map(|(file, text)| format!("{file}: {} lines", production(text).len()))
        .collect();
    assert!(long.is_empty(), "{long:#?}");
}

/// Functions of a formatted file: name, number of lines, number of arguments.
fn functions(text: &str) -> Vec<(String, usize, usize)> {
    let lines: Vec<&str> = text.lines().collect();
    let mut found = Vec::new();
    for (at, line) in lines.iter().enumerate() {
        let trimmed = line.trim_start();
        let Some(after) = signature(trimmed) else { continue };
        let name: String = after.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
        let indent = &line[..line.len() - trimmed.len()];
        let close = format!("{indent}}}");
        let is_whole = |line: &str| line.trim_end().ends_with(';') || line.trim_end().ends_with('}');
        let end = if is_whole(line) && !line.trim_end().ends_with('{') {
            at
        } else {
            (at..lines.len()).find(|index| lines[*index] == close).unwrap_or(at)
        };
        let declaration = lines[at..=end].join("\n");
        found.push((name, end - at + 1, arguments(&declaration)));
    }
    found
}

fn signature(trimmed: &str) -> Option<&str> {
    let mut rest = trimmed;
    loop {
        if let Some(after) = rest.strip_prefix("fn ") {
            return Some(after);
        }
        let word = rest.split_whitespace().next()?;
        if !(word == "const" || word == "async" || word == "pub" || word.starts_with("pub(")) {
            return None;
        }
        rest = rest[word.len()..].trim_start();
    }
}

fn arguments(declaration: &str) -> usize {
    let name_end = declaration.find("fn ").unwrap_or(0);
    let mut depth = 0_i32;
    let mut angle = 0_i32;
    let mut text = String::new();
    let mut previous = ' ';
    for c in declaration[name_end..].chars() {
        match c {
            '<' if depth == 0 || depth >= 1 => angle += 1,
            '>' if previous != '-' && previous != '=' => angle -= 1,
            '(' | '[' | '{' => depth += 1,
            ')' | ']' | '}' => depth -= 1,
            _ => {}
        }
        if depth == 1 && angle == 0 {
            text.push(c);
        }
        if depth == 0 && c == ')' && angle == 0 {
            break;
        }
        previous = c;
    }
    text.trim_start_matches('(').split(',').map(str::trim).filter(|argument| !argument.is_empty() && !argument.ends_with("self")).count()
}

#[test]
fn functions_stay_short_and_take_few_arguments() {
    let mut wrong = Vec::new();
    for (file, text) in sources().iter().filter(|(file, _)| !is_test(file)) {
        for (name, lines, arguments) in functions(&production(text).join("\n")) {
            if is_excepted(&format!("{file}: {name}")) {
                continue;
            }
            if lines > FUNCTION_LINES_MAX {
                wrong.push(format!("{file}: {name} has {lines} lines"));
            }
            if arguments > ARGUMENTS_MAX {
                wrong.push(format!("{file}: {name} takes {arguments} arguments"));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn what_must_never_appear_does_not() {
    let mut wrong = Vec::new();
    for (file, text) in sources() {
        if file.ends_with("tidy.rs") {
            continue;
        }
        let lines: Vec<_> = if is_test(&file) { Vec::new() } else { production(&text) };
        for (number, line) in lines.iter().enumerate().filter(|(_, line)| !line.trim_start().starts_with("//")) {
            for word in [".unwrap()", "todo!(", "unimplemented!(", "dbg!("] {
                if line.contains(word) {
                    wrong.push(format!("{file}:{}: {word}", number + 1));
                }
            }
        }
        let tests: String =
            if is_test(&file) { text.clone() } else { text.lines().skip(production(&text).len()).collect::<Vec<_>>().join("\n") };
        if tests.contains("thread::sleep(") {
            wrong.push(format!("{file}: a test that sleeps"));
        }
        for word in ["#[ignore", "#[allow("] {
            if text.contains(word) {
                wrong.push(format!("{file}: {word}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn no_text_holds_the_marks_of_a_conflict() {
    let mut texts = Vec::new();
    files_below(&root(), "md", &mut texts);
    files_below(&root(), "toml", &mut texts);
    let texts = texts.into_iter().map(|file| (file.display().to_string(), fs::read_to_string(&file).unwrap())).chain(sources());
    let is_mark = |line: &str| ["<<<<<<< ", ">>>>>>> ", "||||||| "].iter().any(|mark| line.starts_with(mark));
    let wrong: Vec<_> = texts.filter(|(_, text)| text.lines().any(is_mark)).map(|(file, _)| file).collect();
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn the_measure_of_functions_measures() {
    let text = "fn one(a: u8, b: impl Fn(u8, u8) -> u8) -> u8 {\n    1\n}\n\nimpl X {\n    pub async fn two<T: Into<(u8, u8)>>(&self, a: T, b: [u8; 2]) {\n        x();\n        y();\n    }\n    fn three(self) -> u8 { 1 }\n}\n";
    let measured: Vec<_> = functions(text);
    assert_eq!(measured, [("one".to_owned(), 3, 2), ("two".to_owned(), 4, 2), ("three".to_owned(), 1, 0)]);
}
