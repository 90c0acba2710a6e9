//! The binary: arguments, environment and files in, process out. Everything it does is in the library.

use std::io::Write;
use std::process::ExitCode;

use tikv_jemallocator::Jemalloc;
use waypoint::app;
use waypoint::app::parity::Question;
use waypoint::config::args::{self, Command, ExplainArgs, ParityArgs, ProxyArgs};
use waypoint::config::{SettingError, Settings, Sources, interface_addresses, skipped_filters};

/// What a configuration push needs goes back to the system soon after it.
#[global_allocator]
static ALLOCATOR: Jemalloc = Jemalloc;

const HELP: &str = "waypoint: the L7 proxy of an Istio ambient mesh

usage: waypoint proxy waypoint [--domain D] [--serviceCluster S] [--log_output_level L] [--log_as_json] [--concurrency N]
       waypoint parity [--json] [DUMP]
       waypoint explain SERVICE:PORT --identity SPIFFE-ID [--method M] [--path P] [--header NAME:VALUE]… [--address IP]
                [--protocol http|tcp] [--sni NAME] [--output text|json] [--admin IP:PORT]

It takes the arguments, environment and files of the Deployment that istiod renders for a Gateway of class istio-waypoint.
docs/configuration.md lists what it reads.

parity says what of a configuration would be obeyed, listed or refused, and by which object: DUMP is an Envoy waypoint's configuration
(istioctl proxy-config all POD -o json; - reads it from standard input); without it istiod is asked, as the pod that this runs in.
It exits with 0 if nothing is refused, with 1 if something is, with 2 if there is no answer.

explain says what the waypoint in this pod would do with a request: chain, route, what each policy says of it condition by condition, clusters and
endpoints. It exits with 0 if there is an answer, with 2 if there is none.
";

fn main() -> ExitCode {
    let given: Vec<String> = std::env::args().skip(1).collect();
    match args::parse(&given) {
        Ok(Command::Help) => print(HELP),
        Ok(Command::Version) => print(concat!("waypoint ", env!("CARGO_PKG_VERSION"), "\n")),
        Ok(Command::Proxy(proxy)) => match settings(&proxy) {
            Ok(settings) => run(settings),
            Err(errors) => refuse(&errors),
        },
        Ok(Command::Explain(asked)) => explain(&asked),
        Ok(Command::Parity(asked)) => parity(&asked),
        Err(errors) if given.first().is_some_and(|command| command == "parity" || command == "explain") => no_answer(&errors),
        Err(errors) => refuse(&errors),
    }
}

fn settings(args: &ProxyArgs) -> Result<Settings, Vec<SettingError>> {
    let read_file = |path: &std::path::Path| std::fs::read_to_string(path);
    Settings::read(args, Sources { env: std::env::vars().collect(), interface_addresses: interface_addresses(), read_file: &read_file })
}

/// What there is no answer to ends with this; 1 means that something is refused.
const NO_ANSWER: u8 = 2;

fn parity(asked: &ParityArgs) -> ExitCode {
    let question = match skipped_filters(std::env::vars().collect()) {
        Ok(skipped_filters) => Question { as_json: asked.as_json, skipped_filters },
        Err(errors) => return no_answer(&errors),
    };
    let answer = match &asked.dump {
        Some(path) => app::parity::of_dump(std::path::Path::new(path), &question),
        None => match settings(&asked.proxy) {
            Ok(settings) => app::parity::of_istiod(&settings, &question),
            Err(errors) => return no_answer(&errors),
        },
    };
    match answer {
        // Who cannot read it has none.
        Ok(answer) if print(&answer.text) != ExitCode::SUCCESS => ExitCode::from(NO_ANSWER),
        Ok(answer) if answer.is_served => ExitCode::SUCCESS,
        Ok(_) => ExitCode::FAILURE,
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "waypoint parity: {error}");
            ExitCode::from(NO_ANSWER)
        }
    }
}

fn explain(asked: &ExplainArgs) -> ExitCode {
    match app::explain::ask(asked) {
        Ok(text) => print(&text),
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "waypoint explain: {error}");
            ExitCode::from(NO_ANSWER)
        }
    }
}

fn print(text: &str) -> ExitCode {
    match std::io::stdout().write_all(text.as_bytes()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}

/// The same of a question.
fn no_answer(errors: &[SettingError]) -> ExitCode {
    let _ = refuse(errors);
    ExitCode::from(NO_ANSWER)
}

/// All that is wrong, at once, on stderr.
fn refuse(errors: &[SettingError]) -> ExitCode {
    let mut text = format!("waypoint cannot start: {} setting(s) are missing or wrong\n", errors.len());
    for error in errors {
        text.push_str(&format!("- {error}\n"));
    }
    // Nothing is left to do if stderr is gone.
    let _ = std::io::stderr().write_all(text.as_bytes());
    ExitCode::FAILURE
}

fn run(settings: Settings) -> ExitCode {
    let filter = log_filter(&settings.log_level);
    let builder = tracing_subscriber::fmt().with_writer(std::io::stderr).with_env_filter(filter);
    if settings.log_as_json {
        builder.json().init();
    } else {
        builder.with_ansi(false).init();
    }
    for flag in &settings.unknown_flags {
        tracing::warn!(flag, "flag not known here; ignored");
    }
    let skipped: Vec<_> = settings.skipped_filters.iter().collect();
    if !skipped.is_empty() {
        tracing::warn!(?skipped, "filters of these names are left out where they are not obeyed");
    }
    tracing::info!(pod = settings.node.pod_name, namespace = settings.node.namespace, istiod = settings.discovery.host, "starting");
    match app::run(settings) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!(%error, "cannot run");
            ExitCode::FAILURE
        }
    }
}

/// Istio's `scope:level` list as a filter: the level of `default`, our own crates at it, others no louder than warnings.
fn log_filter(levels: &str) -> tracing_subscriber::EnvFilter {
    let default = levels
        .split(',')
        .filter_map(|one| one.split_once(':').or(Some(("default", one))))
        .find(|(scope, _)| matches!(*scope, "default" | "all"));
    let level = match default.map(|(_, level)| level.trim()) {
        Some("none") => "off",
        Some("fatal" | "error") => "error",
        Some("warn" | "warning") => "warn",
        Some("debug") => "debug",
        Some("trace") => "trace",
        _ => "info",
    };
    tracing_subscriber::EnvFilter::new(format!("warn,waypoint={level},xds_client={level},telemetry={level}"))
}
