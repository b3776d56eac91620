//! The values of one text at one point: every measure of the plan for every token set.

use super::means::RunMeans;
use super::plan::MeasurePlan;
use crate::measures::streaming::{States, TextRows, TextSums, Wanted, centred_unit_sum, pairwise, text_sums};
use crate::measures::{
    AttentionMaps, EmbeddingTable, Measure, Need, Point, Real, Rows, Spectrum, TokenSet, attention_entropy,
    attention_entropy_normalised, dirichlet_attention, nearest_embedding,
};
use std::borrow::Cow;
use std::cell::OnceCell;

/// What a pass measures, beside what the plan says.
#[derive(Debug, Clone, Copy)]
pub struct Stage<'a> {
    /// Whether the measures that need no corpus means are taken.
    pub first: bool,
    /// The corpus means, if the measures that need them are taken.
    pub means: Option<&'a RunMeans>,
    /// What is summed in one sweep.
    pub wanted: Wanted,
}

/// A text at a point.
#[derive(Debug, Clone, Copy)]
pub struct TextAt<'a, T> {
    /// Where.
    pub point: Point,
    /// Its states, layer 0 and h0.
    pub states: States<'a, T>,
    /// Its rows.
    pub text: &'a TextRows,
    /// Its token ids.
    pub ids: &'a [u32],
    /// The attention maps of its layer and whether they are causal, if they are wanted of this text.
    pub maps: Option<(AttentionMaps<'a, T>, bool)>,
    /// The embedding table, if it is wanted of this text.
    pub table: Option<&'a EmbeddingTable<'a>>,
}

/// What a text gives at a point.
#[derive(Debug, Clone, PartialEq)]
pub struct TextResult {
    /// By measure, then token set; NaN is undefined.
    pub values: Vec<f64>,
    /// The sums of the one sweep, in a first pass.
    pub sums: Option<TextSums>,
}

/// Measures a text at a point. A pure function: it depends on no other text.
#[must_use]
pub fn text_values<T: Real>(at: &TextAt<'_, T>, plan: &MeasurePlan, stage: Stage<'_>) -> TextResult {
    let sums = stage.first.then(|| text_sums(at.states, at.text, stage.wanted));
    let rows = at.states.values.len() / at.states.width.max(1);
    let members = TokenSet::ALL.map(|set| at.text.of(set, rows));
    let mut values = vec![f64::NAN; plan.values_a_point()];
    for set in TokenSet::ALL {
        let Some(positions) = members.get(set as usize) else { continue };
        let own = SetAt { at, set, positions, gathered: OnceCell::new() };
        let mut spectra = Spectra::default();
        let mut value = |measure: Measure| match (measure.second_pass(), stage.means, &sums) {
            (true, Some(means), _) => own.moved(measure, means),
            (false, _, Some(sums)) => sums
                .set(set)
                .measure(measure)
                .or_else(|| own.matrix(measure, &mut spectra))
                .or_else(|| own.lookup(measure)),
            _ => None,
        };
        fill(&mut values, (at.point, &members, set), plan, stage, &mut value);
    }
    TextResult { values, sums }
}

/// The values of a text at a point from its sums alone; `centred` answers Σ ĥ of the rows less the corpus mean, and
/// of how many, for a measure that needs it.
pub(super) fn values_of_sums(
    (point, text, rows): (Point, &TextRows, usize),
    sums: Option<TextSums>,
    plan: &MeasurePlan,
    stage: Stage<'_>,
    centred: impl Fn(Measure, TokenSet) -> Option<(Vec<f64>, usize)>,
) -> TextResult {
    let members = TokenSet::ALL.map(|set| text.of(set, rows));
    let mut values = vec![f64::NAN; plan.values_a_point()];
    for set in TokenSet::ALL {
        let mut value = |measure: Measure| match &sums {
            _ if measure.second_pass() => centred(measure, set).and_then(|(sum, n)| pairwise(&sum, n)),
            Some(sums) => sums.set(set).measure(measure),
            None => None,
        };
        fill(&mut values, (point, &members, set), plan, stage, &mut value);
    }
    TextResult { values, sums }
}

/// Puts the values of one token set in their places. One that holds the rows of an earlier set has its values, but
/// where its corpus mean is another.
fn fill(
    values: &mut [f64],
    (point, members, set): (Point, &[Vec<usize>; 3], TokenSet),
    plan: &MeasurePlan,
    stage: Stage<'_>,
    value: &mut dyn FnMut(Measure) -> Option<f64>,
) {
    let index = set as usize;
    let twin = members.iter().take(index).position(|other| Some(other) == members.get(index));
    for (slot, &measure) in plan.measures.iter().enumerate() {
        let known = twin.filter(|&twin| !measure.second_pass() || same_means(point, twin, set, stage.means));
        let known = known.and_then(|twin| values.get(slot * 3 + twin).copied());
        let found = known.or_else(|| value(measure));
        if let (Some(found), Some(cell)) = (found.filter(|v| v.is_finite()), values.get_mut(slot * 3 + index)) {
            *cell = found;
        }
    }
}

