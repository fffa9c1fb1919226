//! Runs a command with the libraries that stand in for NVIDIA's, as if this machine had a GPU:
//! `cargo run --release -p quire-cuda --features emulator --example stand_in -- target/release/quire serve`.

use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode};

fn main() -> ExitCode {
    let mut words = std::env::args_os().skip(1);
    let Some(program) = words.next() else {
        eprintln!("usage: stand_in COMMAND [ARGUMENTS]");
        return ExitCode::from(2);
    };
    let error =
        Command::new(&program).args(words).env("LD_LIBRARY_PATH", quire_cuda::emulator::library_dir()).exec();
    eprintln!("cannot run {}: {error}", program.display());
    ExitCode::FAILURE
}
