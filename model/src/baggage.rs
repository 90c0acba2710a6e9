//! `baggage` in which peers of the mesh say who they are: `k8s.deployment.name=web,k8s.namespace.name=shop,service.name=web`.
//!
//! Not for: the baggage of traces, nor deciding anything: whoever writes it may write what they want, so it only fills in labels. Who a
//! peer is, TLS says. Keys and order are those of Istio's peer metadata.

use std::fmt::{self, Display, Formatter};
use std::sync::Arc;

use crate::identity::SpiffeId;
use crate::workload::{Workload, WorkloadType};

/// What a peer says of itself; empty is not said.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Baggage<'a> {
    /// The controller's kind.
    pub workload_type: Option<WorkloadType>,
    /// The controller's name.
    pub workload_name: &'a str,
    /// The canonical service.
    pub canonical_name: &'a str,
    /// Its revision.
    pub canonical_revision: &'a str,
    /// The label `app`, where it is not the canonical service.
    pub app_name: &'a str,
    /// The label `version`, where it is not the revision.
    pub app_version: &'a str,
    /// The namespace.
    pub namespace: &'a str,
    /// The Kubernetes cluster.
    pub cluster: &'a str,
    /// The pod's name.
    pub instance: &'a str,
    /// Region of its node.
    pub region: &'a str,
    /// Zone of its node.
    pub zone: &'a str,
}

impl<'a> Baggage<'a> {
    /// Reads what a peer sent; keys that are not known are passed over, of one that comes twice the last counts.
    #[must_use]
    pub fn read(text: &'a str) -> Self {
        let mut read = Self::default();
        for member in text.split(',') {
            let mut parts = member.split('=');
            let (key, value) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
            let field = match key {
                "k8s.namespace.name" => &mut read.namespace,
                "k8s.cluster.name" => &mut read.cluster,
                "service.name" => &mut read.canonical_name,
                "service.version" => &mut read.canonical_revision,
                "app.name" => &mut read.app_name,
                "app.version" => &mut read.app_version,
                "k8s.instance.name" => &mut read.instance,
                "cloud.region" => &mut read.region,
                "cloud.availability_zone" => &mut read.zone,
                _ => match key.strip_prefix("k8s.").and_then(|key| WorkloadType::named(key.strip_suffix(".name")?)) {
                    Some(workload_type) => {
                        read.workload_type = Some(workload_type);
                        &mut read.workload_name
                    }
                    None => continue,
                },
            };
            *field = value;
        }
        read
    }

    /// The canonical service, or the app where there is none.
    #[must_use]
    pub fn service(&self) -> &'a str {
        if self.canonical_name.is_empty() { self.app_name } else { self.canonical_name }
    }

    /// The revision, or the app's version where there is none.
    #[must_use]
    pub fn revision(&self) -> &'a str {
        if self.canonical_revision.is_empty() { self.app_version } else { self.canonical_revision }
    }

    /// A peer of which nothing else is known; none if it says nothing. Its identity is what TLS has proven.
    #[must_use]
    pub fn workload(&self, identity: &SpiffeId, network: &str) -> Option<Arc<Workload>> {
        (*self != Self::default()).then(|| {
            Arc::new(Workload {
                uid: "".into(),
                name: self.instance.into(),
                namespace: self.namespace.into(),
                workload_name: self.workload_name.into(),
                workload_type: self.workload_type.unwrap_or(WorkloadType::Pod),
                canonical_name: self.service().into(),
                canonical_revision: self.revision().into(),
                cluster_id: self.cluster.into(),
                network: network.into(),
                identity: identity.clone(),
                region: self.region.into(),
                zone: self.zone.into(),
                addresses: Vec::new(),
            })
        })
    }
}

