//! Header changes that the chain itself makes to requests, before all other filters: `envoy.filters.http.header_mutation`, by which
//! istiod lets a waypoint say who the caller is.

use envoy_types::pb::envoy::config::common::mutation_rules::v3::header_mutation::Action;
use envoy_types::pb::envoy::extensions::filters::http::header_mutation::v3::HeaderMutation;
use model::headers::HeaderEdits;

use super::{Problem, Translated, required, route};

pub(super) const HEADER_MUTATION: &str = "envoy.extensions.filters.http.header_mutation.v3.HeaderMutation";

/// The changes, in order.
pub(super) fn request_edits(value: &HeaderMutation, path: &str) -> Translated<Vec<HeaderEdits>> {
    let Some(mutations) = &value.mutations else { return Ok(Vec::new()) };
    let others = [&mutations.response_mutations, &mutations.response_trailers_mutations, &mutations.request_trailers_mutations];
    if others.into_iter().any(|list| !list.is_empty()) || !mutations.query_parameter_mutations.is_empty() {
        return Err(Problem::new(path, "only changes to the headers of requests are supported"));
    }
    let edits = mutations.request_mutations.iter().enumerate().map(|(at, one)| {
        let path = format!("{path}.request_mutations[{at}]");
        match required(one.action.as_ref(), &path)? {
            Action::Append(add) => Ok(HeaderEdits { add: vec![route::header_add(add, &path)?], ..HeaderEdits::default() }),
            Action::Remove(name) => Ok(HeaderEdits { remove: vec![route::edited_name(name, &path)?], ..HeaderEdits::default() }),
            Action::RemoveOnMatch(_) => Err(Problem::new(path, "remove_on_match is not supported")),
        }
    });
    edits.collect()
}
