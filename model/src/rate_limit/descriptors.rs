//! Limits of their own for some requests, which are told apart by descriptors: lists of entries, each a key and a value.
//!
//! Not for: making a request's descriptors (`filters::rate_limit`). Invariant: of an entry whose value is left open, a bucket is kept for
//! so many values only; the one that was asked for longest ago goes first, as in Envoy.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
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
    /// The same values by when each was asked for last: the first is the one that goes.
    by_age: BTreeMap<u64, Values>,
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
        recent.of(values, self.buckets_max, || Arc::new(limit.bucket.full()))
    }
}

impl Recent {
    /// The bucket of these values, a new one if they have none. All workers wait for this: it looks at no other bucket.
    fn of(&mut self, values: Values, buckets_max: usize, new: impl FnOnce() -> Arc<TokenBucket>) -> Arc<TokenBucket> {
        self.n_asked += 1;
        if let Some(used) = self.by_values.get_mut(&values) {
            self.by_age.remove(&used.asked);
            used.asked = self.n_asked;
            self.by_age.insert(self.n_asked, values);
            return Arc::clone(&used.bucket);
        }
        if self.by_values.len() >= buckets_max
            && let Some((_, oldest)) = self.by_age.pop_first()
        {
            self.by_values.remove(&oldest);
        }
        let bucket = new();
        self.by_age.insert(self.n_asked, values.clone());
        self.by_values.insert(values, Used { bucket: Arc::clone(&bucket), asked: self.n_asked });
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
    fn of_many_values_always_the_one_asked_for_longest_ago_goes_and_no_more_are_kept_than_may_be() {
        const VALUES_MAX: usize = 8;
        let limit = limit(None, VALUES_MAX);
        // Oldest first.
        let mut expected: Vec<(String, Arc<TokenBucket>)> = Vec::new();
        for step in 0..2_000_usize {
            let value = (step * step % 23 % 11).to_string();
            let bucket = limit.bucket_of(&descriptor(&value)).unwrap();
            match expected.iter().position(|(known, _)| *known == value) {
                Some(at) => assert!(Arc::ptr_eq(&expected.remove(at).1, &bucket), "{value} was kept at {step}"),
                None if expected.len() == VALUES_MAX => drop(expected.remove(0)),
                None => {}
            }
            expected.push((value, bucket));
            let recent = limit.each.as_ref().unwrap().buckets.lock().unwrap();
            assert_eq!((recent.by_values.len(), recent.by_age.len()), (expected.len(), expected.len()));
            let kept: Vec<_> = recent.by_age.values().map(|values| values[0].to_string()).collect();
            assert!(kept.iter().eq(expected.iter().map(|(value, _)| value)), "{kept:?} at {step}");
        }
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
