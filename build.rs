//! Compiles `proto/` into the control service's messages, client and server.
//! `protox` is used instead of `protoc`, so that a plain Rust toolchain is enough.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo::rerun-if-changed=proto");
    let descriptors = protox::compile(["proto/lattice.proto"], ["proto"])?;
    tonic_prost_build::configure().compile_fds(descriptors)?;
    Ok(())
}
