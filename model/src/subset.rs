//! Subsets of a cluster: endpoints that say the same of themselves, and which of them a request is for.
//!
//! Not for: who is in a subset at the moment, nor choosing among them. Source: Envoy's subset load balancer.
//! Invariants: labels and keys are sorted by key, and each key is there once.

use std::sync::Arc;

use smallvec::SmallVec;

/// One thing that an endpoint says of itself, or that a route asks for: a field of the metadata `envoy.lb`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Label {
    /// Its name.
    pub key: Arc<str>,
    /// Its value as a text that like values have in common, as in JSON: `1` is not `"1"`.
    pub value: Arc<str>,
}

/// Labels, sorted.
pub type Labels = Arc<[Label]>;

/// The labels of a route and of one of its clusters together; the cluster's win.
#[must_use]
pub fn merged(outer: &Labels, inner: Labels) -> Labels {
    if inner.is_empty() {
        return Arc::clone(outer);
    }
    let is_replaced = |label: &Label| inner.iter().any(|one| one.key == label.key);
    let mut all: Vec<_> = outer.iter().filter(|label| !is_replaced(label)).chain(inner.iter()).cloned().collect();
    all.sort_unstable();
    all.into()
}

/// Those of some labels that have one of these keys.
#[must_use]
pub fn restricted(labels: &[Label], keys: &[Arc<str>]) -> SmallVec<[Label; 4]> {
    labels.iter().filter(|label| keys.contains(&label.key)).cloned().collect()
}

/// Where a request goes that no subset is there for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Fallback {
    /// Nowhere.
    #[default]
    Nowhere,
    /// To any endpoint.
    Any,
    /// To those that have the labels of the default subset.
    Default,
}

/// The same, of the requests that ask for the keys of one selector.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SelectorFallback {
    /// As the cluster could say.
    To(Fallback),
    /// To the subset that these of the keys alone ask for.
    Fewer(Box<[Arc<str>]>),
}

/// Keys whose values make subsets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Selector {
    /// The keys; at least one.
    pub keys: Box<[Arc<str>]>,
    /// What counts before the cluster's own fallback.
    pub fallback: Option<SelectorFallback>,
}

impl Selector {
    /// The subset of it that an endpoint with these labels is in: of the endpoints that have all its keys.
    #[must_use]
    pub fn subset_of(&self, labels: &[Label]) -> Option<SmallVec<[Label; 4]>> {
        Some(restricted(labels, &self.keys)).filter(|subset| subset.len() == self.keys.len())
    }

    /// Whether these are labels for its keys, all of them and no others.
    #[must_use]
    pub fn is_asked_by(&self, labels: &[Label]) -> bool {
        self.keys.iter().eq(labels.iter().map(|label| &label.key))
    }
}

/// How a cluster is divided.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SubsetRules {
    /// By which keys.
    pub selectors: Box<[Selector]>,
    /// Where requests go that no subset is there for.
    pub fallback: Fallback,
    /// What endpoints of the default subset say of themselves.
    pub default: Labels,
    /// A locality's weight counts in a subset as far as its endpoints are in it.
    pub scales_localities: bool,
    /// Where nobody of the fallback can be chosen, anybody is.
    pub panics_to_any: bool,
}

impl SubsetRules {
    /// Whether there is a default subset that anything leads to.
    #[must_use]
    pub fn has_default(&self) -> bool {
        let leads = |selector: &Selector| selector.fallback == Some(SelectorFallback::To(Fallback::Default));
        self.fallback == Fallback::Default || self.selectors.iter().any(leads)
    }

    /// Whether an endpoint with these labels is in the default subset.
    #[must_use]
    pub fn is_default(&self, labels: &[Label]) -> bool {
        self.default.iter().all(|label| labels.contains(label))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(all: &[(&str, &str)]) -> Labels {
        all.iter().map(|(key, value)| Label { key: (*key).into(), value: (*value).into() }).collect()
    }

    #[test]
    fn a_cluster_s_labels_win_over_its_route_s() {
        let route = labels(&[("stage", "prod"), ("version", "1")]);
        assert_eq!(merged(&route, labels(&[("version", "2"), ("a", "b")])), labels(&[("a", "b"), ("stage", "prod"), ("version", "2")]));
        assert_eq!(merged(&route, labels(&[])), route);
        assert_eq!(merged(&labels(&[]), route.clone()), route);
    }
}
