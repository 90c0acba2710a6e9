//! Tokens whose signature was found good, so that the next request with one does no cryptography.
//!
//! Not for: anything else that is asked of a token; issuer, audience and time are judged anew for each request.
//! Invariants: a token is known good for the very key set that verified it, so that keys that change forget it; what is kept is bounded.

use std::collections::HashMap;
use std::sync::Arc;

use model::jwt::KeySet;

use super::token::Token;

/// Tokens in each of two generations.
pub const CACHED_TOKENS_MAX: usize = 1024;
/// Length of a token that is kept, as in Envoy.
pub const CACHED_TOKEN_BYTES_MAX: usize = 4096;

/// One worker's tokens.
#[derive(Debug, Default)]
pub struct TokenCache {
    young: HashMap<Box<str>, Known>,
    old: HashMap<Box<str>, Known>,
}

#[derive(Clone, Debug)]
struct Known {
    keys: Arc<KeySet>,
    token: Arc<Token>,
}

impl TokenCache {
    /// A token that these keys have verified.
    pub(super) fn get(&mut self, text: &str, keys: &Arc<KeySet>) -> Option<Arc<Token>> {
        let is_same = |known: &&Known| Arc::ptr_eq(&known.keys, keys);
        if let Some(known) = self.young.get(text).filter(is_same) {
            return Some(Arc::clone(&known.token));
        }
        let known = self.old.get(text).filter(is_same)?.clone();
        let token = Arc::clone(&known.token);
        self.keep(text, known);
        Some(token)
    }

    /// Keeps a token that these keys have verified.
    pub(super) fn insert(&mut self, text: &str, keys: &Arc<KeySet>, token: &Arc<Token>) {
        if text.len() <= CACHED_TOKEN_BYTES_MAX {
            self.keep(text, Known { keys: Arc::clone(keys), token: Arc::clone(token) });
        }
    }

    fn keep(&mut self, text: &str, known: Known) {
        if self.young.len() >= CACHED_TOKENS_MAX {
            self.old = std::mem::take(&mut self.young);
        }
        self.young.insert(text.into(), known);
    }
}
