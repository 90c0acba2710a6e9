//! A share of requests, to be drawn for each.
//!
//! Not for: drawing; the draw is an argument of those who ask.

/// `numerator` of `denominator`; more than all is all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fraction {
    /// How many.
    pub numerator: u32,
    /// Of how many: a hundred, ten thousand, a million.
    pub denominator: u32,
}

impl Fraction {
    /// Every request.
    pub const ALL: Self = Self { numerator: 100, denominator: 100 };
    /// No request.
    pub const NONE: Self = Self { numerator: 0, denominator: 100 };

    /// Whether a draw of 64 random bits falls into it.
    #[must_use]
    pub fn includes(self, draw: u64) -> bool {
        draw % u64::from(self.denominator.max(1)) < u64::from(self.numerator)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn draws_fall_into_a_fraction_in_proportion() {
        let count = |numerator| (0..1000).filter(|draw| Fraction { numerator, denominator: 100 }.includes(*draw)).count();
        assert_eq!((count(0), count(30), count(100), count(200)), (0, 300, 1000, 1000));
        assert!(!Fraction::NONE.includes(0) && Fraction::ALL.includes(u64::MAX));
    }
}
