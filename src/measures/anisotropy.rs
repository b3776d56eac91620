//! Anisotropy: how alike tokens of *different* texts are.
//!
//! The mean cosine over all pairs of tokens from two different texts (Ethayarajh, *How Contextual are
//! Contextualized Word Representations?*, EMNLP 2019, who samples pairs; here all of them). With the unit vectors'
//! sum s_t of text t and S = Σ s_t it is `(‖S‖² − Σ‖s_t‖²) / (N² − Σ n_t²)`: O(d) state. −1 to 1. A zero row does
//! not count; undefined without tokens in two texts.
//!
//! It is the null baseline of the token cosine: what tokens share without having met. It hides how the shared
//! direction arises: one outlier dimension is enough.

use super::accumulator::{FileFormError, Reader, Writer};
use super::rows::{Real, Rows, dot, finite, norm};

/// Sums over the texts at one point and token set.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Anisotropy {
    texts: u64,
    tokens: u64,
    /// Σ n_t²
    token_squares: f64,
    /// Σ ‖s_t‖²
    text_squares: f64,
    sum: Vec<f64>,
}

impl Anisotropy {
    /// Empty sums of dimension `width`.
    #[must_use]
    pub fn new(width: usize) -> Self {
        Self { sum: vec![0.0; width], ..Self::default() }
    }

    /// Adds one text: its rows, of this width.
    pub fn add<T: Real>(&mut self, rows: Rows<'_, T>) {
        let mut sum = vec![0.0; rows.width()];
        let mut count = 0;
        for row in rows.iter() {
            let norm = norm(row);
            // A NaN must not pass for a zero row: it goes on into the sum, and the result is undefined.
            if norm != 0.0 {
                sum.iter_mut().zip(row).for_each(|(s, &x)| *s += x.into() / norm);
                count += 1;
            }
        }
        self.add_text(count, &sum);
    }

    /// Adds one text by the sum of its unit vectors (`[d]`) and how many non-zero rows it has.
    pub fn add_text(&mut self, tokens: u64, unit_sum: &[f64]) {
        debug_assert_eq!(unit_sum.len(), self.sum.len());
        if tokens == 0 {
            return;
        }
        self.texts += 1;
        self.tokens += tokens;
        self.token_squares += (tokens as f64).powi(2);
        self.text_squares += dot(unit_sum, unit_sum);
        self.sum.iter_mut().zip(unit_sum).for_each(|(a, b)| *a += b);
    }

    /// Adds what another accumulator of the same width saw; the same bits only if folded in index order.
    pub fn merge(&mut self, other: &Self) {
        debug_assert_eq!(other.sum.len(), self.sum.len());
        self.texts += other.texts;
        self.tokens += other.tokens;
        self.token_squares += other.token_squares;
        self.text_squares += other.text_squares;
        self.sum.iter_mut().zip(&other.sum).for_each(|(a, b)| *a += b);
    }

    /// How many texts have a token that counts.
    #[must_use]
    pub fn texts(&self) -> u64 {
        self.texts
    }

    /// How many tokens count: those with a direction.
    #[must_use]
    pub fn tokens(&self) -> u64 {
        self.tokens
    }

    /// The anisotropy; `None` where fewer than two texts have a token that counts.
    #[must_use]
    pub fn finish(&self) -> Option<f64> {
        let pairs = (self.tokens as f64).powi(2) - self.token_squares;
        if self.texts < 2 { None } else { finite((dot(&self.sum, &self.sum) - self.text_squares) / pairs) }
    }

    /// The file form.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut out = Writer::new(*b"anisotro");
        out.integer(self.texts);
        out.integer(self.tokens);
        out.number(self.token_squares);
        out.number(self.text_squares);
        out.numbers(&self.sum);
        out.finish()
    }

    /// Reads the file form.
    ///
    /// # Errors
    /// Bytes that [`Self::to_bytes`] cannot have written.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, FileFormError> {
        let mut input = Reader::new(bytes, *b"anisotro")?;
        let (texts, tokens) = (input.integer()?, input.integer()?);
        let (token_squares, text_squares) = (input.number()?, input.number()?);
        let sum = input.numbers()?;
        if texts > tokens || token_squares < 0.0 || text_squares < 0.0 {
            return Err(input.malformed("its counts contradict each other"));
        }
        input.finish()?;
        Ok(Self { texts, tokens, token_squares, text_squares, sum })
    }
}
