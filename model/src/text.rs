//! Bytes from the network as text for people and for formats that want text.
//!
//! Not for: deciding anything by what could not be read; who decides compares bytes.

use std::borrow::Cow;

/// What is no UTF-8 reads as replacement characters. Text, which nearly all is, is looked at in words: the standard library's own function of
/// this kind goes byte by byte.
#[must_use]
pub fn readable(bytes: &[u8]) -> Cow<'_, str> {
    std::str::from_utf8(bytes).map_or_else(|_| String::from_utf8_lossy(bytes), Cow::Borrowed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_not_copied_and_other_bytes_are_replaced() {
        assert!(matches!(readable("gr\u{fc}n".as_bytes()), Cow::Borrowed("gr\u{fc}n")));
        assert_eq!(readable(b"a\xffb\xe2\x82"), "a\u{fffd}b\u{fffd}");
    }
}
