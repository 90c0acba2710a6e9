//! How requests spread over the priorities of a cluster, in whole percents: Envoy's arithmetic.
//!
//! Not for: which endpoint of a priority. Source: Envoy's `LoadBalancerBase` ("Priority levels", "Panic threshold", "Degraded
//! endpoints"). Invariant: what is spread sums to a hundred.

/// The endpoints of one priority, counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Counted {
    /// All of them.
    pub(super) total: u32,
    /// Those that are healthy.
    pub(super) healthy: u32,
    /// Those that are degraded.
    pub(super) degraded: u32,
}

/// How much of all requests a priority could take, up to a hundred percent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Availability {
    pub(super) healthy: u32,
    pub(super) degraded: u32,
}

impl Availability {
    /// `counted` are endpoints, or their weights. `overprovisioning`: percents of what they take normally that they can take.
    pub(super) fn new(counted: Counted, overprovisioning: u32) -> Self {
        let of = |part: u32| {
            let percent = u64::from(overprovisioning) * u64::from(part) / u64::from(counted.total.max(1));
            u32::try_from(percent.min(100)).unwrap_or(100)
        };
        Self { healthy: of(counted.healthy), degraded: of(counted.degraded) }
    }
}

/// Percents of requests by priority.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Loads {
    pub(super) healthy: Vec<u32>,
    pub(super) degraded: Vec<u32>,
}

impl Loads {
    fn none(levels: usize) -> Self {
        Self { healthy: vec![0; levels], degraded: vec![0; levels] }
    }
}

fn total(levels: &[Availability]) -> u32 {
    levels.iter().fold(0, |sum: u32, level| sum.saturating_add(level.healthy).saturating_add(level.degraded)).min(100)
}

/// Healthy endpoints first, best priority first, then degraded ones. None: nothing is available.
pub(super) fn spread(levels: &[Availability]) -> Option<Loads> {
    let total = total(levels);
    if total == 0 {
        return None;
    }
    let mut loads = Loads::none(levels.len());
    let mut left = 100;
    let mut take = |share: &mut u32, available: u32| {
        *share = left.min(available * 100 / total);
        left -= *share;
    };
    loads.healthy.iter_mut().zip(levels).for_each(|(share, level)| take(share, level.healthy));
    loads.degraded.iter_mut().zip(levels).for_each(|(share, level)| take(share, level.degraded));
    // What rounding left over goes to the first that is available.
    if let Some(first) = levels.iter().position(|level| level.healthy > 0) {
        loads.healthy[first] += left;
    } else if let Some(first) = levels.iter().position(|level| level.degraded > 0) {
        loads.degraded[first] += left;
    }
    Some(loads)
}

/// Shares of all priorities, and which of them use all their endpoints because too few are available.
pub(super) fn loads(counted: &[Counted], available: &[Availability], panic_threshold_percent: f64) -> (Loads, Vec<bool>) {
    let mut panics = vec![false; counted.len()];
    if panic_threshold_percent > 0.0 && total(available) < 100 {
        for (panic, level) in panics.iter_mut().zip(counted) {
            let usable = f64::from(level.healthy.saturating_add(level.degraded));
            *panic = level.total == 0 || usable * 100.0 < panic_threshold_percent * f64::from(level.total);
        }
    }
    if panics.iter().all(|panic| *panic) {
        return (by_number(counted), panics);
    }
    let loads = spread(available).unwrap_or_else(|| Loads::to_the_first(counted.len()));
    (loads, panics)
}

impl Loads {
    /// Everything goes to the best priority, where nobody is.
    fn to_the_first(levels: usize) -> Self {
        let mut loads = Self::none(levels);
        if let Some(first) = loads.healthy.first_mut() {
            *first = 100;
        }
        loads
    }
}

