//! Attention of new tokens over keys and values that are kept, without gradients.
//!
//! A sequence's keys and values lie in pages that its continuations share, so that a copy costs next to nothing: a beam
//! search follows many continuations of one text. Each row is attended to by itself, in one order: its bits do not
//! depend on the rows beside it.

use std::ops::Range;
use std::sync::Arc;

use candle_core::op::BackpropOp;
use candle_core::{Result, Storage, Tensor, WithDType, bail};
use rayon::prelude::*;

use super::attention::{AttentionShape, RelativeBias, attention};
use super::attention_task::Bias;
use super::composed::{self, remembered};
use super::element::{Element, Locked, by_dtype, matrix_dims};
use super::few_rows::write_products;
use super::{parallel, vector};

const NAME: &str = "remembered attention";

/// Tokens of a page.
const PAGE: usize = 32;

/// The keys and values of one sequence in one block, and of its continuations.
#[derive(Debug, Clone, Default)]
pub struct KeyValues(Kept);

#[derive(Debug, Clone, Default)]
enum Kept {
    #[default]
    Nothing,
    Single(Pages<f32>),
    Double(Pages<f64>),
    /// Of types and devices that the fused kernels do not take, `[tokens, kv_heads · head_dim]` each.
    Tensors([Tensor; 2]),
}

/// Keys and values in pages of [`PAGE`] tokens, the last of which may have room.
#[derive(Debug, Clone)]
pub(super) struct Pages<T> {
    width: usize,
    tokens: usize,
    pages: Vec<Arc<Page<T>>>,
}

/// `[tokens, kv_heads · head_dim]` each.
#[derive(Debug)]
struct Page<T> {
    keys: Vec<T>,
    values: Vec<T>,
}

impl<T: Copy> Clone for Page<T> {
    /// With room for a whole page, since who copies is about to add to it.
    fn clone(&self) -> Self {
        let copy = |all: &Vec<T>| {
            let mut copy = Vec::with_capacity(all.capacity());
            copy.extend_from_slice(all);
            copy
        };
        Self { keys: copy(&self.keys), values: copy(&self.values) }
    }
}

impl KeyValues {
    /// The tokens that are kept.
    #[must_use]
    pub fn tokens(&self) -> usize {
        match &self.0 {
            Kept::Nothing => 0,
            Kept::Single(pages) => pages.tokens,
            Kept::Double(pages) => pages.tokens,
            Kept::Tensors([keys, _]) => keys.dims().first().copied().unwrap_or(0),
        }
    }

    /// Adds the rows `range` of keys and values, `[n, kv_heads · head_dim]`.
    fn add(&mut self, k: &Tensor, v: &Tensor, range: Range<usize>) -> Result<()> {
        if !composed::is_fused(k) {
            let own = |t: &Tensor| t.narrow(0, range.start, range.len());
            let (k, v) = (own(k)?, own(v)?);
            self.0 = Kept::Tensors(match &self.0 {
                Kept::Tensors([keys, values]) => [Tensor::cat(&[keys, &k], 0)?, Tensor::cat(&[values, &v], 0)?],
                // A copy: the rows of others are not kept alive.
                _ => [k.copy()?, v.copy()?],
            });
            return Ok(());
        }
        let (dtype, width) = (k.dtype(), k.dim(1)?);
        let (k, v) = (Locked::new(k), Locked::new(v));
        let (start, end) = (range.start * width, range.end * width);
        by_dtype!(dtype, NAME, T => {
            let (Some(k), Some(v)) = (k.values::<T>()?.get(start..end), v.values::<T>()?.get(start..end)) else {
                bail!("{NAME}: rows {range:?} of fewer")
            };
            <T as Paged>::pages(&mut self.0, width)?.add(k, v);
        });
        Ok(())
    }
}

/// Element types whose keys and values are kept in pages.
trait Paged: Element {
    /// The pages for rows of `width` elements; new ones where nothing is kept.
    fn pages(kept: &mut Kept, width: usize) -> Result<&mut Pages<Self>>;
    /// The pages, if they are of this type.
    fn kept(kept: &Kept) -> Option<&Pages<Self>>;
}

macro_rules! paged {
    ($T:ty, $variant:ident) => {
        impl Paged for $T {
            fn pages(kept: &mut Kept, width: usize) -> Result<&mut Pages<Self>> {
                if matches!(kept, Kept::Nothing) {
                    *kept = Kept::$variant(Pages { width, tokens: 0, pages: Vec::new() });
                }
                match kept {
                    Kept::$variant(pages) if pages.width == width => Ok(pages),
                    _ => bail!("{NAME}: what is kept is of another type or width"),
                }
            }

            fn kept(kept: &Kept) -> Option<&Pages<Self>> {
                match kept {
                    Kept::$variant(pages) => Some(pages),
                    _ => None,
                }
            }
        }
    };
}
paged!(f32, Single);
paged!(f64, Double);

