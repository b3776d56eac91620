//! Matrix products on slices: the `gemm` crate behind bounds checks.

use candle_core::{Result, bail};
use gemm::Parallelism;

use super::element::Element;
use super::few_rows::{self, FEW_ROWS};
use crate::profile;
use std::time::Instant;

/// A matrix in a slice.
#[derive(Clone, Copy)]
pub(super) struct Matrix<'a, T> {
    values: &'a [T],
    rows: usize,
    cols: usize,
    row_stride: usize,
    col_stride: usize,
}

impl<'a, T> Matrix<'a, T> {
    /// A row-major matrix whose rows lie `row_stride` elements apart.
    pub(super) fn new(values: &'a [T], rows: usize, cols: usize, row_stride: usize) -> Self {
        Self { values, rows, cols, row_stride, col_stride: 1 }
    }

    /// The same values with rows and columns exchanged.
    pub(super) fn t(self) -> Self {
        Self { rows: self.cols, cols: self.rows, row_stride: self.col_stride, col_stride: self.row_stride, ..self }
    }
}

/// Where a product may be computed.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Threads {
    /// On the calling thread: the caller already runs one task a thread.
    One,
    /// On all threads of the current pool. The bits are those of one thread: the depth is cut by cache sizes only.
    All,
}

/// Elements that a matrix reaches over, if that can be counted.
fn reach(rows: usize, cols: usize, row_stride: usize, col_stride: usize) -> Option<usize> {
    if rows == 0 || cols == 0 {
        return Some(0);
    }
    let last_row = (rows - 1).checked_mul(row_stride)?;
    let last_col = (cols - 1).checked_mul(col_stride)?;
    last_row.checked_add(last_col)?.checked_add(1)
}

/// `out = alpha · a · b + keep · out` with `out` row-major and contiguous, `[a.rows, b.cols]`.
///
/// With `keep` zero the old values of `out` are not read.
///
/// # Errors
/// If the inner dimensions differ, or a matrix reaches beyond its slice.
pub(super) fn gemm<T: Element>(
    out: &mut [T],
    keep: T,
    alpha: T,
    a: Matrix<'_, T>,
    b: Matrix<'_, T>,
    threads: Threads,
) -> Result<()> {
    if product_length(&a, &b)? != out.len() {
        bail!("gemm: a product of [{}, {}] into {} values", a.rows, b.cols, out.len())
    }
    if let Some(products) = few(&a, &b, threads) {
        combine(out, keep, alpha, &products, a.rows);
        return Ok(());
    }
    // SAFETY: `out` holds exactly the product's elements, all of them initialised, and is borrowed mutably, so that it
    // overlaps neither input.
    counted(&a, &b, threads, || unsafe { write(out.as_mut_ptr(), keep, alpha, a, b, threads) });
    Ok(())
}

/// `a · b`, row-major and contiguous, `[a.rows, b.cols]`, in memory that is not zeroed first.
///
/// # Errors
/// As [`gemm`].
pub(super) fn product<T: Element>(a: Matrix<'_, T>, b: Matrix<'_, T>, threads: Threads) -> Result<Vec<T>> {
    scaled_product(T::one(), a, b, threads)
}

/// `alpha · a · b` as [`product`] gives it.
///
/// # Errors
/// As [`gemm`].
pub(super) fn scaled_product<T: Element>(
    alpha: T,
    a: Matrix<'_, T>,
    b: Matrix<'_, T>,
    threads: Threads,
) -> Result<Vec<T>> {
    let length = product_length(&a, &b)?;
    if let Some(mut products) = few(&a, &b, threads) {
        if a.rows == 1 {
            products.iter_mut().for_each(|product| *product *= alpha);
            return Ok(products);
        }
        let mut out = vec![T::zero(); length];
        combine(&mut out, T::zero(), alpha, &products, a.rows);
        return Ok(out);
    }
    let mut out = Vec::with_capacity(length);
    // SAFETY: the vector has room for the product's elements and is its own allocation. With `keep` zero the old values
    // are not read, and every element is written (with an inner dimension of 0 by a zero), so all are initialised.
    counted(&a, &b, threads, || unsafe {
        write(out.as_mut_ptr(), T::zero(), alpha, a, b, threads);
        out.set_len(length);
    });
    Ok(out)
}

