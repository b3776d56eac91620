//! Linear CKA: how alike two layers, or two models at one layer, arrange the same tokens.
//!
//! `‖YᵀX‖_F² / (‖XᵀX‖_F ‖YᵀY‖_F)`, columns centred over all pooled tokens (Kornblith et al., *Similarity of Neural
//! Network Representations Revisited*, ICML 2019). The plain value is biased upwards: 0.92 for independent data
//! at N = 50, d = 576. So each of the three is replaced by its debiased estimate (Song et al., *Feature Selection
//! via Dependence Maximization*, JMLR 2012): `‖YᵀX‖_F² − N/(N−2) Σ_i ‖x_i‖²‖y_i‖² + ‖X‖_F²‖Y‖_F²/((N−1)(N−2))`. At most 1; about 0 and possibly
//! below it for unrelated data; invariant to rotation and one common scale. Undefined for N < 4, and where one side
//! varies by no more than the rounding of its mean: all tokens are the same then.
//!
//! Matrix class: three d×d matrices a point (two of them triangles), 8 MB at d = 576; O(N·d²) time.
//!
//! It reveals whether the arrangement of tokens changed. A few directions of large variance rule it, so it stays
//! near 1 while small directions change beyond recognition.

use super::accumulator::{FileFormError, Reader, Writer};
use super::rows::{Real, Rows, dot, finite};
use faer::linalg::matmul::triangular::{BlockStructure, matmul};
use faer::{Accum, Mat, MatRef, Par};

/// Sums over pooled tokens of two representations of the same tokens, in a second pass with frozen means.
#[derive(Debug, Clone, PartialEq)]
pub struct Cka {
    first_mean: Vec<f64>,
    second_mean: Vec<f64>,
    count: u64,
    /// YᵀX, `[d2, d1]`
    cross: Mat<f64>,
    /// XᵀX and YᵀY, lower triangles
    first: Mat<f64>,
    second: Mat<f64>,
    /// Σ ‖x‖²‖y‖², Σ ‖x‖⁴, Σ ‖y‖⁴
    row_products: [f64; 3],
}

impl Cka {
    /// Empty sums for two representations with these corpus means (`[d1]`, `[d2]`), frozen from a first pass over
    /// the same tokens.
    #[must_use]
    pub fn new(first_mean: Vec<f64>, second_mean: Vec<f64>) -> Self {
        let (first, second) = (first_mean.len(), second_mean.len());
        Self {
            cross: Mat::zeros(second, first),
            first: Mat::zeros(first, first),
            second: Mat::zeros(second, second),
            first_mean,
            second_mean,
            count: 0,
            row_products: [0.0; 3],
        }
    }

    /// Adds tokens: row i of both is the same token. Rows without a partner are not seen.
    pub fn add<A: Real, B: Real>(&mut self, first: Rows<'_, A>, second: Rows<'_, B>) {
        debug_assert!(first.n() == second.n(), "a row without a partner");
        debug_assert!(first.width() == self.first_mean.len() && second.width() == self.second_mean.len());
        let n = first.n().min(second.n());
        let x = centred(first, n, &self.first_mean);
        let y = centred(second, n, &self.second_mean);
        for (x, y) in x.chunks_exact(first.width().max(1)).zip(y.chunks_exact(second.width().max(1))) {
            let (x, y) = (dot(x, x), dot(y, y));
            self.row_products.iter_mut().zip([x * y, x * x, y * y]).for_each(|(sum, product)| *sum += product);
        }
        let x = MatRef::from_row_major_slice(&x, n, first.width());
        let y = MatRef::from_row_major_slice(&y, n, second.width());
        accumulate(&mut self.cross, BlockStructure::Rectangular, y, x);
        accumulate(&mut self.first, BlockStructure::TriangularLower, x, x);
        accumulate(&mut self.second, BlockStructure::TriangularLower, y, y);
        self.count += n as u64;
    }

    /// Adds what another accumulator with the same means saw; the same bits only if folded in index order.
    pub fn merge(&mut self, other: &Self) {
        debug_assert!(other.first_mean == self.first_mean && other.second_mean == self.second_mean);
        self.count += other.count;
        self.cross += &other.cross;
        self.first += &other.first;
        self.second += &other.second;
        self.row_products.iter_mut().zip(other.row_products).for_each(|(a, b)| *a += b);
    }

    /// How many tokens entered (N).
    #[must_use]
    pub fn count(&self) -> u64 {
        self.count
    }

    /// Debiased CKA; `None` for N < 4 and where one of the two does not vary.
    #[must_use]
    pub fn finish(&self) -> Option<f64> {
        if self.count < 4 || !self.varies() {
            return None;
        }
        let n = self.count as f64;
        let (x, y) = (trace(&self.first), trace(&self.second));
        let [xy, xx, yy] = self.row_products;
        let debiased =
            |product: f64, rows: f64, norms: f64| product - n / (n - 2.0) * rows + norms / ((n - 1.0) * (n - 2.0));
        ratio(
            debiased(squared(&self.cross), xy, x * y),
            debiased(squared_symmetric(&self.first), xx, x * x),
            debiased(squared_symmetric(&self.second), yy, y * y),
        )
    }

