//! Compiles, without protoc and with nothing vendored:
//! `descriptors.binpb`, every message that istiod can send, from the `.proto` files that `envoy-types` ships (found through
//! `cargo metadata`) and the few it lacks, in `proto/`; and Rust code for the latter.
use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs};

use protox::file::{ChainFileResolver, File, FileResolver, GoogleFileResolver, IncludeFileResolver};
use protox::{Compiler, Error};

/// Our own files: compiled to descriptors and to code.
const OWN: [&str; 5] =
    ["istio/ca.proto", "istio/stats.proto", "istio/workload.proto", "udpa/type/v1/typed_struct.proto", "xds/type/matcher/v3/ip.proto"];

/// Import roots inside the `proto` folder of `envoy-types`.
const SHIPPED: [&str; 7] =
    ["data-plane-api", "xds", "googleapis", "protoc-gen-validate", "cel-spec/proto", "opentelemetry-proto", "client_model"];

/// What our own files import, and where `envoy-types` has it.
const IMPORTED: [(&str, &str); 9] = [
    (".google.protobuf", "::envoy_types::pb::google::protobuf"),
    (".udpa.annotations", "::envoy_types::pb::udpa::annotations"),
    (".validate", "::envoy_types::pb::validate"),
    (".xds.annotations.v3", "::envoy_types::pb::xds::annotations::v3"),
    (".xds.core.v3", "::envoy_types::pb::xds::core::v3"),
    (".xds.type.matcher.v3.ListStringMatcher", "crate::imported::matcher::ListStringMatcher"),
    (".xds.type.matcher.v3.Matcher", "crate::imported::matcher::Matcher"),
    (".xds.type.matcher.v3.RegexMatcher", "crate::imported::matcher::RegexMatcher"),
    (".xds.type.matcher.v3.StringMatcher", "crate::imported::matcher::StringMatcher"),
];

/// Packages of `envoy.extensions.common` that files elsewhere under `envoy.extensions` name relative to it (`common.aws.v3.…`). protox
/// looks a relative name up in every package it has read, imported or not, so which `common` it meets would depend on the order of
/// files. These names are made absolute while a file is read.
const COMMON: [&str; 5] = ["async_files", "aws", "dynamic_forward_proxy", "ratelimit", "tap"];

/// Reads the files of `envoy.extensions` from this folder with the names of [`COMMON`] made absolute; knows no others.
struct Unambiguous(PathBuf);

impl FileResolver for Unambiguous {
    fn open_file(&self, name: &str) -> Result<File, Error> {
        if !name.starts_with("envoy/extensions/") {
            return Err(Error::file_not_found(name));
        }
        let mut text = fs::read_to_string(self.0.join(name)).map_err(|_| Error::file_not_found(name))?;
        for package in COMMON {
            text = text.replace(&format!(" common.{package}."), &format!(" .envoy.extensions.common.{package}."));
        }
        File::from_source(name, &text)
    }
}

fn main() {
    for input in ["build.rs", "roots.txt", "proto"] {
        println!("cargo:rerun-if-changed={input}");
    }
    let shipped = shipped_protos();
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    let roots = fs::read_to_string("roots.txt").expect("roots.txt lists the files to compile");
    let roots = roots.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));

    let mut descriptors = compiler(&shipped);
    for file in roots.chain(OWN) {
        descriptors.open_file(Path::new(file)).unwrap_or_else(|error| panic!("{file}: {error}"));
    }
    // Encoded by protox, which keeps the options that are extensions: `(validate.required)` of a oneof.
    fs::write(out.join("descriptors.binpb"), descriptors.encode_file_descriptor_set()).expect("OUT_DIR is writable");

    let mut own = compiler(&shipped);
    own.include_source_info(true);
    for file in OWN {
        own.open_file(Path::new(file)).unwrap_or_else(|error| panic!("{file}: {error}"));
    }
    let mut config = prost_build::Config::new();
    // Not prost's well-known types but those of `envoy-types`, so that its messages and ours share them.
    config.compile_well_known_types().enable_type_names().type_name_domain(["."], "type.googleapis.com").out_dir(&out);
    for (package, path) in IMPORTED {
        config.extern_path(package, path);
    }
    config.compile_fds(own.file_descriptor_set()).expect("our own messages become Rust");
}

fn compiler(shipped: &Path) -> Compiler {
    let mut resolver = ChainFileResolver::new();
    resolver.add(IncludeFileResolver::new("proto".into()));
    resolver.add(Unambiguous(shipped.join("data-plane-api")));
    for folder in SHIPPED {
        resolver.add(IncludeFileResolver::new(shipped.join(folder)));
    }
    resolver.add(GoogleFileResolver::new());
    let mut compiler = Compiler::with_file_resolver(resolver);
    compiler.include_imports(true);
    compiler
}

/// The `proto` folder of the `envoy-types` that the lockfile names.
fn shipped_protos() -> PathBuf {
    // Offline is enough once everything is fetched. A build of one package on a new machine fetches only what that package needs,
    // and `cargo metadata` looks at all of the workspace.
    let metadata = cargo_metadata(&["--offline"]).or_else(|_| cargo_metadata(&[])).unwrap_or_else(|error| panic!("{error}"));
    let workspace = metadata["workspace_root"].as_str().expect("a workspace root");
    println!("cargo:rerun-if-changed={workspace}/Cargo.lock");
    let manifest = metadata["packages"]
        .as_array()
        .expect("a list of packages")
        .iter()
        .find(|package| package["name"] == "envoy-types")
        .and_then(|package| package["manifest_path"].as_str())
        .expect("envoy-types is a dependency");
    Path::new(manifest).with_file_name("proto")
}

fn cargo_metadata(options: &[&str]) -> Result<serde_json::Value, String> {
    let target = env::var("TARGET").expect("cargo sets TARGET");
    let output = Command::new(env::var_os("CARGO").expect("cargo sets CARGO"))
        .args(["metadata", "--format-version=1", "--locked", "--filter-platform", &target])
        .args(options)
        .output()
        .map_err(|error| format!("cargo metadata does not run: {error}"))?;
    if !output.status.success() {
        return Err(format!("cargo metadata failed: {}", String::from_utf8_lossy(&output.stderr)));
    }
    serde_json::from_slice(&output.stdout).map_err(|error| format!("cargo metadata prints no JSON: {error}"))
}
