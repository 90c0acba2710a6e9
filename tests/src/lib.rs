//! tests

pub mod istiod;
pub mod net;
pub mod pod;
pub mod wait;
