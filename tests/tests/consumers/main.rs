//! Those who read what a waypoint reports find what they look for: a real Prometheus asked as dashboards and Kiali ask it, promtool, and a
//! real Jaeger where Tempo would be.
//!
//! Not here: what is written, byte by byte, which is tested where it is made. Names begin with rows of `docs/contracts.md`.

mod jaeger;
mod kiali;
mod prometheus;
mod traffic;
