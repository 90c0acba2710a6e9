//! What is known of an endpoint beside what EDS says: its load, how it answered, whether it is left out.
//!
//! Not for: what follows from it (`table`, `outlier`). Invariants: it outlives updates of endpoints and clusters, and all workers
//! share it; workers only count, the control thread ejects.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, Ordering};
use std::time::{Duration, Instant};

use model::outlier::OutlierDetection;
use parking_lot::Mutex;

use super::breaker::Permit;
use super::rates::Tally;

/// Failures in a row that an endpoint may be ejected for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    ServerErrors,
    GatewayErrors,
    LocalFailures,
}

impl Fault {
    pub(super) const ALL: [Self; 3] = [Self::ServerErrors, Self::GatewayErrors, Self::LocalFailures];

    fn bit(self) -> u8 {
        match self {
            Self::ServerErrors => 1,
            Self::GatewayErrors => 2,
            Self::LocalFailures => 4,
        }
    }
}

/// How a try went, as far as it says something about the endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// There is a connection; what comes of it will be told.
    Connected,
    /// There is a connection, which is all that was wanted.
    Reached,
    /// An answer with this status; of gRPC the status that HTTP would have.
    Answered(u16),
    /// No connection, or it ended before an answer.
    NoAnswer,
    /// No answer in time.
    TimedOut,
}

/// Ejections of one endpoint; of the control thread only.
#[derive(Debug, Default)]
pub(super) struct Ejections {
    /// Grows with each ejection, shrinks with each interval without.
    pub(super) times: u32,
    pub(super) since: Option<Instant>,
    pub(super) jitter: Duration,
    pub(super) back_since: Option<Instant>,
}

/// One endpoint's state.
#[derive(Debug)]
pub struct EndpointState {
    active: AtomicU32,
    server_errors: AtomicU32,
    gateway_errors: AtomicU32,
    local_failures: AtomicU32,
    /// What it answered, where endpoints are compared; without a row of their own local failures too.
    pub(super) answers: Tally,
    /// Whether it could be reached, where that is counted on its own.
    pub(super) connections: Tally,
    /// Faults that the control thread is to look at.
    suspected: AtomicU8,
    is_ejected: AtomicBool,
    pub(super) ejections: Mutex<Ejections>,
    /// When it was first listed.
    since: Instant,
}

impl Default for EndpointState {
    fn default() -> Self {
        Self {
            active: AtomicU32::new(0),
            server_errors: AtomicU32::new(0),
            gateway_errors: AtomicU32::new(0),
            local_failures: AtomicU32::new(0),
            answers: Tally::default(),
            connections: Tally::default(),
            suspected: AtomicU8::new(0),
            is_ejected: AtomicBool::new(false),
            ejections: Mutex::default(),
            since: Instant::now(),
        }
    }
}

impl EndpointState {
    /// Requests in flight, all workers together.
    #[must_use]
    pub fn active(&self) -> u32 {
        self.active.load(Ordering::Relaxed)
    }

    /// When it was first listed.
    #[must_use]
    pub fn since(&self) -> Instant {
        self.since
    }

    /// Whether it is left out because of how it answered.
    #[must_use]
    pub fn is_ejected(&self) -> bool {
        self.is_ejected.load(Ordering::Relaxed)
    }

    pub(super) fn set_ejected(&self, is_ejected: bool) {
        self.is_ejected.store(is_ejected, Ordering::Relaxed);
    }

    fn count(&self, fault: Fault) -> &AtomicU32 {
        match fault {
            Fault::ServerErrors => &self.server_errors,
            Fault::GatewayErrors => &self.gateway_errors,
            Fault::LocalFailures => &self.local_failures,
        }
    }

    /// Counts a verdict. True: the control thread has to look at this endpoint.
    pub(super) fn note(&self, verdict: Verdict, rules: &OutlierDetection) -> bool {
        if rules.compares() {
            match (verdict, rules.split_local) {
                (Verdict::Answered(status), _) => self.answers.count(status < 500),
                (Verdict::Reached, false) => self.answers.count(true),
                (Verdict::NoAnswer | Verdict::TimedOut, false) => self.answers.count(false),
                (Verdict::Connected, false) => {}
                (Verdict::Connected | Verdict::Reached, true) => self.connections.count(true),
                (Verdict::NoAnswer | Verdict::TimedOut, true) => self.connections.count(false),
            }
        }
        match (verdict, rules.split_local) {
            (Verdict::Answered(status), _) => self.note_status(status, rules),
            (Verdict::Connected, false) => false,
            (Verdict::Reached, false) => self.note_status(200, rules),
            (Verdict::NoAnswer, false) => self.note_status(503, rules),
            (Verdict::TimedOut, false) => self.note_status(504, rules),
            (Verdict::Connected | Verdict::Reached, true) => {
                self.reset(Fault::LocalFailures);
                false
            }
            (Verdict::NoAnswer | Verdict::TimedOut, true) => self.fail(Fault::LocalFailures, rules.local_failures.failures),
        }
    }

