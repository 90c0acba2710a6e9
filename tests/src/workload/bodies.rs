//! Bodies of answers: whole, in pieces, cut, and with trailers.
//!
//! Not for: which of them a request gets.

use std::convert::Infallible;
use std::time::Duration;

use anyhow::anyhow;
use bytes::Bytes;
use futures_util::stream::{self, StreamExt};
use http::HeaderMap;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::Frame;

pub(super) type AnswerBody = UnsyncBoxBody<Bytes, anyhow::Error>;

pub(super) fn whole(bytes: impl Into<Bytes>) -> AnswerBody {
    Full::new(bytes.into()).map_err(|never: Infallible| match never {}).boxed_unsync()
}

/// The first of a thousand announced bytes, then the end of the connection.
pub(super) fn cut_body() -> AnswerBody {
    let frames = stream::iter([Ok(Frame::data(Bytes::from_static(b"the first part\n")))]).chain(stream::once(async {
        // The first part has to leave before the connection breaks.
        tokio::time::sleep(Duration::from_millis(50)).await;
        Err(anyhow!("told to end in the middle"))
    }));
    StreamBody::new(frames).boxed_unsync()
}

pub(super) fn chunks(n_chunks: u64) -> AnswerBody {
    let frames = stream::iter(0..n_chunks).then(|number| async move {
        tokio::time::sleep(Duration::from_millis(100)).await;
        Ok(Frame::data(Bytes::from(format!("chunk {number}\n"))))
    });
    StreamBody::new(frames).boxed_unsync()
}

/// gRPC messages, one every 100 ms, then a good status.
pub(super) fn messages(n_messages: u64) -> AnswerBody {
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", http::HeaderValue::from_static("0"));
    let frames = stream::iter(0..n_messages).then(|_| async {
        tokio::time::sleep(Duration::from_millis(100)).await;
        Ok(Frame::data(Bytes::from_static(b"\0\0\0\0\x02hi")))
    });
    StreamBody::new(frames.chain(stream::once(async { Ok(Frame::trailers(trailers)) }))).boxed_unsync()
}

pub(super) fn kibibytes(n_kibibytes: u64) -> AnswerBody {
    let kibibyte = Bytes::from(vec![b'k'; 1024]);
    let frames = stream::iter(0..n_kibibytes).map(move |_| Ok(Frame::data(kibibyte.clone())));
    StreamBody::new(frames).boxed_unsync()
}

pub(super) fn grpc_body(message: Bytes) -> AnswerBody {
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", http::HeaderValue::from_static("0"));
    trailers.insert("x-trailer", http::HeaderValue::from_static("kept"));
    let frames = stream::iter([Ok(Frame::data(message)), Ok(Frame::trailers(trailers))]);
    StreamBody::new(frames).boxed_unsync()
}
