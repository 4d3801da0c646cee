//! Embeds the kernel programs: `cargo xtask build-ebpf` puts them into `target/ebpf/` under the workspace root.
//!
//! Without that file the agent still builds, with no programs in it: tests of the pure parts and replays need
//! none, and the kernel source says so when it is asked for.

use std::path::PathBuf;
use std::{env, fs, io};

fn main() -> io::Result<()> {
    let crate_folder = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").expect("cargo sets it"));
    let folder = crate_folder.parent().expect("the crate lies in the workspace").join("target/ebpf");
    // The folder is watched, not the file: cargo runs this script at every build while a watched path is
    // missing, and the agent would be compiled anew each time.
    fs::create_dir_all(&folder)?;
    println!("cargo::rerun-if-changed={}", folder.display());
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets it"));
    for name in ["dprof-ebpf.o", "dprof-ebpf-perf.o"] {
        let object = match fs::read(folder.join(name)) {
            Ok(object) => object,
            Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
            Err(error) => return Err(error),
        };
        fs::write(out.join(name), object)?;
    }
    Ok(())
}
