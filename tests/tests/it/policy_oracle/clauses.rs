//! The conditions of recorded filters, read plainly from their JSON: whether a request that was sent meets one, and whether one that misses
//! it is a single edit away from meeting it.
//!
//! Not for: what follows from conditions; both proxies say that. Invariant: a condition of a form that is not known here is an error, not
//! left out; those that are left out stand in [`LEFT_OUT`] with the reason.

use std::cell::RefCell;
use std::collections::{BTreeSet, HashMap};

use anyhow::{Context, Result, bail};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use regex::Regex;
use serde_json::{Value, json};

/// Conditions that are not counted, and why.
pub(super) const LEFT_OUT: [(&str, &str); 2] = [
    ("any", "it is met by everything"),
    ("direct_remote_ip", "Envoy does not see the caller's address behind an internal listener (`caller-address`)"),
];

/// What a request that was sent is to conditions.
#[derive(Debug, Default)]
pub(super) struct Sent {
    pub method: String,
    /// Normalised, without its query.
    pub path: String,
    pub authority: String,
    pub lines: Vec<(String, String)>,
    pub principal: String,
    pub remote_address: [u8; 4],
    pub port: u16,
    /// Of verified tokens.
    pub claims: Value,
    /// Of each provider, by where they are: the place as [`places`] tells it, and the token.
    pub tokens: Vec<(String, String, Token)>,
    pub is_preflight: bool,
}

/// A token as it was sent.
#[derive(Clone, Debug, Default)]
pub(super) struct Token {
    /// Whether the issuer made it, with its key and an algorithm of it.
    pub is_signed: bool,
    /// Null where it cannot be read.
    pub claims: Value,
}

