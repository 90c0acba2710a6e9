//! What every call to istiod carries: the bearer token, the cluster, and the headers that the operator adds.
//!
//! Not for: TLS, and deciding who the caller is; istiod does that from the token.
//! Invariants: the token file is read for every call, because kubelet replaces it; what it holds is never logged.

use std::fmt;
use std::io;
use std::path::PathBuf;

use thiserror::Error;
use tokio::io::AsyncReadExt;
use tonic::metadata::{Ascii, MetadataKey, MetadataMap, MetadataValue};

/// Longest token file that is read: a service account token has about 1 KiB, and istiod refuses headers over 8 KiB anyway.
const TOKEN_BYTES_MAX: u64 = 64 * 1024;

/// The metadata of calls, as istiod's agent sends it on both its discovery and its CA calls.
#[derive(Clone)]
pub struct CallCredentials {
    token_file: PathBuf,
    fixed: Vec<(MetadataKey<Ascii>, MetadataValue<Ascii>)>,
}

/// Why a call cannot carry what it should.
#[derive(Debug, Error)]
pub enum AuthError {
    /// A header that gRPC cannot carry; found when settings are read.
    #[error("header {0:?}: the name or the value cannot be sent in gRPC metadata")]
    Header(String),
    /// The token file is there and cannot be read.
    #[error("cannot read the token file {path}: {source}")]
    TokenFile {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The token file holds something that is no bearer token.
    #[error("the token file {0} holds no token: expected one line of visible ASCII, at most 64 KiB")]
    Token(PathBuf),
}

impl CallCredentials {
    /// Credentials from a token file (`/var/run/secrets/tokens/istio-token`), the cluster's name (`ISTIO_META_CLUSTER_ID`) and extra
    /// headers (`XDS_HEADER_<name>` or `CA_HEADER_<name>`, without that prefix). Header names are sent in lower case. Reads nothing yet.
    ///
    /// # Errors
    /// A header that gRPC metadata cannot hold.
    pub fn new(token_file: PathBuf, cluster_id: &str, headers: &[(String, String)]) -> Result<Self, AuthError> {
        let cluster = ("clusterid", cluster_id);
        let extra = headers.iter().map(|(name, value)| (name.as_str(), value.as_str()));
        let fixed = std::iter::once(cluster).chain(extra).map(|(name, value)| header(name, value)).collect::<Result<_, _>>()?;
        Ok(Self { token_file, fixed })
    }

    /// The metadata of one call. Without a token file there is no `authorization`, as with Istio's agent: istiod then refuses by name.
    ///
    /// Safe to cancel.
    ///
    /// # Errors
    /// A token file that is there and cannot be used.
    pub async fn metadata(&self) -> Result<MetadataMap, AuthError> {
        let mut metadata = MetadataMap::new();
        for (name, value) in &self.fixed {
            metadata.append(name.clone(), value.clone());
        }
        if let Some(authorization) = self.authorization().await? {
            metadata.insert("authorization", authorization);
        }
        Ok(metadata)
    }

    async fn authorization(&self) -> Result<Option<MetadataValue<Ascii>>, AuthError> {
        let unreadable = |source| AuthError::TokenFile { path: self.token_file.clone(), source };
        let file = match tokio::fs::File::open(&self.token_file).await {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                tracing::warn!(file = %self.token_file.display(), "no token file: calling istiod without authorization");
                return Ok(None);
            }
            Err(error) => return Err(unreadable(error)),
        };
        let mut bytes = Vec::new();
        file.take(TOKEN_BYTES_MAX + 1).read_to_end(&mut bytes).await.map_err(unreadable)?;
        let invalid = || AuthError::Token(self.token_file.clone());
        let token = std::str::from_utf8(&bytes).map_err(|_| invalid())?.trim();
        let too_long = u64::try_from(bytes.len()).is_ok_and(|length| length > TOKEN_BYTES_MAX);
        if token.is_empty() || too_long || !token.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(invalid());
        }
        let mut value: MetadataValue<Ascii> = format!("Bearer {token}").parse().map_err(|_| invalid())?;
        value.set_sensitive(true);
        Ok(Some(value))
    }
}

fn header(name: &str, value: &str) -> Result<(MetadataKey<Ascii>, MetadataValue<Ascii>), AuthError> {
    let refused = || AuthError::Header(name.to_owned());
    let key = name.to_ascii_lowercase().parse().map_err(|_| refused())?;
    let mut value: MetadataValue<Ascii> = value.parse().map_err(|_| refused())?;
    value.set_sensitive(true);
    Ok((key, value))
}

impl fmt::Debug for CallCredentials {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<_> = self.fixed.iter().map(|(name, _)| name.as_str()).collect();
        formatter.debug_struct("CallCredentials").field("token_file", &self.token_file).field("headers", &names).finish()
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    fn credentials(file: &std::path::Path) -> CallCredentials {
        CallCredentials::new(file.to_owned(), "Kubernetes", &[("Tenant".to_owned(), "a".to_owned())]).unwrap()
    }

    #[tokio::test]
    async fn a_rotated_token_is_read_for_the_next_call() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("istio-token");
        let credentials = credentials(&file);
        for token in ["first", "second"] {
            std::fs::write(&file, format!("{token}\n")).unwrap();
            let metadata = credentials.metadata().await.unwrap();
            assert_eq!(metadata.get("authorization").unwrap().to_str().unwrap(), format!("Bearer {token}"));
            assert_eq!(metadata.get("clusterid").unwrap(), "Kubernetes");
            assert_eq!(metadata.get("tenant").unwrap(), "a");
        }
    }

    #[tokio::test]
    async fn without_a_token_file_there_is_no_authorization() {
        let folder = tempfile::tempdir().unwrap();
        let metadata = credentials(&folder.path().join("missing")).metadata().await.unwrap();
        assert!(metadata.get("authorization").is_none());
        assert_eq!(metadata.get("clusterid").unwrap(), "Kubernetes");
    }

    #[tokio::test]
    async fn a_file_that_holds_no_token_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("istio-token");
        let long = vec![b'a'; 64 * 1024 + 1];
        for content in [b"".as_slice(), b"two\nlines", b"\xff", b"a b", &long] {
            std::fs::write(&file, content).unwrap();
            assert!(matches!(credentials(&file).metadata().await, Err(AuthError::Token(_))));
        }
        assert!(matches!(credentials(folder.path()).metadata().await, Err(AuthError::TokenFile { .. })));
    }

    #[test]
    fn headers_that_grpc_cannot_carry_are_refused() {
        for (name, value) in [("a b", "v"), ("", "v"), ("x-bin", "v"), ("x", "a\nb")] {
            let headers = [(name.to_owned(), value.to_owned())];
            assert!(matches!(CallCredentials::new("token".into(), "c", &headers), Err(AuthError::Header(_))), "{name:?}: {value:?}");
        }
    }

    #[test]
    fn header_values_are_not_printed() {
        let headers = [("secret".to_owned(), "hunter2".to_owned())];
        let text = format!("{:?}", CallCredentials::new("token".into(), "c", &headers).unwrap());
        assert!(text.contains("secret") && !text.contains("hunter2"), "{text}");
    }
}
