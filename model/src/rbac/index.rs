//! Which policies of a filter can match a request at all, found by who asks and for which path, so that the others need not be tried.
//!
//! Not for: deciding; a policy that is found is tried like any other. Invariants: what can match is always found, whatever identities
//! and paths look like; policies are numbered in their order, so that the first match is the one that trying all of them finds.

mod keys;

use std::collections::{BTreeMap, HashMap};

use smallvec::SmallVec;

use self::keys::{Key, Kind, hash, keys_of_policy};
use super::Policy;
use crate::prefixes::Prefixes;

/// Parts of an identity between slashes that are looked at; Istio's have seven. One with more is tried with every policy.
const IDENTITY_PARTS_MAX: usize = 16;

/// Numbers of policies by what they need.
#[derive(Clone, Debug, Default)]
pub struct Index {
    all: Vec<usize>,
    /// Those that need nothing that is looked up here.
    always: Vec<usize>,
    by_hash: HashMap<u64, Vec<usize>, foldhash::fast::FixedState>,
    by_identity: Prefixes<Vec<usize>>,
    by_path: Prefixes<Vec<usize>>,
}

impl Index {
    /// Of policies in their order.
    pub(super) fn new(policies: &[Policy]) -> Self {
        let possible: Vec<_> = policies.iter().map(keys_of_policy).collect();
        let mut uses: HashMap<&Key, usize> = HashMap::new();
        for key in possible.iter().flatten().flatten() {
            *uses.entry(key).or_default() += 1;
        }
        let shared = |keys: &Vec<Key>| keys.iter().map(|key| uses[key]).sum::<usize>();
        let (mut index, mut identities, mut paths) = (Self::default(), BTreeMap::new(), BTreeMap::new());
        for (at, conditions) in possible.iter().enumerate() {
            index.all.push(at);
            // Of several conditions, the one that the fewest policies have says most.
            let Some(keys) = conditions.iter().min_by_key(|keys| shared(keys)) else {
                index.always.push(at);
                continue;
            };
            for key in keys {
                let numbers: &mut Vec<usize> = match key {
                    Key::Hash(hash) => index.by_hash.entry(*hash).or_default(),
                    Key::IdentityPrefix(prefix) => identities.entry(prefix.clone()).or_default(),
                    Key::PathPrefix(prefix) => paths.entry(prefix.clone()).or_default(),
                };
                if numbers.last() != Some(&at) {
                    numbers.push(at);
                }
            }
        }
        index.by_identity = Prefixes::new(identities);
        index.by_path = Prefixes::new(paths);
        index
    }

    /// The number of the first policy that matches.
    pub fn first(&self, identity: Option<&str>, path: Option<&str>, mut matches: impl FnMut(usize) -> bool) -> Option<usize> {
        let mut first: Option<usize> = None;
        self.visit(identity, path, |numbers| {
            let before = first.unwrap_or(usize::MAX);
            first = numbers.iter().copied().take_while(|at| *at < before).find(|at| matches(*at)).or(first);
        });
        first
    }

    /// Shows lists of numbers, each in order, which together have every policy that can match.
    pub fn visit(&self, identity: Option<&str>, path: Option<&str>, mut show: impl FnMut(&[usize])) {
        show(&self.always);
        if let Some(path) = path.map(str::as_bytes) {
            show(self.with(hash(Kind::Path, &[path])));
            self.by_path.of(path).for_each(|(_, numbers)| show(numbers));
        }
        let Some(identity) = identity.map(str::as_bytes) else { return };
        show(self.with(hash(Kind::Identity, &[identity])));
        self.by_identity.of(identity).for_each(|(_, numbers)| show(numbers));
        let parts: SmallVec<[&[u8]; IDENTITY_PARTS_MAX]> = identity.split(|byte| *byte == b'/').take(IDENTITY_PARTS_MAX + 1).collect();
        if parts.len() > IDENTITY_PARTS_MAX {
            return show(&self.all);
        }
        // A namespace has something behind it, since istiod's expression wants another slash.
        for namespace in named(&parts, b"ns").filter(|at| at + 1 < parts.len()) {
            show(self.with(hash(Kind::Namespace, &[parts[namespace]])));
            for account in named(&parts, b"sa") {
                show(self.with(hash(Kind::Account, &[parts[namespace], parts[account]])));
            }
        }
    }

    fn with(&self, hash: u64) -> &[usize] {
        self.by_hash.get(&hash).map_or(&[], Vec::as_slice)
    }
}

/// Where parts stand that follow one of this name, which is not the first.
fn named<'a>(parts: &'a [&[u8]], name: &'a [u8]) -> impl Iterator<Item = usize> + 'a {
    (2..parts.len()).filter(move |at| parts[at - 1] == name)
}
