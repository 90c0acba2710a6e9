//! Waiting for SIGINT or SIGTERM.

use tokio::signal::unix::{SignalKind, signal};

/// Returns when the process is asked to end.
pub async fn terminated() -> anyhow::Result<()> {
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
    }
    Ok(())
}
