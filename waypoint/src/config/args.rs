//! The command line, as pilot-agent's is read: `proxy waypoint --flag value …`.
//!
//! Not for: environment and files. Unknown flags are tolerated and reported, since istiod's template of a later release
//! may pass some; a wrong command is an error.

use super::SettingError;

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

/// Reads the command line, the program's name left out.
///
/// # Errors
/// Another command than `proxy waypoint`, or a flag without its value.
pub fn parse(args: &[String]) -> Result<Command, Vec<SettingError>> {
    match args.first().map(String::as_str) {
        Some("-h" | "--help" | "help") => return Ok(Command::Help),
        Some("-V" | "--version" | "version") => return Ok(Command::Version),
        Some("proxy") => {}
        other => {
            return Err(vec![SettingError::new("command", other.unwrap_or_default(), "proxy waypoint, as istiod's template passes it")]);
        }
    }
    let mut parsed = ProxyArgs::default();
    let mut errors = Vec::new();
    let mut role = None;
    let mut rest = args[1..].iter().peekable();
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
    if errors.is_empty() { Ok(Command::Proxy(parsed)) } else { Err(errors) }
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
    fn another_role_or_command_is_an_error_by_name() {
        assert_eq!(parse(&args("proxy sidecar")).unwrap_err()[0].value, "sidecar");
        assert_eq!(parse(&args("serve")).unwrap_err()[0].name, "command");
        assert_eq!(parse(&args("proxy waypoint --domain --log_as_json")).unwrap_err()[0].name, "--domain");
    }
}
