//! Threads: workers with one single-threaded runtime each, for the data plane.
//!
//! Not for: control work (xDS, CA, admin, exporters), which has a runtime of its own so that a scrape or a push never
//! delays a request.
//! Why not one multi-threaded runtime: it runs a task next that was just woken, so a connection would be flushed after
//! every stream's write; first in, first out lets all ready streams write before their connection runs once.
//! Invariant: a worker lives until it is told to stop, whatever its tasks do.

use std::future::Future;
use std::io;
use std::num::NonZeroUsize;
use std::thread::JoinHandle;

use thiserror::Error;
use tokio::runtime::{Builder, Handle};
use tokio::sync::watch;

/// Most workers, whatever is asked for.
pub const WORKERS_MAX: usize = 512;

/// Threads per worker for blocking calls (name resolution, files).
const BLOCKING_THREADS_MAX: usize = 4;

/// The data plane's threads.
#[derive(Debug)]
pub struct Workers {
    workers: Vec<Worker>,
    stop: watch::Sender<bool>,
}

#[derive(Debug)]
struct Worker {
    handle: Handle,
    thread: JoinHandle<()>,
}

impl Workers {
    /// Starts `count` workers, at most [`WORKERS_MAX`], named `worker-0` and so on.
    ///
    /// # Errors
    /// The system gave no thread or no poller; workers that were started end.
    pub fn start(count: NonZeroUsize) -> io::Result<Self> {
        let (stop, stopped) = watch::channel(false);
        let start = |index: usize| -> io::Result<Worker> {
            let runtime = Builder::new_current_thread().enable_all().max_blocking_threads(BLOCKING_THREADS_MAX).build()?;
            let handle = runtime.handle().clone();
            let mut stopped = stopped.clone();
            let thread = std::thread::Builder::new().name(format!("worker-{index}")).spawn(move || {
                // An error is a `Workers` that is gone, which stops them just so.
                runtime.block_on(async { stopped.wait_for(|stop| *stop).await.map(drop).ok() });
            })?;
            Ok(Worker { handle, thread })
        };
        let workers = (0..count.get().min(WORKERS_MAX)).map(start).collect::<io::Result<_>>()?;
        Ok(Self { workers, stop })
    }

    /// How many workers there are.
    #[must_use]
    pub fn count(&self) -> usize {
        self.workers.len()
    }

    /// Spawns one future on each worker; `make` gets the worker's number and runs here, its future there.
    pub fn spawn_on_each<F: Future<Output = ()> + Send + 'static>(&self, mut make: impl FnMut(usize) -> F) {
        for (index, worker) in self.workers.iter().enumerate() {
            worker.handle.spawn(make(index));
        }
    }

    /// The runtime of one worker, counted around: for work that may run on any.
    #[must_use]
    pub fn handle(&self, index: usize) -> &Handle {
        &self.workers[index % self.workers.len()].handle
    }

    /// Stops the workers, dropping what still runs on them, and waits for their threads. Blocks: not for async code.
    ///
    /// # Errors
    /// The number of workers that panicked.
    pub fn join(self) -> Result<(), usize> {
        self.stop.send_replace(true);
        let panicked = self.workers.into_iter().filter_map(|worker| worker.thread.join().err()).count();
        if panicked == 0 { Ok(()) } else { Err(panicked) }
    }
}

/// What decides the number of workers.
#[derive(Clone, Copy, Debug)]
pub struct WorkerCount<'a> {
    /// `concurrency` of ProxyConfig; 0 is all cores.
    pub concurrency: Option<u32>,
    /// `ISTIO_CPU_LIMIT`: whole CPUs, rounded up by the kubelet.
    pub cpu_limit: Option<&'a str>,
    /// The text of cgroup v2's `cpu.max`: `max 100000`, or a quota and a period in microseconds.
    pub cgroup_quota: Option<&'a str>,
    /// The cores this process may run on.
    pub cores: NonZeroUsize,
}

/// A setting that is no number of CPUs.
#[derive(Debug, PartialEq, Eq, Error)]
pub enum WorkerCountError {
    /// `ISTIO_CPU_LIMIT` cannot be read.
    #[error("ISTIO_CPU_LIMIT is {0:?}; expected a whole number of CPUs")]
    CpuLimit(String),
    /// The quota cannot be read.
    #[error("cpu.max is {0:?}; expected \"max\" or a quota, and a period")]
    CgroupQuota(String),
}

