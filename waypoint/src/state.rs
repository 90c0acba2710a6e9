//! What istiod said, held twice: by its one owner on the control thread ([`store`]), and as what workers read ([`published`]).
//!
//! Not for: protobuf; changes arrive compiled. Invariant: workers never wait for the owner, nor free what it retires.

mod recent;
pub mod breaker;
mod rates;
pub mod health;
mod loads;
mod hashing;
pub mod table;
pub mod subsets;
pub mod by_host;
pub mod outlier;
pub mod jwks;
pub mod published;
pub mod store;
