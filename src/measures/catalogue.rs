//! Every measure by name: what it needs, what it costs, what it is derived from.

use super::entries::{ENTRIES, Entry};
use std::fmt;

/// What a measure holds while texts pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Class {
    /// O(d) numbers a point.
    Streaming,
    /// A matrix or a sample, of documented size.
    Matrix,
    /// Something beside the hidden states (attention maps, the embedding table), on a sample of texts.
    Lookup,
}

impl Class {
    /// Every class.
    pub const ALL: [Self; 3] = [Self::Streaming, Self::Matrix, Self::Lookup];

    /// The class as `--measures` and the docs write it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Streaming => "streaming",
            Self::Matrix => "matrix",
            Self::Lookup => "lookup",
        }
    }
}

impl fmt::Display for Class {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Whether a measure is a number per text, averaged over texts, or one number for all texts together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Scope {
    /// One value a text.
    Text,
    /// One value a corpus, without interval.
    Corpus,
}

/// What a measure reads beside the hidden states of its own point.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Need {
    /// The corpus mean of every dimension, so a second pass.
    CorpusMean,
    /// The corpus mean and deviation of every dimension, so a second pass.
    CorpusDeviation,
    /// The states at layer 0 of the same pass.
    Layer0,
    /// The states at layer 0 of the same pass and the corpus means of both, so a second pass.
    CentredLayer0,
    /// The states of the reference run at the same point and the corpus means of both, so a second pass.
    CentredReference,
    /// h0, what the initial residual mixes in.
    H0,
    /// The layer's attention maps.
    Attention,
    /// The token ids and the embedding table.
    EmbeddingTable,
}

/// A measure of over-smoothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[expect(missing_docs, reason = "every one is described in its entry and in docs/measures.md")]
pub enum Measure {
    Cosine,
    CosineCentred,
    CosineStandardised,
    Mad,
    RankResidual,
    FrequencyRatio,
    Dirichlet,
    DirichletNormalised,
    DirichletAttention,
    NormMean,
    NormStd,
    Retention,
    RetentionH0,
    OutlierShare1,
    OutlierShare3,
    OutlierShare10,
    EffectiveRank,
    EffectiveRankCentred,
    StableRank,
    StableRankCentred,
    MaxExplainedVariance,
    ParticipationRatio,
    Anisotropy,
    CkaLayer0,
    CkaBase,
    IntrinsicDimension,
    NearestEmbedding,
    AttentionEntropy,
    AttentionEntropyNormalised,
}

impl Measure {
    /// Every measure, in the order of tables and docs.
    pub const ALL: [Self; 29] = [
        Self::Cosine,
        Self::CosineCentred,
        Self::CosineStandardised,
        Self::Mad,
        Self::RankResidual,
        Self::FrequencyRatio,
        Self::Dirichlet,
        Self::DirichletNormalised,
        Self::DirichletAttention,
        Self::NormMean,
        Self::NormStd,
        Self::Retention,
        Self::RetentionH0,
        Self::OutlierShare1,
        Self::OutlierShare3,
        Self::OutlierShare10,
        Self::EffectiveRank,
        Self::EffectiveRankCentred,
        Self::StableRank,
        Self::StableRankCentred,
        Self::MaxExplainedVariance,
        Self::ParticipationRatio,
        Self::Anisotropy,
        Self::CkaLayer0,
        Self::CkaBase,
        Self::IntrinsicDimension,
        Self::NearestEmbedding,
        Self::AttentionEntropy,
        Self::AttentionEntropyNormalised,
    ];

    pub(super) fn entry(self) -> &'static Entry {
        // One entry a measure, in this order: held by a test.
        &ENTRIES[self as usize]
    }

    /// The name in tables, file names and `--measures`.
    #[must_use]
    pub fn name(self) -> &'static str {
        self.entry().name
    }

    /// The title of its figure.
    #[must_use]
    pub fn title(self) -> &'static str {
        self.entry().title
    }

    /// Its class of cost.
    #[must_use]
    pub fn class(self) -> Class {
        self.entry().class
    }

    /// Whether it is a number per text or per corpus.
    #[must_use]
    pub fn scope(self) -> Scope {
        match self {
            Self::Anisotropy | Self::CkaLayer0 | Self::CkaBase | Self::IntrinsicDimension => Scope::Corpus,
            _ => Scope::Text,
        }
    }

    /// The measure that this one is a function of: a derived one is shown beside it and is no evidence of its own.
    #[must_use]
    pub fn parent(self) -> Option<Self> {
        match self {
            Self::Mad => Some(Self::Cosine),
            Self::DirichletNormalised => Some(Self::FrequencyRatio),
            Self::MaxExplainedVariance => Some(Self::StableRank),
            _ => None,
        }
    }

    /// The value of this derived measure from its parent's; `None` for a measure that is not derived.
    ///
    /// Per text, before any average: only MAD commutes with the mean.
    #[must_use]
    pub fn derive(self, parent: f64) -> Option<f64> {
        match self {
            Self::Mad => Some(1.0 - parent),
            Self::DirichletNormalised => {
                // r²/(1 + r²), without squaring a large r.
                Some(if parent > 1.0 {
                    1.0 / (1.0 + parent.recip().powi(2))
                } else {
                    parent * parent / (1.0 + parent * parent)
                })
            }
            Self::MaxExplainedVariance => Some(parent.recip()),
            _ => None,
        }
    }

    /// What it reads beside the hidden states of its point; a derived measure needs what its parent needs.
    #[must_use]
    pub fn need(self) -> Option<Need> {
        match self {
            Self::CosineCentred => Some(Need::CorpusMean),
            Self::CosineStandardised => Some(Need::CorpusDeviation),
            Self::Retention => Some(Need::Layer0),
            Self::RetentionH0 => Some(Need::H0),
            Self::CkaLayer0 => Some(Need::CentredLayer0),
            Self::CkaBase => Some(Need::CentredReference),
            Self::DirichletAttention | Self::AttentionEntropy | Self::AttentionEntropyNormalised => {
                Some(Need::Attention)
            }
            Self::NearestEmbedding => Some(Need::EmbeddingTable),
            _ => None,
        }
    }

    /// Whether it needs the corpus means, and so a pass over the texts after the one that makes them.
    #[must_use]
    pub fn second_pass(self) -> bool {
        matches!(
            self.need(),
            Some(Need::CorpusMean | Need::CorpusDeviation | Need::CentredLayer0 | Need::CentredReference)
        )
    }

    /// Where the measure comes from.
    #[must_use]
    pub fn source(self) -> &'static str {
        self.entry().source
    }

    /// The formula in one line.
    #[must_use]
    pub fn formula(self) -> &'static str {
        self.entry().formula
    }

    /// What it holds for one point and token set while texts pass.
    #[must_use]
    pub fn state(self) -> &'static str {
        self.entry().state
    }

    /// What it reveals, in one line.
    #[must_use]
    pub fn reveals(self) -> &'static str {
        self.entry().reveals
    }

    /// What it hides, in one line.
    #[must_use]
    pub fn hides(self) -> &'static str {
        self.entry().hides
    }

    /// The measure of that name.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|m| m.name() == name)
    }
}

