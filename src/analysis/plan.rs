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
    Some {
        /// By name.
        sites: Vec<Site>,
        /// And every head that the model has.
        heads: bool,
    },
}

impl Sites {
    /// The sites in a model of so many heads.
    fn list(&self, heads: usize) -> Vec<Site> {
        match self {
            Self::Usual => Site::ALL.into_iter().filter(|site| site.is_usual()).collect(),
            Self::All => Site::ALL.to_vec(),
            Self::Some { sites, heads: all } => {
                let every = (0..if *all { heads } else { 0 }).map(Site::Head);
                let mut sites: Vec<Site> = sites.iter().copied().chain(every).collect();
                sites.sort_unstable();
                sites.dedup();
                sites
            }
        }
    }

    fn contains(&self, site: Site) -> bool {
        match (self, site) {
            (Self::Some { heads: true, .. }, Site::Head(_)) => true,
            _ => self.list(0).contains(&site),
        }
    }

    /// These and others.
    #[must_use]
    pub fn with(&self, others: &[Site]) -> Self {
        let heads = matches!(self, Self::Some { heads: true, .. });
        Self::Some { sites: self.list(0).into_iter().chain(others.iter().copied()).collect(), heads }
    }

    /// Refuses a head that the model does not have, and a choice of sites and `layers` that leaves nothing of it.
    /// Answers what is to be said of a choice that leaves something: a final norm that is not there.
    ///
    /// # Errors
    /// Names the site and what the model has.
    pub fn check(&self, layers: &Layers, architecture: &Architecture, model: &str) -> Result<Option<String>, String> {
        let Self::Some { sites, .. } = self else { return Ok(None) };
        let heads = architecture.heads;
        if let Some(site) = sites.iter().find(|site| matches!(site, Site::Head(head) if *head >= heads)) {
            return Err(format!(
                "--sites {site}: {model} has {heads} heads, from head_0; choose among those, or heads"
            ));
        }
        let no_norm = sites.contains(&Site::FinalNorm) && !architecture.has_final_norm();
        if MeasurePlan::new(Vec::new(), self, layers, architecture, 0).points.is_empty() {
            let why = if no_norm { "has no final norm" } else { "has none of these sites at the layers of --layers" };
            let names: Vec<String> = sites.iter().map(Site::to_string).collect();
            return Err(format!("--sites {}: {model} {why}; choose other sites, such as block", names.join(",")));
        }
        Ok(no_norm.then(|| format!("--sites final_norm: {model} has no final norm; its other sites are measured")))
    }
}

impl FromStr for Sites {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "usual" => Ok(Self::Usual),
            "all" => Ok(Self::All),
            list => {
                let (heads, names): (Vec<&str>, Vec<&str>) =
                    list.split(',').map(str::trim).partition(|s| *s == "heads");
                let named =
                    names.into_iter().map(|name| name.parse().map_err(|e| format!("{e}, or heads for all of them")));
                let sites = named.collect::<Result<Vec<Site>, String>>()?;
                Ok(Self::Some { sites, heads: !heads.is_empty() })
            }
        }
    }
}

/// What of a model decides its points.
#[derive(Debug, Clone, Copy)]
struct Shape {
    layers: usize,
    heads: usize,
    final_norm: bool,
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
        let shape = Shape { layers: model.layers, heads: model.heads, final_norm: model.has_final_norm() };
        Self::of(measures, sites, layers, shape, seed)
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
        let points = stored.filter(|point| layers.contains(*point) && sites.contains(point.site)).collect();
        Self { measures, points, seed }
    }

    fn of(measures: Vec<Measure>, sites: &Sites, layers: &Layers, shape: Shape, seed: u64) -> Self {
        let Shape { layers: depth, heads, final_norm } = shape;
        let mut points: Vec<Point> = sites
            .list(heads)
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

    /// Whether a pass can measure all that it has to by d-vectors of a text and numbers of a row: the `first`, or
    /// one with corpus `means`, or both at once.
    #[must_use]
    pub fn sums_suffice(&self, first: bool, means: bool) -> bool {
        let due = self.measures.iter().filter(|m| if m.second_pass() { means } else { first });
        due.copied().all(|measure| match measure.need() {
            None => measure.class() == Class::Streaming,
            Some(Need::Layer0 | Need::H0 | Need::CorpusMean | Need::CorpusDeviation) => true,
            Some(_) => false,
        })
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
        let shape = Shape { layers: 3, heads: 2, final_norm: true };
        MeasurePlan::of(measures.to_vec(), &sites.parse().unwrap(), &layers.parse().unwrap(), shape, 0)
    }

    #[test]
    fn points_come_as_a_forward_pass_reaches_them() {
        let usual = plan("usual", "all", &[Measure::Cosine]);
        assert_eq!(usual.points, crate::measures::points(3));
        let inner = plan("feed_forward,attention", "2..3", &[Measure::Cosine]);
        let names: Vec<String> = inner.points.iter().map(|p| format!("{} {}", p.site, p.layer)).collect();
        assert_eq!(names, ["attention 2", "feed_forward 2", "attention 3", "feed_forward 3"]);
        assert_eq!(plan("all", "3", &[]).points.len(), 13);
        let names = |sites: &str| plan(sites, "2", &[]).points.iter().map(|p| p.site.to_string()).collect::<Vec<_>>();
        assert_eq!(names("heads,block"), ["head_0", "head_1", "block"]);
        assert_eq!(names("head_1,heads"), ["head_0", "head_1"]);
        let stored = [Site::Head(5), Site::Block].map(|site| Point { site, layer: 1 });
        let chosen = MeasurePlan::stored(vec![], &"heads".parse().unwrap(), &Layers::All, stored.into_iter(), 0);
        assert_eq!(chosen.points, stored[..1]);
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
