//! Keeps the time limits of one request: what `filters::timeout` decided, as one future that ends when a limit has passed.
//!
//! Not for: the limit of one try, which does not end the request. Invariant: a request without limits pays for none.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use filters::timeout::TimeLimits;
use model::flags::ResponseFlag;
use tokio::time::Instant;

use super::recording::Upload;
use crate::upstream::failure::UpstreamFailure;

/// Which limit has passed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Expired {
    /// The route's, from the end of the request to the end of the answer.
    Request,
    /// The stream's, from the head of the request to the end of the answer.
    Stream,
    /// Nothing was heard from either side.
    Idle,
    /// The request did not come to its end.
    Upload,
    /// Nothing was heard of the try whose answer has begun.
    TryIdle,
}

impl Expired {
    /// What it is while there is no answer. `request_ended`: all of the request has come.
    pub(super) fn failure(self, request_ended: bool) -> UpstreamFailure {
        match self {
            Self::Request => UpstreamFailure::RequestTimeout,
            Self::Stream => UpstreamFailure::StreamTimeout { request_ended },
            Self::Idle => UpstreamFailure::StreamIdle { request_ended },
            Self::Upload => UpstreamFailure::UploadTimeout,
            Self::TryIdle => UpstreamFailure::TryIdle,
        }
    }

    /// Flag and details, of an answer that is cut by it too.
    pub(super) fn told(self) -> (Option<ResponseFlag>, &'static str) {
        match self {
            Self::Request => (Some(ResponseFlag::UpstreamRequestTimeout), "response_timeout"),
            // `DT` is for connections; Envoy sets no flag for a stream.
            Self::Stream => (None, "max_duration_timeout"),
            Self::Idle => (Some(ResponseFlag::StreamIdleTimeout), "stream_idle_timeout"),
            Self::Upload => (None, "request_overall_timeout"),
            Self::TryIdle => (Some(ResponseFlag::UpstreamRequestTimeout), "upstream_per_try_idle_timeout"),
        }
    }
}

/// When something was last heard, from either side.
#[derive(Debug)]
pub(super) struct Activity {
    began: Instant,
    last_milliseconds: AtomicU64,
}

impl Activity {
    pub(super) fn begin() -> Self {
        Self { began: Instant::now(), last_milliseconds: AtomicU64::new(0) }
    }

    /// Something was heard.
    pub(super) fn touch(&self) {
        let elapsed = u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.last_milliseconds.store(elapsed, Ordering::Relaxed);
    }

    /// Waits until nothing was heard for `limit`.
    async fn silence(&self, limit: Duration) {
        loop {
            let last = self.began + Duration::from_millis(self.last_milliseconds.load(Ordering::Relaxed));
            if last.elapsed() >= limit {
                return;
            }
            tokio::time::sleep_until(last + limit).await;
        }
    }
}

/// Ends when a limit has passed.
pub(super) type Expiry = Pin<Box<dyn Future<Output = Expired> + Send>>;

/// The limits of a request that has begun; none if it has none. `upload`: its body, if it has one.
pub(super) fn expiry(limits: &TimeLimits, upload: Option<Arc<Upload>>, activity: Option<Arc<Activity>>) -> Option<Expiry> {
    let TimeLimits { request, stream, idle, upload: upload_limit, .. } = *limits;
    let upload_limit = upload_limit.filter(|_| upload.is_some());
    match (request, stream, idle, upload_limit) {
        (None, None, None, None) => None,
        (Some(limit), None, None, None) => Some(Box::pin(async move {
            after_upload(upload, limit).await;
            Expired::Request
        })),
        _ => Some(Box::pin(async move {
            tokio::select! {
                () = after_upload(upload.clone(), request.unwrap_or_default()), if request.is_some() => Expired::Request,
                () = tokio::time::sleep(stream.unwrap_or_default()), if stream.is_some() => Expired::Stream,
                () = silence(activity, idle.unwrap_or_default()), if idle.is_some() => Expired::Idle,
                () = late_upload(upload, upload_limit.unwrap_or_default()), if upload_limit.is_some() => Expired::Upload,
            }
        })),
    }
}

