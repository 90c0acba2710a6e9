//! Ejects endpoints that fail, and takes them back: what the control thread makes of what workers counted.
//!
//! Not for: counting (`health`), or who gets requests then (`table`). Source: Envoy's `DetectorImpl`. Invariants: no more than
//! the allowed share is ejected; each ejection ends.

use std::sync::Arc;
use std::time::{Duration, Instant};

use model::outlier::OutlierDetection;

use super::health::{EndpointState, Fault};
use super::published::{ClusterEntry, Published};
use super::rates::{self, Tally};

/// When there is no cluster to look at.
const NEVER: Duration = Duration::from_secs(3600);

/// Looks after all clusters, for ever.
pub async fn run(published: Arc<Published>) {
    let mut random = fastrand::Rng::new();
    loop {
        let now = Instant::now();
        let next = look(&published, now, &mut || random.u64(..)).unwrap_or(now + NEVER);
        let next = tokio::time::sleep_until(next.into());
        tokio::select! {
            () = next => {}
            () = published.suspicions.notified() => {}
        }
    }
}

/// Looks at every cluster; returns when it has to be looked again.
fn look(published: &Published, now: Instant, draw: &mut impl FnMut() -> u64) -> Option<Instant> {
    let clusters = published.clusters();
    let served = clusters.values().filter_map(|entry| match entry {
        ClusterEntry::Served(served) => Some(served),
        ClusterEntry::Refused(_) => None,
    });
    served.filter_map(|served| served.judge(now, draw)).min()
}

/// Takes endpoints back whose time has passed. True: there was one.
pub(super) fn take_back(rules: &OutlierDetection, states: &[Arc<EndpointState>], now: Instant) -> bool {
    let mut is_changed = false;
    for state in states {
        let mut ejections = state.ejections.lock();
        if let Some(since) = ejections.since {
            let time = rules.ejection_time_base.saturating_mul(ejections.times).min(rules.ejection_time_max);
            if now.saturating_duration_since(since) >= time.saturating_add(ejections.jitter) {
                ejections.since = None;
                ejections.back_since = Some(now);
                state.set_ejected(false);
                // A row that was begun before must not end the new life early.
                Fault::ALL.into_iter().for_each(|fault| state.reset(fault));
                is_changed = true;
            }
        } else if ejections.back_since.is_some_and(|back| now.saturating_duration_since(back) >= rules.interval) {
            ejections.times = ejections.times.saturating_sub(1);
        }
    }
    is_changed
}

/// Ejects what is suspected, as far as it may be. True: there was one.
pub(super) fn eject(rules: &OutlierDetection, states: &[Arc<EndpointState>], now: Instant, draw: &mut impl FnMut() -> u64) -> bool {
    let mut n_ejected = states.iter().filter(|state| state.is_ejected()).count();
    let before = n_ejected;
    for state in states {
        for fault in state.take_suspicions() {
            if state.is_ejected() {
                continue;
            }
            if may_eject(rules, n_ejected, states.len()) && is_enforced(rules, fault, draw) {
                note_ejection(rules, state, now, draw);
                n_ejected += 1;
            }
            state.reset(fault);
        }
    }
    n_ejected != before
}

/// Ejects who falls behind in an interval that has ended, as far as may be. True: there was one.
pub(super) fn compare(rules: &OutlierDetection, states: &[Arc<EndpointState>], now: Instant, draw: &mut impl FnMut() -> u64) -> bool {
    if !rules.compares() {
        return false;
    }
    // Who is left out already is no measure for the others, nor judged when it comes back by what was before.
    let of = |state: &EndpointState, tally: &Tally| Some(tally.take()).filter(|_| !state.is_ejected()).unwrap_or_default();
    let answers: Vec<_> = states.iter().map(|state| of(state, &state.answers)).collect();
    let connections: Vec<_> = states.iter().map(|state| of(state, &state.connections)).collect();
    let (rate, share) = (&rules.success_rate, &rules.failure_share);
    let local = |enforcing_percent| if rules.split_local { enforcing_percent } else { 0 };
    let found = [
        (rates::behind(rate, &answers), rate.enforcing_percent),
        (rates::behind(rate, &connections), local(rate.local_enforcing_percent)),
        (rates::failing(share, &answers), share.enforcing_percent),
        (rates::failing(share, &connections), local(share.local_enforcing_percent)),
    ];
    let mut n_ejected = states.iter().filter(|state| state.is_ejected()).count();
    let before = n_ejected;
    for (at, enforcing_percent) in found.into_iter().flat_map(|(found, percent)| found.into_iter().map(move |at| (at, percent))) {
        let state = &states[at];
        if !state.is_ejected() && may_eject(rules, n_ejected, states.len()) && is_drawn(enforcing_percent, draw) {
            note_ejection(rules, state, now, draw);
            n_ejected += 1;
        }
    }
    n_ejected != before
}