    fn note_status(&self, status: u16, rules: &OutlierDetection) -> bool {
        if status < 500 {
            self.reset(Fault::ServerErrors);
            self.reset(Fault::GatewayErrors);
            return false;
        }
        let is_gateway = match status {
            502..=504 => self.fail(Fault::GatewayErrors, rules.gateway_errors.failures),
            _ => {
                self.reset(Fault::GatewayErrors);
                false
            }
        };
        self.fail(Fault::ServerErrors, rules.server_errors.failures) | is_gateway
    }

    fn fail(&self, fault: Fault, max: u32) -> bool {
        let count = self.count(fault).fetch_add(1, Ordering::Relaxed).wrapping_add(1);
        if count != max {
            return false;
        }
        self.suspected.fetch_or(fault.bit(), Ordering::Relaxed);
        true
    }

    /// Starts a row anew. Of the many requests that succeed nearly none has anything to write.
    pub(super) fn reset(&self, fault: Fault) {
        let count = self.count(fault);
        if count.load(Ordering::Relaxed) != 0 {
            count.store(0, Ordering::Relaxed);
        }
    }

    /// What it is suspected of; told once.
    pub(super) fn take_suspicions(&self) -> impl Iterator<Item = Fault> {
        let bits = self.suspected.swap(0, Ordering::Relaxed);
        Fault::ALL.into_iter().filter(move |fault| bits & fault.bit() != 0)
    }
}

/// Counts one request in flight until it is dropped.
#[derive(Debug)]
pub struct ActiveRequest {
    state: Arc<EndpointState>,
    permit: Option<Permit>,
}

impl ActiveRequest {
    /// Counts one more.
    #[must_use]
    pub fn begin(state: &Arc<EndpointState>) -> Self {
        state.active.fetch_add(1, Ordering::Relaxed);
        Self { state: Arc::clone(state), permit: None }
    }

    /// Counts towards a circuit breaker as well, until it is dropped.
    pub fn hold(&mut self, permit: Option<Permit>) {
        self.permit = permit;
    }
}

impl Drop for ActiveRequest {
    fn drop(&mut self) {
        self.state.active.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use model::outlier::Consecutive;

    use super::*;

    fn suspicions(rules: &OutlierDetection, verdicts: &[Verdict]) -> Vec<Fault> {
        let state = EndpointState::default();
        let mut found = Vec::new();
        for verdict in verdicts {
            if state.note(*verdict, rules) {
                found.extend(state.take_suspicions());
            }
        }
        found
    }

    fn three_in_a_row(split_local: bool) -> OutlierDetection {
        let three = Consecutive { failures: 3, enforcing_percent: 100 };
        OutlierDetection { server_errors: three, gateway_errors: three, local_failures: three, split_local, ..OutlierDetection::default() }
    }

    #[test]
    fn failures_count_in_a_row_and_a_success_begins_anew() {
        use Verdict::{Answered, Connected, NoAnswer, TimedOut};
        let together = three_in_a_row(false);
        assert_eq!(suspicions(&together, &[Answered(500), Answered(500), Answered(200), Answered(500), Answered(500)]), []);
        assert_eq!(suspicions(&together, &[Answered(500), Answered(404), Answered(500), Answered(500)]), []);
        assert_eq!(suspicions(&together, &[Answered(500), Answered(503), Answered(500)]), [Fault::ServerErrors]);
        // Local failures are 503 and 504 there; a connection alone says nothing.
        let both = [Fault::ServerErrors, Fault::GatewayErrors];
        assert_eq!(suspicions(&together, &[NoAnswer, Connected, TimedOut, Connected, Answered(502)]), both);
    }

    #[test]
    fn split_local_failures_have_a_row_of_their_own() {
        use Verdict::{Answered, Connected, NoAnswer, TimedOut};
        let split = three_in_a_row(true);
        assert_eq!(suspicions(&split, &[NoAnswer, Answered(200), TimedOut, NoAnswer]), [Fault::LocalFailures]);
        assert_eq!(suspicions(&split, &[NoAnswer, NoAnswer, Connected, Answered(500), NoAnswer]), []);
        assert_eq!(suspicions(&split, &[Answered(503), NoAnswer, Answered(503)]), []);
    }

    #[test]
    fn a_row_that_goes_on_is_told_once() {
        let five_hundreds = [Verdict::Answered(500); 9];
        assert_eq!(suspicions(&three_in_a_row(false), &five_hundreds), [Fault::ServerErrors]);
        let never = OutlierDetection { server_errors: Consecutive { failures: 0, enforcing_percent: 100 }, ..OutlierDetection::default() };
        assert_eq!(suspicions(&never, &five_hundreds), []);
    }
}
