//! latticed
fn main() {}