impl Display for Baggage<'_> {
    fn fmt(&self, formatter: &mut Formatter<'_>) -> fmt::Result {
        let differs = |of: &str, from: &str| of != from;
        let workload = format!("k8s.{}.name", self.workload_type.unwrap_or(WorkloadType::Pod).as_str());
        let members = [
            (workload.as_str(), self.workload_name),
            ("service.name", self.service()),
            ("app.name", if differs(self.app_name, self.service()) { self.app_name } else { "" }),
            ("service.version", self.revision()),
            ("app.version", if differs(self.app_version, self.revision()) { self.app_version } else { "" }),
            ("k8s.namespace.name", self.namespace),
            ("k8s.cluster.name", self.cluster),
            ("k8s.instance.name", self.instance),
            ("cloud.region", self.region),
            ("cloud.availability_zone", self.zone),
        ];
        let mut comma = "";
        for (key, value) in members.into_iter().filter(|(_, value)| !value.is_empty()) {
            write!(formatter, "{comma}{key}={value}")?;
            comma = ",";
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]

    use super::*;

    #[test]
    fn what_istio_s_peers_write_is_read() {
        // As ztunnel writes it.
        let text = "k8s.cluster.name=K1,k8s.namespace.name=NS1,k8s.deployment.name=N1,service.name=N2,service.version=V1,\
                    cloud.region=r1,cloud.availability_zone=r1-z1";
        let read = Baggage::read(text);
        let expected = Baggage {
            workload_type: Some(WorkloadType::Deployment),
            workload_name: "N1",
            canonical_name: "N2",
            canonical_revision: "V1",
            namespace: "NS1",
            cluster: "K1",
            region: "r1",
            zone: "r1-z1",
            ..Baggage::default()
        };
        assert_eq!(read, expected);
        // As Istio's proxy does.
        let read = Baggage::read(
            "k8s.pod.name=foo-pod-435,k8s.cluster.name=my-cluster,k8s.namespace.name=test,k8s.instance.name=foo-instance-435,\
             service.name=foo-service,service.version=v1beta2",
        );
        assert_eq!((read.workload_type, read.workload_name, read.instance), (Some(WorkloadType::Pod), "foo-pod-435", "foo-instance-435"));
        for (key, kind) in [("job", WorkloadType::Job), ("cronjob", WorkloadType::CronJob)] {
            assert_eq!(Baggage::read(&format!("k8s.{key}.name=a")).workload_type, Some(kind));
        }
        let read = Baggage::read("app.name=foo-app,app.version=latest");
        assert_eq!((read.service(), read.revision()), ("foo-app", "latest"));
        let read = Baggage::read("service.name=foo-service,service.version=v1,app.name=foo-app,app.version=latest");
        assert_eq!((read.service(), read.revision()), ("foo-service", "v1"));
    }

    #[test]
    fn what_is_empty_or_unknown_says_nothing() {
        let id = SpiffeId::new("cluster.local", "shop", "web").unwrap();
        for text in ["", ",,=", "k8s.cluster.name=,k8s.namespace.name=", "userId=alice", "k8s.x.name=a", "k8s.name=a"] {
            assert!(Baggage::read(text).workload(&id, "").is_none(), "{text}");
        }
        let workload = Baggage::read("k8s.namespace.name=other,service.name=a=b;c").workload(&id, "network2").unwrap();
        assert_eq!((&*workload.namespace, &*workload.canonical_name, &*workload.network), ("other", "a", "network2"));
        assert_eq!(workload.identity, id, "only TLS says who it is");
    }

    #[test]
    fn ours_is_written_as_istio_s_proxy_writes_it() {
        let ours = Baggage {
            workload_type: Some(WorkloadType::Deployment),
            workload_name: "waypoint",
            canonical_name: "waypoint",
            canonical_revision: "latest",
            app_name: "proxy",
            app_version: "latest",
            namespace: "shop",
            cluster: "Kubernetes",
            instance: "waypoint-1",
            ..Baggage::default()
        };
        let text = "k8s.deployment.name=waypoint,service.name=waypoint,app.name=proxy,service.version=latest,k8s.namespace.name=shop,\
                    k8s.cluster.name=Kubernetes,k8s.instance.name=waypoint-1";
        assert_eq!(ours.to_string(), text);
        assert_eq!(Baggage { app_version: "", ..ours }, Baggage::read(text));
        assert_eq!(Baggage::default().to_string(), "");
        assert_eq!(Baggage { workload_name: "a", app_name: "b", ..Baggage::default() }.to_string(), "k8s.pod.name=a,service.name=b");
    }
}
