//! How long to wait before the next attempt: exponential, with full jitter.
//!
//! Not for: waiting, clocks and random numbers; they are arguments, so that every case is a table.
//! Invariant: no wait is longer than `wait_max`.

use std::time::Duration;

/// The bounds of a backoff.
#[derive(Clone, Copy, Debug)]
pub struct BackoffSettings {
    /// Ceiling of the first wait.
    pub wait_initial: Duration,
    /// Ceiling of every wait.
    pub wait_max: Duration,
    /// An attempt that held this long starts the next series afresh. istiod ends healthy connections by design
    /// (`keepaliveMaxServerConnectionAge`), and those must not add up to long waits.
    pub healthy_after: Duration,
}

impl Default for BackoffSettings {
    /// What Envoy does for istiod: 0.5 s to 30 s.
    fn default() -> Self {
        Self { wait_initial: Duration::from_millis(500), wait_max: Duration::from_secs(30), healthy_after: Duration::from_secs(30) }
    }
}

/// A series of failed attempts.
#[derive(Clone, Debug)]
pub struct Backoff {
    settings: BackoffSettings,
    /// The ceiling of the next wait.
    ceiling: Duration,
}

impl Backoff {
    /// A backoff before its first failure.
    #[must_use]
    pub fn new(settings: BackoffSettings) -> Self {
        Self { settings, ceiling: settings.wait_initial.min(settings.wait_max) }
    }

    /// The attempt failed after it had held for `held` (zero when it never connected): how long to wait.
    ///
    /// `random` is in `0.0..1.0`. Full jitter: any wait from zero to the ceiling, so that the proxies of a mesh, which all lose istiod
    /// at once, come back spread out.
    pub fn after_failure(&mut self, held: Duration, random: f64) -> Duration {
        if held >= self.settings.healthy_after {
            self.reset();
        }
        let wait = self.ceiling.mul_f64(random.clamp(0.0, 1.0));
        self.ceiling = self.ceiling.saturating_mul(2).min(self.settings.wait_max);
        wait
    }

    /// An attempt succeeded for good.
    pub fn reset(&mut self) {
        self.ceiling = self.settings.wait_initial.min(self.settings.wait_max);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ceilings(backoff: &mut Backoff, failures: usize) -> Vec<Duration> {
        (0..failures).map(|_| backoff.after_failure(Duration::ZERO, 1.0)).collect()
    }

    #[test]
    fn ceilings_double_up_to_the_longest_wait() {
        let mut backoff = Backoff::new(BackoffSettings::default());
        let seconds: Vec<f64> = ceilings(&mut backoff, 9).iter().map(Duration::as_secs_f64).collect();
        assert_eq!(seconds, [0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0, 30.0]);
    }

    #[test]
    fn jitter_covers_everything_below_the_ceiling() {
        for (random, expected) in [(0.0, 0.0), (0.25, 0.125), (0.5, 0.25)] {
            let mut backoff = Backoff::new(BackoffSettings::default());
            assert_eq!(backoff.after_failure(Duration::ZERO, random), Duration::from_secs_f64(expected));
        }
    }

    #[test]
    fn a_healthy_period_starts_afresh_and_a_short_one_does_not() {
        let settings = BackoffSettings::default();
        let mut backoff = Backoff::new(settings);
        ceilings(&mut backoff, 5);
        assert_eq!(backoff.after_failure(Duration::from_secs(29), 1.0), Duration::from_secs(16));
        assert_eq!(backoff.after_failure(Duration::from_secs(30), 1.0), Duration::from_millis(500));
        assert_eq!(backoff.after_failure(Duration::ZERO, 1.0), Duration::from_secs(1));
    }

    #[test]
    fn an_initial_wait_above_the_longest_is_cut() {
        let settings = BackoffSettings { wait_max: Duration::from_millis(10), ..BackoffSettings::default() };
        assert_eq!(ceilings(&mut Backoff::new(settings), 2), [Duration::from_millis(10); 2]);
    }
}
