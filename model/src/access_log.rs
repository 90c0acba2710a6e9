//! Which lines a chain or listener logs, and how.
//!
//! Not for: writing them. A chain without an access log writes none.

use std::sync::Arc;

use http::HeaderName;

use crate::collector::Collector;
use crate::flags::ResponseFlag;
use crate::format::{Expression, HeaderRef, HeaderUse, JsonFormat, TextFormat};
use crate::stream_view::{Field, Side, StreamView, Value};

/// How a line looks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// A text; its newline is part of it.
    Text(TextFormat),
    /// A JSON object.
    Json(JsonFormat),
    /// A log record of OpenTelemetry.
    Record {
        /// What it says; none says nothing.
        body: Option<RecordValue>,
        /// Its attributes, in their order.
        attributes: Vec<(Arc<str>, RecordValue)>,
        /// Whether it says why a request was refused, in attributes of our own.
        adds_refusal: bool,
    },
    /// An entry of Envoy's access log service.
    Entry(Box<EntryFields>),
}

/// What kind of entry is logged, whatever the stream is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum EntryKind {
    /// `HTTPAccessLogEntry`.
    Http,
    /// `TCPAccessLogEntry`.
    Tcp,
}

/// What an entry says beside what all say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EntryFields {
    /// Its kind.
    pub kind: EntryKind,
    /// Peers, by the name of the filter state that they are in.
    pub peers: Vec<(Arc<str>, Side)>,
    /// Headers of the request, pseudo-headers too, by the names that they are logged by.
    pub request_headers: Vec<(Box<str>, HeaderRef)>,
    /// Headers of the answer.
    pub response_headers: Vec<HeaderName>,
    /// Whether `:status` is among them.
    pub response_status: bool,
    /// Trailers of the answer.
    pub response_trailers: Vec<HeaderName>,
    /// Whether it says why a request was refused, in custom tags of our own.
    pub adds_refusal: bool,
}

impl EntryFields {
    /// Request headers that every entry of HTTP has a field for.
    pub const STANDARD: [HeaderName; 5] = [
        http::header::USER_AGENT,
        http::header::REFERER,
        HeaderName::from_static("x-forwarded-for"),
        HeaderName::from_static("x-request-id"),
        HeaderName::from_static("x-envoy-original-path"),
    ];

    fn uses(&self, headers: &mut HeaderUse) {
        if self.kind == EntryKind::Http {
            let named = self.request_headers.iter().filter_map(|(_, header)| match header {
                HeaderRef::Name(name) => Some(name),
                HeaderRef::Method | HeaderRef::Path | HeaderRef::Authority | HeaderRef::Scheme => None,
            });
            Self::STANDARD.iter().chain(named).for_each(|name| headers.add_request(name));
            for (names, kept) in [(&self.response_headers, &mut headers.response), (&self.response_trailers, &mut headers.trailers)] {
                for name in names.iter().filter(|name| !kept.contains(name)).cloned().collect::<Vec<_>>() {
                    kept.push(name);
                }
            }
        }
    }
}

/// A value in a log record. Whatever an operator yields is a text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RecordValue {
    /// A text.
    Text(TextFormat),
    /// Several values.
    List(Vec<RecordValue>),
    /// Values by key.
    Pairs(Vec<(Arc<str>, RecordValue)>),
}

impl RecordValue {
    fn uses(&self, headers: &mut HeaderUse) {
        match self {
            Self::Text(format) => format.uses(headers),
            Self::List(values) => values.iter().for_each(|value| value.uses(headers)),
            Self::Pairs(pairs) => pairs.iter().for_each(|(_, value)| value.uses(headers)),
        }
    }
}

/// Which requests are logged. Several filters must all agree.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LogFilter {
    /// `response_flag_filter`: any of these flags; empty means any flag at all.
    Flags(Vec<ResponseFlag>),
    /// `status_code_filter`: at least this code.
    CodeAtLeast(u32),
    /// `status_code_filter`: at most this code.
    CodeAtMost(u32),
    /// `status_code_filter`: exactly this code.
    CodeIs(u32),
    /// An expression is true; one without a value is not.
    Expression(Expression),
    /// Nothing can meet the condition.
    Never,
}

