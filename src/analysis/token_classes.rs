//! Similarity within and between classes of tokens: who is alike.

use super::unit_rows::UnitRows;
use std::fmt;

/// What kind of token stands at a place. Every token has exactly one class; the first that fits, in this order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum TokenClass {
    /// Position 0 of the text, whatever it holds: it is often an outlier.
    First,
    /// A special token of the tokenizer.
    Special,
    /// A number, or a part of one: numeric characters and no letter.
    Digits,
    /// Neither letter nor numeric character: punctuation, symbols, white space.
    Punctuation,
    /// A word, or a part of one: at least one letter.
    Words,
    /// A token whose text is not known: a byte of a longer character, a control character, nothing at all.
    Other,
}

impl TokenClass {
    /// Every class, in the order in which tables list them.
    pub const ALL: [Self; 6] = [Self::First, Self::Special, Self::Digits, Self::Punctuation, Self::Words, Self::Other];

    /// The class of a token by its position in the text, whether it is special, and its decoded text.
    #[must_use]
    pub fn of(position: usize, special: bool, text: &str) -> Self {
        let unknown = |c: char| c == char::REPLACEMENT_CHARACTER || (c.is_control() && !c.is_whitespace());
        if position == 0 {
            Self::First
        } else if special {
            Self::Special
        } else if text.is_empty() || text.chars().any(unknown) {
            Self::Other
        } else if text.chars().any(char::is_alphabetic) {
            Self::Words
        } else if text.chars().any(char::is_numeric) {
            Self::Digits
        } else {
            Self::Punctuation
        }
    }
}

impl fmt::Display for TokenClass {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::First => "first",
            Self::Special => "special",
            Self::Digits => "digits",
            Self::Punctuation => "punctuation",
            Self::Words => "words",
            Self::Other => "other",
        })
    }
}

/// Two classes, the smaller first; the same twice for the pairs within a class.
pub type ClassPair = (TokenClass, TokenClass);

/// The mean cosine of one text within a class or between two, and over how many pairs of tokens.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ClassCosine {
    /// The classes.
    pub classes: ClassPair,
    /// The mean over the pairs.
    pub cosine: f64,
    /// How many pairs there are, at least 1.
    pub pairs: u64,
}