/// When all panic, each priority gets its share by the number of its endpoints, whatever their health.
fn by_number(counted: &[Counted]) -> Loads {
    let sum: u64 = counted.iter().map(|level| u64::from(level.total)).sum();
    let Some(first) = counted.iter().position(|level| level.total > 0) else { return Loads::to_the_first(counted.len()) };
    let mut loads = Loads::none(counted.len());
    let mut left = 100;
    for (share, level) in loads.healthy.iter_mut().zip(counted) {
        *share = u32::try_from(100 * u64::from(level.total) / sum).unwrap_or(left).min(left);
        left -= *share;
    }
    loads.healthy[first] += left;
    loads
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counted(levels: &[(u32, u32, u32)]) -> Vec<Counted> {
        levels.iter().map(|(healthy, degraded, total)| Counted { total: *total, healthy: *healthy, degraded: *degraded }).collect()
    }

    fn shares(levels: &[(u32, u32, u32)], panic_threshold_percent: f64) -> (Vec<u32>, Vec<u32>, Vec<bool>) {
        let counted = counted(levels);
        let available: Vec<_> = counted.iter().map(|level| Availability::new(*level, 140)).collect();
        let (loads, panics) = loads(&counted, &available, panic_threshold_percent);
        assert_eq!(loads.healthy.iter().chain(&loads.degraded).sum::<u32>(), 100, "{loads:?}");
        (loads.healthy, loads.degraded, panics)
    }

    #[test]
    fn a_priority_spills_over_in_the_measure_that_its_health_falls() {
        // The table of Envoy's "Priority levels", two priorities of a hundred endpoints with an overprovisioning factor of 1.4.
        for (first, expected) in [(100, [100, 0]), (72, [100, 0]), (71, [99, 1]), (50, [70, 30]), (25, [35, 65]), (0, [0, 100])] {
            let (healthy, _, _) = shares(&[(first, 0, 100), (100, 0, 100)], 0.0);
            assert_eq!(healthy, expected, "{first} %");
        }
        // Both in part: normalised by 70 % of total health, as in Envoy's documentation.
        assert_eq!(shares(&[(25, 0, 100), (25, 0, 100)], 0.0).0, [50, 50]);
        // Three priorities; what is left of rounding goes to the first.
        assert_eq!(shares(&[(10, 0, 100), (20, 0, 100), (10, 0, 100)], 0.0).0, [25, 50, 25]);
        assert_eq!(shares(&[(10, 0, 100), (10, 0, 100), (10, 0, 100)], 0.0).0, [34, 33, 33]);
    }

    #[test]
    fn degraded_endpoints_take_what_healthy_ones_cannot() {
        let (healthy, degraded, _) = shares(&[(50, 50, 100)], 0.0);
        assert_eq!((healthy, degraded), (vec![70], vec![30]));
        // Healthy endpoints of a lower priority come before degraded ones of a higher.
        let (healthy, degraded, _) = shares(&[(0, 100, 100), (50, 0, 100)], 0.0);
        assert_eq!((healthy, degraded), (vec![0, 70], vec![30, 0]));
        let (healthy, degraded, _) = shares(&[(0, 3, 3)], 0.0);
        assert_eq!((healthy, degraded), (vec![0], vec![100]));
    }

    #[test]
    fn priorities_panic_below_the_threshold_and_only_where_not_all_can_be_taken() {
        // Envoy's table: P0 at 72 % takes all, however ill P1 is.
        assert_eq!(shares(&[(72, 0, 100), (10, 0, 100)], 50.0), (vec![100, 0], vec![0, 0], vec![false, false]));
        // 5 % and 65 %: total 98 < 100, so P0 panics and keeps its share.
        assert_eq!(shares(&[(5, 0, 100), (65, 0, 100)], 50.0), (vec![8, 92], vec![0, 0], vec![true, false]));
        // All panic: by number of endpoints.
        assert_eq!(shares(&[(0, 0, 1), (0, 0, 3)], 50.0), (vec![25, 75], vec![0, 0], vec![true, true]));
        // Without panic nobody is chosen: all requests go to the best priority, where nobody is.
        assert_eq!(shares(&[(0, 0, 2), (0, 0, 2)], 0.0), (vec![100, 0], vec![0, 0], vec![false, false]));
        assert_eq!(shares(&[(0, 0, 0)], 50.0).0, [100]);
    }
}
