//! Response flags: what went wrong with a request, in Envoy's short words, in the order in which it went wrong.
//!
//! Source: Envoy's `%RESPONSE_FLAGS%`; `docs/contracts.md` lists those that istiod's consumers read.

use std::fmt;

/// One response flag.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum ResponseFlag {
    /// `UH`: no endpoint was eligible.
    NoHealthyUpstream,
    /// `UF`: no connection to the endpoint could be made.
    UpstreamConnectionFailure,
    /// `UC`: the endpoint closed the connection.
    UpstreamConnectionTermination,
    /// `UR`: the endpoint reset the stream.
    UpstreamRemoteReset,
    /// `UO`: a circuit breaker was open.
    UpstreamOverflow,
    /// `UT`: the route's or the try's timeout passed.
    UpstreamRequestTimeout,
    /// `UPE`: the endpoint's answer was not HTTP.
    UpstreamProtocolError,
    /// `URX`: the retry limit was reached.
    UpstreamRetryLimitExceeded,
    /// `NR`: no route or no filter chain matched.
    NoRouteFound,
    /// `NC`: the route names a cluster that does not exist.
    NoClusterFound,
    /// `DC`: the client went away.
    DownstreamConnectionTermination,
    /// `DR`: the client took back its request, or its stream was reset for what it sent; its connection stayed.
    DownstreamRemoteReset,
    /// `DPE`: the client's request was not HTTP.
    DownstreamProtocolError,
    /// `DT`: the request lasted longer than it may.
    DurationTimeout,
    /// `SI`: the stream was idle for too long.
    StreamIdleTimeout,
    /// `DI`: a fault delayed it.
    DelayInjected,
    /// `FI`: a fault aborted it.
    FaultInjected,
    /// `RL`: a rate limit refused it.
    RateLimited,
    /// `UAEX`: the external authorization service refused it.
    UnauthorizedExternalService,
    /// `LR`: we reset the upstream stream.
    LocalReset,
    /// `OM`: shed because memory was short.
    OverloadManager,
    /// `DF`: the host that was asked for could not be looked up.
    DnsResolutionFailed,
}

/// How many flags one request can gather; more are not recorded.
const FLAGS_MAX: usize = 4;

impl ResponseFlag {
    /// Every flag.
    pub const ALL: [Self; 22] = [
        Self::NoHealthyUpstream,
        Self::UpstreamConnectionFailure,
        Self::UpstreamConnectionTermination,
        Self::UpstreamRemoteReset,
        Self::UpstreamOverflow,
        Self::UpstreamRequestTimeout,
        Self::UpstreamProtocolError,
        Self::UpstreamRetryLimitExceeded,
        Self::NoRouteFound,
        Self::NoClusterFound,
        Self::DownstreamConnectionTermination,
        Self::DownstreamRemoteReset,
        Self::DownstreamProtocolError,
        Self::DurationTimeout,
        Self::StreamIdleTimeout,
        Self::DelayInjected,
        Self::FaultInjected,
        Self::RateLimited,
        Self::UnauthorizedExternalService,
        Self::LocalReset,
        Self::OverloadManager,
        Self::DnsResolutionFailed,
    ];

    /// Its place in Envoy's number of flags, `response.flags` of expressions.
    #[must_use]
    pub const fn envoy_bit(self) -> u8 {
        match self {
            Self::NoHealthyUpstream => 1,
            Self::UpstreamRequestTimeout => 2,
            Self::LocalReset => 3,
            Self::UpstreamRemoteReset => 4,
            Self::UpstreamConnectionFailure => 5,
            Self::UpstreamConnectionTermination => 6,
            Self::UpstreamOverflow => 7,
            Self::NoRouteFound => 8,
            Self::DelayInjected => 9,
            Self::FaultInjected => 10,
            Self::RateLimited => 11,
            Self::UnauthorizedExternalService => 12,
            Self::DownstreamConnectionTermination => 14,
            Self::UpstreamRetryLimitExceeded => 15,
            Self::StreamIdleTimeout => 16,
            Self::DownstreamProtocolError => 18,
            Self::DurationTimeout => 22,
            Self::UpstreamProtocolError => 23,
            Self::NoClusterFound => 24,
            Self::OverloadManager => 25,
            Self::DnsResolutionFailed => 26,
            Self::DownstreamRemoteReset => 28,
        }
    }

