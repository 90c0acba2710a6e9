//! The command line, as pilot-agent's is read: `proxy waypoint --flag value …`.
//!
//! Not for: environment and files. Unknown flags are tolerated and reported, since istiod's template of a later release
//! may pass some; a wrong command is an error.

use std::net::{Ipv4Addr, SocketAddr};

use super::SettingError;

/// The admin port in a pod.
const ADMIN_PORT: u16 = 15000;

/// Flags that take a value and are known to be passed to waypoints.
const WITH_VALUE: [&str; 12] = [
    "domain",
    "serviceCluster",
    "proxyLogLevel",
    "proxyComponentLogLevel",
    "log_output_level",
    "log_stacktrace_level",
    "log_target",
    "concurrency",
    "outlierLogPath",
    "meshConfig",
    "stsPort",
    "templateFile",
];
/// Flags without a value.
const WITHOUT_VALUE: [&str; 2] = ["log_as_json", "log_caller"];

/// What to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// Be a waypoint.
    Proxy(ProxyArgs),
    /// Say what of a configuration would be obeyed.
    Parity(ParityArgs),
    /// Say what would become of a request.
    Explain(ExplainArgs),
    /// Print how to use it.
    Help,
    /// Print what it is.
    Version,
}

/// What the command line of a waypoint says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ProxyArgs {
    /// `--domain`: the DNS domain of the namespace, `shop.svc.cluster.local`.
    pub domain: Option<String>,
    /// `--serviceCluster`: `<service account>.<namespace>`.
    pub service_cluster: Option<String>,
    /// `--concurrency`.
    pub concurrency: Option<String>,
    /// `--log_output_level`, `default:info`.
    pub log_output_level: Option<String>,
    /// `--proxyLogLevel`, `warning`.
    pub proxy_log_level: Option<String>,
    /// `--log_as_json`.
    pub log_as_json: bool,
    /// Flags that mean nothing here.
    pub unknown: Vec<String>,
}

/// What the command line of `explain` says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExplainArgs {
    /// Names and values of the question, as the admin port's query has them.
    pub query: Vec<(String, String)>,
    /// `--admin`: the admin port of the waypoint that is asked.
    pub admin: SocketAddr,
}

/// What the command line of `parity` says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ParityArgs {
    /// An Envoy's configuration dump, `-` for standard input; none: what istiod sends to this pod.
    pub dump: Option<String>,
    /// `--json`.
    pub as_json: bool,
    /// The rest, as of `proxy waypoint`; counts for what istiod sends.
    pub proxy: ProxyArgs,
}

/// Reads the command line, the program's name left out.
///
/// # Errors
/// Another command than `proxy waypoint`, or a flag without its value.
pub fn parse(args: &[String]) -> Result<Command, Vec<SettingError>> {
    match args.first().map(String::as_str) {
        Some("-h" | "--help" | "help") => return Ok(Command::Help),
        Some("-V" | "--version" | "version") => return Ok(Command::Version),
        Some("explain") => return explain(&args[1..]).map(Command::Explain),
        Some("parity") => return parity(&args[1..]).map(Command::Parity),
        Some("proxy") => {}
        other => {
            return Err(vec![SettingError::new(
                "command",
                other.unwrap_or_default(),
                "explain, parity, or proxy waypoint as istiod's template passes it",
            )]);
        }
    }
    proxy(&args[1..]).map(Command::Proxy)
}

/// Flags of `explain` that the admin port reads.
const EXPLAINED: [&str; 8] = ["identity", "address", "method", "path", "header", "sni", "protocol", "output"];

fn explain(args: &[String]) -> Result<ExplainArgs, Vec<SettingError>> {
    let mut parsed = ExplainArgs { query: Vec::new(), admin: SocketAddr::from((Ipv4Addr::LOCALHOST, ADMIN_PORT)) };
    let mut errors = Vec::new();
    let mut rest = args.iter();
    while let Some(arg) = rest.next() {
        let Some(flag) = arg.strip_prefix("--") else {
            parsed.query.push(("service".to_owned(), arg.clone()));
            continue;
        };
        let (name, inline) = flag.split_once('=').map_or((flag, None), |(name, value)| (name, Some(value.to_owned())));
        let value = inline.or_else(|| rest.next().cloned());
        match (name, value) {
            (_, None) => errors.push(SettingError::new(&format!("--{name}"), "", "a value")),
            ("admin", Some(value)) => match value.parse() {
                Ok(admin) => parsed.admin = admin,
                Err(_) => errors.push(SettingError::new("--admin", &value, "an address and a port")),
            },
            (name, Some(value)) if EXPLAINED.contains(&name) => parsed.query.push((name.to_owned(), value)),
            (name, Some(_)) => errors.push(SettingError::new("explain", &format!("--{name}"), "one of the flags that help lists")),
        }
    }
    if errors.is_empty() { Ok(parsed) } else { Err(errors) }
}

fn parity(args: &[String]) -> Result<ParityArgs, Vec<SettingError>> {
    let (own, rest): (Vec<_>, Vec<_>) = args.iter().cloned().partition(|arg| arg == "--json");
    let (dump, rest) = match rest.split_first() {
        Some((first, rest)) if !first.starts_with("--") => (Some(first.clone()), rest.to_vec()),
        _ => (None, rest),
    };
    if let (Some(_), Some(more)) = (&dump, rest.first()) {
        return Err(vec![SettingError::new("parity", more, "one configuration dump, or none and the flags of proxy waypoint")]);
    }
    let proxy = proxy(&[vec!["waypoint".to_owned()], rest].concat())?;
    Ok(ParityArgs { dump, as_json: !own.is_empty(), proxy })
}

