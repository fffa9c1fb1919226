//! What the crate embeds: a table of contents. Each part is a file under `build/` that says what it makes, from
//! what, and when it must be made anew.

#[path = "build/fatbin.rs"]
mod fatbin;
#[path = "build/sources.rs"]
mod sources;

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-changed=build");
    sources::embed();
    if let Err(error) = fatbin::embed() {
        eprintln!("error: {error}");
        std::process::exit(1);
    }
}
