//! All known prefixes of a text, by one binary search.
//!
//! Invariant: every prefix of a text is a prefix of the last known one that is not behind the text in order, or is that one itself.

use std::collections::HashMap;

/// Prefixes with the policies that need them.
#[derive(Clone, Debug, Default)]
pub(super) struct Prefixes {
    /// In order.
    all: Box<[Prefix]>,
}

#[derive(Clone, Debug)]
struct Prefix {
    text: Box<[u8]>,
    /// The longest of the others that it begins with.
    shorter: Option<usize>,
    numbers: Vec<usize>,
}

impl Prefixes {
    pub(super) fn new(numbers: HashMap<Box<[u8]>, Vec<usize>>) -> Self {
        let mut sorted: Vec<_> = numbers.into_iter().collect();
        sorted.sort_unstable();
        let mut all: Vec<Prefix> = Vec::with_capacity(sorted.len());
        for (text, numbers) in sorted {
            let mut shorter = all.len().checked_sub(1);
            while let Some(at) = shorter.filter(|at| !text.starts_with(&all[*at].text)) {
                shorter = all[at].shorter;
            }
            all.push(Prefix { text, shorter, numbers });
        }
        Self { all: all.into() }
    }

    /// Shows the policies of every prefix of the text.
    pub(super) fn visit(&self, text: &[u8], show: &mut impl FnMut(&[usize])) {
        let mut next = self.all.partition_point(|prefix| *prefix.text <= *text).checked_sub(1);
        while let Some(prefix) = next.map(|at| &self.all[at]) {
            if text.starts_with(&prefix.text) {
                show(&prefix.numbers);
            }
            next = prefix.shorter;
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn all_prefixes_are_found_and_nothing_else(
            known in prop::collection::hash_set("[ab/]{0,5}", 0..20),
            text in "[ab/]{0,7}",
        ) {
            let known: Vec<_> = known.into_iter().collect();
            let numbered = (0_usize..).zip(&known).map(|(at, text)| (text.as_bytes().into(), vec![at]));
            let mut found = Vec::new();
            Prefixes::new(numbered.collect()).visit(text.as_bytes(), &mut |numbers: &[usize]| found.extend_from_slice(numbers));
            found.sort_unstable();
            let expected: Vec<_> = (0_usize..).zip(&known).filter(|(_, prefix)| text.starts_with(*prefix)).map(|(at, _)| at).collect();
            prop_assert_eq!(found, expected);
        }
    }
}
