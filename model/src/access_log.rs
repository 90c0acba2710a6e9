//! Which lines a chain or listener logs, and how.
//!
//! Not for: writing them. A chain without an access log writes none.

use crate::flags::ResponseFlag;
use crate::format::{Expression, HeaderUse, JsonFormat, TextFormat};
use crate::stream_view::{Field, StreamView, Value};

/// How a line looks.
#[derive(Clone, Debug)]
pub enum LogFormat {
    /// A text; its newline is part of it.
    Text(TextFormat),
    /// A JSON object.
    Json(JsonFormat),
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
}

/// One logger.
#[derive(Clone, Debug)]
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
        }
    }

    /// Appends the request's line to `out`, if it is to be logged; says whether it was.
    pub fn render(&self, view: &dyn StreamView, out: &mut Vec<u8>) -> bool {
        if !self.filters.iter().all(|filter| filter.passes(view)) {
            return false;
        }
        match &self.format {
            LogFormat::Text(format) => format.render(view, out),
            LogFormat::Json(format) => format.render(view, out),
        }
        true
    }
}
