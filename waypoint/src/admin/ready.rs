//! Whether this process is ready, and if not, why: what the readiness page says.
//!
//! Source: pilot-agent is ready when CDS and LDS were applied once and Envoy is live, and stays so until it drains.
//! We also ask for a certificate, for workers that listen, and that no attached chain is refused without a last good version.

use parking_lot::Mutex;

use crate::state::store::ConfigStatus;

/// Chains named on the page; of more, only the count is said.
const NAMED_CHAINS_MAX: usize = 10;

#[derive(Debug, Default)]
struct Facts {
    has_certificate: bool,
    certificate_problem: Option<String>,
    discovery_problem: Option<String>,
    config: ConfigStatus,
    is_listening: bool,
    is_draining: bool,
    was_ready: bool,
}

/// Gathers what readiness depends on.
#[derive(Debug)]
pub struct Readiness {
    facts: Mutex<Facts>,
    ready_with_refused: bool,
}

impl Readiness {
    /// Not ready yet. `ready_with_refused`: refused chains do not hold it back.
    #[must_use]
    pub fn new(ready_with_refused: bool) -> Self {
        Self { facts: Mutex::default(), ready_with_refused }
    }

    /// A certificate is at hand, or why there is none or no newer one.
    pub fn certificate(&self, problem: Option<String>) {
        let mut facts = self.facts.lock();
        facts.has_certificate |= problem.is_none();
        facts.certificate_problem = problem;
    }

    /// The discovery stream works, or why it does not.
    pub fn discovery(&self, problem: Option<String>) {
        self.facts.lock().discovery_problem = problem;
    }

    /// What was applied.
    pub fn config(&self, status: &ConfigStatus) {
        self.facts.lock().config.clone_from(status);
    }

    /// All workers listen.
    pub fn listening(&self) {
        self.facts.lock().is_listening = true;
    }

    /// A drain has begun: not ready, for good.
    pub fn draining(&self) {
        self.facts.lock().is_draining = true;
    }

    /// Why it is not ready; empty if it is.
    #[must_use]
    pub fn reasons(&self) -> Vec<String> {
        let mut facts = self.facts.lock();
        if facts.is_draining {
            return vec!["draining".to_owned()];
        }
        if facts.was_ready {
            return Vec::new();
        }
        let mut reasons = facts.missing();
        let refused = &facts.config.refused_chains;
        if !self.ready_with_refused && !refused.is_empty() {
            let named = refused.iter().take(NAMED_CHAINS_MAX).map(String::as_str).collect::<Vec<_>>().join(", ");
            let rest = refused.len().saturating_sub(NAMED_CHAINS_MAX);
            let more = if rest > 0 { format!(" and {rest} more") } else { String::new() };
            reasons.push(format!(
                "refused configuration: {named}{more}; see /unsupported on port 15000, or set WAYPOINT_READY_WITH_REFUSED=true"
            ));
        }
        facts.was_ready = reasons.is_empty();
        reasons
    }
}

impl Facts {
    fn missing(&self) -> Vec<String> {
        let with = |what: &str, problem: &Option<String>| match problem {
            Some(problem) => format!("{what}: {problem}"),
            None => what.to_owned(),
        };
        let mut reasons = Vec::new();
        if !self.has_certificate {
            reasons.push(with("no certificate yet", &self.certificate_problem));
        }
        if !self.config.has_clusters {
            reasons.push(with("no clusters from istiod yet", &self.discovery_problem));
        }
        if !self.config.has_listeners {
            reasons.push(with("no listeners from istiod yet", &self.discovery_problem));
        }
        if !self.is_listening {
            reasons.push("not listening for HBONE yet".to_owned());
        }
        reasons
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn configured(refused: &[&str]) -> ConfigStatus {
        ConfigStatus { has_clusters: true, has_listeners: true, refused_chains: refused.iter().map(|name| (*name).to_owned()).collect() }
    }

    fn complete(ready_with_refused: bool, refused: &[&str]) -> Readiness {
        let readiness = Readiness::new(ready_with_refused);
        readiness.certificate(None);
        readiness.config(&configured(refused));
        readiness.listening();
        readiness
    }

    #[test]
    fn everything_that_is_missing_is_named_with_its_cause() {
        let readiness = Readiness::new(false);
        readiness.certificate(Some("connection refused".to_owned()));
        readiness.discovery(Some("no route to host".to_owned()));
        assert_eq!(
            readiness.reasons(),
            [
                "no certificate yet: connection refused",
                "no clusters from istiod yet: no route to host",
                "no listeners from istiod yet: no route to host",
                "not listening for HBONE yet"
            ]
        );
        assert!(complete(false, &[]).reasons().is_empty());
    }

    #[test]
    fn a_refused_chain_holds_a_fresh_process_back_and_an_old_one_not() {
        assert!(complete(false, &["inbound-vip|80|http|web"]).reasons()[0].contains("inbound-vip|80|http|web"));
        assert!(complete(true, &["inbound-vip|80|http|web"]).reasons().is_empty());
        let old = complete(false, &[]);
        assert!(old.reasons().is_empty());
        old.config(&configured(&["inbound-vip|80|http|web"]));
        assert!(old.reasons().is_empty());
    }

    #[test]
    fn once_ready_it_stays_so_until_it_drains() {
        let readiness = complete(false, &[]);
        assert!(readiness.reasons().is_empty());
        readiness.discovery(Some("istiod is gone".to_owned()));
        readiness.certificate(Some("the CA is gone".to_owned()));
        assert!(readiness.reasons().is_empty());
        readiness.draining();
        assert_eq!(readiness.reasons(), ["draining"]);
    }
}