impl LogFilter {
    fn passes(&self, view: &dyn StreamView) -> bool {
        let code = || match view.field(Field::ResponseCode) {
            Value::Number(code) => code,
            _ => 0,
        };
        match self {
            Self::Flags(wanted) => match view.field(Field::ResponseFlags) {
                Value::Flags(flags) if wanted.is_empty() => !flags.is_empty(),
                Value::Flags(flags) => wanted.iter().any(|flag| flags.contains(*flag)),
                _ => false,
            },
            Self::CodeAtLeast(bound) => code() >= u64::from(*bound),
            Self::CodeAtMost(bound) => code() <= u64::from(*bound),
            Self::CodeIs(wanted) => code() == u64::from(*wanted),
            Self::Expression(expression) => expression.is_true(view),
            Self::Never => false,
        }
    }
}

/// Where lines go.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum LogTarget {
    /// `/dev/stdout`.
    Stdout,
    /// `/dev/stderr`.
    Stderr,
    /// Any other path.
    File(Box<str>),
    /// A collector.
    Collector(Arc<LogCollector>),
}

/// A collector of logs, and what it is told of their origin.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct LogCollector {
    /// Who takes them.
    pub collector: Collector,
    /// What it takes.
    pub origin: LogOrigin,
}

/// What a collector of logs takes, and what it is told of where they are from.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum LogOrigin {
    /// Records of OpenTelemetry.
    Records {
        /// Attributes of the resource.
        resource: Vec<(Arc<str>, Arc<str>)>,
        /// The log's name, for the attributes that say where a record is from; none leaves them out.
        builtin_labels: Option<Arc<str>>,
    },
    /// Entries of Envoy's access log service.
    Entries {
        /// Their kind: a stream has one.
        kind: EntryKind,
        /// The log's name.
        log_name: Arc<str>,
    },
}

/// One logger.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AccessLog {
    /// Where to.
    pub target: LogTarget,
    /// How.
    pub format: LogFormat,
    /// Which; none means every request.
    pub filters: Vec<LogFilter>,
}

impl AccessLog {
    /// Notes the headers that a line, and what decides about it, reads.
    pub fn uses(&self, headers: &mut HeaderUse) {
        for filter in &self.filters {
            if let LogFilter::Expression(expression) = filter {
                expression.uses(headers);
            }
        }
        match &self.format {
            LogFormat::Text(format) => format.uses(headers),
            LogFormat::Json(format) => format.uses(headers),
            LogFormat::Record { body, attributes, .. } => {
                body.iter().for_each(|body| body.uses(headers));
                attributes.iter().for_each(|(_, value)| value.uses(headers));
            }
            LogFormat::Entry(fields) => fields.uses(headers),
        }
    }

    /// Whether the request is to be logged.
    pub fn passes(&self, view: &dyn StreamView) -> bool {
        self.filters.iter().all(|filter| filter.passes(view))
    }

    /// Lines of a JSON format say why a request was refused, as one more member, where the format itself prints nothing of it;
    /// records and entries say it in attributes and tags, as spans do. A text has no place for more.
    #[must_use]
    pub fn adding_refusal(self) -> Self {
        let format = match self.format {
            LogFormat::Json(format) => LogFormat::Json(format.adding_refusal()),
            LogFormat::Record { body, attributes, .. } => LogFormat::Record { body, attributes, adds_refusal: true },
            LogFormat::Entry(mut fields) => {
                fields.adds_refusal = true;
                LogFormat::Entry(fields)
            }
            text @ LogFormat::Text(_) => text,
        };
        Self { format, ..self }
    }

    /// Appends the request's line to `out`, if it is to be logged; says whether it was. Records and entries are not lines.
    pub fn render(&self, view: &dyn StreamView, out: &mut Vec<u8>) -> bool {
        if !self.passes(view) {
            return false;
        }
        match &self.format {
            LogFormat::Text(format) => format.render(view, out),
            LogFormat::Json(format) => format.render(view, out),
            LogFormat::Record { .. } | LogFormat::Entry(_) => return false,
        }
        true
    }
}
