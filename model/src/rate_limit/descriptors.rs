//! Limits of their own for some requests, which are told apart by descriptors: lists of entries, each a key and a value.
//!
//! Not for: making a request's descriptors (`filters::rate_limit`). Invariant: of an entry whose value is left open, a bucket is kept for
//! so many values only; the one that was asked for longest ago goes first, as in Envoy.

use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use smallvec::SmallVec;

use super::TokenBucket;
use crate::matcher::{HeaderMatcher, MatchedHeader, QueryMatcher};

/// What a request is to limits.
pub type Descriptor<'a> = SmallVec<[(&'a str, Cow<'a, str>); 4]>;

/// What makes an entry of a descriptor.
#[derive(Clone, Debug)]
pub enum Action {
    /// None, of no request.
    Nothing,
    /// This one.
    Fixed(Box<str>, Box<str>),
    /// The first line of a header, under a key.
    Header(Box<str>, MatchedHeader, Absent),
    /// The first parameter of a name, decoded, under a key.
    Query(Box<str>, Box<str>, Absent),
    /// `remote_address`.
    RemoteAddress,
    /// `masked_remote_address`, of so many bits of an IPv4 and of an IPv6 address.
    MaskedAddress(u8, u8),
    /// A key and a value, if the request meets these conditions or, if false, does not.
    HeaderMatch(Box<str>, Box<str>, bool, Box<[HeaderMatcher]>),
    /// As above.
    QueryMatch(Box<str>, Box<str>, bool, Box<[QueryMatcher]>),
}

/// What a value that is not there does to its descriptor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Absent {
    /// There is no descriptor.
    Fails,
    /// There is no entry.
    IsSkipped,
}

/// The actions of one descriptor, in order. One that makes no entry makes that there is no descriptor.
#[derive(Clone, Debug)]
pub struct Rule(pub Box<[Action]>);

/// What an entry has to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WantedEntry {
    /// Its key.
    pub key: Box<str>,
    /// Its value; none is left open.
    pub value: Option<Box<str>>,
}

/// The limit of requests with a descriptor.
#[derive(Debug)]
pub struct DescriptorLimit {
    entries: Box<[WantedEntry]>,
    /// Of all requests, if no value is left open; else what those for values are like.
    bucket: Arc<TokenBucket>,
    /// By the values that are left open.
    each: Option<Each>,
}

#[derive(Debug)]
struct Each {
    buckets: Mutex<Recent>,
    buckets_max: usize,
}

#[derive(Debug, Default)]
struct Recent {
    by_values: HashMap<Values, Used>,
    n_asked: u64,
}

type Values = Box<[Box<str>]>;

#[derive(Debug)]
struct Used {
    bucket: Arc<TokenBucket>,
    /// Counted by [`Recent::n_asked`].
    asked: u64,
}

impl DescriptorLimit {
    /// Values that are left open are told apart, `values_max` of them.
    #[must_use]
    pub fn new(entries: Box<[WantedEntry]>, bucket: TokenBucket, values_max: usize) -> Self {
        let is_open = entries.iter().any(|entry| entry.value.is_none());
        let each = is_open.then(|| Each { buckets: Mutex::default(), buckets_max: values_max.max(1) });
        Self { entries, bucket: Arc::new(bucket), each }
    }

    /// Whether some value is left open.
    #[must_use]
    pub fn is_open(&self) -> bool {
        self.each.is_some()
    }

    /// Whether another has the same keys and values.
    #[must_use]
    pub fn is_for_the_same_as(&self, other: &Self) -> bool {
        self.entries == other.entries
    }

    /// The bucket of a descriptor; none if it is another's.
    #[must_use]
    pub fn bucket_of(&self, descriptor: &Descriptor<'_>) -> Option<Arc<TokenBucket>> {
        let is_wanted = |wanted: &WantedEntry, key: &str, value: &str| {
            *wanted.key == *key && wanted.value.as_ref().is_none_or(|wanted| **wanted == *value)
        };
        let mut pairs = self.entries.iter().zip(descriptor);
        if self.entries.len() != descriptor.len() || !pairs.all(|(wanted, (key, value))| is_wanted(wanted, key, value)) {
            return None;
        }
        Some(self.each.as_ref().map_or_else(|| Arc::clone(&self.bucket), |each| each.of(self, descriptor)))
    }
}

impl Each {
    fn of(&self, limit: &DescriptorLimit, descriptor: &Descriptor<'_>) -> Arc<TokenBucket> {
        let open = limit.entries.iter().zip(descriptor).filter(|(wanted, _)| wanted.value.is_none());
        let values: Values = open.map(|(_, (_, value))| value.as_ref().into()).collect();
        let mut recent = self.buckets.lock().unwrap_or_else(PoisonError::into_inner);
        recent.n_asked += 1;
        let now = recent.n_asked;
        if let Some(used) = recent.by_values.get_mut(&values) {
            used.asked = now;
            return Arc::clone(&used.bucket);
        }
        if recent.by_values.len() >= self.buckets_max {
            let oldest = recent.by_values.iter().min_by_key(|(_, used)| used.asked).map(|(values, _)| values.clone());
            oldest.map(|values| recent.by_values.remove(&values));
        }
        let bucket = Arc::new(limit.bucket.full());
        recent.by_values.insert(values, Used { bucket: Arc::clone(&bucket), asked: now });
        bucket
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]

    use std::time::{Duration, Instant};

    use super::*;

    fn limit(value: Option<&str>, values_max: usize) -> DescriptorLimit {
        let bucket = TokenBucket::new(1, 1, Duration::from_secs(60)).unwrap();
        DescriptorLimit::new([WantedEntry { key: "a".into(), value: value.map(Into::into) }].into(), bucket, values_max)
    }

    fn descriptor(value: &str) -> Descriptor<'_> {
        std::iter::once(("a", Cow::Borrowed(value))).collect()
    }

    #[test]
    fn each_value_that_is_left_open_has_a_bucket_and_the_one_asked_for_longest_ago_goes() {
        let (limit, now) = (limit(None, 2), Instant::now());
        let allowed = |value| limit.bucket_of(&descriptor(value)).unwrap().take(now).allowed;
        assert_eq!(["x", "y", "x", "y"].map(allowed), [true, true, false, false]);
        assert_eq!(["x", "z", "x", "y"].map(allowed), [false, true, false, true], "y had to go for z");
    }

    #[test]
    fn a_descriptor_is_another_s_if_keys_values_or_their_number_differ() {
        let limit = limit(Some("x"), 1);
        assert!(limit.bucket_of(&descriptor("x")).is_some() && limit.bucket_of(&descriptor("y")).is_none());
        let longer: Descriptor<'_> = descriptor("x").into_iter().chain(descriptor("x")).collect();
        let other: Descriptor<'_> = std::iter::once(("b", Cow::Borrowed("x"))).collect();
        assert!(limit.bucket_of(&longer).is_none() && limit.bucket_of(&other).is_none());
    }
}
