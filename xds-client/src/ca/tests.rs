//! The CA client against a CA over TLS that signs as each test says.
#![expect(clippy::unwrap_used, reason = "tests")]

use std::sync::Mutex;
use std::task::{Context, Poll};

use futures_util::future::BoxFuture;
use rcgen::{CertificateParams, CertificateSigningRequestParams};
use tokio::sync::mpsc;
use tonic::body::Body;
use tonic::metadata::MetadataMap;
use tonic::server::{Grpc, NamedService, UnaryService};
use tonic::service::Routes;
use tonic_prost::ProstCodec;

use super::*;
use crate::testing::{BACKOFF, Pki, Pod, Server, free_address, within};

const ID: &str = "spiffe://cluster.local/ns/shop/sa/waypoint";

type Answer = Result<Vec<String>, Status>;

/// What a CA does with a request.
type Sign = dyn FnMut(&IstioCertificateRequest) -> Answer + Send;

/// A CA, as tonic serves it, that keeps what it was asked.
#[derive(Clone)]
struct Ca {
    sign: Arc<Mutex<Box<Sign>>>,
    asked: mpsc::UnboundedSender<(MetadataMap, IstioCertificateRequest)>,
}

impl NamedService for Ca {
    const NAME: &'static str = "istio.v1.auth.IstioCertificateService";
}

impl UnaryService<IstioCertificateRequest> for Ca {
    type Response = IstioCertificateResponse;
    type Future = std::future::Ready<Result<tonic::Response<Self::Response>, Status>>;

    fn call(&mut self, request: Request<IstioCertificateRequest>) -> Self::Future {
        let metadata = request.metadata().clone();
        let request = request.into_inner();
        let answer = (self.sign.lock().unwrap())(&request);
        self.asked.send((metadata, request)).unwrap();
        std::future::ready(answer.map(|cert_chain| tonic::Response::new(IstioCertificateResponse { cert_chain })))
    }
}

impl tower::Service<http::Request<Body>> for Ca {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let ca = self.clone();
        Box::pin(async move { Ok(Grpc::new(ProstCodec::default()).unary(ca, request).await) })
    }
}

type Asked = mpsc::UnboundedReceiver<(MetadataMap, IstioCertificateRequest)>;

async fn start(address: &str, pki: &Pki, sign: impl FnMut(&IstioCertificateRequest) -> Answer + Send + 'static) -> (Server, Asked) {
    let (asked, seen) = mpsc::unbounded_channel();
    let routes = Routes::new(Ca { sign: Arc::new(Mutex::new(Box::new(sign))), asked });
    (Server::start(address, Some(pki), routes).await, seen)
}

/// A leaf for the request's key, with these URI names, from `age` ago and for `life` from now.
fn leaf(pki: &Pki, csr: &str, names: &[&str], age: Duration, life: Duration) -> String {
    let request = CertificateSigningRequestParams::from_pem(csr).unwrap();
    let mut params = CertificateParams::default();
    params.subject_alt_names = names.iter().map(|name| SanType::URI((*name).try_into().unwrap())).collect();
    let now = SystemTime::now();
    params.not_before = (now - age).into();
    params.not_after = (now + life).into();
    params.signed_by(&request.public_key, &pki.issuer).unwrap().pem()
}

const HOUR: Duration = Duration::from_secs(3600);

fn settings(pod: &Pod, address: &str) -> CaSettings {
    CaSettings {
        dial: pod.dial(address),
        credentials: pod.credentials(),
        identity: SpiffeId::parse(ID).unwrap(),
        lifetime: Duration::from_secs(86_400),
        cert_signer: "signer".to_owned(),
        request_timeout: Duration::from_secs(20),
        backoff: BACKOFF,
    }
}

struct Fixture {
    pki: Arc<Pki>,
    pod: Pod,
}

impl Fixture {
    fn new() -> Self {
        let pki = Arc::new(Pki::new());
        let pod = Pod::new(&pki.root_pem());
        Self { pki, pod }
    }

    /// One certificate from a CA that answers so.
    async fn issue(&self, sign: impl FnMut(&IstioCertificateRequest) -> Answer + Send + 'static) -> Result<Issued, CaError> {
        let (server, _asked) = start(&free_address(), &self.pki, sign).await;
        within(issue(&settings(&self.pod, &server.address))).await
    }
}