impl<T: Element> Pages<T> {
    fn add(&mut self, keys: &[T], values: &[T]) {
        let width = self.width.max(1);
        for (key, value) in keys.chunks_exact(width).zip(values.chunks_exact(width)) {
            if self.tokens.is_multiple_of(PAGE) {
                let room = || Vec::with_capacity(PAGE * width);
                self.pages.push(Arc::new(Page { keys: room(), values: room() }));
            }
            if let Some(page) = self.pages.last_mut() {
                let page = Arc::make_mut(page);
                page.keys.extend_from_slice(key);
                page.values.extend_from_slice(value);
                self.tokens += 1;
            }
        }
    }

    /// The pages that hold the tokens `seen`, each with its first such token and, in the page, the tokens' range.
    fn holding(&self, seen: Range<usize>) -> impl Iterator<Item = (&Page<T>, usize, Range<usize>)> {
        let first = seen.start / PAGE;
        self.pages.iter().enumerate().skip(first).take_while(move |(index, _)| index * PAGE < seen.end).map(
            move |(index, page)| {
                let start = seen.start.max(index * PAGE);
                let end = seen.end.min((index + 1) * PAGE);
                (&**page, start, start - index * PAGE..end - index * PAGE)
            },
        )
    }
}

/// Keeps keys and values of the new tokens, and answers their attention over all that is kept.
///
/// `q`, `k` and `v` are as [`attention`] takes them. Sequence `s` continues what `kept[s]` holds; where all hold nothing
/// this is [`attention`].
///
/// # Errors
/// If the shapes, types or offsets do not fit, attention is not causal, or what is kept is of another shape or type.
pub fn remembered_attention(
    [q, k, v]: [&Tensor; 3],
    shape: AttentionShape,
    bias: Option<&RelativeBias>,
    offsets: &Arc<[usize]>,
    kept: &mut [&mut KeyValues],
) -> Result<Tensor> {
    let [q, k, v] = [q.detach().contiguous()?, k.detach().contiguous()?, v.detach().contiguous()?];
    let (n, width) = matrix_dims(NAME, "q", &q)?;
    if !shape.causal {
        bail!("{NAME}: a token that sees what follows cannot be continued")
    }
    if shape.kv_heads == 0 || !shape.heads.is_multiple_of(shape.kv_heads) || width != shape.heads * shape.head_dim {
        bail!("{NAME}: {shape:?} of queries {:?}", q.dims())
    }
    if k.dims() != [n, shape.kv_heads * shape.head_dim] || v.dims() != k.dims() {
        bail!("{NAME}: keys {:?} and values {:?} of {n} queries", k.dims(), v.dims())
    }
    let ranges: Vec<Range<usize>> = offsets.array_windows::<2>().map(|&[start, end]| start..end).collect();
    if ranges.len() != kept.len() || ranges.iter().any(|r| r.start > r.end) || offsets.last() != Some(&n) {
        bail!("{NAME}: {} sequences that are kept, for offsets {offsets:?} of {n} tokens", kept.len())
    }
    let before: Vec<usize> = kept.iter().map(|kept| kept.tokens()).collect();
    for (kept, range) in kept.iter_mut().zip(&ranges) {
        kept.add(&k, &v, range.clone())?;
    }
    if before.iter().all(|&tokens| tokens == 0) {
        return attention(&q, &k, &v, shape, bias, offsets);
    }
    let longest = kept.iter().map(|kept| kept.tokens()).max().unwrap_or(0);
    if let Some(bias) = bias {
        bias.fits(q.dtype(), shape.heads, longest)?;
    }
    let sequences = || before.iter().zip(&ranges).zip(kept.iter());
    if !composed::is_fused(&q) {
        let parts = sequences().filter(|((_, range), _)| !range.is_empty()).map(|((&first, range), kept)| {
            let Kept::Tensors([keys, values]) = &kept.0 else { bail!("{NAME}: what is kept is of another type") };
            remembered::attend(&q.narrow(0, range.start, range.len())?, [keys, values], shape, bias, first)
        });
        return Tensor::cat(&parts.collect::<Result<Vec<_>>>()?, 0);
    }
    let rows: Vec<(usize, &KeyValues)> = sequences()
        .flat_map(|((&first, range), kept)| (0..range.len()).map(move |index| (first + index, &**kept)))
        .collect();
    let storage = by_dtype!(q.dtype(), NAME, T => {
        let locked = Locked::new(&q);
        let out = RelativeBias::with_slices(bias, |bias| attend::<T>(locked.values()?, &rows, shape, bias))?;
        T::to_cpu_storage_owned(out)
    });
    Ok(Tensor::from_storage(Storage::Cpu(storage), q.shape().clone(), BackpropOp::none(), false))
}

