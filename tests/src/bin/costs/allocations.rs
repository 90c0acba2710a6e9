//! The allocator of the measurement: the binary's own, with a count beside it.
//!
//! Not for: finding leaks. Invariant: only what the asking thread allocates is in its count.

use std::alloc::{GlobalAlloc, Layout};
use std::cell::Cell;
use std::ops::Sub;

use tikv_jemallocator::Jemalloc;

/// What a thread has allocated so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Allocations {
    /// How often; growing a block counts as one.
    pub count: u64,
    /// How many bytes; growing a block counts what it grew by.
    pub bytes: u64,
}

impl Sub for Allocations {
    type Output = Self;

    fn sub(self, before: Self) -> Self {
        Self { count: self.count - before.count, bytes: self.bytes - before.bytes }
    }
}

thread_local! {
    static SO_FAR: Cell<Allocations> = const { Cell::new(Allocations { count: 0, bytes: 0 }) };
    static FREED: Cell<u64> = const { Cell::new(0) };
}

/// What this thread has allocated so far.
pub fn so_far() -> Allocations {
    SO_FAR.get()
}

/// Bytes that this thread has asked for and not given back: what it holds, if it gives nothing away.
pub fn held() -> u64 {
    SO_FAR.get().bytes.saturating_sub(FREED.get())
}

fn note_freed(n_bytes: usize) {
    FREED.set(FREED.get() + u64::try_from(n_bytes).unwrap_or(u64::MAX));
}

fn note(n_bytes: usize) {
    let Allocations { count, bytes } = SO_FAR.get();
    SO_FAR.set(Allocations { count: count + 1, bytes: bytes + u64::try_from(n_bytes).unwrap_or(u64::MAX) });
}

/// Jemalloc, counted.
pub struct Counted;

#[expect(unsafe_code, reason = "an allocator has no other form; each call is passed on as it came")]
// SAFETY: every block comes from jemalloc and goes back to it with the layout that the caller vouches for; counting allocates nothing.
unsafe impl GlobalAlloc for Counted {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        note(layout.size());
        // SAFETY: the caller keeps the contract of this same method.
        unsafe { Jemalloc.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        note(layout.size());
        // SAFETY: the caller keeps the contract of this same method.
        unsafe { Jemalloc.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        note_freed(layout.size());
        // SAFETY: the caller keeps the contract of this same method.
        unsafe { Jemalloc.dealloc(block, layout) }
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        note(new_size.saturating_sub(layout.size()));
        note_freed(layout.size().saturating_sub(new_size));
        // SAFETY: the caller keeps the contract of this same method.
        unsafe { Jemalloc.realloc(block, layout, new_size) }
    }
}