/// The mean and one over the deviation that a measure of the second pass moves rows by; `None` where it has none of
/// this width.
pub(super) fn moves(
    measure: Measure,
    (point, set): (Point, TokenSet),
    means: &RunMeans,
    width: usize,
) -> Option<(&[f64], Option<Vec<f64>>)> {
    let mean = means.get(point, set)?;
    let scale: Option<Vec<f64>> = match measure.need()? {
        Need::CorpusMean => None,
        Need::CorpusDeviation => Some(mean.deviation.iter().map(|&d| if d > 0.0 { 1.0 / d } else { 0.0 }).collect()),
        _ => return None,
    };
    let fits = mean.mean.len() == width && scale.as_ref().is_none_or(|scale| scale.len() == width);
    fits.then_some((mean.mean.as_slice(), scale))
}

/// Whether two token sets have the same corpus mean, as where every text's first token is its only special one.
fn same_means(point: Point, twin: usize, set: TokenSet, means: Option<&RunMeans>) -> bool {
    let of = |set: TokenSet| means.and_then(|means| means.get(point, set));
    TokenSet::ALL.get(twin).is_some_and(|&twin| of(twin) == of(set))
}

/// The rows at `positions`, one after another; borrowed where they are all there are.
pub(super) fn gather<'a, T: Real>(values: &'a [T], width: usize, positions: &[usize]) -> Cow<'a, [T]> {
    let whole = positions.len() * width == values.len();
    if whole {
        return values.into();
    }
    let row = |&position: &usize| values.get(position * width..(position + 1) * width).unwrap_or_default();
    positions.iter().flat_map(row).copied().collect::<Vec<T>>().into()
}

/// One token set of a text at a point.
struct SetAt<'a, T: Real> {
    at: &'a TextAt<'a, T>,
    set: TokenSet,
    positions: &'a [usize],
    /// Its rows, put together when a measure first asks.
    gathered: OnceCell<Cow<'a, [T]>>,
}

/// The spectra of a set, made when a measure first asks.
#[derive(Default)]
struct Spectra {
    plain: Option<Option<Spectrum>>,
    centred: Option<Option<Spectrum>>,
}

impl<T: Real> SetAt<'_, T> {
    fn rows(&self) -> Rows<'_, T> {
        let States { values, width, .. } = self.at.states;
        Rows::new(self.gathered.get_or_init(|| gather(values, width, self.positions)), width)
    }

    fn matrix(&self, measure: Measure, spectra: &mut Spectra) -> Option<f64> {
        let mut plain = || spectra.plain.get_or_insert_with(|| Spectrum::uncentred(self.rows())).clone();
        let mut centred = || spectra.centred.get_or_insert_with(|| Spectrum::centred(self.rows())).clone();
        match measure {
            Measure::EffectiveRank => Some(plain()?.effective_rank()),
            Measure::StableRank => Some(plain()?.stable_rank()),
            Measure::EffectiveRankCentred => Some(centred()?.effective_rank()),
            Measure::StableRankCentred => Some(centred()?.stable_rank()),
            Measure::ParticipationRatio => Some(centred()?.participation_ratio()),
            Measure::MaxExplainedVariance => measure.derive(plain()?.stable_rank()),
            _ => None,
        }
    }

    fn lookup(&self, measure: Measure) -> Option<f64> {
        match measure {
            Measure::NearestEmbedding => {
                let ids: Vec<u32> = self.positions.iter().filter_map(|&p| self.at.ids.get(p).copied()).collect();
                nearest_embedding(self.rows(), &ids, self.at.table?)
            }
            Measure::AttentionEntropy => attention_entropy(self.at.maps?.0, self.positions),
            Measure::AttentionEntropyNormalised => {
                let (maps, causal) = self.at.maps?;
                attention_entropy_normalised(maps, self.positions, causal)
            }
            Measure::DirichletAttention => dirichlet_attention(self.rows(), self.positions, self.at.maps?.0),
            _ => None,
        }
    }

    fn moved(&self, measure: Measure, means: &RunMeans) -> Option<f64> {
        let states = &self.at.states;
        let (mean, scale) = moves(measure, (self.at.point, self.set), means, states.width)?;
        let (sum, n) = centred_unit_sum(states.values, states.width, self.positions, mean, scale.as_deref());
        pairwise(&sum, n)
    }
}
