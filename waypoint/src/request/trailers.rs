//! What becomes of trailers: changes that filters make to those of a request on its way up and of an answer on its way back, and names of a
//! request's that are not allowed.
//!
//! Invariants: a body without trailers gets none (Envoy); values are texts, since nothing of the request is at hand by then.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Body as HttpBody, Frame, SizeHint};
use model::chain::UnderscoreNames;
use model::headers::{HeaderChange, Mutations};
use model::route::RouteFilter;

use crate::http::body::{Body, BodyError};
use crate::http::normalize::check_names;

/// Which changes of a filter are meant.
type Which = fn(&Mutations) -> &[HeaderChange];

/// A request's body, whose trailers these filters change.
pub(super) fn of_request<'a>(body: Body, filters: impl Iterator<Item = &'a RouteFilter>) -> Body {
    changing(body, filters, |mutations| &mutations.request_trailers)
}

/// An answer's body, whose trailers these filters change: in this order, which is not that of the chain.
pub(super) fn of_answer<'a>(body: Body, filters: impl Iterator<Item = &'a RouteFilter>) -> Body {
    changing(body, filters, |mutations| &mutations.response_trailers)
}

fn changing<'a>(body: Body, filters: impl Iterator<Item = &'a RouteFilter>, which: Which) -> Body {
    let mutations = filters.filter_map(|filter| match filter {
        RouteFilter::Mutate(mutations) if !which(mutations).is_empty() => Some(Arc::clone(mutations)),
        _ => None,
    });
    let mutations: Vec<_> = mutations.collect();
    if mutations.is_empty() || body.is_end_stream() { body } else { Body::wrap(Changing { inner: body, mutations, which }) }
}

/// A request's body, of whose trailers names with underscores are left out or refused.
pub(super) fn named(body: Body, underscores: UnderscoreNames) -> Body {
    if underscores == UnderscoreNames::Allowed || body.is_end_stream() { body } else { Body::wrap(Named { inner: body, underscores }) }
}

/// The next frame of a body, edited if it is its trailers.
fn poll_edited(
    inner: &mut Body,
    context: &mut Context<'_>,
    edit: impl FnOnce(&mut HeaderMap) -> Result<(), BodyError>,
) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
    let frame = ready!(Pin::new(inner).poll_frame(context));
    Poll::Ready(match frame {
        Some(Ok(frame)) if frame.is_trailers() => {
            let mut trailers = frame.into_trailers().unwrap_or_default();
            Some(edit(&mut trailers).map(|()| Frame::trailers(trailers)))
        }
        other => other,
    })
}

struct Named {
    inner: Body,
    underscores: UnderscoreNames,
}

impl HttpBody for Named {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = &mut *self;
        let underscores = this.underscores;
        poll_edited(&mut this.inner, context, |trailers| check_names(trailers, underscores).map_err(|_refused| BodyError::Malformed))
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

struct Changing {
    inner: Body,
    mutations: Vec<Arc<Mutations>>,
    which: Which,
}

impl HttpBody for Changing {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = &mut *self;
        let (mutations, which) = (&this.mutations, this.which);
        poll_edited(&mut this.inner, context, |trailers| {
            for mutations in mutations {
                filters::headers::change(which(mutations), trailers, &|_, _| None);
            }
            Ok(())
        })
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]

    use http::{HeaderMap, HeaderValue};
    use http_body_util::BodyExt as _;

    use super::*;

    #[tokio::test]
    async fn trailers_with_underscores_stay_go_or_are_refused() {
        let read = async |underscores| {
            let trailers = HeaderMap::from_iter(["x_a", "x-a"].map(|name| (name.parse().unwrap(), HeaderValue::from_static("1"))));
            let body = Body::full(Bytes::from_static(b"abc")).with_trailers(std::future::ready(Some(Ok(trailers))));
            named(Body::wrap(body), underscores).collect().await.map(|whole| whole.trailers().map_or(0, HeaderMap::len))
        };
        assert_eq!(read(UnderscoreNames::Allowed).await.unwrap(), 2);
        assert_eq!(read(UnderscoreNames::Dropped).await.unwrap(), 1);
        assert!(matches!(read(UnderscoreNames::Refused).await, Err(BodyError::Malformed)));
    }
}