#[tokio::test]
async fn a_certificate_comes_with_its_key_its_chain_and_all_roots() {
    let Fixture { pki, pod } = Fixture::new();
    let other = Pki::new();
    let (signer, roots) = (Arc::clone(&pki), format!("{}{}", pki.root_pem(), other.root_pem()));
    let intermediate = other.root_pem();
    let sign = move |request: &IstioCertificateRequest| {
        Ok(vec![leaf(&signer, &request.csr, &[ID], HOUR, HOUR), intermediate.clone(), roots.clone()])
    };
    let (server, mut asked) = start(&free_address(), &pki, sign).await;
    let issued = within(issue(&settings(&pod, &server.address))).await.unwrap();

    let (metadata, request) = asked.recv().await.unwrap();
    assert_eq!(metadata.get("authorization").unwrap(), "Bearer first");
    assert_eq!(metadata.get("clusterid").unwrap(), "Kubernetes");
    assert_eq!(request.validity_duration, 86_400);
    let signer = request.metadata.unwrap().fields.remove("CertSigner").unwrap().kind;
    assert_eq!(signer, Some(Kind::StringValue("signer".to_owned())));
    let csr = CertificateSigningRequestParams::from_pem(&request.csr).unwrap();
    assert_eq!(csr.params.subject_alt_names, [SanType::URI(ID.try_into().unwrap())]);

    assert_eq!((issued.certificate_chain.len(), issued.roots.len()), (2, 2));
    assert_eq!(issued.id.as_str(), ID);
    assert_eq!(issued.not_after.duration_since(issued.not_before).unwrap().as_secs(), 7200);
    let key = KeyPair::try_from(&issued.private_key).unwrap();
    assert_eq!(key.subject_public_key_info(), csr.public_key.subject_public_key_info());
    assert!(!format!("{issued:?}").contains(&format!("{:?}", issued.private_key.secret_der())));
}

#[tokio::test]
async fn answers_that_cannot_be_used_are_told_apart() {
    let fixture = Fixture::new();
    let root = fixture.pki.root_pem();
    let with = |element: usize, pem: &str| {
        let (pki, root, pem) = (Arc::clone(&fixture.pki), root.clone(), pem.to_owned());
        move |request: &IstioCertificateRequest| {
            let mut chain = vec![leaf(&pki, &request.csr, &[ID], HOUR, HOUR), root.clone()];
            chain[element].clone_from(&pem);
            Ok(chain)
        }
    };
    assert!(matches!(fixture.issue(|_| Ok(Vec::new())).await, Err(CaError::ShortChain(0))));
    let only = root.clone();
    assert!(matches!(fixture.issue(move |_| Ok(vec![only.clone()])).await, Err(CaError::ShortChain(1))));
    for (element, pem) in [(0, ""), (1, ""), (1, "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n")] {
        let error = fixture.issue(with(element, pem)).await.unwrap_err();
        assert!(matches!(error, CaError::Unreadable { element: at, .. } if at == element), "{error}");
    }
    assert!(matches!(fixture.issue(with(0, &root)).await, Err(CaError::OtherKey)));
    let many = root.repeat(CERTIFICATES_MAX + 1);
    assert!(matches!(fixture.issue(with(1, &many)).await, Err(CaError::LongChain)));
}

#[tokio::test]
async fn a_certificate_for_somebody_else_or_of_yesterday_is_refused() {
    let fixture = Fixture::new();
    let sign = |names: &'static [&'static str], age: Duration, life: Duration| {
        let pki = Arc::clone(&fixture.pki);
        move |request: &IstioCertificateRequest| Ok(vec![leaf(&pki, &request.csr, names, age, life), pki.root_pem()])
    };
    const OTHER: &str = "spiffe://cluster.local/ns/shop/sa/other";
    for names in [&[][..], &[OTHER], &[ID, OTHER]] {
        let error = fixture.issue(sign(names, HOUR, HOUR)).await.unwrap_err();
        assert!(matches!(&error, CaError::OtherIdentity { actual, .. } if actual == names), "{error}");
    }
    assert!(matches!(fixture.issue(sign(&[ID], 2 * HOUR, Duration::ZERO)).await, Err(CaError::Expired)));
}

