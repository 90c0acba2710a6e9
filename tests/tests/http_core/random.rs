//! Random requests made of the pieces that smuggling is made of: whatever comes in, what goes out can be read in one way only.

use crate::forward::ClientEngine;
use crate::table::{ServerEngine, row, run};

const N_CASES: u64 = 20_000;
const PIECES_MAX: u64 = 14;

/// The first of the pieces begin a request, and each case.
const N_BEGINNINGS: u64 = 8;
const PIECES: &[&str] = &[
    "GET / HTTP/1.1\r\n",
    "POST /a HTTP/1.1\r\n",
    "POST /b HTTP/1.0\r\n",
    "GET http://a/c HTTP/1.1\r\n",
    "OPTIONS * HTTP/1.1\r\n",
    "GET / HTTP/1.1\r\nhost: a\r\n",
    "POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n",
    "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 5\r\n\r\n",
    "host: a\r\n",
    "host: b\r\n",
    "content-length: 5\r\n",
    "content-length: 0\r\n",
    "content-length: 11\r\n",
    "content-length: 5, 5\r\n",
    "Content-Length : 3\r\n",
    "transfer-encoding: chunked\r\n",
    "transfer-encoding: gzip, chunked\r\n",
    "Transfer-Encoding:\tchunked \r\n",
    "transfer-encoding: chunked, identity\r\n",
    "connection: transfer-encoding, content-length, host\r\n",
    "connection: close\r\n",
    "expect: 100-continue\r\n",
    "te: trailers\r\ntrailer: x-t\r\n",
    "x-a: 1\r\n",
    "x-a: 1\n",
    " folded\r\n",
    "\r\n",
    "\n",
    "\r",
    "\0",
    "0\r\n\r\n",
    "5\r\nhello\r\n",
    "5\r\nhello\r\n0\r\n\r\n",
    "5;x=\"\r\n\"\r\nhello\r\n",
    "0\r\nx-t: 1\r\n\r\n",
    "005\r\nhello\r\n",
    "5 \r\nhello\r\n",
    "hello",
];

/// A small generator of our own, so that a case is its number (splitmix64).
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % bound
    }
}

fn case(number: u64) -> String {
    let mut random = Random(number);
    let n_pieces = 1 + random.below(PIECES_MAX);
    let n_all = u64::try_from(PIECES.len()).unwrap();
    let mut piece = |bound| PIECES[usize::try_from(random.below(bound)).unwrap()];
    let first = piece(N_BEGINNINGS);
    std::iter::once(first).chain((1..n_pieces).map(|_| piece(n_all))).collect()
}

#[tokio::test(start_paused = true)]
async fn whatever_comes_in_what_goes_out_has_one_reading() {
    let mut n_requests = 0;
    for number in 0..N_CASES {
        let bytes = case(number);
        let row = row("random", "RFC 9112 §11.2").request(&bytes);
        let outcome = run(&row, ServerEngine::Hyper, ClientEngine::Hyper).await;
        for upstream in &outcome.upstream_connections {
            match read_strictly(&upstream.bytes) {
                Ok(n_read) => n_requests += n_read,
                Err(problem) => panic!("case {number}: {problem}\n in {bytes:?}\nout {:?}", upstream.text()),
            }
        }
    }
    // Most cases are refused, as they should be; enough must pass for this to mean anything.
    assert!(n_requests > N_CASES / 20, "{n_requests}");
}

/// How many requests these bytes are; the last one may lack the end of its body.
fn read_strictly(mut bytes: &[u8]) -> Result<u64, String> {
    let mut n_requests = 0;
    while !bytes.is_empty() {
        let end = bytes.windows(4).position(|window| window == b"\r\n\r\n").ok_or("a head without an end")?;
        let head = std::str::from_utf8(&bytes[..end]).map_err(|_| "a head that is no text")?.to_lowercase();
        bytes = &bytes[end + 4..];
        let lines: Vec<_> = head.split("\r\n").collect();
        if lines.iter().any(|line| line.contains(['\r', '\n', '\0']) || line.starts_with([' ', '\t'])) {
            return Err("a line inside a line".into());
        }
        let values = |name: &str| lines[1..].iter().filter_map(|line| line.strip_prefix(name)).collect::<Vec<_>>();
        let (lengths, codings) = (values("content-length: "), values("transfer-encoding: "));
        if !lines[0].ends_with(" http/1.1") || lines[0].matches(' ').count() != 2 {
            return Err(format!("request line {:?}", lines[0]));
        }
        if values("host: ").len() != 1 || lengths.len() + codings.len() > 1 || codings.iter().any(|coding| *coding != "chunked") {
            return Err(format!("framing of {head:?}"));
        }
        bytes = match lengths.first() {
            Some(length) => {
                let length: usize = length.parse().map_err(|_| "a length that is no number")?;
                &bytes[length.min(bytes.len())..]
            }
            None if codings.is_empty() => bytes,
            None => after_chunks(bytes)?,
        };
        n_requests += 1;
    }
    Ok(n_requests)
}

fn after_chunks(mut bytes: &[u8]) -> Result<&[u8], String> {
    loop {
        let Some(end) = bytes.windows(2).position(|window| window == b"\r\n") else { return Ok(&[]) };
        let size = std::str::from_utf8(&bytes[..end]).ok().filter(|size| size.bytes().all(|byte| byte.is_ascii_hexdigit()));
        let size = usize::from_str_radix(size.ok_or("a chunk size with more")?, 16).map_err(|_| "a chunk size that is no number")?;
        bytes = &bytes[end + 2..];
        if size == 0 {
            let Some(end) = bytes.windows(2).position(|window| window == b"\r\n") else { return Ok(&[]) };
            let trailers = if end == 0 { Some(0) } else { bytes.windows(4).position(|window| window == b"\r\n\r\n").map(|at| at + 2) };
            return Ok(trailers.map_or(&[][..], |at| &bytes[at + 2..]));
        }
        let Some(rest) = bytes.get(size..) else { return Ok(&[]) };
        if !rest.is_empty() && !rest.starts_with(b"\r\n") {
            return Err("a chunk longer than its size".into());
        }
        bytes = rest.get(2..).unwrap_or_default();
        if bytes.is_empty() {
            return Ok(&[]);
        }
    }
}
