//! When a certificate is renewed, and when a failed renewal is tried again.
//!
//! Not for: waiting and asking; times and random numbers are arguments.
//! Invariant: no wait reaches past the certificate's expiry while it has not expired.

use std::time::{Duration, SystemTime};

/// The part of a lifetime that is left when a certificate is renewed: Istio's `SECRET_GRACE_PERIOD_RATIO`.
const GRACE_RATIO: f64 = 0.5;

/// How far chance moves that part, up or down: Istio's `SECRET_GRACE_PERIOD_RATIO_JITTER`. Pods start together; their renewals must not
/// stay together for ever.
const GRACE_RATIO_JITTER: f64 = 0.01;

/// Shortest wait after a certificate was issued: a CA whose clock is wrong may issue certificates past their half life, and must not be
/// asked without pause.
const RENEWAL_WAIT_MIN: Duration = Duration::from_secs(1);

/// When a certificate should be renewed: at half its life, `random` in `0.0..1.0` moving it by a hundredth.
#[must_use]
pub fn renewal_time(not_before: SystemTime, not_after: SystemTime, random: f64) -> SystemTime {
    let lifetime = not_after.duration_since(not_before).unwrap_or_default();
    let ratio = GRACE_RATIO + GRACE_RATIO_JITTER * random.clamp(0.0, 1.0).mul_add(2.0, -1.0);
    not_after.checked_sub(lifetime.mul_f64(ratio)).unwrap_or(not_before)
}

/// The time to renew a certificate that was issued just now: [`renewal_time`], or, when that has passed already, after half of what
/// remains but not at once.
#[must_use]
pub fn next_renewal(now: SystemTime, not_before: SystemTime, not_after: SystemTime, random: f64) -> SystemTime {
    let planned = renewal_time(not_before, not_after, random);
    if planned > now {
        return planned;
    }
    let remaining = not_after.duration_since(now).unwrap_or_default();
    now + (remaining / 2).max(RENEWAL_WAIT_MIN)
}

/// How long to wait after a failed attempt: `backoff`, but never past the expiry of the certificate that is in use. Once that has
/// expired there is nothing left to save in haste, and `backoff` holds.
#[must_use]
pub fn retry_wait(now: SystemTime, backoff: Duration, not_after: Option<SystemTime>) -> Duration {
    match not_after.and_then(|expiry| expiry.duration_since(now).ok()) {
        Some(remaining) if !remaining.is_zero() => backoff.min(remaining),
        _ => backoff,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: Duration = Duration::from_secs(86_400);

    fn at(seconds: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
    }

    #[test]
    fn a_certificate_is_renewed_at_half_its_life_give_or_take_a_hundredth() {
        for (random, seconds) in [(0.0, 44_064), (0.5, 43_200), (1.0, 42_336)] {
            assert_eq!(renewal_time(at(0), at(0) + DAY, random), at(seconds), "random {random}");
        }
    }

    #[test]
    fn a_certificate_already_past_its_half_life_is_renewed_soon_but_not_at_once() {
        assert_eq!(next_renewal(at(80_000), at(0), at(0) + DAY, 0.5), at(83_200));
        assert_eq!(next_renewal(at(86_399), at(0), at(0) + DAY, 0.5), at(86_400));
        assert_eq!(next_renewal(at(90_000), at(0), at(0) + DAY, 0.5), at(90_001));
        assert_eq!(next_renewal(at(10), at(0), at(0) + DAY, 0.5), at(43_200));
    }

    #[test]
    fn a_lifetime_that_ends_before_it_begins_is_over() {
        assert_eq!(renewal_time(at(100), at(50), 0.5), at(50));
    }

    #[test]
    fn a_retry_never_waits_past_expiry() {
        let backoff = Duration::from_secs(30);
        for (now, not_after, wait) in
            [(0, Some(3600), 30), (3590, Some(3600), 10), (3600, Some(3600), 30), (4000, Some(3600), 30), (0, None, 30)]
        {
            assert_eq!(retry_wait(at(now), backoff, not_after.map(at)), Duration::from_secs(wait), "{now} of {not_after:?}");
        }
    }
}
