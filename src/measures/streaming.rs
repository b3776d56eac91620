//! All streaming measures of a text at once: one sweep over its rows, and a second where the text's own mean is needed.
//!
//! Every sum is kept in f64, whatever the model computes in, so that no scale of hidden states overflows and a
//! collapsed text (all rows nearly equal) loses no digits. The loops have one body that is compiled twice, for the
//! baseline and for AVX2 with FMA; nothing is fused, so both give the same bits.
//!
//! The mean is formed of what the rows differ from one of them, so that identical rows leave exactly no residual.
//!
//! The three token sets of a text differ in few rows: the first one and the special ones. What they share is summed
//! once, and a set that holds the same rows as an earlier one is not computed again.

use super::norms::norm_std_of;
use super::{Measure, Real, TokenSet, outlier_share_of};
use std::ops::Range;

/// Partial sums of a reduction over a row: four AVX2 vectors.
const LANES: usize = 16;

/// Which of a text's rows are measured, and in which token set each is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TextRows {
    /// Whether each token is special; what lies beyond the end is not.
    pub special: Vec<bool>,
    /// Rows outside this range belong to the text but are not measured.
    pub span: Range<usize>,
}

impl TextRows {
    /// Whether the row at `position` belongs to a token set.
    #[must_use]
    pub fn contains(&self, set: TokenSet, position: usize) -> bool {
        self.span.contains(&position)
            && match set {
                TokenSet::All => true,
                TokenSet::NoFirst => position != 0,
                TokenSet::NoSpecial => !self.special.get(position).copied().unwrap_or(false),
            }
    }

    /// The rows of a token set in a text of `rows` rows.
    #[must_use]
    pub fn of(&self, set: TokenSet, rows: usize) -> Vec<usize> {
        (0..rows).filter(|&position| self.contains(set, position)).collect()
    }
}

/// What is to be summed; leaving out what no measure asks for saves its time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Wanted {
    /// Σx, which corpus means are made of.
    pub sum: bool,
    /// Σx² by dimension: outlier shares and corpus deviations.
    pub squares: bool,
    /// Deviations from the text's own mean, which cost a second sweep.
    pub residual: bool,
}

/// The sums of one token set of one text.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct SetSums {
    /// Rows of the set.
    pub rows: usize,
    /// Rows that are not zero: only these have a direction.
    pub directed: usize,
    /// Σ ĥ of the unit rows, `[d]`.
    pub unit_sum: Vec<f64>,
    /// Σ h, `[d]`; empty if not wanted.
    pub sum: Vec<f64>,
    /// Σ h² by dimension, `[d]`; empty if not wanted.
    pub squares: Vec<f64>,
    /// ‖h_i‖ of every row.
    pub norms: Vec<f64>,
    /// Cosine of every row with its row of the first reference (layer 0), where both are non-zero: sum and count.
    pub retention: (f64, usize),
    /// The same with the second reference (h0).
    pub retention_h0: (f64, usize),
    /// What the second sweep gave, if it was wanted and the set holds a row.
    pub residual: Option<Residual>,
}

/// Norms of H and of H − 1mᵀ, m the mean row of the set.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Residual {
    /// ‖H‖₁, the largest column sum of absolute values.
    pub column: f64,
    /// ‖H‖_∞, the largest row sum.
    pub row: f64,
    /// ‖H − 1mᵀ‖₁.
    pub residual_column: f64,
    /// ‖H − 1mᵀ‖_∞.
    pub residual_row: f64,
    /// ‖H − 1mᵀ‖_F².
    pub residual_square: f64,
    /// ‖m‖².
    pub mean_square: f64,
}

/// The sums of a text's three token sets.
#[derive(Debug, Clone, PartialEq)]
pub struct TextSums {
    pub(super) sets: Vec<SetSums>,
    /// Where in `sets` each token set lies; two that hold the same rows share a place.
    pub(super) place: [usize; 3],
    /// Whether every measured value is finite.
    pub finite: bool,
}

