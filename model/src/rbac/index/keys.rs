//! Conditions without which a policy does not match, in a form that is found by hash or by prefix.
//!
//! Invariant: whatever a policy matches has one of each list of keys. What is not known here, or is below a `not`, gives no list.

use std::hash::{BuildHasher, Hasher};

use super::super::{Permission, Policy, Principal};
use crate::matcher::{Identities, StringMatcher};

/// One condition without which a policy does not match.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Key {
    /// The hash of a whole identity or path, a namespace, or an account. Two of the same hash cost a try and nothing else.
    Hash(u64),
    /// How an identity begins.
    IdentityPrefix(Box<[u8]>),
    /// How a path begins.
    PathPrefix(Box<[u8]>),
}

/// What a [`Key::Hash`] is of.
#[derive(Clone, Copy, Debug)]
pub(super) enum Kind {
    Identity,
    Namespace,
    Account,
    Path,
}

pub(super) fn hash(kind: Kind, parts: &[&[u8]]) -> u64 {
    let mut hasher = foldhash::fast::FixedState::default().build_hasher();
    hasher.write_u8(match kind {
        Kind::Identity => 0,
        Kind::Namespace => 1,
        Kind::Account => 2,
        Kind::Path => 3,
    });
    for part in parts {
        hasher.write_usize(part.len());
        hasher.write(part);
    }
    hasher.finish()
}

/// Lists of keys, of each of which one holds whenever the policy matches.
pub(super) fn keys_of_policy(policy: &Policy) -> Vec<Vec<Key>> {
    let mut all = one_of(&policy.principals, of_principal);
    all.extend(one_of(&policy.permissions, of_permission));
    all
}

/// One of them matches: a key of each has to be asked for, and one without any can match by anything.
fn one_of<T>(choices: &[T], keys: impl Fn(&T) -> Vec<Vec<Key>>) -> Vec<Vec<Key>> {
    if let [only] = choices {
        return keys(only);
    }
    let each = choices.iter().map(|choice| keys(choice).into_iter().min_by_key(Vec::len));
    each.collect::<Option<Vec<_>>>().map(|each| each.concat()).into_iter().collect()
}

fn of_principal(principal: &Principal) -> Vec<Vec<Key>> {
    let key = match principal {
        Principal::And(all) => return all.iter().flat_map(of_principal).collect(),
        Principal::Or(choices) => return one_of(choices, of_principal),
        Principal::PeerPrincipal(matcher) => match matcher {
            StringMatcher::Exact(text) => Some(Key::Hash(hash(Kind::Identity, &[text]))),
            StringMatcher::Prefix(text) => Some(Key::IdentityPrefix(text.clone())),
            StringMatcher::Globs(globs) => globs.identities().map(|identities| match identities {
                Identities::Namespace(namespace) => Key::Hash(hash(Kind::Namespace, &[namespace.as_bytes()])),
                Identities::Account { namespace, account } => Key::Hash(hash(Kind::Account, &[namespace.as_bytes(), account.as_bytes()])),
            }),
            _ => None,
        },
        Principal::UrlPath(matcher) => of_path(matcher),
        _ => None,
    };
    key.map(|key| vec![key]).into_iter().collect()
}

fn of_permission(permission: &Permission) -> Vec<Vec<Key>> {
    let key = match permission {
        Permission::And(all) => return all.iter().flat_map(of_permission).collect(),
        Permission::Or(choices) => return one_of(choices, of_permission),
        Permission::UrlPath(matcher) => of_path(matcher),
        Permission::UriTemplate(template) => Some(Key::PathPrefix(template.literal_prefix().as_bytes().into())),
        _ => None,
    };
    key.map(|key| vec![key]).into_iter().collect()
}

fn of_path(matcher: &StringMatcher) -> Option<Key> {
    match matcher {
        StringMatcher::Exact(text) => Some(Key::Hash(hash(Kind::Path, &[text]))),
        StringMatcher::Prefix(text) => Some(Key::PathPrefix(text.clone())),
        _ => None,
    }
}
