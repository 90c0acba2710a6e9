//! xds-proto
