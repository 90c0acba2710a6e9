//! The fuzz targets, run on stable Rust: with every seed, and with mutations of seeds for a while.
//!
//! `FUZZ_SECONDS` (1 unless set) is how long the mutations of each target go on, `FUZZ_SEED` where they begin. What fails is printed as a text
//! that becomes a seed: `printf 'TEXT' > tests/fuzz/TARGET/NAME`.

use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use fastrand::Rng;
use tests::fuzz::{TARGETS, Target};

/// Bytes of an input.
const INPUT_BYTES_MAX: usize = 4096;
/// Changes made to a seed.
const CHANGES_MAX: usize = 6;

fn seeds(target: &Target) -> Result<Vec<(String, Vec<u8>)>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz").join(target.name);
    let mut seeds = Vec::new();
    for entry in fs::read_dir(&folder).with_context(|| folder.display().to_string())? {
        let path = entry?.path();
        seeds.push((path.display().to_string(), fs::read(&path)?));
    }
    seeds.sort();
    ensure!(!seeds.is_empty(), "no seeds in {}", folder.display());
    Ok(seeds)
}

fn run(target: &Target, what: &str, input: &[u8]) {
    let text = || input.iter().map(|byte| format!("\\x{byte:02x}")).collect::<String>();
    if let Err(panic) = catch_unwind(AssertUnwindSafe(|| (target.run)(input))) {
        eprintln!("{} fails, {what}: {:?}\nprintf '{}'", target.name, String::from_utf8_lossy(input), text());
        std::panic::resume_unwind(panic);
    }
}

fn mutated(seeds: &[(String, Vec<u8>)], words: &[&[u8]], rng: &mut Rng) -> Vec<u8> {
    let mut input = seeds[rng.usize(0..seeds.len())].1.clone();
    for _ in 0..=rng.usize(0..CHANGES_MAX) {
        let at = rng.usize(0..=input.len());
        match rng.u8(0..7) {
            0 if at < input.len() => input[at] = rng.u8(..),
            1 if at < input.len() => input[at] ^= 1 << rng.u8(0..8),
            2 if at < input.len() => drop(input.drain(at..(at + rng.usize(1..8)).min(input.len()))),
            3 => input.insert(at, rng.u8(..)),
            4 => drop(input.splice(at..at, words[rng.usize(0..words.len())].iter().copied())),
            5 => {
                let other = &seeds[rng.usize(0..seeds.len())].1;
                input.truncate(at);
                input.extend_from_slice(&other[rng.usize(0..=other.len())..]);
            }
            _ => {
                let piece = input[at..(at + rng.usize(0..16)).min(input.len())].to_vec();
                drop(input.splice(at..at, piece));
            }
        }
    }
    input.truncate(INPUT_BYTES_MAX);
    input
}

fn number(variable: &str, otherwise: u64) -> Result<u64> {
    std::env::var(variable).map_or(Ok(otherwise), |text| text.parse().with_context(|| format!("{variable}={text}")))
}

#[test]
fn every_seed_holds() -> Result<()> {
    for target in TARGETS {
        for (name, seed) in seeds(target)? {
            run(target, &name, &seed);
        }
    }
    Ok(())
}

#[test]
fn mutations_of_seeds_hold() -> Result<()> {
    let time = Duration::from_secs(number("FUZZ_SECONDS", 1)?);
    let begin = number("FUZZ_SEED", 1)?;
    for target in TARGETS {
        let (seeds, mut rng, began, mut inputs) = (seeds(target)?, Rng::with_seed(begin), Instant::now(), 0_u64);
        while began.elapsed() < time {
            run(target, &format!("input {inputs} of FUZZ_SEED={begin}"), &mutated(&seeds, target.words, &mut rng));
            inputs += 1;
        }
        println!("{}: {inputs} inputs", target.name);
    }
    Ok(())
}