impl Token {
    pub(super) fn read(text: &str, is_signed: bool) -> Self {
        let payload = text.split('.').nth(1).and_then(|payload| URL_SAFE_NO_PAD.decode(payload).ok());
        Self { is_signed, claims: payload.and_then(|bytes| serde_json::from_slice(&bytes).ok()).unwrap_or_default() }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum About {
    Method,
    Path,
    Authority,
    Header(String),
    Principal,
    RemoteAddress,
    Port,
    /// A claim of a verified token: where it is, and whether an item of a list is meant.
    Claim(Vec<String>, bool),
    /// A claim of any token that a provider is shown.
    TokenClaim(String, &'static str),
    /// A provider is shown a token there.
    TokenAt(String, String),
    Signature(String),
    /// `exp` or `nbf` of a token, and the skew that is allowed.
    Time(String, &'static str),
    NoToken,
    Preflight,
}

/// One condition.
#[derive(Clone, Debug)]
pub(super) struct Clause {
    about: About,
    test: Value,
}

impl Clause {
    /// By which it is known.
    pub(super) fn name(&self) -> String {
        format!("{:?} {}", self.about, self.test)
    }

    pub(super) fn is_met(&self, sent: &Sent) -> Result<bool> {
        let of_provider = |provider: &str| sent.tokens.iter().filter(|(of, ..)| of == provider).collect::<Vec<_>>();
        Ok(match &self.about {
            About::RemoteAddress => is_in_range(&self.test, sent.remote_address),
            About::Port => self.test == sent.port,
            About::TokenAt(provider, place) => of_provider(provider).iter().any(|(_, at, _)| at == place),
            About::Signature(provider) => of_provider(provider).iter().any(|(.., token)| token.is_signed),
            About::Time(provider, claim) => {
                let now = tests::tokens::seconds_from_now(0)?;
                of_provider(provider).iter().any(|(.., token)| token.claims[*claim].as_i64().is_some_and(|at| is_due(claim, at, now)))
            }
            About::NoToken => sent.tokens.is_empty(),
            About::Preflight => sent.is_preflight,
            _ => {
                for value in self.values(sent) {
                    if text_matches(&self.test, &value)? {
                        return Ok(true);
                    }
                }
                false
            }
        })
    }

    /// It is missed, and met after one edit: of a character, or of an address or port by one.
    pub(super) fn is_missed_narrowly(&self, sent: &Sent) -> Result<bool> {
        if self.is_met(sent)? {
            return Ok(false);
        }
        let address = u32::from_be_bytes(sent.remote_address);
        match &self.about {
            About::RemoteAddress => {
                let beside = [address.wrapping_sub(1), address.wrapping_add(1)];
                Ok(beside.iter().any(|address| is_in_range(&self.test, address.to_be_bytes())))
            }
            About::Port => Ok(self.test.as_u64().is_some_and(|port| port.abs_diff(u64::from(sent.port)) == 1)),
            _ => {
                for value in self.values(sent) {
                    if an_edit_matches(&self.test, &value)? {
                        return Ok(true);
                    }
                }
                Ok(false)
            }
        }
    }

    /// The texts that it is about.
    fn values(&self, sent: &Sent) -> Vec<String> {
        let texts = |value: &Value, is_list: bool| match value {
            Value::String(text) if !is_list => vec![text.clone()],
            Value::Array(items) if is_list => items.iter().filter_map(Value::as_str).map(str::to_owned).collect(),
            _ => Vec::new(),
        };
        match &self.about {
            About::Method => vec![sent.method.clone()],
            About::Path => vec![sent.path.clone()],
            About::Authority => vec![sent.authority.clone()],
            About::Header(name) => sent.lines.iter().filter(|(line, _)| line == name).map(|(_, value)| value.clone()).collect(),
            About::Principal => vec![sent.principal.clone()],
            About::Claim(path, is_list) => texts(path.iter().fold(&sent.claims, |value, name| &value[name]), *is_list),
            About::TokenClaim(provider, claim) => {
                let claims = sent.tokens.iter().filter(|(of, ..)| of == provider).map(|(.., token)| &token.claims[*claim]);
                claims.flat_map(|value| [texts(value, false), texts(value, true)].concat()).collect()
            }
            _ => Vec::new(),
        }
    }
}

/// Envoy's clock skew, in seconds, which no recorded provider changes.
const CLOCK_SKEW: i64 = 60;

fn is_due(claim: &str, at: i64, now: i64) -> bool {
    if claim == "exp" { now <= at + CLOCK_SKEW } else { at <= now + CLOCK_SKEW }
}

/// All texts one character away.
fn edits(text: &str, letters: &BTreeSet<char>) -> Vec<String> {
    let cuts: Vec<usize> = text.char_indices().map(|(at, _)| at).chain([text.len()]).collect();
    let mut all = Vec::new();
    for (number, at) in cuts.iter().enumerate() {
        let rest = cuts.get(number + 1).copied();
        all.extend(rest.map(|rest| format!("{}{}", &text[..*at], &text[rest..])));
        for letter in letters {
            all.push(format!("{}{letter}{}", &text[..*at], &text[*at..]));
            all.extend(rest.map(|rest| format!("{}{letter}{}", &text[..*at], &text[rest..])));
        }
    }
    all
}

fn is_in_range(range: &Value, address: [u8; 4]) -> bool {
    let prefix = range["address_prefix"].as_str().and_then(|prefix| prefix.parse::<std::net::Ipv4Addr>().ok());
    let bits = |address: [u8; 4]| u64::from(u32::from_be_bytes(address));
    let length = range["prefix_len"].as_u64().unwrap_or(0);
    prefix.is_some_and(|prefix| (bits(address) ^ bits(prefix.octets())) >> (32 - length) == 0)
}

fn text_matches(test: &Value, value: &str) -> Result<bool> {
    let is_folded = test["ignore_case"] == true;
    let fold = |text: &str| if is_folded { text.to_ascii_lowercase() } else { text.to_owned() };
    let value = fold(value);
    let (kind, wanted) = test.as_object().and_then(|test| test.iter().find(|(kind, _)| *kind != "ignore_case")).context("no test")?;
    let text = || wanted.as_str().map(fold).with_context(|| format!("{test}"));
    Ok(match kind.as_str() {
        "exact" => value == text()?,
        "prefix" => value.starts_with(&text()?),
        "suffix" => value.ends_with(&text()?),
        "safe_regex" => matches_whole(wanted["regex"].as_str().context("no expression")?, &value)?,
        "path_template" => {
            // `*` is one part of a path, `**` what is left of it.
            let parts =
                text()?.split('/').map(|part| if part == "**" { ".*".to_owned() } else { part.replace('*', "[^/]+") }).collect::<Vec<_>>();
            matches_whole(&parts.join("/"), &value)?
        }
        other => bail!("{other} is not known here"),
    })
}

thread_local! {
    /// Texts that conditions were tried on, with every edit of them: they repeat.
    static TRIED: RefCell<HashMap<String, bool>> = RefCell::default();
    static COMPILED: RefCell<HashMap<String, Regex>> = RefCell::default();
}

/// Whether an expression matches all of a text.
fn matches_whole(expression: &str, text: &str) -> Result<bool> {
    COMPILED.with_borrow_mut(|known| {
        if let Some(compiled) = known.get(expression) {
            return Ok(compiled.is_match(text));
        }
        let compiled = Regex::new(&format!("^(?:{expression})$"))?;
        let is_match = compiled.is_match(text);
        known.insert(expression.to_owned(), compiled);
        Ok(is_match)
    })
}

/// Whether some edit of a text meets a test.
fn an_edit_matches(test: &Value, value: &str) -> Result<bool> {
    let key = format!("{test} {value}");
    if let Some(known) = TRIED.with_borrow(|tried| tried.get(&key).copied()) {
        return Ok(known);
    }
    let wanted = test.as_object().into_iter().flatten().map(|(_, wanted)| wanted.to_string());
    let letters: BTreeSet<char> = wanted.flat_map(|wanted| wanted.chars().collect::<Vec<_>>()).collect();
    let mut found = false;
    for edited in edits(value, &letters) {
        found = found || text_matches(test, &edited)?;
    }
    TRIED.with_borrow_mut(|tried| tried.insert(key, found));
    Ok(found)
}

/// The conditions of an HTTP or TCP filter chain, each once.
pub(super) fn of_chain(chain: &Value) -> Result<Vec<Clause>> {
    let mut all = Vec::new();
    let filters = chain["filters"].as_array().context("no filters")?;
    let inner = filters.iter().filter_map(|filter| filter["typed_config"]["http_filters"].as_array());
    for filter in filters.iter().chain(inner.flatten()) {
        let config = &filter["typed_config"];
        match filter["name"].as_str().unwrap_or_default() {
            "envoy.filters.http.rbac" | "envoy.filters.network.rbac" => {
                for rules in [&config["rules"], &config["shadow_rules"]] {
                    of_rules(rules, &mut all)?;
                }
            }
            "envoy.filters.http.jwt_authn" => of_tokens(config, &mut all)?,
            _ => {}
        }
    }
    let mut seen = BTreeSet::new();
    all.retain(|clause| seen.insert(clause.name()));
    Ok(all)
}

fn of_rules(rules: &Value, all: &mut Vec<Clause>) -> Result<()> {
    for policy in rules["policies"].as_object().into_iter().flat_map(|policies| policies.values()) {
        for one in ["permissions", "principals"].iter().filter_map(|list| policy[*list].as_array()).flatten() {
            of_rule(one, all)?;
        }
    }
    Ok(())
}

fn of_rule(rule: &Value, all: &mut Vec<Clause>) -> Result<()> {
    let (kind, inner) = rule.as_object().and_then(|rule| rule.iter().next()).context("an empty rule")?;
    let mut add = |about, test: &Value| all.push(Clause { about, test: test.clone() });
    match kind.as_str() {
        left_out if LEFT_OUT.iter().any(|(name, _)| *name == left_out) => {}
        "and_rules" | "or_rules" => inner["rules"].as_array().context("no rules")?.iter().try_for_each(|one| of_rule(one, all))?,
        "and_ids" | "or_ids" => inner["ids"].as_array().context("no ids")?.iter().try_for_each(|one| of_rule(one, all))?,
        "not_rule" | "not_id" => of_rule(inner, all)?,
        "url_path" => add(About::Path, &inner["path"]),
        "uri_template" => add(About::Path, &json!({"path_template": inner["typed_config"]["path_template"]})),
        "destination_port" => add(About::Port, inner),
        "remote_ip" => add(About::RemoteAddress, inner),
        "filter_state" => add(About::Principal, &inner["string_match"]),
        "header" => {
            let about = match inner["name"].as_str().context("no name")? {
                ":method" => About::Method,
                ":authority" => About::Authority,
                name => About::Header(name.to_owned()),
            };
            add(about, &inner["string_match"]);
        }
        "metadata" => {
            let names = inner["path"].as_array().context("no path")?.iter().skip(1);
            let path: Vec<_> = names.filter_map(|name| name["key"].as_str().map(str::to_owned)).collect();
            of_claim(&path, false, &inner["value"], all)?;
        }
        other => bail!("{other} is not known here"),
    }
    Ok(())
}

fn of_claim(path: &[String], is_list: bool, value: &Value, all: &mut Vec<Clause>) -> Result<()> {
    if let Some(several) = value["or_match"]["value_matchers"].as_array() {
        return several.iter().try_for_each(|one| of_claim(path, is_list, one, all));
    }
    if let Some(one) = value["list_match"].get("one_of") {
        return of_claim(path, true, one, all);
    }
    let test = value.get("string_match").with_context(|| format!("{value} is not known here"))?;
    all.push(Clause { about: About::Claim(path.to_vec(), is_list), test: test.clone() });
    Ok(())
}

fn of_tokens(config: &Value, all: &mut Vec<Clause>) -> Result<()> {
    let mut add = |about, test: Value| all.push(Clause { about, test });
    for (name, provider) in config["providers"].as_object().context("no providers")? {
        for place in places(provider) {
            add(About::TokenAt(name.clone(), place), Value::Null);
        }
        add(About::TokenClaim(name.clone(), "iss"), json!({"exact": provider["issuer"]}));
        for audience in provider["audiences"].as_array().into_iter().flatten() {
            add(About::TokenClaim(name.clone(), "aud"), json!({"exact": audience}));
        }
        add(About::Signature(name.clone()), Value::Null);
        for claim in ["exp", "nbf"] {
            add(About::Time(name.clone(), claim), Value::Null);
        }
    }
    add(About::NoToken, Value::Null);
    add(About::Preflight, Value::Null);
    Ok(())
}

/// Where a provider looks for tokens, as it was configured.
pub(super) fn places(provider: &Value) -> Vec<String> {
    let list = |name: &str| provider[name].as_array().cloned().unwrap_or_default();
    let headers = list("from_headers")
        .into_iter()
        .map(|one| format!("header {} {}", one["name"].as_str().unwrap_or(""), one["value_prefix"].as_str().unwrap_or("")));
    let others = ["from_params", "from_cookies"]
        .into_iter()
        .flat_map(|kind| list(kind).into_iter().map(move |name| format!("{kind} {}", name.as_str().unwrap_or(""))));
    headers.chain(others).collect()
}

/// The tokens that a request shows a provider, with their places.
pub(super) fn shown(provider: &Value, target: &str, lines: &[(&'static str, String)]) -> Vec<(String, String)> {
    let mut all = Vec::new();
    let query = target.split_once('?').map_or("", |(_, query)| query);
    for place in places(provider) {
        let mut words = place.splitn(3, ' ');
        let (kind, name, prefix) = (words.next().unwrap_or(""), words.next().unwrap_or(""), words.next().unwrap_or(""));
        let of_line = |line: &str| match kind {
            "header" => line.split_once(prefix).map(|(_, token)| token.to_owned()),
            _ => line.split("; ").find_map(|pair| pair.strip_prefix(name)?.strip_prefix('=').map(str::to_owned)),
        };
        let line_name = if kind == "header" { name } else { "cookie" };
        if kind == "from_params" {
            let found = query.split('&').find_map(|pair| pair.strip_prefix(name)?.strip_prefix('='));
            all.extend(found.map(|token| (place.clone(), token.to_owned())));
        } else {
            let found = lines.iter().filter(|(line, _)| *line == line_name).filter_map(|(_, value)| of_line(value));
            all.extend(found.map(|token| (place.clone(), token)));
        }
    }
    all
}
