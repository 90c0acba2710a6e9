//! Changes to the parameters of a path.
//!
//! Source: Envoy's header mutation. Parameters are written anew: by name, each with an equals sign; nothing in a value separates it from
//! the next.

use std::collections::BTreeMap;

use model::format::TextFormat;
use model::headers::{AppendAction, ParameterChange};

use crate::header_match::{path_only, query_only};

/// The path with its parameters changed. `render` makes the value of a format.
#[must_use]
pub fn change(changes: &[ParameterChange], path: &str, render: impl Fn(&TextFormat) -> Vec<u8>) -> String {
    let mut all = BTreeMap::<String, Vec<String>>::new();
    for parameter in query_only(path).unwrap_or_default().split('&').filter(|parameter| !parameter.is_empty()) {
        let (name, value) = parameter.split_once('=').unwrap_or((parameter, ""));
        all.entry(name.to_owned()).or_default().push(value.to_owned());
    }
    for change in changes {
        match change {
            ParameterChange::Remove(name) => drop(all.remove(&**name)),
            ParameterChange::Add { name, value, action } => {
                let known = all.get_mut(&**name);
                match (action, known) {
                    (AppendAction::Append, Some(values)) => values.push(encoded(&render(value))),
                    (AppendAction::AddIfAbsent, Some(_)) | (AppendAction::OverwriteIfExists, None) => {}
                    (AppendAction::Overwrite | AppendAction::OverwriteIfExists, Some(values)) => *values = vec![encoded(&render(value))],
                    (AppendAction::Append | AppendAction::AddIfAbsent | AppendAction::Overwrite, None) => {
                        all.insert(encoded(name.as_bytes()), vec![encoded(&render(value))]);
                    }
                }
            }
        }
    }
    let mut out = path_only(path).to_owned();
    let mut separator = '?';
    for (name, value) in all.iter().flat_map(|(name, values)| values.iter().map(move |value| (name, value))) {
        out.push(separator);
        out.extend([name, "=", value]);
        separator = '&';
    }
    out
}

/// What is no unreserved character of RFC 3986 is percent-encoded.
fn encoded(text: &[u8]) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text {
        if byte.is_ascii_alphanumeric() || b"-_.~".contains(byte) {
            out.push(char::from(*byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_are_changed_in_order_and_no_value_makes_another() {
        let add = |name: &str, value: &str, action| ParameterChange::Add {
            name: name.into(),
            value: TextFormat::parse(value, &mut Vec::new()),
            action,
        };
        let changes = [
            add("a", "2&x=1", AppendAction::Append),
            add("b", "no", AppendAction::AddIfAbsent),
            add("c", "no", AppendAction::OverwriteIfExists),
            add("d", "4", AppendAction::Overwrite),
            ParameterChange::Remove("gone".into()),
        ];
        let literal = |format: &TextFormat| format.as_literal().unwrap_or_default().to_vec();
        assert_eq!(change(&changes, "/p?gone=1&b=3&a=1&gone=2", literal), "/p?a=1&a=2%26x%3D1&b=3&d=4");
        assert_eq!(change(&[ParameterChange::Remove("a".into())], "/p?a=1", literal), "/p");
    }
}