impl WorkerCount<'_> {
    /// `concurrency` if it is set, as Istio documents; else the CPU limit, else the cgroup's quota rounded up, neither
    /// above the cores; else the cores.
    ///
    /// # Errors
    /// A setting that decides and cannot be read.
    pub fn decide(&self) -> Result<NonZeroUsize, WorkerCountError> {
        let wanted = match (self.concurrency, self.cpu_limit, self.cgroup_quota) {
            (Some(concurrency), ..) => NonZeroUsize::new(usize::try_from(concurrency).unwrap_or(WORKERS_MAX)),
            (None, Some(limit), _) => Some(cpu_limit(limit)?.min(self.cores)),
            (None, None, Some(quota)) => cgroup_quota(quota)?.map(|cpus| cpus.min(self.cores)),
            (None, None, None) => None,
        };
        let workers = wanted.unwrap_or(self.cores);
        Ok(NonZeroUsize::new(WORKERS_MAX).map_or(workers, |max| workers.min(max)))
    }
}

fn cpu_limit(text: &str) -> Result<NonZeroUsize, WorkerCountError> {
    text.trim().parse().map_err(|_| WorkerCountError::CpuLimit(text.to_owned()))
}

fn cgroup_quota(text: &str) -> Result<Option<NonZeroUsize>, WorkerCountError> {
    let refused = || WorkerCountError::CgroupQuota(text.to_owned());
    let (quota, period) = text.trim().split_once(' ').ok_or_else(refused)?;
    let period: usize = period.parse().ok().filter(|period| *period > 0).ok_or_else(refused)?;
    if quota == "max" {
        return Ok(None);
    }
    let quota: usize = quota.parse().map_err(|_| refused())?;
    NonZeroUsize::new(quota.div_ceil(period)).map(Some).ok_or_else(refused)
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]

    use super::*;

    fn decide(concurrency: Option<u32>, cpu_limit: Option<&str>, cgroup_quota: Option<&str>) -> Result<usize, WorkerCountError> {
        let cores = NonZeroUsize::new(8).unwrap();
        WorkerCount { concurrency, cpu_limit, cgroup_quota, cores }.decide().map(NonZeroUsize::get)
    }

    #[test]
    fn the_first_setting_that_is_there_decides() {
        let cases = [
            (Some(2), Some("4"), Some("100000 100000"), 2),
            (Some(0), Some("4"), None, 8),
            (Some(16), None, None, 16),
            (None, Some("4"), Some("100000 100000"), 4),
            (None, Some("64"), None, 8),
            (None, None, Some("150000 100000\n"), 2),
            (None, None, Some("max 100000\n"), 8),
            (None, None, None, 8),
            (Some(u32::MAX), None, None, WORKERS_MAX),
        ];
        for (concurrency, limit, quota, workers) in cases {
            assert_eq!(decide(concurrency, limit, quota), Ok(workers), "{concurrency:?} {limit:?} {quota:?}");
        }
    }

    #[test]
    fn what_cannot_be_read_is_an_error() {
        for limit in ["", "two", "0", "-1", "1.5"] {
            assert_eq!(decide(None, Some(limit), None), Err(WorkerCountError::CpuLimit(limit.to_owned())));
        }
        for quota in ["", "max", "100000", "x 100000", "100000 0", "0 100000"] {
            assert_eq!(decide(None, None, Some(quota)), Err(WorkerCountError::CgroupQuota(quota.to_owned())));
        }
    }

    #[test]
    fn each_worker_runs_its_future_on_its_own_thread() {
        let workers = Workers::start(NonZeroUsize::new(3).unwrap()).unwrap();
        let (sender, receiver) = std::sync::mpsc::channel();
        workers.spawn_on_each(|index| {
            let sender = sender.clone();
            async move {
                sender.send((index, std::thread::current().name().map(str::to_owned))).unwrap();
            }
        });
        drop(sender);
        let mut seen: Vec<_> = receiver.iter().collect();
        seen.sort();
        let expected: Vec<_> = (0..3).map(|index| (index, Some(format!("worker-{index}")))).collect();
        assert_eq!(seen, expected);
        assert_eq!(workers.join(), Ok(()));
    }

    #[test]
    fn a_task_that_panics_leaves_its_worker_alive() {
        let workers = Workers::start(NonZeroUsize::MIN).unwrap();
        let (sender, receiver) = std::sync::mpsc::channel();
        workers.spawn_on_each(|_| async { panic!("on purpose") });
        workers.spawn_on_each(|index| {
            let sender = sender.clone();
            async move { sender.send(index).unwrap() }
        });
        assert_eq!(receiver.recv(), Ok(0));
        assert_eq!(workers.join(), Ok(()));
    }
}
