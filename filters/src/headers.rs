//! Does what routes ask for with headers.
//!
//! Not for: hop-by-hop rules, which are the codec's. Source: Envoy's header manipulation: removals first, then additions.

use http::{HeaderMap, HeaderValue};
use model::format::TextFormat;
use model::headers::{AppendAction, HeaderEdits};
use model::stream_view::StreamView;

/// Changes `headers`. `view` answers the operators in values; what it says of headers is from before the changes.
///
/// A value that an operator made unreadable (control bytes) is not sent, and what it would have overwritten is gone.
pub fn apply(edits: &HeaderEdits, headers: &mut HeaderMap, view: &dyn StreamView) {
    for name in &edits.remove {
        headers.remove(name);
    }
    for add in &edits.add {
        let Some(value) = render(&add.value, view) else {
            if matches!(add.action, AppendAction::Overwrite | AppendAction::OverwriteIfExists) {
                headers.remove(&add.name);
            }
            continue;
        };
        if value.is_empty() && !add.keep_empty_value {
            continue;
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
}

fn render(format: &TextFormat, view: &dyn StreamView) -> Option<HeaderValue> {
    if let Some(literal) = format.as_literal() {
        return HeaderValue::from_bytes(literal).ok();
    }
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
        apply(&edits, &mut headers, &Nothing);
        let all = |name: &str| headers.get_all(name).iter().map(|value| value.to_str().unwrap()).collect::<Vec<_>>();
        assert_eq!(
            (all("x-gone"), all("x-set"), all("x-add"), all("x-there")),
            (vec!["again"], vec!["split"], vec!["a", "b"], vec!["kept"])
        );
        assert!(all("x-not-there").is_empty() && all("x-empty").is_empty());
    }
}
