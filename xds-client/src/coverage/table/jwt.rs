//! Authentication of requests: the filter that verifies tokens, and conditions on what they say.
use super::super::check;
use super::super::rule::Kind::{Part, Security, Tuning};
use super::super::rule::Rule::{Honoured, Listed, Refused, Unused, Whole};
use super::super::rule::{Entry, entry, when};

pub(super) const ENTRIES: &[Entry] = &[
    entry(
        Security,
        "envoy.extensions.filters.http.jwt_authn.v3.JwtAuthentication",
        &[
            ("providers", Honoured),
            ("rules", Honoured),
            ("bypass_cors_preflight", Honoured),
            ("filter_state_rules", Refused("tokens would be required by filter state")),
            ("requirement_map", Refused("routes would choose which tokens are required")),
            ("strip_failure_response", when("false", check::is_false, "refusals would not say why")),
            ("stat_prefix", Unused("names Envoy's own statistics")),
        ],
    ),
    entry(
        Security,
        "envoy.extensions.filters.http.jwt_authn.v3.JwtProvider",
        &[
            ("issuer", Honoured),
            ("audiences", Honoured),
            ("subjects", Refused("tokens would be told apart by their subject")),
            ("require_expiration", Refused("tokens would have to expire")),
            ("max_lifetime", Refused("tokens would have to expire soon")),
            ("local_jwks", Honoured),
            ("remote_jwks", Honoured),
            ("forward", Honoured),
            ("from_headers", Honoured),
            ("from_params", Honoured),
            ("from_cookies", Honoured),
            ("forward_payload_header", Honoured),
            ("pad_forward_payload_header", Honoured),
            ("payload_in_metadata", Honoured),
            ("normalize_payload_in_metadata", Honoured),
            ("header_in_metadata", Refused("policies would see the header of a token")),
            ("failed_status_in_metadata", Refused("policies would see why a token failed")),
            ("clock_skew_seconds", Honoured),
            ("jwt_cache_config", Unused("verified tokens are cached by our own bounds")),
            ("claim_to_headers", Honoured),
            ("clear_route_cache", Honoured),
        ],
    ),
    entry(
        Security,
        "envoy.extensions.filters.http.jwt_authn.v3.RemoteJwks",
        &[("http_uri", Honoured), ("cache_duration", Honoured), ("async_fetch", Honoured), ("retry_policy", Honoured)],
    ),
    entry(
        Tuning,
        "envoy.extensions.filters.http.jwt_authn.v3.JwksAsyncFetch",
        &[("fast_listener", Unused("a chain never waits for keys; the requests that need them do")), ("failed_refetch_duration", Honoured)],
    ),
    entry(
        Tuning,
        "envoy.config.core.v3.RetryPolicy",
        &[
            ("retry_back_off", Honoured),
            ("num_retries", Honoured),
            ("retry_on", Listed("every failed fetch is repeated, as Envoy does by default")),
            ("retry_priority", Listed("repetitions go to any endpoint")),
            ("retry_host_predicate", Listed("repetitions go to any endpoint")),
            ("host_selection_retry_max_attempts", Listed("repetitions go to any endpoint")),
        ],
    ),
    entry(Tuning, "envoy.config.core.v3.BackoffStrategy", &[("base_interval", Honoured), ("max_interval", Honoured)]),
    entry(Security, "envoy.extensions.filters.http.jwt_authn.v3.JwtProvider.NormalizePayload", &[("space_delimited_claims", Honoured)]),
    entry(Security, "envoy.extensions.filters.http.jwt_authn.v3.JwtHeader", &[("name", Honoured), ("value_prefix", Honoured)]),
    entry(
        Security,
        "envoy.extensions.filters.http.jwt_authn.v3.JwtClaimToHeader",
        &[("header_name", Honoured), ("claim_name", Honoured), ("claim_path", Refused("another claim would be copied"))],
    ),
    entry(
        Security,
        "envoy.extensions.filters.http.jwt_authn.v3.RequirementRule",
        &[("match", Honoured), ("requires", Honoured), ("requirement_name", Refused("the requirement would be found by name"))],
    ),
    entry(
        Security,
        "envoy.extensions.filters.http.jwt_authn.v3.JwtRequirement",
        &[
            ("provider_name", Honoured),
            ("provider_and_audiences", Honoured),
            ("requires_any", Honoured),
            ("requires_all", Honoured),
            ("allow_missing", Whole),
            ("allow_missing_or_failed", Refused("requests with bad tokens would pass")),
            ("extract_only_without_validation", Refused("tokens would be believed without a look at their signature")),
        ],
    ),
    entry(
        Security,
        "envoy.extensions.filters.http.jwt_authn.v3.ProviderWithAudiences",
        &[("provider_name", Honoured), ("audiences", Honoured)],
    ),
    entry(Security, "envoy.extensions.filters.http.jwt_authn.v3.JwtRequirementOrList", &[("requirements", Honoured)]),
    entry(Security, "envoy.extensions.filters.http.jwt_authn.v3.JwtRequirementAndList", &[("requirements", Honoured)]),
    entry(
        Security,
        "envoy.type.matcher.v3.MetadataMatcher",
        &[
            (
                "filter",
                when(
                    "envoy.filters.http.jwt_authn; of external authorization, the RBAC filter",
                    check::is_known_metadata,
                    "it would hold by metadata of another filter",
                ),
            ),
            ("path", Honoured),
            ("value", Honoured),
            ("invert", Honoured),
        ],
    ),
    entry(Part, "envoy.type.matcher.v3.MetadataMatcher.PathSegment", &[("key", Honoured)]),
    entry(
        Part,
        "envoy.type.matcher.v3.ValueMatcher",
        &[
            ("null_match", Whole),
            ("double_match", Honoured),
            ("string_match", Honoured),
            ("bool_match", Honoured),
            ("present_match", Honoured),
            ("list_match", Honoured),
            ("or_match", Honoured),
        ],
    ),
    entry(Part, "envoy.type.matcher.v3.ListMatcher", &[("one_of", Honoured)]),
    entry(Part, "envoy.type.matcher.v3.OrMatcher", &[("value_matchers", Honoured)]),
    entry(Part, "envoy.type.matcher.v3.DoubleMatcher", &[("exact", Honoured), ("range", Honoured)]),
    entry(Part, "envoy.type.v3.DoubleRange", &[("start", Honoured), ("end", Honoured)]),
];
