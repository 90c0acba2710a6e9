//! Does what routes ask for with headers.
//!
//! Not for: hop-by-hop rules, which are the codec's. Source: Envoy's header manipulation: removals first, then additions.

use http::{HeaderMap, HeaderValue};
use model::format::TextFormat;
use model::headers::{AppendAction, HeaderAdd, HeaderChange, HeaderEdits};
use model::stream_view::StreamView;
use smallvec::SmallVec;

/// Makes a value with operators of headers as they are now; none if it cannot be a header's.
pub type Render<'a> = dyn Fn(&TextFormat, &HeaderMap) -> Option<HeaderValue> + 'a;

/// Changes `headers`: removals first; then all values are made, and set.
///
/// A value that an operator made unreadable (control bytes) is not sent, and what it would have overwritten is gone.
pub fn apply(edits: &HeaderEdits, headers: &mut HeaderMap, render: &Render<'_>) {
    for name in &edits.remove {
        headers.remove(name);
    }
    let values: SmallVec<[_; 4]> = edits.add.iter().map(|add| value_of(&add.value, headers, render)).collect();
    for (add, value) in edits.add.iter().zip(values) {
        set(add, value, headers);
    }
}

/// Makes changes one after another: each sees what those before it made.
pub fn change(changes: &[HeaderChange], headers: &mut HeaderMap, render: &Render<'_>) {
    for change in changes {
        match change {
            HeaderChange::Add(add) => {
                let value = value_of(&add.value, headers, render);
                set(add, value, headers);
            }
            HeaderChange::Remove(name) => drop(headers.remove(name)),
            HeaderChange::RemoveMatching(matcher) => {
                // The host is none of a request's headers here, nor in Envoy.
                let is_meant = |name: &&http::HeaderName| *name != http::header::HOST && matcher.matches(name.as_str().as_bytes());
                let names: Vec<_> = headers.keys().filter(is_meant).cloned().collect();
                for name in names {
                    headers.remove(name);
                }
            }
        }
    }
}

fn set(add: &HeaderAdd, value: Option<HeaderValue>, headers: &mut HeaderMap) {
    let Some(value) = value else {
        if matches!(add.action, AppendAction::Overwrite | AppendAction::OverwriteIfExists) {
            headers.remove(&add.name);
        }
        return;
    };
    if value.is_empty() && !add.keep_empty_value {
        return;
    }
    let name = &add.name;
    match add.action {
        AppendAction::Append => {
            headers.append(name, value);
        }
        AppendAction::AddIfAbsent if headers.contains_key(name) => {}
        AppendAction::OverwriteIfExists if !headers.contains_key(name) => {}
        AppendAction::AddIfAbsent | AppendAction::Overwrite | AppendAction::OverwriteIfExists => {
            headers.insert(name, value);
        }
    }
}

fn value_of(format: &TextFormat, headers: &HeaderMap, render: &Render<'_>) -> Option<HeaderValue> {
    match format.as_literal() {
        Some(literal) => HeaderValue::from_bytes(literal).ok(),
        None => render(format, headers),
    }
}

/// The value of a format, seen by `view`; none if it cannot be a header's.
#[must_use]
pub fn rendered(format: &TextFormat, view: &dyn StreamView) -> Option<HeaderValue> {
    let mut out = Vec::new();
    format.render(view, &mut out);
    HeaderValue::from_maybe_shared(bytes::Bytes::from(out)).ok()
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]

    use http::HeaderName;
    use model::headers::HeaderAdd;
    use model::stream_view::{Field, RequestHead, Side, Value};
    use model::workload::Workload;

    use super::*;

    struct Nothing;
    impl StreamView for Nothing {
        fn request(&self) -> Option<RequestHead<'_>> {
            None
        }
        fn response_headers(&self) -> Option<&HeaderMap> {
            None
        }
        fn response_trailers(&self) -> Option<&HeaderMap> {
            None
        }
        fn field(&self, field: Field) -> Value<'_> {
            if field == Field::RouteName { Value::Text("split") } else { Value::Missing }
        }
        fn peer(&self, _: Side) -> Option<&Workload> {
            None
        }
        fn refusal(&self) -> Option<&model::refusal::Refusal> {
            None
        }
    }

    fn add(name: &'static str, value: &str, action: AppendAction) -> HeaderAdd {
        HeaderAdd { name: HeaderName::from_static(name), value: TextFormat::parse(value, &mut Vec::new()), action, keep_empty_value: false }
    }

    #[test]
    fn removals_come_first_and_each_action_does_what_it_says() {
        let mut headers = HeaderMap::new();
        for (name, value) in [("x-gone", "1"), ("x-set", "old"), ("x-set", "older"), ("x-add", "a"), ("x-there", "kept")] {
            headers.append(name, value.parse().unwrap());
        }
        let edits = HeaderEdits {
            remove: vec![HeaderName::from_static("x-gone")],
            add: vec![
                add("x-gone", "again", AppendAction::AddIfAbsent),
                add("x-set", "%ROUTE_NAME%", AppendAction::Overwrite),
                add("x-add", "b", AppendAction::Append),
                add("x-there", "no", AppendAction::AddIfAbsent),
                add("x-not-there", "no", AppendAction::OverwriteIfExists),
                add("x-empty", "", AppendAction::Overwrite),
            ],
        };
        apply(&edits, &mut headers, &|format, _| rendered(format, &Nothing));
        let all = |name: &str| headers.get_all(name).iter().map(|value| value.to_str().unwrap()).collect::<Vec<_>>();
        assert_eq!(
            (all("x-gone"), all("x-set"), all("x-add"), all("x-there")),
            (vec!["again"], vec!["split"], vec!["a", "b"], vec!["kept"])
        );
        assert!(all("x-not-there").is_empty() && all("x-empty").is_empty());
    }
}
