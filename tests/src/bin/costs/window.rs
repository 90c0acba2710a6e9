//! What is counted: the instructions between entering and leaving one function, on the thread that calls it.
//!
//! Valgrind is told that function's name, so it must be neither inlined nor made anew for each row.

use std::hint::black_box;

use crate::allocations::{Allocations, so_far};
use crate::valgrind;

/// How valgrind finds the function in which it counts.
pub const PATTERN: &str = "*counted_by_callgrind*";

/// Windows of a row that has several, the first ones included that are not counted: buffers have then the size they keep.
pub const WINDOWS: u64 = 11;
/// How many of these are not counted.
const WARM_UP_WINDOWS: u64 = 6;

/// What a row did in its windows.
#[derive(Clone, Copy, Debug, Default)]
pub struct Windows {
    /// Operations.
    pub operations: u64,
    /// What they allocated.
    pub allocations: Allocations,
    /// Bytes that one thing of the row holds as long as it lives, where the row has such things.
    pub held_each: u64,
}

impl Windows {
    /// Counts what `work` does as so many operations.
    pub fn count(&mut self, operations: u64, mut work: impl FnMut()) {
        valgrind::look();
        let before = so_far();
        counted_by_callgrind(black_box(&mut work));
        let allocated = so_far() - before;
        valgrind::look_away();
        self.operations += operations;
        self.allocations.count += allocated.count;
        self.allocations.bytes += allocated.bytes;
    }

    /// Does `work` as the window of this number, and counts it unless it is one of the first.
    pub fn number(&mut self, number: u64, operations: u64, mut work: impl FnMut()) {
        if number < WARM_UP_WINDOWS {
            work();
        } else {
            self.count(operations, work);
        }
    }

    /// Counts `times` calls of `operation`, after as many that are not counted.
    pub fn repeat(&mut self, times: u64, mut operation: impl FnMut()) {
        for _ in 0..times {
            operation();
        }
        self.count(times, || {
            for _ in 0..times {
                operation();
            }
        });
    }
}

#[inline(never)]
fn counted_by_callgrind(work: &mut dyn FnMut()) {
    work();
    // Not the last thing, or the call would become a jump, and the function would seem to be left before its work.
    black_box(());
}
