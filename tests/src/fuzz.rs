//! Fuzz targets: plain functions of bytes that panic when something that must hold does not. A fuzzer of any kind can call them.
//!
//! `tests/tests/fuzz.rs` calls them with the seeds in `tests/fuzz` and with mutations of these. Not for: finding out how fast.
//! Invariant: the same bytes do the same, whatever was done before.

mod path;
mod rules;
mod token;
mod unreadable;

pub use path::path;
pub use rules::rules;
pub use token::token;
pub use unreadable::unreadable;

/// One of them.
#[derive(Debug, Clone, Copy)]
pub struct Target {
    /// Its name, and that of its folder of seeds.
    pub name: &'static str,
    /// Panics when something does not hold.
    pub run: fn(&[u8]),
    /// Pieces of input that matter.
    pub words: &'static [&'static [u8]],
}

/// All.
pub const TARGETS: &[Target] = &[
    Target { name: "token", run: token, words: &[b".", b"..", b"=", b"e30", b"eyJhbGciOiJub25lIn0", b"Bearer ", b",", b"%2e", b"\xff"] },
    Target {
        name: "path",
        run: path,
        words: &[b"/", b"//", b".", b"..", b"%2e", b"%2F", b"%5c", b"\\", b";", b"%", b"%25", b"%00", b"?", b"#", b"\xc3\xa9"],
    },
    Target { name: "unreadable", run: unreadable, words: &[b"\x00\x00\x00\x00", b"\xff\xff", b"\x07\x06\x05", b"\x03\x02\x01"] },
    Target { name: "rules", run: rules, words: &[b"\x00\x00\x00\x00", b"\xff\xff", b"\x01\x02\x03\x04\x05\x06\x07"] },
];

/// Bytes as choices; when they are used up, it is always the first.
struct Choices<'a>(std::slice::Iter<'a, u8>);

impl<'a> Choices<'a> {
    fn new(bytes: &'a [u8]) -> Self {
        Self(bytes.iter())
    }

    fn byte(&mut self) -> u8 {
        self.0.next().copied().unwrap_or(0)
    }

    /// A number below `end`.
    fn below(&mut self, end: usize) -> usize {
        usize::from(self.byte()) % end
    }

    fn of<T: Copy>(&mut self, all: &[T]) -> T {
        all[self.below(all.len())]
    }
}
