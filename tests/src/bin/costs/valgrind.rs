//! What the measured process says to valgrind: when to look at every instruction. Before and between windows it runs several times faster.
//!
//! Source: valgrind's client requests, which are a sequence of instructions without effect outside of it, and callgrind's numbers for them.
//! Only for x86-64; elsewhere valgrind is told to look from the beginning ([`IS_HEARD`]).

/// Whether this build can say anything.
pub const IS_HEARD: bool = cfg!(target_arch = "x86_64");

/// `VG_USERREQ_TOOL_BASE('C', 'T')`.
const CALLGRIND: u64 = 0x4354_0000;
const START_INSTRUMENTATION: u64 = CALLGRIND + 4;
const STOP_INSTRUMENTATION: u64 = CALLGRIND + 5;

/// From now on.
pub fn look() {
    say(START_INSTRUMENTATION);
}

/// No longer.
pub fn look_away() {
    say(STOP_INSTRUMENTATION);
}

#[cfg(target_arch = "x86_64")]
#[expect(unsafe_code, reason = "a client request is a sequence of instructions")]
fn say(request: u64) {
    let request_and_arguments = [request, 0, 0, 0, 0, 0];
    // SAFETY: without valgrind, rdi is turned by 128 bits in all and rbx exchanged with itself, and nothing changes; valgrind reads the six
    // words at rax and writes rdx.
    unsafe {
        std::arch::asm!(
            "rol rdi, 3",
            "rol rdi, 13",
            "rol rdi, 61",
            "rol rdi, 51",
            "xchg rbx, rbx",
            in("rax") request_and_arguments.as_ptr(),
            inout("rdx") 0_u64 => _,
            options(nostack),
        );
    }
}

#[cfg(not(target_arch = "x86_64"))]
fn say(_request: u64) {}
