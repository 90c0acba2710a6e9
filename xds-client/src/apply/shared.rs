//! What many chains have alike, held once: formats of access logs and tags of spans, which are the mesh's and not a service's.
//!
//! Not for: what differs from chain to chain. Invariant: what is handed out equals what was given.

use model::access_log::AccessLog;
use model::chain::Chain;
use model::tracing::Tracing;

/// Different ones of a kind that are known; of more, those that were met longest ago are held more than once.
pub const ALIKE_MAX: usize = 32;

/// The latest different ones, whose copies share what is big.
#[derive(Debug)]
struct Known<T>(Vec<T>);

impl<T> Default for Known<T> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<T: Clone + PartialEq> Known<T> {
    /// Puts a copy of what is known in its place.
    fn share(&mut self, value: &mut T) {
        let at = self.0.iter().position(|known| known == value).unwrap_or_else(|| {
            self.0.truncate(ALIKE_MAX - 1);
            self.0.push(value.clone());
            self.0.len() - 1
        });
        self.0[..=at].rotate_right(1);
        value.clone_from(&self.0[0]);
    }
}

/// What chains were read so far.
#[derive(Debug, Default)]
pub(super) struct Shared {
    logs: Known<AccessLog>,
    tracing: Known<Tracing>,
}

impl Shared {
    /// Has the chain share with others what it has alike.
    pub(super) fn share(&mut self, chain: &mut Chain) {
        chain.access_logs.iter_mut().for_each(|log| self.logs.share(log));
        chain.tracing.iter_mut().for_each(|tracing| self.tracing.share(tracing));
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    #[test]
    fn what_is_alike_is_held_once_and_the_latest_stay_known() {
        let mut known = Known::default();
        let text = |number: usize| Arc::<str>::from(format!("format {number}"));
        let (mut first, mut again) = (text(0), text(0));
        known.share(&mut first);
        known.share(&mut again);
        assert!(Arc::ptr_eq(&first, &again));
        for number in 1..ALIKE_MAX {
            known.share(&mut text(number));
            let mut again = text(0);
            known.share(&mut again);
            assert!(Arc::ptr_eq(&first, &again), "it was met since");
        }
        for number in ALIKE_MAX..2 * ALIKE_MAX {
            known.share(&mut text(number));
        }
        let mut late = text(0);
        known.share(&mut late);
        assert!(!Arc::ptr_eq(&first, &late), "the bound holds");
        assert_eq!((late, known.0.len()), (text(0), ALIKE_MAX));
    }
}