#[tokio::test]
async fn a_refusal_says_whose_turn_it_is() {
    let fixture = Fixture::new();
    let with = |status: fn(&'static str) -> Status| fixture.issue(move |_| Err(status("why")));
    let denied = with(Status::unauthenticated).await.unwrap_err();
    assert!(matches!(&denied, CaError::Denied(_)) && denied.to_string().contains("why"), "{denied}");
    assert!(matches!(with(Status::permission_denied).await, Err(CaError::Denied(_))));
    assert!(matches!(with(Status::invalid_argument).await, Err(CaError::Refused(_))));
    assert!(matches!(with(Status::unavailable).await, Err(CaError::Unavailable(_))));
}

#[tokio::test]
async fn a_ca_that_does_not_answer_is_given_up() {
    let Fixture { pki, pod } = Fixture::new();
    let (server, _asked) = start(&free_address(), &pki, signing(&pki, Duration::ZERO, HOUR)).await;
    let settings = CaSettings { request_timeout: Duration::ZERO, ..settings(&pod, &server.address) };
    assert!(matches!(within(issue(&settings)).await, Err(CaError::Timeout(Duration::ZERO))));
}

#[derive(Debug)]
enum Seen {
    Issued(Arc<Issued>),
    Status(CaStatus),
}

struct Observer(mpsc::UnboundedSender<Seen>);

impl CaObserver for Observer {
    fn issued(&mut self, issued: Arc<Issued>) {
        self.0.send(Seen::Issued(issued)).unwrap();
    }

    fn status(&mut self, status: CaStatus) {
        self.0.send(Seen::Status(status)).unwrap();
    }
}

struct Client {
    seen: mpsc::UnboundedReceiver<Seen>,
    _task: tokio::task::JoinSet<Infallible>,
}

impl Client {
    fn start(settings: CaSettings) -> Self {
        let (sender, seen) = mpsc::unbounded_channel();
        let mut task = tokio::task::JoinSet::new();
        task.spawn(run(settings, Observer(sender)));
        Self { seen, _task: task }
    }

    async fn issued(&mut self) -> Arc<Issued> {
        loop {
            if let Seen::Issued(issued) = within(self.seen.recv()).await.unwrap() {
                return issued;
            }
        }
    }

    async fn failure(&mut self) -> (CaError, Option<SystemTime>) {
        loop {
            if let Seen::Status(CaStatus::Failing { reason, not_after, .. }) = within(self.seen.recv()).await.unwrap() {
                return (reason, not_after);
            }
        }
    }
}

/// Signs for us, from `age` ago and for `life` from now.
fn signing(pki: &Arc<Pki>, age: Duration, life: Duration) -> impl FnMut(&IstioCertificateRequest) -> Answer + Send + 'static {
    let pki = Arc::clone(pki);
    move |request| Ok(vec![leaf(&pki, &request.csr, &[ID], age, life), pki.root_pem()])
}

/// Signs what is at half its life in about two seconds, and then good for half a minute more.
fn signing_shortly(pki: &Arc<Pki>) -> impl FnMut(&IstioCertificateRequest) -> Answer + Send + 'static {
    signing(pki, Duration::from_secs(26), Duration::from_secs(30))
}

#[tokio::test]
async fn a_ca_that_is_down_at_first_is_asked_until_it_signs() {
    let Fixture { pki, pod } = Fixture::new();
    let address = free_address();
    let mut client = Client::start(settings(&pod, &address));
    assert!(matches!(client.failure().await, (CaError::Dial(DialError::Tcp { .. }), None)));
    let (_server, _asked) = start(&address, &pki, signing(&pki, Duration::ZERO, HOUR)).await;
    client.issued().await;
    let Seen::Status(CaStatus::Valid { renew_at, not_after }) = within(client.seen.recv()).await.unwrap() else { panic!("not valid") };
    let remaining = not_after.duration_since(renew_at).unwrap().as_secs();
    assert!((1764..=1836).contains(&remaining), "{remaining}");
}

#[tokio::test]
async fn a_certificate_is_renewed_in_time_with_a_new_key_and_the_new_token() {
    let Fixture { pki, pod } = Fixture::new();
    let (server, mut asked) = start(&free_address(), &pki, signing_shortly(&pki)).await;
    let mut client = Client::start(settings(&pod, &server.address));
    let first = client.issued().await;
    pod.write_token("second");
    let second = client.issued().await;
    assert!(SystemTime::now() < first.not_after, "renewed before the first one ended");
    assert_ne!(first.private_key.secret_der(), second.private_key.secret_der());
    within(asked.recv()).await.unwrap();
    assert_eq!(within(asked.recv()).await.unwrap().0.get("authorization").unwrap(), "Bearer second");
}

#[tokio::test]
async fn a_failed_renewal_is_told_and_tried_again_over_a_root_read_anew() {
    let Fixture { pki, pod } = Fixture::new();
    let (server, _asked) = start(&free_address(), &pki, signing_shortly(&pki)).await;
    let mut client = Client::start(settings(&pod, &server.address));
    let first = client.issued().await;
    let address = server.address.clone();
    drop(server);
    let (_, not_after) = client.failure().await;
    assert_eq!(not_after, Some(first.not_after));
    let renewed = Arc::new(Pki::new());
    let (_server, _asked) = start(&address, &renewed, signing(&renewed, Duration::ZERO, HOUR)).await;
    while !matches!(client.failure().await, (CaError::Dial(DialError::Tls { .. }), _)) {}
    pod.write_root(&renewed.root_pem());
    assert_eq!(client.issued().await.roots, [renewed.issuer.der().clone()]);
}
