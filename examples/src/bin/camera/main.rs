//! The camera demo.

fn main() {}
