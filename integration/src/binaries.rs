//! Where the programs are that a node needs.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};

/// Directories of the programs of other packages, in the order of the search.
const SYSTEM: [&str; 5] = [
    "/usr/local/sbin",
    "/usr/local/bin",
    "/usr/sbin",
    "/usr/bin",
    "/sbin",
];

/// Where Debian's containernetworking-plugins installs.
pub const CNI_PLUGINS: &str = "/usr/lib/cni";

/// A binary of this workspace: in `ZCRI_BIN_DIR`, or in the build directory of the running program.
///
/// # Errors
/// It is not built.
pub fn ours(name: &str) -> Result<PathBuf> {
    if let Some(dir) = std::env::var_os("ZCRI_BIN_DIR") {
        let path = Path::new(&dir).join(name);
        if !path.is_file() {
            bail!(
                "prerequisite: {} is missing (ZCRI_BIN_DIR is set)",
                path.display()
            );
        }
        return Ok(path);
    }
    let exe = std::env::current_exe().context("the path of this program")?;
    // target/debug/deps/TEST-HASH or target/debug/PROGRAM
    exe.ancestors()
        .skip(1)
        .take(2)
        .map(|dir| dir.join(name))
        .find(|path| path.is_file())
        .with_context(|| {
            format!("prerequisite: {name} is not built; run `cargo build --workspace --bins`")
        })
}

/// A runc that is newer than the distribution's, named by `ZCRI_NEWER_RUNC`. Without it this says so in one line, and
/// the test that needs it passes over.
pub fn newer_runc() -> Option<PathBuf> {
    let named = std::env::var_os("ZCRI_NEWER_RUNC").map(PathBuf::from);
    let found = named.filter(|path| path.is_file());
    if found.is_none() {
        eprintln!("skipped: ZCRI_NEWER_RUNC names no newer runc");
    }
    found
}

/// The program of the demo's image. It is built apart from the rest, for it is linked in another way.
///
/// # Errors
/// It is not built.
pub fn payload() -> Result<PathBuf> {
    const NAME: &str = "zcri-demo-payload";
    if std::env::var_os("ZCRI_BIN_DIR").is_some() {
        return ours(NAME);
    }
    let exe = std::env::current_exe().context("the path of this program")?;
    // target/PROFILE/PROGRAM, and target/static/PROFILE/zcri-demo-payload
    let beside = |dir: &Path| {
        let profile = dir.file_name()?;
        Some(dir.parent()?.join("static").join(profile).join(NAME))
    };
    exe.ancestors()
        .skip(1)
        .take(2)
        .filter_map(beside)
        .find(|path| path.is_file())
        .with_context(|| {
            format!("prerequisite: {NAME} is not built; `make build` and `make test` do it")
        })
}

/// A program of the system.
///
/// # Errors
/// It is not installed.
pub fn system(name: &str, package: &str) -> Result<PathBuf> {
    SYSTEM
        .iter()
        .map(|dir| Path::new(dir).join(name))
        .find(|path| path.is_file())
        .with_context(|| {
            format!(
                "prerequisite: {name} is missing; run `make setup` or install the package {package}"
            )
        })
}

/// Checks everything that a node needs, so that a missing piece is one clear line.
///
/// # Errors
/// What is missing, and what provides it.
pub fn check() -> Result<()> {
    if !rustix::process::geteuid().is_root() {
        bail!("prerequisite: these tests make namespaces and mounts; run them as root");
    }
    system("runc", "runc")?;
    system("iptables", "iptables")?;
    for plugin in ["bridge", "host-local", "portmap", "loopback"] {
        if !Path::new(CNI_PLUGINS).join(plugin).is_file() {
            bail!(
                "prerequisite: {CNI_PLUGINS}/{plugin} is missing; run `make setup` or install the package containernetworking-plugins"
            );
        }
    }
    ours("zcrid")?;
    ours("zcri-shim")?;
    Ok(())
}