/// The attention of every row, which stands at a position of what is kept.
fn attend<T: Paged>(
    q: &[T],
    rows: &[(usize, &KeyValues)],
    shape: AttentionShape,
    bias: Option<Bias<'_, T>>,
) -> Result<Vec<T>> {
    let group = shape.heads / shape.kv_heads;
    let width = group * shape.head_dim;
    let mut out = vec![T::zero(); q.len()];
    let one = |scores: &mut Vec<T>, index: usize, out: &mut [T]| -> Result<()> {
        let (row, kv_head) = (index / shape.kv_heads, index % shape.kv_heads);
        let Some(&(position, kept)) = rows.get(row) else { return Ok(()) };
        let Some(pages) = T::kept(&kept.0) else { bail!("{NAME}: what is kept is of another type") };
        let queries = parallel::row(q, index, width);
        attend_row((pages, position), (kv_head, group), queries, shape, bias, scores, out);
        Ok(())
    };
    let work: usize = rows.iter().map(|(position, _)| (position + 1) * shape.heads * shape.head_dim).sum();
    if parallel::worth_sharing(work) {
        out.par_chunks_mut(width)
            .enumerate()
            .try_for_each_init(Vec::new, |scores, (index, out)| one(scores, index, out))?;
    } else {
        let mut scores = Vec::new();
        out.chunks_mut(width).enumerate().try_for_each(|(index, out)| one(&mut scores, index, out))?;
    }
    Ok(out)
}

/// The query heads of one row that share a key head.
fn attend_row<T: Element>(
    (pages, position): (&Pages<T>, usize),
    (kv_head, group): (usize, usize),
    queries: &[T],
    shape: AttentionShape,
    bias: Option<Bias<'_, T>>,
    scores: &mut Vec<T>,
    out: &mut [T],
) {
    let (dim, width) = (shape.head_dim, pages.width);
    let seen = shape.seen(position, position + 1);
    let column = kv_head * dim;
    for (index, (query, out)) in queries.chunks_exact(dim).zip(out.chunks_exact_mut(dim)).enumerate() {
        scores.clear();
        scores.resize(seen.len(), T::zero());
        for (page, first, range) in pages.holding(seen.clone()) {
            let start = first - seen.start;
            let Some(scores) = scores.get_mut(start..start + range.len()) else { continue };
            let keys = parallel::from(&page.keys, range.start * width + column);
            write_products((query, 1, dim), (keys, range.len(), width), dim, scores);
        }
        vector::scale(scores, T::from_f64(shape.scale));
        if let Some(cap) = shape.soft_cap {
            vector::soft_cap(scores, T::from_f64(cap));
        }
        if let Some(bias) = bias {
            vector::add(scores, bias.row(kv_head * group + index, position, seen.start));
        }
        let maximum = vector::max(scores);
        let inverse = T::one() / vector::exp_shifted(scores, maximum);
        for (page, first, range) in pages.holding(seen.clone()) {
            let weights = parallel::from(scores, first - seen.start);
            for (row, &weight) in range.zip(weights) {
                let value = parallel::from(&page.values, row * width + column);
                vector::add_scaled(out, value, weight);
            }
        }
        vector::scale(out, inverse);
    }
}

#[cfg(test)]
mod tests {
    use super::super::check;
    use super::*;
    use candle_core::DType;

