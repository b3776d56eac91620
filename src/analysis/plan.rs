//! What one run measures: which measures, where, and what that asks of the passes.

use super::layers::Layers;
use super::pooled::Kept;
use crate::measures::streaming::Wanted;
use crate::measures::{Class, Measure, Need, Point, Scope};
use crate::model::Architecture;
use crate::probe::Site;
use std::str::FromStr;

/// Texts that a lookup measure is taken on, unless asked otherwise.
pub const LOOKUP_TEXTS: usize = 50;

/// A choice of sites.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Sites {
    /// The embedding, the blocks and the final norm.
    Usual,
    /// Every site that does not need to be asked for by number.
    All,
    /// These.
    Some(Vec<Site>),
}

impl Sites {
    fn list(&self) -> Vec<Site> {
        match self {
            Self::Usual => Site::ALL.into_iter().filter(|site| site.is_usual()).collect(),
            Self::All => Site::ALL.to_vec(),
            Self::Some(sites) => sites.clone(),
        }
    }
}

impl Sites {
    /// These and others.
    #[must_use]
    pub fn with(&self, others: &[Site]) -> Self {
        let mut sites = self.list();
        sites.extend(others);
        sites.sort_unstable();
        sites.dedup();
        Self::Some(sites)
    }
}

impl FromStr for Sites {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "usual" => Ok(Self::Usual),
            "all" => Ok(Self::All),
            list => {
                let mut sites = list.split(',').map(|s| s.trim().parse()).collect::<Result<Vec<Site>, _>>()?;
                sites.sort_unstable();
                sites.dedup();
                Ok(Self::Some(sites))
            }
        }
    }
}

/// The plan of one run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MeasurePlan {
    /// The measures, in the order of tables.
    pub measures: Vec<Measure>,
    /// The points, in the order of a forward pass.
    pub points: Vec<Point>,
    /// Seeds the token samples and the choice of texts for lookups.
    pub seed: u64,
}

impl MeasurePlan {
    /// The plan for a model.
    #[must_use]
    pub fn new(measures: Vec<Measure>, sites: &Sites, layers: &Layers, model: &Architecture, seed: u64) -> Self {
        Self::of(measures, sites, layers, model.layers, model.has_final_norm(), seed)
    }

    /// The plan for stored states: those of `stored` that are chosen.
    #[must_use]
    pub fn stored(
        measures: Vec<Measure>,
        sites: &Sites,
        layers: &Layers,
        stored: impl Iterator<Item = Point>,
        seed: u64,
    ) -> Self {
        let sites = sites.list();
        let points = stored.filter(|point| layers.contains(*point) && sites.contains(&point.site)).collect();
        Self { measures, points, seed }
    }

    fn of(measures: Vec<Measure>, sites: &Sites, layers: &Layers, depth: usize, final_norm: bool, seed: u64) -> Self {
        let mut points: Vec<Point> = sites
            .list()
            .into_iter()
            .flat_map(|site| {
                let range = match site {
                    Site::Embedding => 0..=0,
                    Site::FinalNorm => depth..=depth,
                    _ => 1..=depth,
                };
                range.map(move |layer| Point { site, layer })
            })
            .filter(|point| layers.contains(*point) && (final_norm || point.site != Site::FinalNorm))
            .collect();
        points.sort_by_key(|point| (point.layer, point.site));
        Self { measures, points, seed }
    }

    /// The place of a point.
    #[must_use]
    pub fn point(&self, site: Site, layer: usize) -> Option<usize> {
        self.points.iter().position(|&point| point == Point { site, layer })
    }

    /// Numbers that a text gives: points × measures × token sets.
    #[must_use]
    pub fn values_a_text(&self) -> usize {
        self.points.len() * self.values_a_point()
    }

    /// Numbers that a text gives at one point.
    #[must_use]
    pub fn values_a_point(&self) -> usize {
        self.measures.len() * 3
    }

    /// Whether a measure has this need.
    #[must_use]
    pub fn needs(&self, need: Need) -> bool {
        self.measures.iter().any(|m| m.need() == Some(need))
    }

    /// Whether a measure needs the corpus means.
    #[must_use]
    pub fn second_pass(&self) -> bool {
        self.measures.iter().any(|m| m.second_pass())
    }

    /// Whether a lookup measure is asked for.
    #[must_use]
    pub fn lookups(&self) -> bool {
        self.measures.iter().any(|m| m.class() == Class::Lookup)
    }

    /// Whether one of these measures, or one derived of them, is asked for.
    #[must_use]
    pub fn any_of(&self, measures: &[Measure]) -> bool {
        self.measures.iter().any(|m| measures.contains(m) || m.parent().is_some_and(|p| measures.contains(&p)))
    }

    /// The corpus measures.
    pub fn corpus(&self) -> impl Iterator<Item = Measure> + '_ {
        self.measures.iter().copied().filter(|m| m.scope() == Scope::Corpus)
    }

    /// What the first pass sums of every text; `moments` if corpus means are to be made.
    #[must_use]
    pub fn wanted(&self, moments: bool) -> Wanted {
        let shares = [Measure::OutlierShare1, Measure::OutlierShare3, Measure::OutlierShare10];
        Wanted {
            sum: moments,
            squares: self.any_of(&shares) || (moments && self.needs(Need::CorpusDeviation)),
            residual: self.any_of(&[Measure::RankResidual, Measure::FrequencyRatio, Measure::Dirichlet]),
        }
    }

    /// What the first pass keeps of all texts; `moments` as for [`Self::wanted`].
    #[must_use]
    pub fn kept(&self, moments: bool) -> Kept {
        Kept {
            moments,
            squares: self.needs(Need::CorpusDeviation),
            anisotropy: self.measures.contains(&Measure::Anisotropy),
            sample: self.measures.contains(&Measure::IntrinsicDimension),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(sites: &str, layers: &str, measures: &[Measure]) -> MeasurePlan {
        MeasurePlan::of(measures.to_vec(), &sites.parse().unwrap(), &layers.parse().unwrap(), 3, true, 0)
    }

    #[test]
    fn points_come_as_a_forward_pass_reaches_them() {
        let usual = plan("usual", "all", &[Measure::Cosine]);
        assert_eq!(usual.points, crate::measures::points(3));
        let inner = plan("feed_forward,attention", "2..3", &[Measure::Cosine]);
        let names: Vec<String> = inner.points.iter().map(|p| format!("{} {}", p.site, p.layer)).collect();
        assert_eq!(names, ["attention 2", "feed_forward 2", "attention 3", "feed_forward 3"]);
        assert_eq!(plan("all", "3", &[]).points.len(), 13);
        assert!("attention,nose".parse::<Sites>().unwrap_err().contains("nose"));
    }

    #[test]
    fn measures_ask_for_what_they_need() {
        let plain = plan("usual", "all", &[Measure::Cosine]);
        assert!(!plain.second_pass() && !plain.lookups());
        assert_eq!(plain.wanted(false), Wanted::default());
        let centred = plan("usual", "all", &[Measure::CosineCentred]);
        assert!(centred.second_pass());
        assert_eq!(centred.wanted(true), Wanted { sum: true, squares: false, residual: false });
        let derived = plan("usual", "all", &[Measure::DirichletNormalised]);
        assert!(derived.wanted(false).residual, "through its parent");
        let all = plan("usual", "all", &Measure::ALL);
        assert_eq!(all.wanted(true), Wanted { sum: true, squares: true, residual: true });
        assert_eq!(all.corpus().count(), 4);
        assert_eq!(all.values_a_text(), 5 * 29 * 3);
    }
}
