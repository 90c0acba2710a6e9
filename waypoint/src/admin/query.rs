//! What the query of a page asks for: some of the metrics, as Envoy's `filter` does.
//!
//! Not for: making pages. Invariants: a histogram is there as a whole or not at all; what is left out leaves no `# TYPE` line behind.

use std::io::{self, Write};

use model::matcher::part_regex;

/// Bytes of a query that is read.
const QUERY_BYTES_MAX: usize = 4096;

/// Percent-decoded text; a plus sign is one.
pub(crate) fn decoded(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut left = text.bytes();
    while let Some(byte) = left.next() {
        if byte != b'%' {
            bytes.push(byte);
            continue;
        }
        let digit = |byte: Option<u8>| char::from(byte?).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
        bytes.push(digit(left.next())? << 4 | digit(left.next())?);
    }
    String::from_utf8(bytes).ok()
}

/// Whether a series is wanted, by its name and labels.
pub(super) type Wants = Box<dyn Fn(&[u8]) -> bool + Send>;

/// What of the metrics is wanted; none is all. `usedonly` leaves nothing out: there are no series that nothing was counted in.
///
/// # Errors
/// The expression of `filter` cannot be read.
pub(super) fn filter(query: &str) -> Result<Option<Wants>, String> {
    if query.len() > QUERY_BYTES_MAX {
        return Err(format!("a query of more than {QUERY_BYTES_MAX} bytes\n"));
    }
    let Some(text) = query.split('&').find_map(|pair| pair.strip_prefix("filter=")) else { return Ok(None) };
    let text = decoded(text).ok_or_else(|| "filter: not percent-encoded text\n".to_owned())?;
    let expression = part_regex(&text).map_err(|error| format!("filter: {error}\n"))?;
    Ok(Some(Box::new(move |series| expression.is_match(series))))
}

/// Passes on the lines of a page of text that are wanted.
pub(super) struct Filtered<'a> {
    wants: &'a Wants,
    out: &'a mut dyn Write,
    /// The beginning of a line.
    line: Vec<u8>,
    /// What is said of the family before its first series.
    comments: Vec<u8>,
    family: Vec<u8>,
    is_histogram: bool,
}

impl<'a> Filtered<'a> {
    pub(super) fn new(wants: &'a Wants, out: &'a mut dyn Write) -> Self {
        Self { wants, out, line: Vec::new(), comments: Vec::new(), family: Vec::new(), is_histogram: false }
    }

    fn end_line(&mut self) -> io::Result<()> {
        let line = std::mem::take(&mut self.line);
        let comment = line.strip_prefix(b"# HELP ").or(line.strip_prefix(b"# TYPE "));
        if let Some(comment) = comment {
            let name = comment.split(|byte| *byte == b' ').next().unwrap_or_default();
            if name != self.family {
                self.comments.clear();
                self.family = name.to_vec();
            }
            self.is_histogram = line.trim_ascii_end().ends_with(b" histogram");
            self.comments.extend_from_slice(&line);
        } else if line.starts_with(b"#") {
            self.out.write_all(&line)?;
        } else if (self.wants)(&self.series(&line)) {
            self.out.write_all(&self.comments)?;
            self.comments.clear();
            self.out.write_all(&line)?;
        }
        self.line = line;
        self.line.clear();
        Ok(())
    }

    /// The name and the labels of a line: of histograms the family's, and without the bound.
    fn series(&self, line: &[u8]) -> Vec<u8> {
        let labels = line.iter().position(|byte| *byte == b'{').unwrap_or(line.len());
        let end = line.windows(2).rposition(|pair| pair == b"} ").map_or(labels, |at| at + 1);
        let name = if self.is_histogram { &*self.family } else { line[..labels].split(|byte| *byte == b' ').next().unwrap_or_default() };
        let mut series = [name, line.get(labels..end).unwrap_or_default()].concat();
        let bound = self.is_histogram.then(|| series.windows(5).rposition(|part| part == b",le=\"" || part == b"{le=\"")).flatten();
        if let Some(at) = bound {
            series.truncate(at + usize::from(series[at] == b'{'));
            series.push(b'}');
        }
        series
    }
}

impl Write for Filtered<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        for piece in bytes.split_inclusive(|byte| *byte == b'\n') {
            self.line.extend_from_slice(piece);
            if piece.ends_with(b"\n") {
                self.end_line()?;
            }
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAGE: &str = "# TYPE istio_requests_total counter
istio_requests_total{source_app=\"a\",response_code=\"200\"} 1
istio_requests_total{source_app=\"b} x\",response_code=\"503\"} 2
# TYPE envoy_server_live gauge
envoy_server_live{} 1
# TYPE istio_request_bytes histogram
istio_request_bytes_bucket{source_app=\"a\",le=\"5\"} 1
istio_request_bytes_bucket{source_app=\"a\",le=\"+Inf\"} 1
istio_request_bytes_sum{source_app=\"a\"} 5
istio_request_bytes_count{source_app=\"a\"} 1
# HELP waypoint_metric_series Series.
# TYPE waypoint_metric_series gauge
waypoint_metric_series 3
# EOF
";

    fn lines(query: &str) -> String {
        let wants = filter(query).expect("reads").expect("filters");
        let mut out = Vec::new();
        let mut filtered = Filtered::new(&wants, &mut out);
        // In pieces that end anywhere.
        for piece in PAGE.as_bytes().chunks(7) {
            filtered.write_all(piece).expect("memory takes it");
        }
        String::from_utf8(out).expect("as it came")
    }

    #[test]
    fn series_are_there_whose_name_or_labels_match_with_what_is_said_of_them() {
        let of = |from: usize, to: usize| PAGE.split_inclusive('\n').skip(from).take(to - from).collect::<String>() + "# EOF\n";
        let (kind, failed) = (PAGE.lines().next().expect("a line"), PAGE.lines().nth(2).expect("a line"));
        assert_eq!(lines("usedonly&filter=503"), format!("{kind}\n{failed}\n# EOF\n"));
        assert_eq!(lines("filter=bytes%5C%7B"), of(5, 10));
        assert_eq!(lines("filter=%5Eenvoy_server_live"), of(3, 5));
        assert_eq!(lines("filter=metric_series"), of(10, 13));
        assert_eq!(lines("filter=%5C%2BInf"), "# EOF\n", "a bound is no label");
        assert_eq!(lines("filter="), PAGE);
    }

    #[test]
    fn a_query_that_cannot_be_read_says_why() {
        assert!(matches!(filter("usedonly"), Ok(None)));
        for wrong in ["filter=(", "filter=%zz", &format!("filter={}", "a".repeat(QUERY_BYTES_MAX))] {
            assert!(filter(wrong).is_err(), "{wrong}");
        }
    }
}