    /// Reads a short form.
    #[must_use]
    pub fn parse(short: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|flag| flag.as_str() == short)
    }

    /// Envoy's long form, `%RESPONSE_FLAGS_LONG%`.
    #[must_use]
    pub const fn long(self) -> &'static str {
        match self {
            Self::NoHealthyUpstream => "NoHealthyUpstream",
            Self::UpstreamConnectionFailure => "UpstreamConnectionFailure",
            Self::UpstreamConnectionTermination => "UpstreamConnectionTermination",
            Self::UpstreamRemoteReset => "UpstreamRemoteReset",
            Self::UpstreamOverflow => "UpstreamOverflow",
            Self::UpstreamRequestTimeout => "UpstreamRequestTimeout",
            Self::UpstreamProtocolError => "UpstreamProtocolError",
            Self::UpstreamRetryLimitExceeded => "UpstreamRetryLimitExceeded",
            Self::NoRouteFound => "NoRouteFound",
            Self::NoClusterFound => "NoClusterFound",
            Self::DownstreamConnectionTermination => "DownstreamConnectionTermination",
            Self::DownstreamRemoteReset => "DownstreamRemoteReset",
            Self::DownstreamProtocolError => "DownstreamProtocolError",
            Self::DurationTimeout => "DurationTimeout",
            Self::StreamIdleTimeout => "StreamIdleTimeout",
            Self::DelayInjected => "DelayInjected",
            Self::FaultInjected => "FaultInjected",
            Self::RateLimited => "RateLimited",
            Self::UnauthorizedExternalService => "UnauthorizedExternalService",
            Self::LocalReset => "LocalReset",
            Self::OverloadManager => "OverloadManagerTerminated",
            Self::DnsResolutionFailed => "DnsResolutionFailed",
        }
    }

    /// Envoy's short form.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::NoHealthyUpstream => "UH",
            Self::UpstreamConnectionFailure => "UF",
            Self::UpstreamConnectionTermination => "UC",
            Self::UpstreamRemoteReset => "UR",
            Self::UpstreamOverflow => "UO",
            Self::UpstreamRequestTimeout => "UT",
            Self::UpstreamProtocolError => "UPE",
            Self::UpstreamRetryLimitExceeded => "URX",
            Self::NoRouteFound => "NR",
            Self::NoClusterFound => "NC",
            Self::DownstreamConnectionTermination => "DC",
            Self::DownstreamRemoteReset => "DR",
            Self::DownstreamProtocolError => "DPE",
            Self::DurationTimeout => "DT",
            Self::StreamIdleTimeout => "SI",
            Self::DelayInjected => "DI",
            Self::FaultInjected => "FI",
            Self::RateLimited => "RL",
            Self::UnauthorizedExternalService => "UAEX",
            Self::LocalReset => "LR",
            Self::OverloadManager => "OM",
            Self::DnsResolutionFailed => "DF",
        }
    }
}

/// The flags of one request, in the order in which they were set, each once.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ResponseFlags {
    set: [Option<ResponseFlag>; FLAGS_MAX],
}

impl ResponseFlags {
    /// Adds a flag, unless it is there or [`FLAGS_MAX`] are.
    pub fn insert(&mut self, flag: ResponseFlag) {
        if self.contains(flag) {
            return;
        }
        if let Some(slot) = self.set.iter_mut().find(|slot| slot.is_none()) {
            *slot = Some(flag);
        }
    }

    /// Whether the flag was set.
    #[must_use]
    pub fn contains(&self, flag: ResponseFlag) -> bool {
        self.set.contains(&Some(flag))
    }

    /// Whether none was set.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.set[0].is_none()
    }

    /// In the order in which they were set.
    pub fn iter(&self) -> impl Iterator<Item = ResponseFlag> + '_ {
        self.set.iter().copied().flatten()
    }

    /// Calls `with` with what Envoy prints: `-`, `UF`, `URX,UF`.
    pub fn with_text<R>(&self, with: impl FnOnce(&str) -> R) -> R {
        let mut text = [0_u8; FLAGS_MAX * 5];
        let mut length = 0;
        for flag in self.iter() {
            if length > 0 {
                text[length] = b',';
                length += 1;
            }
            let short = flag.as_str().as_bytes();
            text[length..length + short.len()].copy_from_slice(short);
            length += short.len();
        }
        match std::str::from_utf8(&text[..length]) {
            Ok(text) if !text.is_empty() => with(text),
            _ => with("-"),
        }
    }
}

impl fmt::Display for ResponseFlags {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.with_text(|text| formatter.write_str(text))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_print_in_the_order_they_were_set_and_once() {
        let mut flags = ResponseFlags::default();
        assert_eq!(flags.to_string(), "-");
        flags.insert(ResponseFlag::UpstreamRetryLimitExceeded);
        flags.insert(ResponseFlag::UpstreamConnectionFailure);
        flags.insert(ResponseFlag::UpstreamRetryLimitExceeded);
        assert_eq!(flags.to_string(), "URX,UF");
    }

    #[test]
    fn flags_beyond_the_limit_are_left_out_and_nothing_breaks() {
        let mut flags = ResponseFlags::default();
        for flag in [
            ResponseFlag::UnauthorizedExternalService,
            ResponseFlag::UpstreamProtocolError,
            ResponseFlag::UpstreamRetryLimitExceeded,
            ResponseFlag::DownstreamProtocolError,
            ResponseFlag::NoRouteFound,
        ] {
            flags.insert(flag);
        }
        assert_eq!(flags.to_string(), "UAEX,UPE,URX,DPE");
    }
}
