//! Route tables: virtual hosts, their routes, and which of those can match a path without trying all.
//!
//! Not for: matching. A candidate is a route whose path may match; `filters::route` looks at everything.
//! Invariants: candidates come in match order, each once; a route whose path matches is among them.
//!
//! Exact paths, prefixes, and what matches of an expression begin with, are looked up as prefixes of the path; where either case counts, in
//! lower case.

use std::collections::BTreeMap;
use std::ops::Deref;
use std::sync::Arc;

use smallvec::SmallVec;

use crate::prefixes::Prefixes;
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
    texts: Prefixes<PathRoutes>,
    /// Those without regard to case, by texts in lower case.
    folded: Prefixes<PathRoutes>,
    /// Those that may match any path, by position: regular expressions without a text that matches begin with.
    any: Vec<usize>,
}

/// Routes by a text that paths are, or begin with.
#[derive(Clone, Debug, Default)]
struct PathRoutes {
    /// Positions of routes whose path is it.
    exact: Vec<usize>,
    /// Positions of routes whose path begins with it.
    prefix: Vec<usize>,
}

impl Routes {
    /// The routes whose path may be `path`, which has no query, in match order.
    pub fn candidates(&self, path: &str) -> impl Iterator<Item = &Arc<Route>> {
        let mut lists = Lists::new();
        lists.extend(Some(&*self.any).filter(|list| !list.is_empty()));
        self.texts.of(path.as_bytes()).for_each(|known| add_lists(known, path, &mut lists));
        if !self.folded.is_empty() {
            let lower: SmallVec<[u8; 256]> = path.bytes().map(|byte| byte.to_ascii_lowercase()).collect();
            self.folded.of(&lower).for_each(|known| add_lists(known, path, &mut lists));
        }
        std::iter::from_fn(move || {
            let next = lists.iter_mut().filter(|list| !list.is_empty()).min_by_key(|list| list[0])?;
            let (first, rest) = next.split_first()?;
            *next = rest;
            Some(&self.all[*first])
        })
    }
}

/// Sorted positions; they rarely are more than two lists.
type Lists<'a> = SmallVec<[&'a [usize]; 4]>;

/// Adds the lists of a text of this length, which a path begins with or is.
fn add_lists<'a>((length, routes): (usize, &'a PathRoutes), path: &str, lists: &mut Lists<'a>) {
    let exact: &[usize] = if length == path.len() { &routes.exact } else { &[] };
    for list in [exact, &*routes.prefix] {
        if !list.is_empty() {
            lists.push(list);
        }
    }
}

impl From<Vec<Arc<Route>>> for Routes {
    fn from(all: Vec<Arc<Route>>) -> Self {
        if all.len() <= TRIED_ONE_BY_ONE {
            return Self { any: (0..all.len()).collect(), all, ..Self::default() };
        }
        let mut any = Vec::new();
        let mut texts: BTreeMap<Box<[u8]>, PathRoutes> = BTreeMap::new();
        let mut folded = texts.clone();
        for (position, route) in all.iter().enumerate() {
            let (text, is_folded) = match &route.matches.path {
                PathMatcher::Prefix(text) | PathMatcher::SeparatedPrefix(text) | PathMatcher::Exact(text) => {
                    (text.as_bytes().to_vec(), !route.matches.case_sensitive)
                }
                // Expressions say themselves which case counts.
                PathMatcher::Regex(expression) => (expression.beginning(), false),
            };
            if text.is_empty() {
                any.push(position);
                continue;
            }
            let (text, known) = if is_folded { (text.to_ascii_lowercase(), &mut folded) } else { (text, &mut texts) };
            let routes = known.entry(text.into()).or_default();
            let list = if matches!(route.matches.path, PathMatcher::Exact(_)) { &mut routes.exact } else { &mut routes.prefix };
            list.push(position);
        }
        Self { all, texts: Prefixes::new(texts), folded: Prefixes::new(folded), any }
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
