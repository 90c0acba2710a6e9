//! Changes that filters make to trailers: of a request on its way up, of an answer on its way back.
//!
//! Invariants: a body without trailers gets none (Envoy); values are texts, since nothing of the request is at hand by then.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http_body::{Body as HttpBody, Frame, SizeHint};
use model::headers::{HeaderChange, Mutations};
use model::route::RouteFilter;

use crate::http::body::{Body, BodyError};

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
        let frame = ready!(Pin::new(&mut this.inner).poll_frame(context));
        Poll::Ready(match frame {
            Some(Ok(frame)) if frame.is_trailers() => {
                let mut trailers = frame.into_trailers().unwrap_or_default();
                for mutations in &this.mutations {
                    filters::headers::change((this.which)(mutations), &mut trailers, &|_, _| None);
                }
                Some(Ok(Frame::trailers(trailers)))
            }
            other => other,
        })
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}
