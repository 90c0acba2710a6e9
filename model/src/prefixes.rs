//! All known prefixes of a text, by one binary search: the cost grows with the logarithm of what is known and with how many of it fit.
//!
//! Invariant: every prefix of a text is a prefix of the last known one that is not behind the text in order, or is that one itself.

use std::collections::BTreeMap;

/// Texts, each with something that is known by it.
#[derive(Clone, Debug)]
pub(crate) struct Prefixes<T> {
    /// In order.
    all: Box<[Prefix<T>]>,
}

#[derive(Clone, Debug)]
struct Prefix<T> {
    text: Box<[u8]>,
    /// The longest of the others that it begins with.
    shorter: Option<usize>,
    known: T,
}

impl<T> Default for Prefixes<T> {
    fn default() -> Self {
        Self { all: Box::default() }
    }
}

impl<T> Prefixes<T> {
    pub(crate) fn new(known: BTreeMap<Box<[u8]>, T>) -> Self {
        let mut all: Vec<Prefix<T>> = Vec::with_capacity(known.len());
        for (text, known) in known {
            let mut shorter = all.len().checked_sub(1);
            while let Some(at) = shorter.filter(|at| !text.starts_with(&all[*at].text)) {
                shorter = all[at].shorter;
            }
            all.push(Prefix { text, shorter, known });
        }
        Self { all: all.into() }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.all.is_empty()
    }

    /// What is known by each prefix of a text, the longest first, with its length.
    pub(crate) fn of<'a>(&'a self, text: &[u8]) -> impl Iterator<Item = (usize, &'a T)> {
        let mut next = self.all.partition_point(|prefix| *prefix.text <= *text).checked_sub(1);
        std::iter::from_fn(move || {
            while let Some(prefix) = next.map(|at| &self.all[at]) {
                next = prefix.shorter;
                if text.starts_with(&prefix.text) {
                    return Some((prefix.text.len(), &prefix.known));
                }
            }
            None
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn all_prefixes_are_found_the_longest_first_and_nothing_else(
            known in prop::collection::btree_set("[ab/]{0,5}", 0..20),
            text in "[ab/]{0,7}",
        ) {
            let prefixes = Prefixes::new(known.iter().map(|text| (text.as_bytes().into(), text.as_str())).collect());
            let found: Vec<_> = prefixes.of(text.as_bytes()).collect();
            let mut expected: Vec<_> = known.iter().filter(|prefix| text.starts_with(*prefix)).map(|prefix| (prefix.len(), &**prefix)).collect();
            expected.sort_unstable_by(|one, other| other.cmp(one));
            prop_assert_eq!(found.into_iter().map(|(length, text)| (length, *text)).collect::<Vec<_>>(), expected);
        }
    }
}
