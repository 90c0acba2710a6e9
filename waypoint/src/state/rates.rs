//! How often endpoints succeed within an interval, and who falls behind: the others, or a share that is set.
//!
//! Not for: ejecting (`outlier`). Source: Envoy's `processSuccessRateEjections`. Invariants: an endpoint that was asked too seldom is not
//! judged, and where too few were asked often enough nobody is.

use std::sync::atomic::{AtomicU32, Ordering};

use model::outlier::{FailureShare, SuccessRate};

/// Of one endpoint, since it was last looked at.
#[derive(Debug, Default)]
pub(super) struct Tally {
    all: AtomicU32,
    good: AtomicU32,
}

impl Tally {
    pub(super) fn count(&self, is_good: bool) {
        self.all.fetch_add(1, Ordering::Relaxed);
        if is_good {
            self.good.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Begins anew.
    pub(super) fn take(&self) -> Counted {
        let good = self.good.swap(0, Ordering::Relaxed);
        Counted { all: self.all.swap(0, Ordering::Relaxed).max(good), good }
    }
}

/// What was counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Counted {
    pub(super) all: u32,
    pub(super) good: u32,
}

impl Counted {
    /// In percent; none where it was asked too seldom.
    fn success(self, requests_min: u32) -> Option<f64> {
        (self.all > 0 && self.all >= requests_min).then(|| f64::from(self.good) * 100.0 / f64::from(self.all))
    }
}

/// Those whose success is further below the average than the deviation of all allows.
pub(super) fn behind(rule: &SuccessRate, counted: &[Counted]) -> Vec<usize> {
    let rates = judged(counted, rule.requests_min, rule.hosts_min);
    let number = u32::try_from(rates.len()).map_or(f64::INFINITY, f64::from);
    let mean = rates.iter().map(|(_, rate)| rate).sum::<f64>() / number;
    let variance = rates.iter().map(|(_, rate)| (rate - mean).powi(2)).sum::<f64>() / number;
    let threshold = mean - variance.sqrt() * f64::from(rule.deviation_thousandths) / 1000.0;
    rates.into_iter().filter(|(_, rate)| *rate < threshold).map(|(at, _)| at).collect()
}

/// Those that fail as often as is set, or more.
pub(super) fn failing(rule: &FailureShare, counted: &[Counted]) -> Vec<usize> {
    let rates = judged(counted, rule.requests_min, rule.hosts_min);
    rates.into_iter().filter(|(_, rate)| 100.0 - rate >= f64::from(rule.threshold_percent)).map(|(at, _)| at).collect()
}

fn judged(counted: &[Counted], requests_min: u32, hosts_min: u32) -> Vec<(usize, f64)> {
    let rates: Vec<_> = counted.iter().enumerate().filter_map(|(at, one)| Some((at, one.success(requests_min)?))).collect();
    if rates.len() < usize::try_from(hosts_min).unwrap_or(usize::MAX) { Vec::new() } else { rates }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(percents: &[u32]) -> Vec<Counted> {
        percents.iter().map(|good| Counted { all: 100, good: *good }).collect()
    }

    #[test]
    fn who_is_far_behind_the_others_is_found() {
        let rule = SuccessRate::default();
        // The mean is 90.2, the deviation 16.8: below 58.3 by 1.9 of it.
        assert_eq!(behind(&rule, &of(&[100, 98, 97, 99, 57])), [4]);
        assert_eq!(behind(&rule, &of(&[100, 98, 97, 99])), [0; 0], "four are too few to compare");
        assert_eq!(behind(&rule, &of(&[50, 50, 50, 50, 50])), [0; 0], "all are alike");
        let mut seldom = of(&[100, 98, 97, 99, 57]);
        seldom[4] = Counted { all: 99, good: 0 };
        assert_eq!(behind(&rule, &seldom), [0; 0]);
        let eager = SuccessRate { deviation_thousandths: 500, hosts_min: 2, ..rule };
        assert_eq!(behind(&eager, &of(&[100, 90])), [1]);
    }

    #[test]
    fn who_fails_too_often_is_found() {
        let rule = FailureShare { hosts_min: 2, ..FailureShare::default() };
        assert_eq!(failing(&rule, &of(&[100, 15, 16, 0])), [1, 3], "85 of a hundred are as many as may not fail");
        assert_eq!(failing(&FailureShare::default(), &of(&[100, 0, 0, 0])), [0; 0], "four are too few");
        assert_eq!(
            failing(&rule, &[Counted { all: 49, good: 0 }, Counted { all: 50, good: 0 }]),
            [0; 0],
            "only one was asked often enough"
        );
    }

    #[test]
    fn a_count_begins_anew() {
        let tally = Tally::default();
        [true, false, true].into_iter().for_each(|good| tally.count(good));
        assert_eq!((tally.take(), tally.take()), (Counted { all: 3, good: 2 }, Counted { all: 0, good: 0 }));
    }
}