/// `a · b` of few rows and a weight that is given transposed, `[columns, rows]`; `None` of others.
fn few<T: Element>(a: &Matrix<'_, T>, b: &Matrix<'_, T>, threads: Threads) -> Option<Vec<T>> {
    let fits = threads == Threads::All && a.rows <= FEW_ROWS && a.col_stride == 1 && b.row_stride == 1;
    let mut products = None;
    if fits {
        counted(a, b, threads, || {
            let (x, weight) = ((a.values, a.rows, a.row_stride), (b.values, b.cols, b.col_stride));
            products = Some(few_rows::products(x, weight, a.cols));
        });
    }
    products
}

/// `out = alpha · products + keep · out` for `out` of `rows` rows and `products` transposed.
fn combine<T: Element>(out: &mut [T], keep: T, alpha: T, products: &[T], rows: usize) {
    let width = out.len() / rows.max(1);
    for (index, out) in out.chunks_exact_mut(width.max(1)).enumerate() {
        let own = products.iter().skip(index).step_by(rows.max(1));
        // Old values that are not kept may be no numbers.
        match keep == T::zero() {
            true => out.iter_mut().zip(own).for_each(|(out, &product)| *out = alpha * product),
            false => out.iter_mut().zip(own).for_each(|(out, &product)| *out = alpha * product + keep * *out),
        }
    }
}

/// Lets the profile know of a product, unless it is one of several at once.
fn counted<T>(a: &Matrix<'_, T>, b: &Matrix<'_, T>, threads: Threads, work: impl FnOnce()) {
    match threads {
        Threads::One => work(),
        Threads::All => profile::product((a.rows, a.cols, b.cols), work),
    }
}

/// 10⁹ operations a second that one large `f32` product reaches on all threads: the best of three.
///
/// # Errors
/// Never in practice: the matrices fit.
pub fn peak_rate() -> Result<f64> {
    const SIDE: usize = 1024;
    let values = vec![1.0_f32; SIDE * SIDE];
    let matrix = Matrix::new(&values, SIDE, SIDE, SIDE);
    let mut best = f64::INFINITY;
    for _ in 0..3 {
        let started = Instant::now();
        std::hint::black_box(product(matrix, matrix, Threads::All)?);
        best = best.min(started.elapsed().as_secs_f64());
    }
    Ok(2.0 * (SIDE as f64).powi(3) / best / 1e9)
}

/// The elements of `a · b`, if the matrices fit each other and their slices.
fn product_length<T>(a: &Matrix<'_, T>, b: &Matrix<'_, T>) -> Result<usize> {
    let (m, k, n) = (a.rows, a.cols, b.cols);
    if b.rows != k {
        bail!("gemm: [{m}, {k}] times [{}, {n}]", b.rows)
    }
    for matrix in [a, b] {
        let wanted = reach(matrix.rows, matrix.cols, matrix.row_stride, matrix.col_stride);
        if wanted.is_none_or(|wanted| wanted > matrix.values.len()) {
            bail!("gemm: a [{}, {}] matrix beyond its {} values", matrix.rows, matrix.cols, matrix.values.len())
        }
    }
    match m.checked_mul(n) {
        Some(length) => Ok(length),
        None => bail!("gemm: a product of [{m}, {n}] has too many values"),
    }
}

