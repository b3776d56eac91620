//! Which numbers of a table are counted as "the" token similarity: ours, or as it was first published.

use crate::measures::{Measure, TokenSet};
use crate::report::SimilarityRow;
use std::collections::BTreeSet;

/// What a figure of token similarity counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[cfg_attr(feature = "cli", derive(clap::ValueEnum))]
pub enum Convention {
    /// Every block's own output, the state after the final norm beside it, each token set by itself.
    #[default]
    Ours,
    /// As Shi et al. (ICLR 2022): the cosine of all tokens, special ones too, at transformers' `hidden_states`, of which
    /// the last is taken after the final norm where there is one.
    Shi2022,
}

impl Convention {
    /// The name, as it is asked for.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Ours => "ours",
            Self::Shi2022 => "shi2022",
        }
    }

    /// The convention of that name.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        [Self::Ours, Self::Shi2022].into_iter().find(|convention| convention.name() == name)
    }

    /// What is counted, in one sentence.
    #[must_use]
    pub fn counted(self) -> &'static str {
        match self {
            Self::Ours => {
                "Counted: layer 0 the embedding, 1 to L the blocks' outputs, after the final norm beside layer L; all tokens, \
                 without the first, and without special ones, each by itself; a text weighs 1, a row of zeros does not count."
            }
            Self::Shi2022 => {
                "Counted as Shi et al. (2022): the cosine of every two tokens, special ones too, at hidden_states[0] to [L], the last \
                 after the final norm if there is one; a text weighs 1."
            }
        }
    }

    /// The rows that are counted. Under [`Self::Shi2022`] what is after the final norm stands in the place of the last
    /// block's output.
    #[must_use]
    pub fn rows(self, rows: &[SimilarityRow]) -> Vec<SimilarityRow> {
        if self == Self::Ours {
            return rows.to_vec();
        }
        let normed: BTreeSet<(String, u32)> =
            rows.iter().filter(|row| row.site == "final_norm").map(|row| (row.run.clone(), row.layer)).collect();
        let counted = rows.iter().filter(|row| {
            let replaced = row.site == "block" && normed.contains(&(row.run.clone(), row.layer));
            let stream = ["embedding", "block", "final_norm"].contains(&row.site.as_str());
            stream && !replaced && row.measure == Measure::Cosine.name() && row.tokens == TokenSet::All.to_string()
        });
        let renamed = counted.map(|row| match row.site.as_str() {
            "final_norm" => SimilarityRow { site: "block".to_owned(), ..row.clone() },
            _ => row.clone(),
        });
        renamed.collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_hidden_state_is_after_the_final_norm_where_there_is_one() {
        let row = |run: &str, layer: u32, site: &str, tokens: &str, mean: f64| SimilarityRow {
            run: run.into(),
            group: None,
            layer,
            site: site.into(),
            measure: "cosine".into(),
            tokens: tokens.into(),
            mean: Some(mean),
            std: None,
            ci_low: None,
            ci_high: None,
            texts: 3,
            reference: None,
            diff: None,
            diff_ci_low: None,
            diff_ci_high: None,
        };
        let rows = [
            row("gpt", 0, "embedding", "all", 0.0),
            row("gpt", 1, "block", "all", 0.1),
            row("gpt", 1, "block", "no_first", 0.9),
            row("gpt", 2, "attention", "all", 0.9),
            row("gpt", 2, "block", "all", 0.9),
            row("gpt", 2, "final_norm", "all", 0.2),
            row("bert", 2, "block", "all", 0.3),
        ];
        let found = Convention::Shi2022.rows(&rows);
        let found: Vec<_> = found.iter().map(|r| (r.run.as_str(), r.layer, r.site.as_str(), r.mean)).collect();
        let wanted = [
            ("gpt", 0, "embedding", Some(0.0)),
            ("gpt", 1, "block", Some(0.1)),
            ("gpt", 2, "block", Some(0.2)),
            ("bert", 2, "block", Some(0.3)),
        ];
        assert_eq!(found, wanted);
        assert_eq!(Convention::Ours.rows(&rows), rows);
        assert_eq!(Convention::from_name("shi2022"), Some(Convention::Shi2022));
    }
}
