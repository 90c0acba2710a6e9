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
    use super::*;
    use crate::descriptors;

    #[test]
    fn the_path_names_the_method_of_the_descriptor() {
        let service = descriptors().get_service_by_name("istio.v1.auth.IstioCertificateService");
        let path = service.and_then(|service| service.methods().next().map(|method| format!("/{}/{}", service.full_name(), method.name())));
        assert_eq!(path.as_deref(), Some(CREATE_CERTIFICATE_PATH));
    }
}