    /// Attention of whole texts, and of the same texts in parts of these lengths, each of which remembers those before.
    fn compare(shape: AttentionShape, bias: Option<&RelativeBias>, dtype: DType, tolerance: f64) {
        let lengths = [150_usize, 3, 71];
        let offsets: Arc<[usize]> = [0, 150, 153, 224].into();
        let tensor = |heads: usize, seed| check::normal(&[224, heads * shape.head_dim], seed).to_dtype(dtype).unwrap();
        let [q, k, v] = [tensor(shape.heads, 1), tensor(shape.kv_heads, 2), tensor(shape.kv_heads, 3)];
        let whole = attention(&q, &k, &v, shape, bias, &offsets).unwrap();
        let mut kept = vec![KeyValues::default(); 3];
        // First a beginning of each, then tokens one by one, then what is left at once.
        let mut done = [0_usize; 3];
        for step in [64, 1, 1, 1, 200] {
            let next: Vec<Range<usize>> =
                (0..3).map(|s| offsets[s] + done[s]..offsets[s] + lengths[s].min(done[s] + step)).collect();
            let rows: Vec<u32> = next.iter().flat_map(|range| range.clone().map(|row| row as u32)).collect();
            let index = Tensor::new(rows.as_slice(), q.device()).unwrap();
            let part = |t: &Tensor| t.index_select(&index, 0).unwrap();
            let mut ends = vec![0];
            next.iter().for_each(|range| ends.push(ends.last().unwrap() + range.len()));
            let parts = [part(&q), part(&k), part(&v)];
            let mut kept: Vec<&mut KeyValues> = kept.iter_mut().collect();
            let found = remembered_attention(parts.each_ref(), shape, bias, &ends.into(), &mut kept).unwrap();
            let wanted = check::flat(&part(&whole).to_dtype(DType::F64).unwrap());
            check::close(&found.to_dtype(DType::F64).unwrap(), &wanted, tolerance);
            next.iter().zip(&mut done).for_each(|(range, done)| *done += range.len());
        }
        assert_eq!(kept.iter().map(KeyValues::tokens).collect::<Vec<_>>(), lengths);
    }

    #[test]
    fn a_text_in_parts_is_attended_to_as_a_whole_one() {
        let plain = AttentionShape {
            heads: 4,
            kv_heads: 2,
            head_dim: 12,
            causal: true,
            scale: 0.4,
            reach: None,
            soft_cap: None,
        };
        let by_distance = RelativeBias::new(check::normal(&[4, 511], 5)).unwrap();
        let by_key = RelativeBias::by_key(check::normal(&[4, 256], 6)).unwrap();
        let cases = [
            (plain, None),
            (AttentionShape { reach: Some(5), ..plain }, None),
            (AttentionShape { soft_cap: Some(1.5), reach: Some(70), ..plain }, Some(&by_distance)),
            (AttentionShape { kv_heads: 4, ..plain }, Some(&by_key)),
        ];
        for (shape, bias) in cases {
            compare(shape, bias, DType::F64, 1e-13);
            super::super::instead_of_fused(|| compare(shape, bias, DType::F64, 1e-13));
        }
        compare(plain, None, DType::F32, 1e-5);
    }

    #[test]
    fn a_continuation_does_not_write_to_the_text_that_it_shares() {
        let shape = AttentionShape {
            heads: 1,
            kv_heads: 1,
            head_dim: 8,
            causal: true,
            scale: 1.0,
            reach: None,
            soft_cap: None,
        };
        let part = |rows: usize, seed: u64| [1_u64, 2, 3].map(|which| check::normal(&[rows, 8], 10 * seed + which));
        let add = |kept: &mut KeyValues, rows: usize, seed: u64| {
            let parts = part(rows, seed);
            let kept = &mut [kept];
            check::flat(&remembered_attention(parts.each_ref(), shape, None, &[0, rows].into(), kept).unwrap())
        };
        let mut first = KeyValues::default();
        add(&mut first, 70, 1);
        let mut second = first.clone();
        let alone = add(&mut first.clone(), 1, 2);
        add(&mut second, 5, 3);
        assert_eq!(add(&mut first, 1, 2), alone);
        assert_eq!((first.tokens(), second.tokens()), (71, 75));
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let shape = AttentionShape {
            heads: 2,
            kv_heads: 1,
            head_dim: 4,
            causal: true,
            scale: 1.0,
            reach: None,
            soft_cap: None,
        };
        let parts = [check::normal(&[1, 8], 1), check::normal(&[1, 4], 2), check::normal(&[1, 4], 3)];
        let run = |shape, offsets: &[usize], kept: &mut KeyValues| {
            remembered_attention(parts.each_ref(), shape, None, &offsets.into(), &mut [kept]).is_err()
        };
        let mut kept = KeyValues::default();
        assert!(run(AttentionShape { causal: false, ..shape }, &[0, 1], &mut kept));
        assert!(run(AttentionShape { heads: 3, ..shape }, &[0, 1], &mut kept));
        assert!(run(shape, &[0, 2], &mut kept) && run(shape, &[0, 0, 1], &mut kept));
        assert!(!run(shape, &[0, 1], &mut kept) && !run(shape, &[0, 1], &mut kept));
    }
}
