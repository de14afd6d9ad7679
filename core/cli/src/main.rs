//! The `drophammer` binary.

fn main() {}
