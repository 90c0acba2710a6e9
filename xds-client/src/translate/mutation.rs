//! Changes that a chain's `envoy.filters.http.header_mutation` makes to requests and answers, as the chain and its routes say: by one of
//! them istiod lets a waypoint say who the caller is.

use envoy_types::pb::envoy::config::common::mutation_rules::v3::HeaderMutation as Change;
use envoy_types::pb::envoy::config::common::mutation_rules::v3::header_mutation::Action;
use envoy_types::pb::envoy::config::core::v3 as core;
use envoy_types::pb::envoy::extensions::filters::http::header_mutation::v3 as proto;
use envoy_types::pb::google::protobuf::value::Kind;
use model::format::TextFormat;
use model::headers::{AppendAction, HeaderChange, Mutations, ParameterChange};

use super::{Problem, Translated, matcher, required, route};

pub(super) const HEADER_MUTATION: &str = "envoy.extensions.filters.http.header_mutation.v3.HeaderMutation";
pub(super) const HEADER_MUTATION_PER_ROUTE: &str = "envoy.extensions.filters.http.header_mutation.v3.HeaderMutationPerRoute";

/// A filter of a chain.
#[derive(Debug)]
pub(super) struct Mutating {
    /// Its own changes.
    pub(super) own: Parts,
    /// `most_specific_header_mutations_wins`: of levels, what is nearest to the route is changed last.
    pub(super) nearest_last: bool,
    /// See [`Mutations::sees_all_of_answers`].
    pub(super) sees_all_of_answers: bool,
}

/// Changes, of one level or of several.
#[derive(Clone, Debug, Default)]
pub(super) struct Parts {
    request: Vec<HeaderChange>,
    parameters: Vec<ParameterChange>,
    request_trailers: Vec<HeaderChange>,
    response: Vec<HeaderChange>,
    response_trailers: Vec<HeaderChange>,
}

impl Mutating {
    pub(super) fn of(value: &proto::HeaderMutation, sees_all_of_answers: bool, path: &str) -> Translated<Self> {
        let own = value.mutations.as_ref().map(|mutations| parts(mutations, path)).transpose()?.unwrap_or_default();
        Ok(Self { own, nearest_last: value.most_specific_header_mutations_wins, sees_all_of_answers })
    }

    /// What it changes on a route whose levels say this, most specific first.
    pub(super) fn on(&self, mut levels: Vec<Parts>) -> Mutations {
        if self.nearest_last {
            levels.reverse();
        }
        let all = levels.into_iter().fold(self.own.clone(), Parts::then);
        Mutations {
            request: all.request.into(),
            parameters: all.parameters.into(),
            request_trailers: all.request_trailers.into(),
            response: all.response.into(),
            response_trailers: all.response_trailers.into(),
            sees_all_of_answers: self.sees_all_of_answers,
        }
    }
}

impl Parts {
    /// What one level says.
    pub(super) fn of_level(value: &proto::HeaderMutationPerRoute, path: &str) -> Translated<Self> {
        Ok(value.mutations.as_ref().map(|mutations| parts(mutations, path)).transpose()?.unwrap_or_default())
    }

    fn then(mut self, next: Self) -> Self {
        self.request.extend(next.request);
        self.parameters.extend(next.parameters);
        self.request_trailers.extend(next.request_trailers);
        self.response.extend(next.response);
        self.response_trailers.extend(next.response_trailers);
        self
    }
}

fn parts(value: &proto::Mutations, path: &str) -> Translated<Parts> {
    let headers = |list: &[Change], name: &str| -> Translated<Vec<HeaderChange>> {
        list.iter().enumerate().map(|(at, one)| header_change(one, &format!("{path}.{name}[{at}]"))).collect()
    };
    let trailers = |list: &[Change], name: &str| {
        let changes = headers(list, name)?;
        let has_operator = |change: &HeaderChange| matches!(change, HeaderChange::Add(add) if add.value.as_literal().is_none());
        match changes.iter().position(has_operator) {
            Some(at) => Err(Problem::new(format!("{path}.{name}[{at}]"), "operators in trailers are not supported")),
            None => Ok(changes),
        }
    };
    let parameters = value.query_parameter_mutations.iter().enumerate();
    Ok(Parts {
        request: headers(&value.request_mutations, "request_mutations")?,
        parameters: parameters
            .map(|(at, one)| parameter_change(one, &format!("{path}.query_parameter_mutations[{at}]")))
            .collect::<Translated<_>>()?,
        request_trailers: trailers(&value.request_trailers_mutations, "request_trailers_mutations")?,
        response: headers(&value.response_mutations, "response_mutations")?,
        response_trailers: trailers(&value.response_trailers_mutations, "response_trailers_mutations")?,
    })
}

fn header_change(value: &Change, path: &str) -> Translated<HeaderChange> {
    Ok(match required(value.action.as_ref(), path)? {
        Action::Append(add) => HeaderChange::Add(route::header_add(add, path)?),
        Action::Remove(name) => HeaderChange::Remove(route::edited_name(name, path)?),
        Action::RemoveOnMatch(matched) => {
            let at = format!("{path}.remove_on_match.key_matcher");
            HeaderChange::RemoveMatching(matcher::string(required(matched.key_matcher.as_ref(), &at)?, &at)?)
        }
    })
}

fn parameter_change(value: &core::KeyValueMutation, path: &str) -> Translated<ParameterChange> {
    use core::key_value_append::KeyValueAppendAction;
    let Some(append) = &value.append else {
        if value.remove.is_empty() {
            return Err(Problem::new(path, "changes nothing"));
        }
        return Ok(ParameterChange::Remove(value.remove.as_str().into()));
    };
    let record = required(append.record.as_ref(), &format!("{path}.append.record"))?;
    let text = match record.value.as_ref().and_then(|value| value.kind.as_ref()) {
        Some(Kind::StringValue(text)) => text,
        _ => return Err(Problem::new(format!("{path}.append.record.value"), "is no text")),
    };
    let action = match KeyValueAppendAction::try_from(append.action) {
        Ok(KeyValueAppendAction::AppendIfExistsOrAdd) => AppendAction::Append,
        Ok(KeyValueAppendAction::AddIfAbsent) => AppendAction::AddIfAbsent,
        Ok(KeyValueAppendAction::OverwriteIfExistsOrAdd) => AppendAction::Overwrite,
        Ok(KeyValueAppendAction::OverwriteIfExists) => AppendAction::OverwriteIfExists,
        Err(_) => return Err(Problem::new(format!("{path}.append.action"), format!("{} is not known", append.action))),
    };
    let mut unknown = Vec::new();
    let format = TextFormat::parse(text, &mut unknown).omitting_missing();
    match unknown.first() {
        Some(operator) => Err(Problem::new(path, operator.to_string())),
        None => Ok(ParameterChange::Add { name: record.key.as_str().into(), value: format, action }),
    }
}
