//! The binary: arguments in, process out. Everything it does is in the library.

fn main() {}