/// What ends one try: its limit, from the end of the request on, or silence. At least one of them is there.
pub(super) async fn of_try(limit: Option<(Duration, Option<Arc<Upload>>)>, idle: Option<(Duration, Arc<Activity>)>) -> UpstreamFailure {
    let late = async {
        match limit {
            Some((limit, upload)) => after_upload(upload, limit).await,
            None => std::future::pending().await,
        }
    };
    let silent = async {
        match idle {
            Some((limit, activity)) => {
                activity.touch();
                activity.silence(limit).await;
            }
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        () = late => UpstreamFailure::TryTimeout,
        () = silent => UpstreamFailure::TryIdle,
    }
}

/// The limits of a request whose answer has begun: a try may not be silent then either.
pub(super) fn with_try(expiry: Option<Expiry>, idle: Option<(Duration, Arc<Activity>)>) -> Option<Expiry> {
    let Some((limit, activity)) = idle else { return expiry };
    Some(Box::pin(async move {
        let others = async {
            match expiry {
                Some(expiry) => expiry.await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            expired = others => expired,
            () = activity.silence(limit) => Expired::TryIdle,
        }
    }))
}

/// Waits until the whole request has come, then for the limit: what Envoy's route timeout measures.
pub(super) async fn after_upload(upload: Option<Arc<Upload>>, limit: Duration) {
    if let Some(upload) = upload {
        upload.ended().await;
    }
    tokio::time::sleep(limit).await;
}

async fn silence(activity: Option<Arc<Activity>>, limit: Duration) {
    match activity {
        Some(activity) => activity.silence(limit).await,
        None => std::future::pending().await,
    }
}

/// Waits for the limit; for ever if the whole request comes before.
async fn late_upload(upload: Option<Arc<Upload>>, limit: Duration) {
    let ended = async {
        if let Some(upload) = upload {
            upload.ended().await;
        }
    };
    tokio::select! {
        () = ended => std::future::pending().await,
        () = tokio::time::sleep(limit) => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn seconds(count: u64) -> Duration {
        Duration::from_secs(count)
    }

    #[tokio::test(start_paused = true)]
    async fn the_first_limit_that_passes_ends_a_request() {
        let (began, activity) = (Instant::now(), Arc::new(Activity::begin()));
        let all = TimeLimits { request: Some(seconds(3)), stream: Some(seconds(5)), idle: Some(seconds(4)), ..TimeLimits::default() };
        let unfinished = Arc::new(Upload::default());
        let of = |limits: TimeLimits, upload: Option<&Arc<Upload>>| expiry(&limits, upload.cloned(), Some(Arc::clone(&activity)));
        assert!(of(TimeLimits::default(), None).is_none());
        assert!(of(TimeLimits { upload: Some(seconds(1)), ..TimeLimits::default() }, None).is_none(), "there is nothing to come");
        let upload = TimeLimits { upload: Some(seconds(2)), ..all };
        let waits = [
            of(upload, Some(&unfinished)),
            of(all, None),
            of(TimeLimits { request: None, ..all }, None),
            of(TimeLimits { idle: None, ..all }, Some(&unfinished)),
        ];
        let mut ended = Vec::new();
        for wait in waits {
            activity.touch();
            let expired = wait.expect("it has limits").await;
            ended.push((expired, began.elapsed().as_secs()));
        }
        assert_eq!(ended, [(Expired::Upload, 2), (Expired::Request, 5), (Expired::Idle, 9), (Expired::Stream, 14)]);
    }

    #[tokio::test(start_paused = true)]
    async fn silence_begins_anew_with_every_sign_of_life() {
        let activity = Arc::new(Activity::begin());
        let began = activity.began;
        let limits = TimeLimits { idle: Some(seconds(4)), ..TimeLimits::default() };
        let mut wait = expiry(&limits, None, Some(Arc::clone(&activity))).expect("it has a limit");
        for _ in 0..3 {
            assert!(tokio::time::timeout(seconds(3), &mut wait).await.is_err());
            activity.touch();
        }
        assert_eq!((wait.await, began.elapsed().as_secs()), (Expired::Idle, 13));
    }
}
