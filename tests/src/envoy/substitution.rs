//! What the oracle is given otherwise than istiod sent it, in one table with the reasons; `docs/envoy-oracle.md` repeats it for readers.
//!
//! Invariant: whatever is not in [`SUBSTITUTIONS`] reaches Envoy as it was sent, or is refused by name.

/// What a row is about, and how it is recognised.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Subject {
    /// An element of a list of filters whose message has this full name: left out.
    Filter(&'static str),
    /// A factory of filter state objects: the first is replaced by the second.
    Factory(&'static str, &'static str),
    /// A place in the configuration that is rebuilt.
    Place(&'static str),
}

/// A row of the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Substitution {
    pub subject: Subject,
    /// What Envoy gets.
    pub instead: &'static str,
    pub because: &'static str,
}

impl Substitution {
    /// What istiod sent, in a few words.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self.subject {
            Subject::Filter(name) | Subject::Factory(name, _) | Subject::Place(name) => name,
        }
    }
}

/// The table.
pub const SUBSTITUTIONS: &[Substitution] = &[
    Substitution {
        subject: Subject::Filter("stats.PluginConfig"),
        instead: "nothing",
        because: "Istio's metrics are compiled into Istio's build only; the oracle has Envoy's own statistics",
    },
    Substitution {
        subject: Subject::Filter("io.istio.http.peer_metadata.Config"),
        instead: "nothing",
        because: "it looks up labels of peers for metrics, logs and spans, whose `%FILTER_STATE(…_peer_obj…)%` are empty then; no policy reads them",
    },
    Substitution {
        subject: Subject::Filter("envoy.tcp.metadataexchange.config.MetadataExchange"),
        instead: "nothing",
        because: "the same for TCP; without its ALPN, which no waypoint offers, it puts no bytes on the wire",
    },
    Substitution {
        subject: Subject::Factory("istio.hashable_string", "envoy.hashable_string"),
        instead: "`envoy.hashable_string`",
        because: "the same object under the name that Envoy gave it; it carries the principals, which policies read as `io.istio.peer_principal`",
    },
    Substitution {
        subject: Subject::Place("config_discovery"),
        instead: "nothing: the filter is left out",
        because: "such a filter comes by a subscription of its own (ECDS), and the recordings hold none",
    },
    Substitution {
        subject: Subject::Place("tls_certificate_sds_secret_configs"),
        instead: "files: the certificate of the waypoint's account for `default`, the named ones for `file-cert:`; other names are refused",
        because: "an agent beside Envoy serves them from a socket",
    },
    Substitution {
        subject: Subject::Place("validation_context_sds_secret_config"),
        instead: "files: the mesh's root for `ROOTCA` and `file-root:system`, the named one for other `file-root:`; other names are refused",
        because: "as above; what a test puts in place of external services has certificates of its mesh, not of this machine's roots",
    },
    Substitution {
        subject: Subject::Place("eds_cluster_config"),
        instead: "type `STATIC` with the load assignment that istiod sent for it, an empty one if none",
        because: "nobody serves discovery to the oracle; all addresses in load assignments are literal",
    },
    Substitution {
        subject: Subject::Place("connect_terminate.address"),
        instead: "the oracle's own address and port; `additional_addresses` are left out",
        because: "two proxies cannot listen on one address",
    },
    Substitution {
        subject: Subject::Place("istio.workload.Workload"),
        instead: "nothing",
        because: "Istio's workload discovery is an extension of Istio's build; it serves labels of peers only",
    },
    Substitution {
        subject: Subject::Place("bootstrap"),
        instead: "internal listeners with 64 KiB buffers, the runtime flags and the selection of statistics of pilot-agent's bootstrap; \
                  no subscriptions, none of the agent's ports but the admin port",
        because: "istiod does not send it, pilot-agent writes it",
    },
];