impl TextSums {
    /// The sums of a token set.
    #[must_use]
    pub fn set(&self, set: TokenSet) -> &SetSums {
        static EMPTY: SetSums = SetSums {
            rows: 0,
            directed: 0,
            unit_sum: Vec::new(),
            sum: Vec::new(),
            squares: Vec::new(),
            norms: Vec::new(),
            retention: (0.0, 0),
            retention_h0: (0.0, 0),
            residual: None,
        };
        self.place.get(set as usize).and_then(|&place| self.sets.get(place)).unwrap_or(&EMPTY)
    }

    /// The earlier token set that holds the same rows, if there is one.
    #[must_use]
    pub fn same_as(&self, set: TokenSet) -> Option<TokenSet> {
        let own = self.place.get(set as usize)?;
        TokenSet::ALL.into_iter().take(set as usize).find(|&other| self.place.get(other as usize) == Some(own))
    }
}

/// The rows of a text `[n, d]` and what they are compared with.
#[derive(Debug, Clone, Copy)]
pub struct States<'a, T> {
    /// Row-major, `[n, d]`.
    pub values: &'a [T],
    /// d.
    pub width: usize,
    /// The text's layer 0, `[n, d]`, if retention is wanted.
    pub layer0: Option<&'a [T]>,
    /// The text's h0, `[n, d]`, if retention of it is wanted.
    pub h0: Option<&'a [T]>,
}