fn may_eject(rules: &OutlierDetection, n_ejected: usize, n_all: usize) -> bool {
    let within = 100_usize.saturating_mul(n_ejected + 1) <= n_all.saturating_mul(usize::try_from(rules.ejected_percent_max).unwrap_or(100));
    within || (rules.always_eject_one && n_ejected == 0)
}

fn is_enforced(rules: &OutlierDetection, fault: Fault, draw: &mut impl FnMut() -> u64) -> bool {
    let rule = match fault {
        Fault::ServerErrors => rules.server_errors,
        Fault::GatewayErrors => rules.gateway_errors,
        Fault::LocalFailures => rules.local_failures,
    };
    is_drawn(rule.enforcing_percent, draw)
}

fn is_drawn(percent: u32, draw: &mut impl FnMut() -> u64) -> bool {
    percent >= 100 || draw() % 100 < u64::from(percent)
}

fn note_ejection(rules: &OutlierDetection, state: &EndpointState, now: Instant, draw: &mut impl FnMut() -> u64) {
    let mut ejections = state.ejections.lock();
    ejections.since = Some(now);
    let jitter_max = u64::try_from(rules.ejection_jitter_max.as_millis()).unwrap_or(u64::MAX);
    ejections.jitter = Duration::from_millis(draw().checked_rem(jitter_max.saturating_add(1)).unwrap_or(0));
    // Once the longest time is reached it need not be counted further.
    if rules.ejection_time_base.saturating_mul(ejections.times) < rules.ejection_time_max.saturating_add(rules.ejection_time_base) {
        ejections.times += 1;
    }
    state.set_ejected(true);
}

#[cfg(test)]
mod tests {
    use model::outlier::{Consecutive, FailureShare, SuccessRate};

    use super::super::health::Verdict;
    use super::*;

    fn rules() -> OutlierDetection {
        OutlierDetection {
            server_errors: Consecutive { failures: 1, enforcing_percent: 100 },
            ejected_percent_max: 100,
            ..OutlierDetection::default()
        }
    }

    fn states(n_failing: usize, n_all: usize, rules: &OutlierDetection) -> Vec<Arc<EndpointState>> {
        let states: Vec<Arc<EndpointState>> = (0..n_all).map(|_| Arc::default()).collect();
        for state in states.iter().take(n_failing) {
            state.note(Verdict::Answered(500), rules);
        }
        states
    }

    fn n_ejected(states: &[Arc<EndpointState>]) -> usize {
        states.iter().filter(|state| state.is_ejected()).count()
    }

    #[test]
    fn no_more_are_ejected_than_may_be() {
        // Envoy: what would be ejected then, in percent, is not above max_ejection_percent, or it is the one that always may.
        for (percent, always_one, n_failing, n_all, expected) in [
            (100, false, 4, 4, 4),
            (50, false, 4, 4, 2),
            (10, false, 4, 4, 0),
            (10, true, 4, 4, 1),
            (10, false, 3, 10, 1),
            (0, false, 1, 1, 0),
        ] {
            let rules = OutlierDetection { ejected_percent_max: percent, always_eject_one: always_one, ..rules() };
            let states = states(n_failing, n_all, &rules);
            assert_eq!(eject(&rules, &states, Instant::now(), &mut || 0), expected > 0);
            assert_eq!(n_ejected(&states), expected, "{percent} % of {n_all}, {n_failing} fail");
        }
    }

    #[test]
    fn an_ejection_is_made_in_the_share_of_cases_that_is_enforced() {
        let server_errors = Consecutive { failures: 1, enforcing_percent: 30 };
        let rules = OutlierDetection { server_errors, ..rules() };
        for (drawn, expected) in [(29, 1), (30, 0)] {
            let states = states(1, 1, &rules);
            eject(&rules, &states, Instant::now(), &mut || drawn);
            assert_eq!(n_ejected(&states), expected, "{drawn}");
        }
    }

