//! Tokens whose signature was found good, so that the next request with one does no cryptography.
//!
//! Not for: anything else that is asked of a token; issuer, audience and time are judged anew for each request.
//! Invariants: a token is known good for the very key set that verified it, so that keys that change forget it; what is kept is bounded.

use std::collections::HashMap;
use std::sync::Arc;

use foldhash::fast::RandomState;
use model::jwt::KeySet;

use super::ready::{ReadyKeys, ReadySet};
use super::token::Token;

/// Tokens in each of two generations.
pub const CACHED_TOKENS_MAX: usize = 1024;
/// Length of a token that is kept, as in Envoy.
pub const CACHED_TOKEN_BYTES_MAX: usize = 4096;

/// Key sets that are remembered to have verified one token: several providers may share it.
pub const VERIFIERS_MAX: usize = 4;

/// One worker's tokens. Found by their whole text, so that equal hashes decide nothing.
#[derive(Debug, Default)]
pub struct TokenCache {
    ready: ReadyKeys,
    young: HashMap<Box<str>, Verified, RandomState>,
    old: HashMap<Box<str>, Verified, RandomState>,
}

/// A token that was found good.
#[derive(Debug)]
pub(super) struct Verified {
    pub(super) token: Arc<Token>,
    /// By these.
    by: Vec<Arc<KeySet>>,
}

impl Verified {
    /// Whether these very keys have verified it.
    pub(super) fn is_verified_by(&self, keys: &Arc<KeySet>) -> bool {
        self.by.iter().any(|known| Arc::ptr_eq(known, keys))
    }
}

impl TokenCache {
    /// These keys, ready to verify.
    pub(super) fn ready(&mut self, keys: &Arc<KeySet>) -> &ReadySet {
        self.ready.of(keys)
    }

    /// A token that some keys have verified.
    pub(super) fn get(&mut self, text: &str) -> Option<&Verified> {
        if !self.old.is_empty()
            && let Some((text, verified)) = self.old.remove_entry(text)
        {
            self.keep(text, verified);
        }
        self.young.get(text)
    }

    /// Keeps a token that these keys have verified.
    pub(super) fn insert(&mut self, text: &str, keys: &Arc<KeySet>, token: &Arc<Token>) {
        if text.len() > CACHED_TOKEN_BYTES_MAX {
            return;
        }
        if let Some(known) = self.young.get_mut(text) {
            if known.by.len() >= VERIFIERS_MAX {
                known.by.remove(0);
            }
            known.by.push(Arc::clone(keys));
            return;
        }
        self.keep(text.into(), Verified { token: Arc::clone(token), by: vec![Arc::clone(keys)] });
    }

    fn keep(&mut self, text: Box<str>, verified: Verified) {
        if self.young.len() >= CACHED_TOKENS_MAX {
            self.old = std::mem::take(&mut self.young);
        }
        self.young.insert(text, verified);
    }
}