/// Compiles a function for the baseline and for AVX2 with FMA and picks at run time.
macro_rules! vectorised {
    ($(#[$doc:meta])* $vis:vis fn $name:ident<$T:ident>($($arg:ident: $ty:ty),* $(,)?) -> $ret:ty $body:block) => {
        $(#[$doc])*
        $vis fn $name<$T: Real>($($arg: $ty),*) -> $ret {
            #[inline(always)]
            fn body<$T: Real>($($arg: $ty),*) -> $ret $body

            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx2,fma")]
                fn with_avx2<$T: Real>($($arg: $ty),*) -> $ret {
                    body($($arg),*)
                }
                if std::arch::is_x86_feature_detected!("avx2") && std::arch::is_x86_feature_detected!("fma") {
                    // SAFETY: the processor was asked and has every feature that `with_avx2` enables.
                    return unsafe { with_avx2($($arg),*) };
                }
            }
            body($($arg),*)
        }
    };
}

vectorised! {
/// The sums of every token set of a text.
#[must_use]
pub fn text_sums<T>(states: States<'_, T>, text: &TextRows, wanted: Wanted) -> TextSums {
    let width = states.width.max(1);
    let rows = states.values.len() / width;
    let members = TokenSet::ALL.map(|set| text.of(set, rows));
    let mut finite = true;
    // What is neither first nor special is in every set: summed once.
    let shared: Vec<usize> =
        members.iter().take(1).flatten().copied().filter(|&p| TokenSet::ALL.iter().all(|&s| text.contains(s, p))).collect();
    let mut core = SetSums::empty(width, wanted);
    let origin = |position: Option<&usize>| position.map(|&p| row_of(states.values, p, width)).unwrap_or_default();
    let shared_origin = origin(shared.first());
    for &position in &shared {
        finite &= core.add(&states, position, shared_origin, wanted);
    }
    let (mut sets, mut place): (Vec<SetSums>, [usize; 3]) = (Vec::with_capacity(3), [0; 3]);
    for (index, own) in members.iter().enumerate() {
        let twin = members.iter().take(index).position(|other| other == own);
        if let Some(&same) = twin.and_then(|twin| place.get(twin)) {
            if let Some(slot) = place.get_mut(index) {
                *slot = same;
            }
            continue;
        }
        let mut sums = core.clone();
        let origin = if shared.is_empty() { origin(own.first()) } else { shared_origin };
        for position in own.iter().filter(|position| shared.binary_search(position).is_err()) {
            finite &= sums.add(&states, *position, origin, wanted);
        }
        if wanted.residual {
            sums.residual = residual(&states, own, origin, &sums.sum);
            let count = sums.rows as f64;
            sums.sum.iter_mut().zip(origin).for_each(|(sum, &first)| *sum += count * first.into());
        }
        if let Some(slot) = place.get_mut(index) {
            *slot = sets.len();
        }
        sets.push(sums);
    }
    TextSums { sets, place, finite }
}
}

vectorised! {
/// Σ of the unit rows of `(h − mean) · scale` over `positions`, and how many were not zero; without `scale`, of
/// `h − mean`, where a row within [`mean_rounding`] is zero. A row that is not finite makes the sum NaN.
#[must_use]
pub fn centred_unit_sum<T>(
    values: &[T],
    width: usize,
    positions: &[usize],
    mean: &[f64],
    scale: Option<&[f64]>,
) -> (Vec<f64>, usize) {
    let (mut sum, mut count, mut moved) = (vec![0.0; width], 0, vec![0.0; width]);
    let zero = if scale.is_none() { mean_rounding(mean) } else { 0.0 };
    for &position in positions {
        let row = row_of(values, position, width);
        match scale {
            None => moved.iter_mut().zip(row.iter().zip(mean)).for_each(|(c, (&x, m))| *c = x.into() - m),
            Some(scale) => moved
                .iter_mut()
                .zip(row.iter().zip(mean.iter().zip(scale)))
                .for_each(|(c, (&x, (m, s)))| *c = (x.into() - m) * s),
        }
        let norm = reduce(&moved, |x| x * x).sqrt();
        if norm > zero || norm.is_nan() {
            let inverse = if norm.is_finite() { 1.0 / norm } else { f64::NAN };
            sum.iter_mut().zip(&moved).for_each(|(s, c)| *s += c * inverse);
            count += 1;
        }
    }
    (sum, count)
}
}

/// `(‖Σ ĥ‖² − n) / (n(n−1))`, the mean pairwise cosine of `n` unit vectors with the given sum; `None` for n < 2 and
/// for a sum that is not finite.
#[must_use]
pub fn pairwise(unit_sum: &[f64], n: usize) -> Option<f64> {
    let count = n as f64;
    let cosine = (n >= 2).then(|| (reduce(unit_sum, |s| s * s) - count) / (count * (count - 1.0)));
    cosine.filter(|cosine| cosine.is_finite())
}

/// How long what is left of a row less its corpus mean may be where only rounding is left: the mean of identical
/// rows need not be that row to the last digit. Far below what single precision resolves.
pub(super) fn mean_rounding(mean: &[f64]) -> f64 {
    1e-12 * reduce(mean, |m| m * m).sqrt()
}

#[inline(always)]
fn row_of<T>(values: &[T], position: usize, width: usize) -> &[T] {
    let start = position * width;
    values.get(start..start + width).unwrap_or_default()
}

/// Σ term(x) over a row, in partial sums that are folded in a fixed order.
#[inline(always)]
fn reduce<T: Real>(row: &[T], term: impl Fn(f64) -> f64) -> f64 {
    let mut lanes = [0.0; LANES];
    let (chunks, rest) = row.as_chunks::<LANES>();
    for chunk in chunks {
        lanes.iter_mut().zip(chunk).for_each(|(lane, &x)| *lane += term(x.into()));
    }
    lanes.iter_mut().zip(rest).for_each(|(lane, &x)| *lane += term(x.into()));
    lanes.iter().sum()
}

/// The dot product of two rows and the squared norm of the second.
#[inline(always)]
fn dot_and_square<T: Real>(a: &[T], b: &[T]) -> (f64, f64) {
    #[inline(always)]
    fn step<T: Real>(a: &[T], b: &[T], dots: &mut [f64; LANES], squares: &mut [f64; LANES]) {
        for ((&x, &y), (dot, square)) in a.iter().zip(b).zip(dots.iter_mut().zip(squares)) {
            let (x, y): (f64, f64) = (x.into(), y.into());
            *dot += x * y;
            *square += y * y;
        }
    }
    let (mut dots, mut squares) = ([0.0; LANES], [0.0; LANES]);
    let ((a, a_rest), (b, b_rest)) = (a.as_chunks::<LANES>(), b.as_chunks::<LANES>());
    a.iter().zip(b).for_each(|(a, b)| step(a, b, &mut dots, &mut squares));
    step(a_rest, b_rest, &mut dots, &mut squares);
    (dots.iter().sum(), squares.iter().sum())
}

impl SetSums {
    fn empty(width: usize, wanted: Wanted) -> Self {
        let zeros = |wanted: bool| if wanted { vec![0.0; width] } else { Vec::new() };
        Self {
            unit_sum: zeros(true),
            sum: zeros(wanted.sum || wanted.residual),
            squares: zeros(wanted.squares),
            ..Self::default()
        }
    }

    /// Adds a row; whether it is finite. Where a residual is wanted, `sum` is that of the differences to `origin`.
    #[inline(always)]
    fn add<T: Real>(&mut self, states: &States<'_, T>, position: usize, origin: &[T], wanted: Wanted) -> bool {
        let row = row_of(states.values, position, states.width);
        let square = reduce(row, |x| x * x);
        // f64 holds the square of every f32; of an f64 model a finite row may still overflow, which is as useless.
        let norm = square.sqrt();
        self.rows += 1;
        self.norms.push(norm);
        if wanted.residual {
            self.sum.iter_mut().zip(row.iter().zip(origin)).for_each(|(s, (&x, &o))| *s += x.into() - o.into());
        } else if wanted.sum {
            self.sum.iter_mut().zip(row).for_each(|(s, &x)| *s += x.into());
        }
        if wanted.squares {
            self.squares.iter_mut().zip(row).for_each(|(s, &x)| {
                let x: f64 = x.into();
                *s += x * x;
            });
        }
        if !norm.is_finite() {
            // Not skipped: no measure of these sums is defined any more.
            self.directed += 1;
            self.unit_sum.fill(f64::NAN);
            self.retention = (f64::NAN, 1);
            self.retention_h0 = (f64::NAN, 1);
        } else if norm > 0.0 {
            let inverse = 1.0 / norm;
            self.directed += 1;
            self.unit_sum.iter_mut().zip(row).for_each(|(s, &x)| *s += x.into() * inverse);
            for (reference, kept) in [(states.layer0, &mut self.retention), (states.h0, &mut self.retention_h0)] {
                if let Some(reference) = reference {
                    let (dot, other) = dot_and_square(row, row_of(reference, position, states.width));
                    // A NaN is no zero row either.
                    if other != 0.0 {
                        kept.0 += dot / (norm * other.sqrt());
                        kept.1 += 1;
                    }
                }
            }
        }
        norm.is_finite()
    }

    /// Lets no measure of these sums be defined any more: a row is not finite.
    pub(super) fn spoil(&mut self) {
        for sums in [&mut self.unit_sum, &mut self.sum, &mut self.squares] {
            sums.fill(f64::NAN);
        }
        (self.retention, self.retention_h0, self.residual) = ((f64::NAN, 1), (f64::NAN, 1), None);
    }

    /// The mean pairwise cosine.
    #[must_use]
    pub fn cosine(&self) -> Option<f64> {
        pairwise(&self.unit_sum, self.directed)
    }

    /// A measure that these sums determine; `None` where it is undefined, was not summed for, or needs more.
    #[must_use]
    pub fn measure(&self, measure: Measure) -> Option<f64> {
        let residual = || self.residual.filter(|_| self.rows >= 2);
        let share = |top| outlier_share_of(&mut self.squares.clone(), top);
        let mean = |(sum, count): (f64, usize)| (count > 0).then(|| sum / count as f64);
        match measure {
            Measure::Cosine => self.cosine(),
            Measure::RankResidual => residual().and_then(|r| {
                let composite = |column: f64, row: f64| column.sqrt() * row.sqrt();
                let whole = composite(r.column, r.row);
                (whole > 0.0).then(|| composite(r.residual_column, r.residual_row) / whole)
            }),
            Measure::FrequencyRatio => residual().and_then(|r| {
                let low = (self.rows as f64).sqrt() * r.mean_square.sqrt();
                (low > 0.0).then(|| r.residual_square.sqrt() / low)
            }),
            Measure::Dirichlet => residual().map(|r| r.residual_square),
            Measure::NormMean => mean((self.norms.iter().sum(), self.rows)),
            Measure::NormStd => norm_std_of(&self.norms),
            Measure::Retention => mean(self.retention),
            Measure::RetentionH0 => mean(self.retention_h0),
            Measure::OutlierShare1 => share(1),
            Measure::OutlierShare3 => share(3),
            Measure::OutlierShare10 => share(10),
            other => self.measure(other.parent()?).and_then(|parent| other.derive(parent)),
        }
        .filter(|value| value.is_finite())
    }
}

/// `differences` is Σ (h − origin) over the rows.
#[inline(always)]
fn residual<T: Real>(states: &States<'_, T>, rows: &[usize], origin: &[T], differences: &[f64]) -> Option<Residual> {
    // A largest sum would pass a NaN by.
    if rows.is_empty() || differences.iter().any(|d| !d.is_finite()) {
        return None;
    }
    let count = rows.len() as f64;
    let shift: Vec<f64> = differences.iter().map(|d| d / count).collect();
    let mean: Vec<f64> = shift.iter().zip(origin).map(|(s, &o)| s + o.into()).collect();
    let mut found = Residual { mean_square: reduce(&mean, |m| m * m), ..Residual::default() };
    let (mut columns, mut residual_columns) = (vec![0.0; states.width], vec![0.0; states.width]);
    for &position in rows {
        let row = row_of(states.values, position, states.width);
        let [absolute, residual, square] = add_deviations([row, origin], &shift, [&mut columns, &mut residual_columns]);
        found.row = found.row.max(absolute);
        found.residual_row = found.residual_row.max(residual);
        found.residual_square += square;
    }
    found.column = columns.into_iter().fold(0.0, f64::max);
    found.residual_column = residual_columns.into_iter().fold(0.0, f64::max);
    Some(found)
}

/// Adds |x| and |x − m| of a row to the column sums; returns Σ|x|, Σ|x − m| and Σ(x − m)². The mean m is
/// `origin + shift`.
#[inline(always)]
fn add_deviations<T: Real>([row, origin]: [&[T]; 2], shift: &[f64], [columns, residuals]: [&mut [f64]; 2]) -> [f64; 3] {
    #[inline(always)]
    fn step<T: Real>(
        [row, origin]: [&[T]; 2],
        shift: &[f64],
        [columns, residuals]: [&mut [f64]; 2],
        [absolutes, deviations, squares]: &mut [[f64; LANES]; 3],
    ) {
        let inputs = row.iter().zip(origin.iter().zip(shift));
        let columns = columns.iter_mut().zip(residuals);
        let sums = absolutes.iter_mut().zip(deviations.iter_mut().zip(squares));
        for (((&x, (&o, s)), (column, residual)), (absolute, (deviation, square))) in inputs.zip(columns).zip(sums) {
            let (x, o): (f64, f64) = (x.into(), o.into());
            let away = (x - o) - s;
            *column += x.abs();
            *residual += away.abs();
            *absolute += x.abs();
            *deviation += away.abs();
            *square += away * away;
        }
    }
    let mut sums = [[0.0; LANES]; 3];
    let ((rows, row), (origins, origin)) = (row.as_chunks::<LANES>(), origin.as_chunks::<LANES>());
    let (shifts, shift) = shift.as_chunks::<LANES>();
    let (column_chunks, columns) = columns.as_chunks_mut::<LANES>();
    let (residual_chunks, residuals) = residuals.as_chunks_mut::<LANES>();
    let inputs = rows.iter().zip(origins.iter().zip(shifts));
    for ((row, (origin, shift)), (columns, residuals)) in inputs.zip(column_chunks.iter_mut().zip(residual_chunks)) {
        step([row, origin], shift, [columns, residuals], &mut sums);
    }
    step([row, origin], shift, [columns, residuals], &mut sums);
    sums.map(|lanes| lanes.iter().sum())
}

#[cfg(test)]
#[path = "streaming_tests.rs"]
mod tests;