fn proxy(args: &[String]) -> Result<ProxyArgs, Vec<SettingError>> {
    let mut parsed = ProxyArgs::default();
    let mut errors = Vec::new();
    let mut role = None;
    let mut rest = args.iter().peekable();
    while let Some(arg) = rest.next() {
        let Some(flag) = arg.strip_prefix("--") else {
            if role.is_none() && !arg.starts_with('-') {
                role = Some(arg.as_str());
            } else {
                parsed.unknown.push(arg.clone());
            }
            continue;
        };
        let (name, inline) = flag.split_once('=').map_or((flag, None), |(name, value)| (name, Some(value.to_owned())));
        if WITHOUT_VALUE.contains(&name) {
            parsed.log_as_json |= name == "log_as_json" && inline.as_deref() != Some("false");
        } else if WITH_VALUE.contains(&name) {
            match inline.or_else(|| rest.next_if(|next| !next.starts_with("--")).cloned()) {
                Some(value) => set(&mut parsed, name, value),
                None => errors.push(SettingError::new(&format!("--{name}"), "", "a value")),
            }
        } else {
            parsed.unknown.push(format!("--{name}"));
            if inline.is_none() {
                rest.next_if(|next| !next.starts_with('-'));
            }
        }
    }
    if role != Some("waypoint") {
        errors.push(SettingError::new("role", role.unwrap_or_default(), "waypoint; this program is no sidecar, router or ztunnel"));
    }
    if errors.is_empty() { Ok(parsed) } else { Err(errors) }
}

fn set(parsed: &mut ProxyArgs, name: &str, value: String) {
    match name {
        "domain" => parsed.domain = Some(value),
        "serviceCluster" => parsed.service_cluster = Some(value),
        "concurrency" => parsed.concurrency = Some(value),
        "log_output_level" => parsed.log_output_level = Some(value),
        "proxyLogLevel" => parsed.proxy_log_level = Some(value),
        // The others steer parts of pilot-agent and Envoy that do not exist here.
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]

    use super::*;

    fn args(text: &str) -> Vec<String> {
        text.split_whitespace().map(str::to_owned).collect()
    }

    #[test]
    fn the_command_line_that_istiod_renders_is_read() {
        let line = "proxy waypoint --domain shop.svc.cluster.local --serviceCluster waypoint.shop --proxyLogLevel warning \
                    --proxyComponentLogLevel misc:error --log_output_level default:info --log_as_json";
        let Command::Proxy(parsed) = parse(&args(line)).unwrap() else { panic!("a proxy") };
        assert_eq!(parsed.domain.as_deref(), Some("shop.svc.cluster.local"));
        assert_eq!(parsed.service_cluster.as_deref(), Some("waypoint.shop"));
        assert!(parsed.log_as_json && parsed.unknown.is_empty());
    }

    #[test]
    fn unknown_flags_are_tolerated_with_and_without_a_value() {
        let line = "proxy waypoint --new-flag value --other --third=x --domain=a.svc.b";
        let Command::Proxy(parsed) = parse(&args(line)).unwrap() else { panic!("a proxy") };
        assert_eq!(parsed.unknown, ["--new-flag", "--other", "--third"]);
        assert_eq!(parsed.domain.as_deref(), Some("a.svc.b"));
    }

    #[test]
    fn parity_is_asked_of_a_dump_or_of_istiod() {
        let Command::Parity(dump) = parse(&args("parity dump.json --json")).unwrap() else { panic!("parity") };
        assert_eq!((dump.dump.as_deref(), dump.as_json), (Some("dump.json"), true));
        let Command::Parity(live) = parse(&args("parity --domain shop.svc.cluster.local")).unwrap() else { panic!("parity") };
        assert_eq!((live.dump, live.as_json, live.proxy.domain.as_deref()), (None, false, Some("shop.svc.cluster.local")));
        assert_eq!(parse(&args("parity a.json b.json")).unwrap_err()[0].value, "b.json");
    }

    #[test]
    fn explain_takes_a_service_and_who_asks() {
        let line = "explain web.shop:80 --identity spiffe://td/ns/a/sa/b --path=/x --header x-a:1 --header x-b:2 --admin 127.0.0.2:15000";
        let Command::Explain(parsed) = parse(&args(line)).unwrap() else { panic!("explain") };
        let query: Vec<_> = parsed.query.iter().map(|(name, value)| format!("{name}={value}")).collect();
        assert_eq!(query, ["service=web.shop:80", "identity=spiffe://td/ns/a/sa/b", "path=/x", "header=x-a:1", "header=x-b:2"]);
        assert_eq!(parsed.admin, "127.0.0.2:15000".parse().unwrap());
        assert_eq!(parse(&args("explain web:80 --user alice")).unwrap_err()[0].value, "--user");
        assert_eq!(parse(&args("explain web:80 --path")).unwrap_err()[0].name, "--path");
    }

    #[test]
    fn another_role_or_command_is_an_error_by_name() {
        assert_eq!(parse(&args("proxy sidecar")).unwrap_err()[0].value, "sidecar");
        assert_eq!(parse(&args("serve")).unwrap_err()[0].name, "command");
        assert_eq!(parse(&args("proxy waypoint --domain --log_as_json")).unwrap_err()[0].name, "--domain");
    }
}
