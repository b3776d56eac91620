//! What a figure calls a measure, and what its null baselines say.

use crate::measures::Measure;

/// What follows a run's name in the names of its null baselines: tokens of different texts, untrained weights,
/// shuffled order. They are drawn pale.
pub const BASELINE_SUFFIXES: [&str; 3] = [" (other texts)", " (untrained)", " (shuffled)"];

/// The run whose null baseline this is, and of which kind; `None` for a run.
#[must_use]
pub fn baseline(run: &str) -> Option<(&str, usize)> {
    let mut kinds = BASELINE_SUFFIXES.iter().enumerate();
    kinds.find_map(|(kind, suffix)| run.strip_suffix(suffix).map(|own| (own, kind)))
}

/// The name of the measure's axis, with its unit.
pub(super) fn axis(measure: &str) -> String {
    let Some(known) = Measure::from_name(measure) else { return measure.replace('_', " ") };
    match known {
        Measure::Cosine => "token-wise cosine similarity",
        Measure::CosineCentred => "corpus-centred token-wise cosine",
        Measure::CosineStandardised => "standardised token-wise cosine",
        Measure::Mad => "1 − token-wise cosine",
        Measure::RankResidual => "residual of rank collapse, ‖H − mean‖ / ‖H‖",
        Measure::FrequencyRatio => "high/low frequency ratio",
        Measure::Dirichlet => "Dirichlet energy, Σ‖h − m‖²",
        Measure::DirichletNormalised => "Dirichlet energy / Σ‖h‖²",
        Measure::DirichletAttention => "Dirichlet energy over attention",
        Measure::NormMean => "mean of ‖h‖",
        Measure::NormStd => "deviation of ‖h‖ within a text",
        Measure::Retention => "cosine with the token's layer 0",
        Measure::RetentionH0 => "cosine with the token's h0",
        Measure::OutlierShare1 => "share of Σh² in the largest dimension",
        Measure::OutlierShare3 => "share of Σh² in the 3 largest dimensions",
        Measure::OutlierShare10 => "share of Σh² in the 10 largest dimensions",
        Measure::EffectiveRank => "effective rank (dimensions)",
        Measure::EffectiveRankCentred => "token-centred effective rank (dimensions)",
        Measure::StableRank => "stable rank (dimensions)",
        Measure::StableRankCentred => "token-centred stable rank (dimensions)",
        Measure::MaxExplainedVariance => "share of ‖H‖² in one direction",
        Measure::ParticipationRatio => "participation ratio (dimensions)",
        Measure::Anisotropy => "cosine of tokens of different texts",
        Measure::CkaLayer0 => "debiased CKA with layer 0",
        Measure::CkaBase => "debiased CKA with the reference run",
        Measure::IntrinsicDimension => "intrinsic dimension (TwoNN)",
        Measure::NearestEmbedding => "share of tokens nearest to their own row",
        Measure::AttentionEntropy => "attention entropy (nats)",
        Measure::AttentionEntropyNormalised => "attention entropy / its maximum",
    }
    .to_owned()
}

/// The name of the measure in a panel's title.
pub(super) fn short(measure: &str) -> String {
    match measure {
        "cosine_centred" => "cosine, corpus-centred".to_owned(),
        other => other.replace('_', " "),
    }
}

/// Whether the measure is a size without bound that a norm rescales.
pub(super) fn is_size(measure: &str) -> bool {
    use Measure::{Dirichlet, DirichletAttention, NormMean, NormStd};
    matches!(Measure::from_name(measure), Some(Dirichlet | DirichletAttention | NormMean | NormStd))
}

/// That the measure is a function of another, if it is one.
pub(super) fn derived(measure: &str) -> Option<String> {
    let measure = Measure::from_name(measure)?;
    let parent = measure.parent()?;
    Some(format!("Derived from {}, text by text ({}): no further evidence.", short(parent.name()), measure.formula()))
}

/// What tokens of other texts leave of a measure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum OtherTexts {
    /// The null: what is measured lies between the tokens of a text.
    Null,
    /// Each token's own value, averaged over other texts.
    OwnValue,
    /// All tokens of the corpus, whichever text they stand in.
    Pooled,
}

fn other_texts(measure: &str) -> OtherTexts {
    use Measure::{
        Anisotropy, CkaBase, CkaLayer0, IntrinsicDimension, NearestEmbedding, NormMean, NormStd, OutlierShare1,
        OutlierShare3, OutlierShare10, Retention, RetentionH0,
    };
    match Measure::from_name(measure) {
        Some(Anisotropy | CkaLayer0 | CkaBase | IntrinsicDimension) => OtherTexts::Pooled,
        Some(
            NearestEmbedding | NormMean | NormStd | OutlierShare1 | OutlierShare3 | OutlierShare10 | Retention
            | RetentionH0,
        ) => OtherTexts::OwnValue,
        _ => OtherTexts::Null,
    }
}

/// What the null baselines of a figure of `measure` say, each of the `kinds` that it has.
pub(super) fn baseline_note(measure: &str, kinds: &[usize], colour: &str) -> String {
    let other = match other_texts(measure) {
        OtherTexts::Null => "other texts: tokens that never met",
        OtherTexts::OwnValue => "other texts: near the run by construction, no null of each token's own value",
        OtherTexts::Pooled => "other texts: near the run by construction, no null of what pools all tokens",
    };
    let said = [other, "untrained: random weights", "shuffled: tokens in random order"];
    let said: Vec<&str> =
        said.into_iter().enumerate().filter(|(kind, _)| kinds.contains(kind)).map(|(_, said)| said).collect();
    format!("{colour}, baselines – {}.", said.join("; "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_measure_has_an_axis_of_its_own_that_is_no_column_name() {
        let mut names: Vec<String> = Measure::ALL.iter().map(|m| axis(m.name())).collect();
        assert!(names.iter().all(|name| !name.contains('_')), "{names:?}");
        names.sort();
        names.dedup();
        assert_eq!(names.len(), Measure::ALL.len());
    }

    #[test]
    fn derived_measures_name_their_parent() {
        let note = derived("dirichlet_normalised").unwrap();
        assert!(note.starts_with("Derived from frequency ratio, text by text ("), "{note}");
        assert_eq!(derived("cosine"), None);
    }

    #[test]
    fn other_texts_are_called_a_null_only_where_they_are_one() {
        let cosine = baseline_note("cosine", &[0, 2], "Grey");
        assert_eq!(cosine, "Grey, baselines – other texts: tokens that never met; shuffled: tokens in random order.");
        for measure in ["retention", "nearest_embedding", "norm_mean", "outlier_share_3", "cka_layer0"] {
            assert!(baseline_note(measure, &[0], "Grey").contains("near the run by construction"), "{measure}");
        }
        assert_eq!(baseline_note("retention", &[1], "Pale"), "Pale, baselines – untrained: random weights.");
    }

    #[test]
    fn a_baseline_knows_its_run() {
        assert_eq!(baseline("SIBO (shuffled)"), Some(("SIBO", 2)));
        assert_eq!(baseline("SIBO"), None);
    }
}
