//! `waypoint explain`: asks the waypoint that runs in this pod, by its admin port.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use super::question::encoded;
use crate::config::args::ExplainArgs;

/// How long the answer may take.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
/// Bytes of an answer that are read.
const ANSWER_BYTES_MAX: u64 = 16 * 1024 * 1024;

/// Asks, and returns what to print.
///
/// # Errors
/// Nobody answers, or the question is none; the text says what is wrong.
pub fn ask(args: &ExplainArgs) -> Result<String, String> {
    let query: Vec<_> = args.query.iter().map(|(name, value)| format!("{name}={}", encoded(value))).collect();
    let answer = get(args.admin, &format!("/explain?{}", query.join("&"))).map_err(|error| format!("{}: {error}", args.admin))?;
    let (head, body) = answer.split_once("\r\n\r\n").ok_or_else(|| format!("{} does not speak HTTP", args.admin))?;
    if head.starts_with("HTTP/1.1 200 ") { Ok(body.to_owned()) } else { Err(body.trim_end().to_owned()) }
}

fn get(from: SocketAddr, path: &str) -> std::io::Result<String> {
    let mut stream = TcpStream::connect_timeout(&from, ANSWER_TIMEOUT)?;
    stream.set_read_timeout(Some(ANSWER_TIMEOUT))?;
    stream.set_write_timeout(Some(ANSWER_TIMEOUT))?;
    write!(stream, "GET {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.take(ANSWER_BYTES_MAX).read_to_string(&mut answer)?;
    Ok(answer)
}
