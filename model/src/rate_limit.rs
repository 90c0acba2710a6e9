//! A limit on the rate of requests that this proxy keeps alone: `envoy.filters.http.local_ratelimit`.
//!
//! Not for: reading the clock; times are arguments. Invariant: over any time the tokens taken are at most those that were there and
//! those filled in since, however many take at once.

pub mod descriptors;

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use self::descriptors::DescriptorLimit;
use crate::fraction::Fraction;
use crate::headers::HeaderEdits;

/// Tokens that come back evenly, as Envoy's bucket without a timer has it.
#[derive(Debug)]
pub struct TokenBucket {
    tokens_max: u32,
    /// How long one token takes to come back.
    nanoseconds_per_token: u64,
    /// Times are counted from the first look.
    began: OnceLock<Instant>,
    /// When it will be full, in nanoseconds since then; the past if it is.
    full_at: AtomicU64,
}

/// What a look at a bucket found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Taken {
    /// Whether there was a token, which is gone now.
    pub allowed: bool,
    /// Whole tokens that are left.
    pub remaining: u64,
    /// Until the next whole token, rounded up.
    pub next_seconds: u64,
}

impl TokenBucket {
    /// The shortest time between two fillings that Envoy takes.
    pub const FILL_INTERVAL_MIN: Duration = Duration::from_millis(50);

    /// A full bucket; none if it could never hold or get a token.
    #[must_use]
    pub fn new(tokens_max: u32, tokens_per_fill: u32, fill_interval: Duration) -> Option<Self> {
        let nanoseconds = u64::try_from(fill_interval.as_nanos()).ok()?.checked_div(u64::from(tokens_per_fill))?;
        if tokens_max == 0 || nanoseconds == 0 {
            return None;
        }
        nanoseconds.checked_mul(u64::from(tokens_max))?;
        Some(Self { tokens_max, nanoseconds_per_token: nanoseconds, began: OnceLock::new(), full_at: AtomicU64::new(0) })
    }

    /// Another like it, full.
    #[must_use]
    pub fn full(&self) -> Self {
        Self { began: OnceLock::new(), full_at: AtomicU64::new(0), ..*self }
    }

    /// How long one token takes to come back, in nanoseconds.
    #[must_use]
    pub const fn token_interval(&self) -> u64 {
        self.nanoseconds_per_token
    }

    /// How many it holds.
    #[must_use]
    pub const fn tokens_max(&self) -> u32 {
        self.tokens_max
    }

    /// Takes a token, if there is one.
    pub fn take(&self, now: Instant) -> Taken {
        let began = *self.began.get_or_init(|| now);
        let now = u64::try_from(now.saturating_duration_since(began).as_nanos()).unwrap_or(u64::MAX);
        let whole = self.nanoseconds_per_token * u64::from(self.tokens_max);
        let after = |full_at: u64| full_at.max(now).saturating_add(self.nanoseconds_per_token);
        let taken = self
            .full_at
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |full_at| Some(after(full_at)).filter(|after| after - now <= whole));
        let full_at = taken.map_or_else(|full_at| full_at, after).max(now);
        // Another worker may have taken more since, of a later time.
        let there = whole.saturating_sub(full_at - now);
        let next = self.nanoseconds_per_token - there % self.nanoseconds_per_token;
        let remaining = there / self.nanoseconds_per_token;
        Taken { allowed: taken.is_ok(), remaining, next_seconds: if remaining > 0 { 0 } else { next.div_ceil(1_000_000_000) } }
    }
}

/// A limit, and what becomes of requests above it.
#[derive(Debug)]
pub struct RateLimit {
    /// Tokens of all requests.
    pub bucket: TokenBucket,
    /// Those of requests with certain descriptors.
    pub descriptors: Box<[DescriptorLimit]>,
    /// Requests with such a descriptor need a token of all requests, too.
    pub always_asks_for_all: bool,
    /// Of which share of requests it is asked.
    pub enabled: Fraction,
    /// Which share of those above it is refused.
    pub enforced: Fraction,
    /// Of a refusal, 400 to 599.
    pub status: u16,
    /// To a gRPC client, in place of what the status gives.
    pub grpc_status: Option<u32>,
    /// Changes to a refusal.
    pub refusal_headers: HeaderEdits,
    /// Changes to a request above the limit that is not refused.
    pub request_headers: HeaderEdits,
    /// Answers have `x-ratelimit-limit`, `-remaining` and `-reset`.
    pub tells: bool,
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn tokens_come_back_evenly_and_never_exceed_the_bucket() {
        let bucket = TokenBucket::new(2, 4, Duration::from_secs(2)).unwrap();
        let began = Instant::now();
        let at = |milliseconds| bucket.take(began + Duration::from_millis(milliseconds));
        let taken = |allowed, remaining, next_seconds| Taken { allowed, remaining, next_seconds };
        assert_eq!([at(0), at(0), at(0)], [taken(true, 1, 0), taken(true, 0, 1), taken(false, 0, 1)]);
        assert_eq!([at(499), at(500), at(501)], [taken(false, 0, 1), taken(true, 0, 1), taken(false, 0, 1)]);
        assert_eq!([at(60_000), at(60_000), at(60_000)].map(|taken| taken.allowed), [true, true, false], "no more than it holds");
    }

    #[test]
    fn a_bucket_that_can_hold_nothing_is_none() {
        let second = Duration::from_secs(1);
        assert!(TokenBucket::new(0, 1, second).is_none() && TokenBucket::new(1, 0, second).is_none());
        assert!(TokenBucket::new(1, 1, Duration::ZERO).is_none() && TokenBucket::new(u32::MAX, 1, Duration::MAX).is_none());
    }

    proptest! {
        #[test]
        fn never_more_are_taken_than_were_there_and_came(
            (max, per_fill) in (1_u32..20, 1_u32..20),
            steps in prop::collection::vec(0_u64..400, 1..200),
        ) {
            let bucket = TokenBucket::new(max, per_fill, Duration::from_secs(1)).unwrap();
            let began = Instant::now();
            let (mut passed, mut taken) = (0, 0_u64);
            for step in steps {
                passed += step;
                taken += u64::from(bucket.take(began + Duration::from_millis(passed)).allowed);
                // One more: a token's time is cut to whole nanoseconds.
                prop_assert!(taken <= u64::from(max) + passed * u64::from(per_fill) / 1000 + 1);
            }
        }
    }
}
