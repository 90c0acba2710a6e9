//! Istio's certificate signing service: one unary call.

use std::sync::Arc;
use std::time::Duration;

use http::{Request, Response};
use tonic::body::Body;
use tonic::server::{Grpc, UnaryService};
use tonic::{Code, Status};
use tonic_prost::ProstCodec;
use xds_proto::istio::auth::{IstioCertificateRequest, IstioCertificateResponse};

use super::{Shared, caller};
use crate::pki::spiffe;

struct Sign(Arc<Shared>);

impl UnaryService<IstioCertificateRequest> for Sign {
    type Response = IstioCertificateResponse;
    type Future = std::future::Ready<Result<tonic::Response<IstioCertificateResponse>, Status>>;

    fn call(&mut self, request: tonic::Request<IstioCertificateRequest>) -> Self::Future {
        std::future::ready(sign(&self.0, &request))
    }
}

fn sign(shared: &Shared, request: &tonic::Request<IstioCertificateRequest>) -> Result<tonic::Response<IstioCertificateResponse>, Status> {
    let (namespace, account) = caller(request.metadata())?;
    let asked = request.get_ref();
    let seconds = u64::try_from(asked.validity_duration).map_err(|_| Status::invalid_argument("a negative lifetime"))?;
    let lifetime = shared.state().certificate_lifetime.unwrap_or(Duration::from_secs(seconds));
    let leaf = shared.pki.sign(&asked.csr, &spiffe(&namespace, &account), lifetime);
    let leaf = leaf.map_err(|error| Status::new(Code::InvalidArgument, format!("CSR signing error: {error:#}")))?;
    let mut state = shared.state();
    state.certificates_signed += 1;
    state.tokens_seen.insert(format!("{namespace}/{account}"));
    Ok(tonic::Response::new(IstioCertificateResponse { cert_chain: vec![leaf, shared.pki.root_pem()] }))
}

/// Answers the call in `request`.
pub async fn answer(shared: Arc<Shared>, request: Request<Body>) -> Response<Body> {
    Grpc::new(ProstCodec::default()).unary(Sign(shared), request).await
}
