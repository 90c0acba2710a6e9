//! Conformance to the Gateway API, against a real API server and istiod, with the real waypoint binary: see docs/conformance.md.
//!
//! ```text
//! conformance [--out FOLDER] [SUITE] [TEST]     SUITE is `gateway-api` (the official one), `mesh` or `gateway` (ours)
//! ```
//!
//! Not a certified report: there is no cluster. Each test says whether it passed; a failing one does not stop the others.

mod objects;
mod own;
mod report;
mod stage;
mod upstream;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use report::Suite;
use stage::Stage;
use tests::{istiod, net, process};

/// What the command line says.
struct Asked {
    folder: PathBuf,
    words: Vec<String>,
}

fn asked() -> Result<Asked> {
    let mut words: Vec<String> = std::env::args().skip(1).collect();
    let mut folder = PathBuf::from("target/conformance");
    if let Some(at) = words.iter().position(|word| word == "--out") {
        folder = PathBuf::from(words.get(at + 1).context("--out needs a folder")?);
        words.drain(at..=at + 1);
    }
    if let Some(word) = words.first() {
        ensure!(word == upstream::NAME || own::SUITES.iter().any(|(name, _)| name == word), "there is no suite {word}");
    }
    std::fs::create_dir_all(&folder)?;
    Ok(Asked { folder: folder.canonicalize()?, words })
}

async fn run(asked: &Asked) -> Result<bool> {
    let run = tempfile::tempdir()?;
    let since = Instant::now();
    let mut objects = objects::foundation(upstream::KUBELET_PORT)?;
    objects.extend(upstream::objects());
    objects.extend(own::objects());
    let stage = Stage::start(run.path(), &objects).await.context("setting the stage")?;
    println!("ready    etcd, kube-apiserver, istiod and the waypoint in {:.1} s", since.elapsed().as_secs_f64());
    let mut suites: Vec<Suite> = Vec::new();
    let wanted = |suite: &str| asked.words.first().is_none_or(|word| word == suite);
    let tests = asked.words.get(1..).unwrap_or_default();
    if wanted(upstream::NAME) {
        suites.push(upstream::run(&stage, &asked.folder, tests).await?);
    }
    for suite in own::SUITES.into_iter().filter(|(name, _)| wanted(name)) {
        suites.push(own::run(&stage, suite, tests).await?);
    }
    std::fs::write(asked.folder.join("waypoint.log"), stage.waypoint.stderr()?)?;
    std::fs::copy(stage.plane.run().join("istiod.log"), asked.folder.join("istiod.log"))?;
    report::conclude(&suites, &asked.folder.join("report.json"))
}

fn main() -> ExitCode {
    let prepared =
        if net::is_inside() { Ok(()) } else { istiod::build().and_then(|()| upstream::build()).and_then(|()| process::binary().map(drop)) };
    let asked = match prepared.and_then(|()| asked()) {
        Ok(asked) => asked,
        Err(error) => {
            eprintln!("{error:#}");
            return ExitCode::FAILURE;
        }
    };
    let mut pods = vec![(stage::NETWORK, stage::ADDRESS)];
    pods.extend(upstream::CLIENTS);
    net::enter_or_reexec(&pods);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    match runtime.context("a runtime").and_then(|runtime| runtime.block_on(run(&asked))) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("{error:#}");
            println!("conformance: 0 passed, 1 failed");
            ExitCode::FAILURE
        }
    }
}