/// The mean cosine within each class and between each two, of one text; `classes` holds the class of every
/// position of the text. A pair of classes without a pair of tokens has no entry.
///
/// With S_c the sum of the n_c unit rows of class c, the mean is `(‖S_c‖² − n_c) / (n_c(n_c − 1))` within a class
/// and `<S_a, S_b> / (n_a n_b)` between two: O(n·d), no pair is formed. A zero row does not count.
#[must_use]
pub fn class_cosines(rows: &UnitRows, classes: &[TokenClass]) -> Vec<ClassCosine> {
    let mut sums = TokenClass::ALL.map(|class| (class, vec![0.0_f64; rows.width()], 0_u64));
    for (position, row) in rows.iter() {
        let class = classes.get(position);
        for (_, sum, count) in sums.iter_mut().filter(|(own, _, _)| class == Some(own)) {
            sum.iter_mut().zip(row).for_each(|(s, x)| *s += x);
            *count += 1;
        }
    }
    let mut found = Vec::new();
    for (index, (first, a, n_a)) in sums.iter().enumerate() {
        for (second, b, n_b) in sums.iter().skip(index) {
            let product: f64 = a.iter().zip(b).map(|(x, y)| x * y).sum();
            // Within a class the product holds every pair twice, and every row with itself.
            let (sum, pairs) = if first == second {
                ((product - *n_a as f64) / 2.0, n_a * n_a.saturating_sub(1) / 2)
            } else {
                (product, n_a * n_b)
            };
            if pairs > 0 {
                found.push(ClassCosine { classes: (*first, *second), cosine: sum / pairs as f64, pairs });
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use TokenClass::{Digits, First, Other, Punctuation, Special, Words};

    #[test]
    fn a_class_is_what_the_text_of_the_token_says() {
        let of = |text: &str| TokenClass::of(3, false, text);
        for text in [" the", "ing", "3rd", "é", "日本", "ʼn"] {
            assert_eq!(of(text), Words, "{text}");
        }
        for text in ["7", " 42", "½", "1.", "٣"] {
            assert_eq!(of(text), Digits, "{text}");
        }
        for text in [".", " ,", "\n", " ", "…", "$", "🙂", "—", "\t\t"] {
            assert_eq!(of(text), Punctuation, "{text}");
        }
        for text in ["", "\u{fffd}", "a\u{fffd}", "\u{7}"] {
            assert_eq!(of(text), Other, "{text:?}");
        }
        assert_eq!(TokenClass::of(0, true, "<s>"), First, "whatever it holds");
        assert_eq!(TokenClass::of(0, false, "7"), First);
        assert_eq!(TokenClass::of(1, true, "</s>"), Special);
    }

    #[test]
    fn known_means() {
        // first (1,0); words (0,1), (0,2), (3,0); punctuation (1,1); a zero row that is a word.
        let rows = [1.0, 0.0, 0.0, 1.0, 0.0, 2.0, 3.0, 0.0, 1.0, 1.0, 0.0, 0.0];
        let rows = UnitRows::new(&rows, 2, 0..6).unwrap();
        let found = class_cosines(&rows, &[First, Words, Words, Words, Punctuation, Words]);
        let half = 0.5_f64.sqrt();
        let wanted = [
            ((First, Punctuation), half, 1),
            ((First, Words), 1.0 / 3.0, 3),
            ((Punctuation, Words), half, 3),
            ((Words, Words), 1.0 / 3.0, 3),
        ];
        assert_eq!(found.len(), wanted.len(), "{found:?}");
        for (found, (classes, cosine, pairs)) in found.iter().zip(wanted) {
            assert_eq!((found.classes, found.pairs), (classes, pairs));
            assert!((found.cosine - cosine).abs() < 1e-15, "{found:?}");
        }
    }

    #[test]
    fn the_classes_together_are_all_pairs() {
        let n = 90;
        let rows: Vec<f64> = (0..n * 7).map(|i| ((i * i * 31 % 97) as f64 - 40.0) / 9.0).collect();
        let unit = UnitRows::new(&rows, 7, 0..n).unwrap();
        let classes: Vec<TokenClass> =
            (0..n).map(|i| TokenClass::ALL[if i == 0 { 0 } else { 1 + i * i % 5 }]).collect();
        let mut wanted = std::collections::BTreeMap::new();
        unit.for_each_pair(|i, j, cosine| {
            let pair = (classes[i].min(classes[j]), classes[i].max(classes[j]));
            let entry = wanted.entry(pair).or_insert((0.0, 0_u64));
            *entry = (entry.0 + cosine, entry.1 + 1);
        });
        let found = class_cosines(&unit, &classes);
        assert_eq!(found.iter().map(|f| f.pairs).sum::<u64>(), (n * (n - 1) / 2) as u64);
        assert_eq!(found.len(), wanted.len());
        for (found, (pair, (sum, count))) in found.iter().zip(wanted) {
            assert_eq!((found.classes, found.pairs), (pair, count));
            assert!((found.cosine - sum / count as f64).abs() < 1e-13, "{found:?}");
        }
    }

    #[test]
    fn one_token_of_a_class_has_no_pair_within_it() {
        let rows = UnitRows::new(&[1.0, 2.0], 1, 0..2).unwrap();
        let found = class_cosines(&rows, &[First, Digits]);
        assert_eq!(found, [ClassCosine { classes: (First, Digits), cosine: 1.0, pairs: 1 }]);
        assert!(class_cosines(&UnitRows::new(&[1.0], 1, 0..1).unwrap(), &[First]).is_empty());
    }
}
