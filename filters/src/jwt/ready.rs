//! Keys on curves made ready for AWS-LC, so that their point is read and checked once and not for every token: a third of what one takes.
//!
//! Not for: other kinds of keys, whose reading costs little. Invariants: what is ready belongs to the very key set it was made of; how many
//! sets are kept is bounded.

use std::sync::Arc;

use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED, ECDSA_P384_SHA384_FIXED, ECDSA_P521_SHA512_FIXED, ParsedPublicKey};
use model::jwt::{Hash, Key, KeyMaterial, KeySet};

/// Key sets of which one worker has keys ready; of more the oldest is made ready anew.
pub const READY_SETS_MAX: usize = 64;

/// One worker's keys.
#[derive(Debug, Default)]
pub(super) struct ReadyKeys {
    sets: Vec<ReadySet>,
}

/// The keys of one set.
#[derive(Debug)]
pub(super) struct ReadySet {
    of: Arc<KeySet>,
    /// In the order of the set; none for a key of another kind, and for a point that is on no curve.
    keys: Vec<Option<ParsedPublicKey>>,
}

impl ReadyKeys {
    /// Those of a set.
    pub(super) fn of(&mut self, keys: &Arc<KeySet>) -> &ReadySet {
        let known = self.sets.iter().position(|set| Arc::ptr_eq(&set.of, keys));
        let at = known.unwrap_or_else(|| {
            if self.sets.len() >= READY_SETS_MAX {
                self.sets.remove(0);
            }
            self.sets.push(ReadySet::new(keys));
            self.sets.len() - 1
        });
        &self.sets[at]
    }
}

impl ReadySet {
    pub(super) fn new(keys: &Arc<KeySet>) -> Self {
        Self { of: Arc::clone(keys), keys: keys.keys.iter().map(ready).collect() }
    }

    /// The keys of the set, each with what was made of it.
    pub(super) fn keys(&self) -> impl Iterator<Item = (&Key, Option<&ParsedPublicKey>)> {
        self.of.keys.iter().zip(self.keys.iter().map(Option::as_ref))
    }
}

fn ready(key: &Key) -> Option<ParsedPublicKey> {
    let KeyMaterial::Ec { curve, point } = &key.material else { return None };
    let algorithm = match curve {
        Hash::Sha256 => &ECDSA_P256_SHA256_FIXED,
        Hash::Sha384 => &ECDSA_P384_SHA384_FIXED,
        Hash::Sha512 => &ECDSA_P521_SHA512_FIXED,
    };
    ParsedPublicKey::new(algorithm, point).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn how_many_sets_are_ready_is_bounded_and_each_has_its_own_keys() {
        let sets: Vec<_> = (0..=READY_SETS_MAX).map(|_| Arc::new(KeySet::default())).collect();
        let mut ready = ReadyKeys::default();
        for set in &sets {
            assert!(Arc::ptr_eq(&ready.of(set).of, set));
        }
        assert_eq!(ready.sets.len(), READY_SETS_MAX);
        assert!(Arc::ptr_eq(&ready.of(&sets[0]).of, &sets[0]), "the oldest is made ready anew");
    }

    #[test]
    fn a_point_that_is_on_no_curve_is_never_ready() {
        let material = KeyMaterial::Ec { curve: Hash::Sha256, point: [[4].as_slice(), &[7; 64]].concat().into() };
        assert!(ready(&Key { id: "".into(), algorithm: None, material }).is_none());
    }
}