    /// The plain, biased value; not shown in tables.
    #[must_use]
    pub fn biased(&self) -> Option<f64> {
        if !self.varies() {
            return None;
        }
        ratio(squared(&self.cross), squared_symmetric(&self.first), squared_symmetric(&self.second))
    }

    /// Whether both sides vary. A mean of N terms is off by up to N·ε; what identical tokens are away from theirs is
    /// that alone, and a ratio of roundings would pass for a value. NaN passes: [`ratio`] refuses it.
    fn varies(&self) -> bool {
        let n = self.count as f64;
        let rounding = (n + 2.0) * f64::EPSILON;
        let still = |sums: &Mat<f64>, mean: &[f64]| trace(sums) <= n * rounding * rounding * dot(mean, mean);
        !still(&self.first, &self.first_mean) && !still(&self.second, &self.second_mean)
    }

    /// The file form: means, counts, the three matrices (two of them as triangles).
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut out = Writer::new(*b"cka     ");
        out.integer(self.count);
        out.numbers(&self.first_mean);
        out.numbers(&self.second_mean);
        out.numbers(&self.row_products);
        out.numbers(&self.cross.col_iter().flat_map(|c| c.iter().copied()).collect::<Vec<f64>>());
        for triangle in [&self.first, &self.second] {
            let columns = triangle.col_iter().enumerate();
            out.numbers(&columns.flat_map(|(j, c)| c.iter().skip(j).copied()).collect::<Vec<f64>>());
        }
        out.finish()
    }

    /// Reads the file form.
    ///
    /// # Errors
    /// Bytes that [`Self::to_bytes`] cannot have written.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, FileFormError> {
        let mut input = Reader::new(bytes, *b"cka     ")?;
        let count = input.integer()?;
        let (first_mean, second_mean) = (input.numbers()?, input.numbers()?);
        let (d1, d2) = (first_mean.len(), second_mean.len());
        let row_products = input.numbers_of(3)?;
        // Both widths are lengths of lists that were really there, so these products are far from overflow.
        let cross = input.numbers_of(d1 * d2)?;
        let first = input.numbers_of(d1 * (d1 + 1) / 2)?;
        let second = input.numbers_of(d2 * (d2 + 1) / 2)?;
        input.finish()?;
        let mut sums = Self::new(first_mean, second_mean);
        sums.count = count;
        sums.row_products.iter_mut().zip(row_products).for_each(|(slot, value)| *slot = value);
        let mut stored = cross.into_iter();
        for column in sums.cross.col_iter_mut() {
            column.iter_mut().zip(&mut stored).for_each(|(slot, value)| *slot = value);
        }
        for (triangle, stored) in [(&mut sums.first, first), (&mut sums.second, second)] {
            let mut stored = stored.into_iter();
            for (j, column) in triangle.col_iter_mut().enumerate() {
                column.iter_mut().skip(j).zip(&mut stored).for_each(|(slot, value)| *slot = value);
            }
        }
        Ok(sums)
    }
}

fn centred<T: Real>(rows: Rows<'_, T>, n: usize, mean: &[f64]) -> Vec<f64> {
    rows.iter().take(n).flat_map(|row| row.iter().zip(mean).map(|(&x, m)| x.into() - m)).collect()
}

/// `sum += leftᵀ · right`, only the lower triangle if so asked.
fn accumulate(sum: &mut Mat<f64>, part: BlockStructure, left: MatRef<'_, f64>, right: MatRef<'_, f64>) {
    let full = BlockStructure::Rectangular;
    matmul(sum, part, Accum::Add, left.transpose(), full, right, full, 1.0, Par::Seq);
}

fn trace(matrix: &Mat<f64>) -> f64 {
    matrix.diagonal().column_vector().iter().sum()
}

/// The squared Frobenius norm.
fn squared(matrix: &Mat<f64>) -> f64 {
    matrix.col_iter().map(|c| c.iter().map(|x| x * x).sum::<f64>()).sum()
}

/// The squared Frobenius norm of the symmetric matrix with this lower triangle.
fn squared_symmetric(triangle: &Mat<f64>) -> f64 {
    let column = |(j, c): (usize, faer::ColRef<'_, f64>)| {
        let below: f64 = c.iter().skip(j + 1).map(|x| x * x).sum();
        c.iter().nth(j).map_or(0.0, |x| x * x) + 2.0 * below
    };
    triangle.col_iter().enumerate().map(column).sum()
}

fn ratio(cross: f64, first: f64, second: f64) -> Option<f64> {
    if first > 0.0 && second > 0.0 { finite(cross / first.sqrt() / second.sqrt()) } else { None }
}