impl fmt::Display for Measure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The measures that a comma-separated list of names and classes asks for (`all`, `streaming`, `cosine,matrix`), each
/// once, in the order of [`Measure::ALL`].
///
/// # Errors
/// A name that is neither a measure nor a class, with the nearest one; an empty list.
pub fn parse_measures(list: &str) -> Result<Vec<Measure>, String> {
    let mut asked = Vec::new();
    for name in list.split(',').map(str::trim).filter(|name| !name.is_empty()) {
        if name == "all" {
            asked.extend(Measure::ALL);
        } else if let Some(class) = Class::ALL.into_iter().find(|c| c.name() == name) {
            asked.extend(Measure::ALL.into_iter().filter(|m| m.class() == class));
        } else if let Some(measure) = Measure::from_name(name) {
            asked.push(measure);
        } else {
            let near = nearest_name(name);
            return Err(format!("there is no measure `{name}`; did you mean `{near}`? (`all` takes every measure)"));
        }
    }
    if asked.is_empty() {
        return Err("no measure is named; give names, `streaming`, `matrix`, `lookup` or `all`".to_owned());
    }
    Ok(Measure::ALL.into_iter().filter(|m| asked.contains(m)).collect())
}

fn nearest_name(name: &str) -> &'static str {
    let measures = Measure::ALL.into_iter().map(Measure::name);
    let known = measures.chain(Class::ALL.into_iter().map(Class::name)).chain(["all"]);
    known.min_by_key(|known| edits(name, known)).unwrap_or("all")
}

/// How many characters must be inserted, deleted or replaced to turn `a` into `b` (Levenshtein).
fn edits(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut next = vec![i + 1];
        for (j, y) in b.iter().enumerate() {
            let replaced = row[j] + usize::from(x != *y);
            next.push(replaced.min(row[j + 1] + 1).min(next[j] + 1));
        }
        row = next;
    }
    row.last().copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_stand_in_the_order_of_the_measures() {
        for (i, measure) in Measure::ALL.into_iter().enumerate() {
            assert_eq!(measure as usize, i);
            assert_eq!(ENTRIES[i].name.replace('_', ""), format!("{measure:?}").to_lowercase());
            assert_eq!(Measure::from_name(measure.name()), Some(measure));
            assert_eq!(measure.parent().is_some(), measure.derive(0.5).is_some(), "{measure}");
        }
    }

    #[test]
    fn lists_are_read() {
        assert_eq!(parse_measures("all").unwrap(), Measure::ALL);
        assert_eq!(
            parse_measures(" effective_rank, cosine,cosine").unwrap(),
            [Measure::Cosine, Measure::EffectiveRank],
            "once each, in table order"
        );
        let streaming = parse_measures("streaming").unwrap();
        assert!(streaming.iter().all(|m| m.class() == Class::Streaming) && streaming.len() == 16);
        assert_eq!(parse_measures("streaming,matrix,lookup").unwrap(), Measure::ALL);
    }

    #[test]
    fn an_unknown_name_meets_the_nearest() {
        let error = parse_measures("cosine,efective-rank").unwrap_err();
        assert_eq!(
            error,
            "there is no measure `efective-rank`; did you mean `effective_rank`? (`all` takes every measure)"
        );
        assert!(parse_measures("").unwrap_err().contains("no measure is named"));
        assert_eq!((edits("kitten", "sitting"), edits("", "abc"), edits("abc", "")), (3, 3, 3));
    }

    #[test]
    fn derived_values() {
        assert_eq!(Measure::Mad.derive(0.25), Some(0.75));
        assert_eq!(Measure::MaxExplainedVariance.derive(4.0), Some(0.25));
        assert_eq!(Measure::DirichletNormalised.derive(0.5), Some(0.2));
        assert_eq!(Measure::DirichletNormalised.derive(2.0), Some(0.8));
        assert_eq!(Measure::DirichletNormalised.derive(1e300), Some(1.0));
        assert_eq!(Measure::Cosine.derive(0.5), None);
    }
}
