//! The files that Kubernetes' downward API writes: one `key="value"` a line, the value quoted as Go quotes.
//!
//! Source: kubelet's `FormatMap`; read by Istio's bootstrap in the same way.

use std::collections::BTreeMap;

/// Reads a labels or annotations file.
///
/// # Errors
/// The first line that is not of this form.
pub fn parse(text: &str) -> Result<BTreeMap<String, String>, String> {
    let mut map = BTreeMap::new();
    for line in text.lines().filter(|line| !line.trim().is_empty()) {
        let (key, quoted) = line.split_once('=').ok_or_else(|| line.to_owned())?;
        map.insert(key.to_owned(), unquote(quoted.trim()).ok_or_else(|| line.to_owned())?);
    }
    Ok(map)
}

fn unquote(quoted: &str) -> Option<String> {
    let inner = quoted.strip_prefix('"')?.strip_suffix('"')?;
    let mut out = String::with_capacity(inner.len());
    let mut characters = inner.chars();
    while let Some(character) = characters.next() {
        if character != '\\' {
            out.push(character);
            continue;
        }
        let escape = characters.next()?;
        out.push(match escape {
            'n' => '\n',
            't' => '\t',
            'r' => '\r',
            '"' | '\\' | '\'' => escape,
            'x' | 'u' => {
                let digits: String = characters.by_ref().take(if escape == 'x' { 2 } else { 4 }).collect();
                u32::from_str_radix(&digits, 16).ok().and_then(char::from_u32)?
            }
            _ => return None,
        });
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_read_and_quotes_undone() {
        let map = parse("app=\"web\"\nnote=\"say \\\"hi\\\"\\n\\u00e9\\x41\"\n").expect("reads");
        assert_eq!(map["app"], "web");
        assert_eq!(map["note"], "say \"hi\"\n\u{e9}A");
    }

    #[test]
    fn a_line_of_another_form_is_named() {
        assert_eq!(parse("app=web"), Err("app=web".to_owned()));
        assert_eq!(parse("app"), Err("app".to_owned()));
    }
}