    #[test]
    fn the_time_out_grows_with_each_ejection_up_to_its_maximum_and_shrinks_again() {
        let rules = OutlierDetection { ejection_time_max: Duration::from_secs(70), ..rules() };
        let states = states(0, 1, &rules);
        let mut now = Instant::now();
        for seconds in [30, 60, 70, 70] {
            states[0].note(Verdict::Answered(500), &rules);
            assert!(eject(&rules, &states, now, &mut || 0));
            assert!(!take_back(&rules, &states, now + Duration::from_secs(seconds - 1)), "{seconds}");
            now += Duration::from_secs(seconds);
            assert!(take_back(&rules, &states, now), "{seconds}");
        }
        // Four ejections count as four at most; each interval in good health takes one away.
        for _ in 0..4 {
            now += rules.interval;
            take_back(&rules, &states, now);
        }
        states[0].note(Verdict::Answered(500), &rules);
        eject(&rules, &states, now, &mut || 0);
        assert!(take_back(&rules, &states, now + Duration::from_secs(30)));
    }

    #[test]
    fn who_comes_back_has_a_new_row() {
        let rules = OutlierDetection { server_errors: Consecutive { failures: 2, enforcing_percent: 100 }, ..rules() };
        let states = states(0, 1, &rules);
        let now = Instant::now();
        for _ in 0..3 {
            states[0].note(Verdict::Answered(500), &rules);
        }
        assert!(eject(&rules, &states, now, &mut || 0));
        states[0].note(Verdict::Answered(500), &rules);
        assert!(take_back(&rules, &states, now + Duration::from_secs(30)));
        assert!(!states[0].note(Verdict::Answered(500), &rules));
        assert!(states[0].note(Verdict::Answered(500), &rules));
    }

    #[test]
    fn who_falls_behind_in_an_interval_is_ejected_and_counted_anew() {
        let rules = OutlierDetection { ejected_percent_max: 100, ..OutlierDetection::default() };
        let states = states(0, 5, &rules);
        let ask = |bad: usize, verdict: Verdict| {
            for (at, state) in states.iter().enumerate() {
                for _ in 0..100 {
                    state.note(if at == bad { verdict } else { Verdict::Answered(200) }, &rules);
                }
            }
        };
        let now = Instant::now();
        ask(5, Verdict::Answered(500));
        assert!(!compare(&rules, &states, now, &mut || 0), "all are alike");
        ask(2, Verdict::TimedOut);
        assert!(compare(&rules, &states, now, &mut || 0) && states[2].is_ejected() && n_ejected(&states) == 1);
        assert!(!compare(&rules, &states, now, &mut || 0), "nobody was asked since");
        let never = SuccessRate { enforcing_percent: 0, ..SuccessRate::default() };
        assert!(!OutlierDetection { success_rate: never, ..rules }.compares(), "as istiod says");
        let take_back_at = now + rules.ejection_time_base;
        assert!(take_back(&rules, &states, take_back_at));
        // Whatever the others do, with a share that is set.
        let failure_share = FailureShare { enforcing_percent: 100, hosts_min: 1, ..FailureShare::default() };
        let rules = OutlierDetection { success_rate: never, failure_share, ..rules };
        ask(0, Verdict::Answered(502));
        assert!(compare(&rules, &states, take_back_at, &mut || 0) && states[0].is_ejected() && n_ejected(&states) == 1);
    }

    #[test]
    fn local_failures_are_compared_on_their_own_where_they_are_split() {
        let rules = OutlierDetection { split_local: true, ejected_percent_max: 100, ..OutlierDetection::default() };
        let states = states(0, 5, &rules);
        for (at, state) in states.iter().enumerate() {
            for _ in 0..100 {
                state.note(if at == 1 { Verdict::NoAnswer } else { Verdict::Connected }, &rules);
                state.note(Verdict::Answered(200), &rules);
            }
        }
        assert!(compare(&rules, &states, Instant::now(), &mut || 0) && states[1].is_ejected() && n_ejected(&states) == 1);
    }
}
