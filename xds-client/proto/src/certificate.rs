//! The gRPC client of Istio's certificate signing service: one unary call.
//!
//! Not here: the channel with its TLS, the bearer token, retries and deadlines. They are the caller's.
use tonic::body::Body;
use tonic::client::{Grpc, GrpcService};
use tonic::codegen::http::uri::PathAndQuery;
use tonic::codegen::{Body as HttpBody, Bytes, StdError};
use tonic::{Request, Response, Status};
use tonic_prost::ProstCodec;

use crate::istio::auth::{IstioCertificateRequest, IstioCertificateResponse};

/// The method's path in an HTTP/2 request: what a server of the service (one in a test) is asked for.
pub const CREATE_CERTIFICATE_PATH: &str = "/istio.v1.auth.IstioCertificateService/CreateCertificate";

/// Asks a CA that speaks `istio.v1.auth.IstioCertificateService`, over any tonic transport.
#[derive(Debug, Clone)]
pub struct CertificateClient<T> {
    inner: Grpc<T>,
}

impl<T> CertificateClient<T>
where
    T: GrpcService<Body>,
    T::Error: Into<StdError>,
    T::ResponseBody: HttpBody<Data = Bytes> + Send + 'static,
    <T::ResponseBody as HttpBody>::Error: Into<StdError> + Send,
{
    /// A client over `transport`, usually a `tonic::transport::Channel`. Nothing is sent yet.
    pub fn new(transport: T) -> Self {
        Self { inner: Grpc::new(transport) }
    }

    /// Has a signing request signed. The request's metadata carries `authorization` and `clusterid`.
    ///
    /// Safe to cancel: the CA may still sign, and the certificate is then lost.
    ///
    /// # Errors
    /// The transport's failure as `UNAVAILABLE`, or the status that the CA answers.
    pub async fn create_certificate(
        &mut self,
        request: Request<IstioCertificateRequest>,
    ) -> Result<Response<IstioCertificateResponse>, Status> {
        self.inner.ready().await.map_err(|error| Status::unavailable(format!("the CA's channel is not ready: {}", error.into())))?;
        let path = PathAndQuery::from_static(CREATE_CERTIFICATE_PATH);
        self.inner.unary(request, path, ProstCodec::default()).await
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use std::convert::Infallible;
    use std::future::Future;
    use std::pin::Pin;
    use std::task::{Context, Poll};

    use http_body_util::{BodyExt, Full};
    use prost::Message;
    use tonic::Code;
    use tonic::codegen::http;
    use tonic::codegen::{Bytes, Service};

    use super::*;
    use crate::descriptors;

    /// Bytes before a message in gRPC: whether it is compressed, and its length.
    const FRAME_HEADER_BYTES: usize = 5;

    /// A CA without a connection: answers a request for a certificate with the request in place of one, or with a status.
    #[derive(Clone)]
    struct Echo {
        status: Option<&'static str>,
    }

    impl Service<http::Request<Body>> for Echo {
        type Response = http::Response<Body>;
        type Error = Infallible;
        type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

        fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
            Poll::Ready(Ok(()))
        }

        fn call(&mut self, request: http::Request<Body>) -> Self::Future {
            let status = self.status;
            Box::pin(async move {
                assert_eq!(request.uri().path(), CREATE_CERTIFICATE_PATH);
                assert_eq!(request.headers()["authorization"], "Bearer token");
                let framed = request.into_body().collect().await.unwrap().to_bytes();
                let asked = IstioCertificateRequest::decode(framed.slice(FRAME_HEADER_BYTES..)).unwrap();
                let response = http::Response::builder().header("content-type", "application/grpc");
                if let Some(status) = status {
                    let response = response.header("grpc-status", status).header("grpc-message", "no");
                    return Ok(response.body(Body::empty()).unwrap());
                }
                let answer = IstioCertificateResponse { cert_chain: vec![asked.csr, asked.validity_duration.to_string()] }.encode_to_vec();
                let mut framed = vec![0];
                framed.extend(u32::try_from(answer.len()).unwrap().to_be_bytes());
                framed.extend(answer);
                let mut trailers = http::HeaderMap::new();
                trailers.insert("grpc-status", "0".parse().unwrap());
                let body = Full::new(Bytes::from(framed)).with_trailers(async move { Some(Ok(trailers)) });
                Ok(response.body(Body::new(body)).unwrap())
            })
        }
    }

    fn ask(status: Option<&'static str>) -> Result<IstioCertificateResponse, Status> {
        let mut request = Request::new(IstioCertificateRequest { csr: "CSR".to_owned(), validity_duration: 86_400, metadata: None });
        request.metadata_mut().insert("authorization", "Bearer token".parse().unwrap());
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(CertificateClient::new(Echo { status }).create_certificate(request)).map(Response::into_inner)
    }

    #[test]
    fn a_request_is_sent_and_its_chain_comes_back() {
        assert_eq!(ask(None).unwrap().cert_chain, ["CSR", "86400"]);
    }

    #[test]
    fn the_status_that_a_ca_answers_is_the_error() {
        assert_eq!(ask(Some("16")).unwrap_err().code(), Code::Unauthenticated);
    }

    #[test]
    fn the_path_names_the_method_of_the_descriptor() {
        let service = descriptors().get_service_by_name("istio.v1.auth.IstioCertificateService").unwrap();
        let method = service.methods().next().unwrap();
        assert_eq!(format!("/{}/{}", service.full_name(), method.name()), CREATE_CERTIFICATE_PATH);
    }
}
