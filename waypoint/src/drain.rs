//! How the process ends: a signal that everything long-lived watches, and a count of what is still open.
//!
//! Not for: deciding when to drain or for how long; `app` does, from signals and settings.
//! Invariants: phases only go forward; what holds a [`DrainGuard`] is waited for until the deadline.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::sync::{Notify, watch};
use tokio::time::Instant;

/// Where the process is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Serving.
    Running,
    /// No new work where that can be avoided; what is open may finish until `deadline`.
    Draining {
        /// When to cut what is still open.
        deadline: Instant,
    },
    /// Close everything now.
    Stop,
}

#[derive(Debug, Default)]
struct Open {
    count: AtomicUsize,
    idle: Notify,
}

/// The side that decides. Dropping it stops everything, so nothing can outlive a process that is going away.
#[derive(Debug)]
pub struct Drain {
    phase: watch::Sender<Phase>,
    open: Arc<Open>,
}

/// The side that obeys. Cheap to clone.
#[derive(Clone, Debug)]
pub struct DrainWatch {
    phase: watch::Receiver<Phase>,
    open: Arc<Open>,
}

/// Counts one open connection or request for as long as it lives.
#[must_use = "what is not held is not waited for"]
#[derive(Debug)]
pub struct DrainGuard {
    open: Arc<Open>,
}

impl Drop for DrainGuard {
    fn drop(&mut self) {
        if self.open.count.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.open.idle.notify_waiters();
        }
    }
}

/// Starts in [`Phase::Running`].
#[must_use]
pub fn drain() -> (Drain, DrainWatch) {
    let (sender, receiver) = watch::channel(Phase::Running);
    let open = Arc::new(Open::default());
    (Drain { phase: sender, open: Arc::clone(&open) }, DrainWatch { phase: receiver, open })
}

impl Drain {
    /// Begins to drain. A second call may only bring the deadline forward.
    pub fn begin(&self, deadline: Instant) {
        self.phase.send_if_modified(|phase| match *phase {
            Phase::Running => {
                *phase = Phase::Draining { deadline };
                true
            }
            Phase::Draining { deadline: earlier } if deadline < earlier => {
                *phase = Phase::Draining { deadline };
                true
            }
            Phase::Draining { .. } | Phase::Stop => false,
        });
    }

    /// Closes everything now.
    pub fn stop(&self) {
        self.phase.send_if_modified(|phase| {
            let changed = *phase != Phase::Stop;
            *phase = Phase::Stop;
            changed
        });
    }

    /// How many guards live.
    #[must_use]
    pub fn open_count(&self) -> usize {
        self.open.count.load(Ordering::Acquire)
    }

    /// Waits until no guard lives, at most until `deadline`. Cancel safe.
    ///
    /// # Errors
    /// The number of guards that still live at the deadline.
    pub async fn wait_idle(&self, deadline: Instant) -> Result<(), usize> {
        let idle = async {
            loop {
                let notified = self.open.idle.notified();
                let mut notified = std::pin::pin!(notified);
                notified.as_mut().enable();
                if self.open_count() == 0 {
                    return;
                }
                notified.await;
            }
        };
        match tokio::time::timeout_at(deadline, idle).await {
            Ok(()) => Ok(()),
            Err(_) => Err(self.open_count()),
        }
    }
}

impl DrainWatch {
    /// The present phase.
    #[must_use]
    pub fn phase(&self) -> Phase {
        // A sender that is gone means that nobody will decide any more.
        if self.phase.has_changed().is_err() { Phase::Stop } else { *self.phase.borrow() }
    }

    /// Waits until the phase is no longer the one last returned by this method (or by the one it was cloned from); says
    /// which it is now. Cancel safe.
    pub async fn changed(&mut self) -> Phase {
        match self.phase.changed().await {
            Ok(()) => *self.phase.borrow_and_update(),
            Err(_) => Phase::Stop,
        }
    }

    /// Waits for the end of [`Phase::Running`]. Cancel safe.
    pub async fn draining(&mut self) {
        // An error is a sender that is gone, which ends everything just so.
        let _ = self.phase.wait_for(|phase| *phase != Phase::Running).await;
    }

    /// Waits for [`Phase::Stop`] or for the deadline of [`Phase::Draining`], whichever comes first. Cancel safe.
    pub async fn stopped(&mut self) {
        loop {
            let phase = *self.phase.borrow_and_update();
            match phase {
                Phase::Stop => return,
                Phase::Running => {
                    if self.phase.changed().await.is_err() {
                        return;
                    }
                }
                Phase::Draining { deadline } => {
                    tokio::select! {
                        biased;
                        changed = self.phase.changed() => if changed.is_err() { return },
                        () = tokio::time::sleep_until(deadline) => return,
                    }
                }
            }
        }
    }

    /// Counts something that is open.
    pub fn guard(&self) -> DrainGuard {
        self.open.count.fetch_add(1, Ordering::AcqRel);
        DrainGuard { open: Arc::clone(&self.open) }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(5)
    }

    #[tokio::test(start_paused = true)]
    async fn idle_is_reached_when_the_last_guard_goes() {
        let (drain, watch) = drain();
        let (one, other) = (watch.guard(), watch.guard());
        drop(one);
        let waiter = async { drain.wait_idle(soon()).await };
        let release = async move { drop(other) };
        assert_eq!(tokio::join!(waiter, release).0, Ok(()));
    }

    #[tokio::test(start_paused = true)]
    async fn the_deadline_says_how_many_are_still_open() {
        let (drain, watch) = drain();
        let _held = watch.guard();
        assert_eq!(drain.wait_idle(soon()).await, Err(1));
    }

    #[tokio::test(start_paused = true)]
    async fn phases_only_go_forward() {
        let (drain, mut watch) = drain();
        let deadline = soon();
        drain.begin(deadline);
        drain.begin(deadline + Duration::from_secs(60));
        watch.draining().await;
        assert_eq!(watch.phase(), Phase::Draining { deadline });
        drain.stop();
        drain.begin(deadline);
        assert_eq!(watch.phase(), Phase::Stop);
    }

    #[tokio::test(start_paused = true)]
    async fn a_drain_stops_at_its_deadline() {
        let (drain, mut watch) = drain();
        let deadline = soon();
        drain.begin(deadline);
        watch.stopped().await;
        assert!(Instant::now() >= deadline);
    }

    #[tokio::test(start_paused = true)]
    async fn a_decider_that_is_gone_stops_everything() {
        let (drain, mut watch) = drain();
        drop(drain);
        watch.stopped().await;
        assert_eq!(watch.phase(), Phase::Stop);
    }
}
