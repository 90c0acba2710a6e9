//! The table of the HTTP core: what goes in on one side, what must come out on the other, and whose rule that is.
//!
//! A client of raw bytes or frames, `serve`, an exchange that forwards over a `ClientSession`, and a scripted upstream, joined
//! by pipes in memory under virtual time: "nothing comes" is known as soon as nobody has anything left to do.
//!
//! Each engine has an explicit list of the rows it fails (`engines.rs`); a row that starts to pass or to fail breaks the test.

#![expect(clippy::unwrap_used, reason = "tests")]

mod basics;
mod connection;
mod forward;
mod frames;
mod http2;
mod pingora;
mod random;
mod rest;
mod rows;
mod table;
mod wire;
