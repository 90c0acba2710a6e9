//! Waiting for a state, with a deadline. For everything in tests that becomes true later; not for delays.
//!
//! Invariant: a wait ends by its condition or by an error that says what was awaited, for how long, and why it was not so.

use std::time::Duration;

use anyhow::{Result, bail};
use tokio::time::Instant;

/// How often a condition is looked at.
const POLL_INTERVAL: Duration = Duration::from_millis(50);

/// What one look at a condition found.
#[derive(Debug)]
pub enum Look<T> {
    /// It is so; the wait ends.
    Done(T),
    /// Not yet, and why; shown if the deadline passes.
    NotYet(String),
}

/// Looks at `what` until it is done or `deadline` has passed. An error from `look` ends the wait at once.
///
/// Cancel safe: nothing is kept between two looks.
pub async fn until<T>(what: &str, deadline: Duration, mut look: impl AsyncFnMut() -> Result<Look<T>>) -> Result<T> {
    let end = Instant::now() + deadline;
    loop {
        match look().await? {
            Look::Done(value) => return Ok(value),
            Look::NotYet(reason) if Instant::now() >= end => {
                bail!("{what}: not so within {deadline:?}: {reason}")
            }
            Look::NotYet(_) => tokio::time::sleep(POLL_INTERVAL).await,
        }
    }
}
