//! Route tables: virtual hosts, their routes, and which of those can match a path without trying all.
//!
//! Not for: matching. A candidate is a route whose path may match; `filters::route` looks at everything.
//! Invariants: candidates come in match order, each once; a route whose path matches is among them.
//!
//! Exact paths and prefixes stand sorted in one list, each with the longest other text that it begins with. The last text
//! that is not after a path begins with every text that the path begins with, so one binary search and a walk along those
//! finds them all: the cost grows with the logarithm of the routes and the depth of the path.

use std::collections::BTreeMap;
use std::ops::Deref;
use std::sync::Arc;

use smallvec::SmallVec;

use crate::route::{PathMatcher, Route};

/// That many routes are tried one by one; looking them up would cost more.
const TRIED_ONE_BY_ONE: usize = 4;

/// A virtual host's domain, letters of either case alike; kept in lower case.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Domain {
    /// `*`.
    Any,
    /// `*.example.com`: something before the suffix.
    Suffix(Box<str>),
    /// `example.*`.
    Prefix(Box<str>),
    /// The whole host, with its port if it has one.
    Exact(Box<str>),
}

/// Routes of some domains.
#[derive(Clone, Debug)]
pub struct VirtualHost {
    /// Its name.
    pub name: Box<str>,
    /// Its domains.
    pub domains: Vec<Domain>,
    /// In order.
    pub routes: Routes,
}

/// An HTTP chain's routes.
#[derive(Clone, Debug)]
pub struct RouteTable {
    /// The configuration's name.
    pub name: Box<str>,
    /// Its virtual hosts.
    pub virtual_hosts: Vec<VirtualHost>,
}

/// Routes in match order.
#[derive(Clone, Debug, Default)]
pub struct Routes {
    all: Vec<Arc<Route>>,
    texts: Vec<PathText>,
    /// Those that may match any path, by position: regular expressions, and those without regard to case.
    any: Vec<usize>,
}

/// A text that paths are, or begin with.
#[derive(Clone, Debug)]
struct PathText {
    text: Box<str>,
    /// The longest other text that this one begins with.
    shorter: Option<usize>,
    /// Positions of routes whose path is it.
    exact: Vec<usize>,
    /// Positions of routes whose path begins with it.
    prefix: Vec<usize>,
}

impl Routes {
    /// The routes whose path may be `path`, which has no query, in match order.
    pub fn candidates(&self, path: &str) -> impl Iterator<Item = &Arc<Route>> {
        // Sorted positions; they rarely are more than two lists.
        let mut lists: SmallVec<[&[usize]; 4]> = SmallVec::new();
        lists.extend(Some(&*self.any).filter(|list| !list.is_empty()));
        let mut at = self.texts.partition_point(|one| *one.text <= *path).checked_sub(1);
        while let Some(one) = at.map(|at| &self.texts[at]) {
            if path.starts_with(&*one.text) {
                let exact = if one.text.len() == path.len() { &*one.exact } else { &[] };
                lists.extend([exact, &*one.prefix].into_iter().filter(|list| !list.is_empty()));
            }
            at = one.shorter;
        }
        std::iter::from_fn(move || {
            let next = lists.iter_mut().filter(|list| !list.is_empty()).min_by_key(|list| list[0])?;
            let (first, rest) = next.split_first()?;
            *next = rest;
            Some(&self.all[*first])
        })
    }
}

impl From<Vec<Arc<Route>>> for Routes {
    fn from(all: Vec<Arc<Route>>) -> Self {
        if all.len() <= TRIED_ONE_BY_ONE {
            return Self { any: (0..all.len()).collect(), all, texts: Vec::new() };
        }
        let mut any = Vec::new();
        let mut texts: BTreeMap<Box<str>, PathText> = BTreeMap::new();
        for (position, route) in all.iter().enumerate() {
            let (PathMatcher::Prefix(text) | PathMatcher::SeparatedPrefix(text) | PathMatcher::Exact(text), true) =
                (&route.matches.path, route.matches.case_sensitive)
            else {
                any.push(position);
                continue;
            };
            let one = texts.entry(text.clone()).or_insert_with(|| PathText::new(text));
            let list = if matches!(route.matches.path, PathMatcher::Exact(_)) { &mut one.exact } else { &mut one.prefix };
            list.push(position);
        }
        let mut texts: Vec<PathText> = texts.into_values().collect();
        let mut open: Vec<usize> = Vec::new();
        for at in 0..texts.len() {
            while open.pop_if(|last| !texts[at].text.starts_with(&*texts[*last].text)).is_some() {}
            texts[at].shorter = open.last().copied();
            open.push(at);
        }
        Self { all, texts, any }
    }
}

impl PathText {
    fn new(text: &str) -> Self {
        Self { text: text.into(), shorter: None, exact: Vec::new(), prefix: Vec::new() }
    }
}

impl Deref for Routes {
    type Target = [Arc<Route>];

    fn deref(&self) -> &Self::Target {
        &self.all
    }
}

impl FromIterator<Arc<Route>> for Routes {
    fn from_iter<I: IntoIterator<Item = Arc<Route>>>(routes: I) -> Self {
        routes.into_iter().collect::<Vec<_>>().into()
    }
}
