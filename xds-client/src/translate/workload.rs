//! Workload discovery, with Istio's defaults for what is left out.

use std::net::IpAddr;

use model::identity::SpiffeId;
use model::workload::{Workload, WorkloadType};
use xds_proto::istio::workload as proto;

use super::{Problem, Translated};

fn or<'a>(text: &'a str, default: &'a str) -> &'a str {
    if text.is_empty() { default } else { text }
}

/// Translates a workload. `name`: the resource's, for workloads without a uid.
///
/// # Errors
/// An address of another length than 4 or 16 bytes, or an identity that is none.
pub fn workload(value: &proto::Workload, name: &str) -> Translated<Workload> {
    let namespace = or(&value.namespace, "default");
    let identity = SpiffeId::new(or(&value.trust_domain, "cluster.local"), namespace, or(&value.service_account, "default"));
    let addresses = value.addresses.iter().enumerate().map(|(at, bytes)| {
        let v4 = <[u8; 4]>::try_from(&bytes[..]).map(IpAddr::from);
        let address = v4.or_else(|_| <[u8; 16]>::try_from(&bytes[..]).map(IpAddr::from));
        address
            .map(|address| address.to_canonical())
            .map_err(|_| Problem::new(format!("addresses[{at}]"), format!("has {} bytes", bytes.len())))
    });
    let locality = value.locality.as_ref();
    Ok(Workload {
        uid: or(&value.uid, name).into(),
        name: value.name.as_str().into(),
        namespace: namespace.into(),
        workload_name: value.workload_name.as_str().into(),
        workload_type: match proto::WorkloadType::try_from(value.workload_type) {
            Ok(proto::WorkloadType::Cronjob) => WorkloadType::CronJob,
            Ok(proto::WorkloadType::Pod) => WorkloadType::Pod,
            Ok(proto::WorkloadType::Job) => WorkloadType::Job,
            Ok(proto::WorkloadType::Deployment) => WorkloadType::Deployment,
            Err(_) => return Err(Problem::new("workload_type", format!("{} is not known", value.workload_type))),
        },
        canonical_name: value.canonical_name.as_str().into(),
        canonical_revision: value.canonical_revision.as_str().into(),
        cluster_id: value.cluster_id.as_str().into(),
        network: value.network.as_str().into(),
        identity: identity.map_err(|error| Problem::new("service_account", error.to_string()))?,
        region: locality.map_or("", |locality| &locality.region).into(),
        zone: locality.map_or("", |locality| &locality.zone).into(),
        addresses: addresses.collect::<Translated<_>>()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn m05_what_a_workload_does_not_say_is_istios_default() {
        let read = workload(&proto::Workload::default(), "Kubernetes//Pod/default/web").expect("reads");
        assert_eq!((read.identity.as_str(), &*read.namespace), ("spiffe://cluster.local/ns/default/sa/default", "default"));
        assert_eq!(&*read.uid, "Kubernetes//Pod/default/web");
    }
}
