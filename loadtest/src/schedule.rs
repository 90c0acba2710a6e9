//! The clock of an open loop: when request number `i` is due, whatever the server does.
//!
//! Latency is measured from the due time, so a stall of the server is seen by every request it delayed. Nothing queues:
//! a backlog is only the distance between two numbers. [`pace`] runs on a thread of its own, since tokio's timers have a
//! grain of one millisecond.

use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::Semaphore;

/// Shortest sleep of the pacer: above 5,000 requests a second, tickets come in small groups, each up to this late. A wake
/// costs tens of microseconds of system time on a virtual machine, which the proxy under test would miss.
const PACE_GRAIN: Duration = Duration::from_micros(200);
const NANOS_PER_SECOND: u128 = 1_000_000_000;

/// Requests at a fixed rate: number 0 is due at once, number `i` after `i / rate` seconds.
#[derive(Debug, Clone, Copy)]
pub struct Schedule {
    rate_per_second: NonZeroU32,
    total: u64,
}

impl Schedule {
    /// All requests that are due before `length` is over.
    pub fn new(rate_per_second: NonZeroU32, length: Duration) -> Self {
        let mut schedule = Self { rate_per_second, total: u64::MAX };
        schedule.total = schedule.first_due_at(length);
        schedule
    }

    /// How many requests there are in all.
    pub fn total(&self) -> u64 {
        self.total
    }

    /// When request `index` is due, after the start. Rounded down to nanoseconds.
    pub fn due(&self, index: u64) -> Duration {
        let nanos = u128::from(index) * NANOS_PER_SECOND / u128::from(self.rate_per_second.get());
        let seconds = u64::try_from(nanos / NANOS_PER_SECOND).expect("an index divided by a rate of at least 1 fits");
        Duration::new(seconds, u32::try_from(nanos % NANOS_PER_SECOND).expect("below 10^9"))
    }

    /// How many requests are due once `elapsed` has passed since the start.
    pub fn due_by(&self, elapsed: Duration) -> u64 {
        self.first_due_at(elapsed.saturating_add(Duration::from_nanos(1))).min(self.total)
    }

    /// The first request that is due at `time` or later.
    pub fn first_due_at(&self, time: Duration) -> u64 {
        let index = (time.as_nanos() * u128::from(self.rate_per_second.get())).div_ceil(NANOS_PER_SECOND);
        u64::try_from(index).unwrap_or(u64::MAX).min(self.total)
    }
}

/// Issues a ticket for each request when it is due, until all are or `tickets` is closed. Blocks its thread.
pub fn pace(schedule: Schedule, start: Instant, tickets: &Arc<Semaphore>) {
    let mut issued = 0;
    while issued < schedule.total() && !tickets.is_closed() {
        let due = schedule.due_by(start.elapsed());
        if let Ok(count) = usize::try_from(due - issued)
            && count > 0
        {
            tickets.add_permits(count);
        }
        issued = due;
        std::thread::sleep(schedule.due(issued).saturating_sub(start.elapsed()).max(PACE_GRAIN));
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;

    fn schedule(rate: u32, length: Duration) -> Schedule {
        Schedule::new(NonZeroU32::new(rate).unwrap(), length)
    }

    #[test]
    fn a_second_at_a_rate_holds_exactly_so_many_requests() {
        assert_eq!(schedule(1000, Duration::from_secs(1)).total(), 1000);
        assert_eq!(schedule(7, Duration::from_secs(3)).total(), 21);
        assert_eq!(schedule(3, Duration::from_millis(500)).total(), 2, "due at 0 and 333 ms");
    }

    #[test]
    fn due_times_do_not_drift_over_a_day() {
        let day = schedule(3, Duration::from_secs(86_400));
        assert_eq!(day.due(3 * 86_399), Duration::from_secs(86_399));
        assert_eq!(day.due(1), Duration::from_nanos(333_333_333));
    }

    #[test]
    fn a_request_counts_as_due_from_its_own_nanosecond_on() {
        let schedule = schedule(3, Duration::from_secs(10));
        for index in 1..30 {
            let due = schedule.due(index);
            assert_eq!(schedule.due_by(due), index + 1, "at {due:?}");
            assert_eq!(schedule.due_by(due - Duration::from_nanos(1)), index, "before {due:?}");
        }
    }

    #[test]
    fn a_stalled_reader_finds_the_whole_backlog_due() {
        let schedule = schedule(1000, Duration::from_secs(10));
        assert_eq!(schedule.due_by(Duration::from_secs(2)), 2001);
        assert_eq!(schedule.due_by(Duration::from_secs(3600)), 10_000, "never more than there are");
    }

    #[test]
    fn the_pacer_issues_every_ticket_and_ends() {
        let schedule = schedule(100_000, Duration::from_millis(20));
        let tickets = Arc::new(Semaphore::new(0));
        pace(schedule, Instant::now(), &tickets);
        assert_eq!(u64::try_from(tickets.available_permits()).unwrap(), schedule.total());
    }
}
