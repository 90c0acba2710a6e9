//! The admin port's list of what was refused lately, and of what dry runs would have refused.

use serde_json::{Value, json};
use telemetry::SeenRefusal;

/// All of it, as JSON.
pub(super) fn page(seen: &[SeenRefusal]) -> String {
    let (dry_runs, refused): (Vec<_>, Vec<_>) = seen.iter().partition(|one| one.is_dry_run);
    let all = |list: Vec<&SeenRefusal>| list.into_iter().map(entry).collect::<Vec<_>>();
    format!("{:#}\n", json!({"would_be_refused": all(dry_runs), "refused": all(refused)}))
}

fn entry(seen: &SeenRefusal) -> Value {
    let reason: serde_json::Map<_, _> = seen.refusal.fields().map(|(field, text)| (field.key().to_owned(), json!(text))).collect();
    json!({
        "last": model::format::timestamp(seen.last),
        "count": seen.count,
        "chain": &*seen.chain,
        "source": seen.source.as_ref().map(model::identity::SpiffeId::as_str),
        "method": seen.method.as_ref().map(http::Method::as_str),
        "path": seen.path,
        "reason": reason,
    })
}
