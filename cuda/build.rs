//! What the crate embeds: a table of contents. Each part is a file under `build/` that says what it makes, from
//! what, and when it must be made anew.

#[cfg(feature = "emulator")]
#[path = "build/emulator.rs"]
mod emulator;
#[path = "build/fatbin.rs"]
mod fatbin;
#[path = "build/sources.rs"]
mod sources;

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-changed=build");
    sources::embed();
    #[allow(unused_mut, reason = "changed with feature `emulator` only")]
    let mut result = fatbin::embed();
    #[cfg(feature = "emulator")]
    {
        result = result.and_then(|()| emulator::build());
    }
    if let Err(error) = result {
        eprintln!("error: {error}");
        std::process::exit(1);
    }
}