/// `out = alpha · a · b + keep · out`.
///
/// # Safety
/// [`product_length`] accepts `a` and `b`, and `out` points to room for so many elements, which overlap neither; they
/// are initialised unless `keep` is zero.
unsafe fn write<T: Element>(out: *mut T, keep: T, alpha: T, a: Matrix<'_, T>, b: Matrix<'_, T>, threads: Threads) {
    let (m, k, n) = (a.rows, a.cols, b.cols);
    let parallelism = match threads {
        Threads::One => Parallelism::None,
        Threads::All => match rayon::current_num_threads() {
            1 => Parallelism::None,
            count => Parallelism::Rayon(count),
        },
    };
    // SAFETY: `T` is `f32` or `f64`, the only implementors of `Element`. The caller vouches for the m · n elements of
    // `out`, addressed row by row with stride n. The last element of `a` and of `b` lies inside its slice, which
    // `product_length` has checked, hence so do all others, and no stride exceeds `isize` since every stride that is
    // used is below the length of a slice.
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            out,
            1,
            n as isize,
            keep != T::zero(),
            a.values.as_ptr(),
            a.col_stride as isize,
            a.row_stride as isize,
            b.values.as_ptr(),
            b.col_stride as isize,
            b.row_stride as isize,
            keep,
            alpha,
            false,
            false,
            false,
            parallelism,
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn naive(a: &[f64], b: &[f64], m: usize, k: usize, n: usize) -> Vec<f64> {
        let mut out = vec![0.0; m * n];
        for i in 0..m {
            for j in 0..n {
                out[i * n + j] = (0..k).map(|l| a[i * k + l] * b[l * n + j]).sum();
            }
        }
        out
    }

    fn ramp(length: usize) -> Vec<f64> {
        (0..length).map(|i| ((i * 37 % 101) as f64 - 50.0) / 25.0).collect()
    }

    #[test]
    fn products_equal_the_triple_loop() {
        for (m, k, n) in [(1, 1, 1), (1, 5, 7), (3, 4, 1), (20, 33, 17), (70, 65, 90), (2, 0, 3)] {
            let (a, b) = (ramp(m * k), ramp(k * n));
            let want = naive(&a, &b, m, k, n);
            let mut out = vec![f64::NAN; m * n];
            gemm(&mut out, 0.0, 1.0, Matrix::new(&a, m, k, k), Matrix::new(&b, k, n, n), Threads::All).unwrap();
            for (x, y) in out.iter().zip(&want) {
                assert!((x - y).abs() < 1e-12 * (1.0 + y.abs()), "[{m}, {k}] x [{k}, {n}]");
            }
            let made = product(Matrix::new(&a, m, k, k), Matrix::new(&b, k, n, n), Threads::All).unwrap();
            assert_eq!(made, out);
            // alpha, keep and a transposed factor.
            let mut b_t = vec![0.0; k * n];
            for i in 0..k {
                for j in 0..n {
                    b_t[j * k + i] = b[i * n + j];
                }
            }
            let mut out = vec![1.0; m * n];
            gemm(&mut out, 3.0, 0.5, Matrix::new(&a, m, k, k), Matrix::new(&b_t, n, k, k).t(), Threads::One).unwrap();
            for (x, y) in out.iter().zip(&want) {
                assert!((x - (3.0 + 0.5 * y)).abs() < 1e-12 * (1.0 + y.abs()));
            }
        }
    }

    #[test]
    fn what_reaches_outside_is_refused() {
        let (a, b) = (ramp(6), ramp(6));
        let mut out = vec![0.0; 4];
        let mut run = |a, b| gemm(&mut out, 0.0, 1.0, a, b, Threads::One).is_err();
        assert!(run(Matrix::new(&a, 2, 3, 4), Matrix::new(&b, 3, 2, 2)));
        assert!(run(Matrix::new(&a, 2, 3, 3), Matrix::new(&b[..5], 3, 2, 2)));
        assert!(run(Matrix::new(&a, 2, 2, 3), Matrix::new(&b, 3, 2, 2)));
        assert!(run(Matrix::new(&a, 3, 2, 2), Matrix::new(&b, 2, 2, 2)));
        assert!(run(Matrix::new(&a, usize::MAX, 2, usize::MAX), Matrix::new(&b, 2, 2, 2)));
        assert!(!run(Matrix::new(&a, 2, 3, 3), Matrix::new(&b, 3, 2, 2)));
    }
}
