//! The embedding of token ids.

use std::sync::Arc;

use candle_core::{CpuStorage, CustomOp1, DType, Layout, Result, Shape, Tensor, WithDType, bail};
use rayon::prelude::*;

use super::element::{Element, Locked, by_dtype, matrix_dims, tensor};
use super::tape::{self, Reads};
use super::{mixed, parallel, vector};

const NAME: &str = "embedding";
/// Rows of the weight whose gradient one task sums.
const BLOCK: usize = 256;

/// Row `ids[i]` of `weight` (`[vocabulary, d]`) for every `i`, in `dtype`: `[n, d]`.
///
/// The gradient of a row is the sum over its occurrences, in their order.
///
/// # Errors
/// If an id is outside the vocabulary, or `weight` is not a matrix of floats.
pub fn embedding(weight: &Tensor, ids: &Arc<[u32]>, dtype: DType) -> Result<Tensor> {
    let (vocabulary, _) = matrix_dims(NAME, "weight", weight)?;
    if let Some(id) = ids.iter().find(|&&id| id as usize >= vocabulary) {
        bail!("embedding: id {id} is outside the vocabulary of {vocabulary}; use the model's own tokenizer")
    }
    mixed::float(NAME, "weight", weight)?;
    tape::apply1(Embedding { ids: Arc::clone(ids), dtype }, &weight.contiguous()?, Reads::arguments([false]))
}

pub(super) struct Embedding {
    pub(super) ids: Arc<[u32]>,
    /// The type of the result.
    pub(super) dtype: DType,
}

impl Embedding {
    /// Reads the rows alone, so that a table of another type is not converted whole.
    fn forward<T: Element>(&self, weight: &CpuStorage, layout: &Layout) -> Result<Vec<T>> {
        let (_, width) = layout.shape().dims2()?;
        let mut out = Vec::with_capacity(self.ids.len() * width);
        for &id in self.ids.iter() {
            out.extend_from_slice(&mixed::widened(weight, &layout.narrow(0, id as usize, 1)?)?);
        }
        Ok(out)
    }

    fn backward<T: Element>(&self, gradient: &[T], (vocabulary, width): (usize, usize)) -> Vec<T> {
        let mut out = vec![T::zero(); vocabulary * width];
        if width == 0 {
            return out;
        }
        let mut occurrences: Vec<(usize, usize)> = self.ids.iter().map(|&id| id as usize).zip(0..).collect();
        occurrences.sort_unstable();
        out.par_chunks_mut(BLOCK * width).enumerate().for_each(|(block, out)| {
            let first = block * BLOCK;
            let begin = occurrences.partition_point(|&(id, _)| id < first);
            let end = occurrences.partition_point(|&(id, _)| id < first + BLOCK);
            for &(id, token) in occurrences.get(begin..end).unwrap_or_default() {
                let start = (id - first) * width;
                if let Some(sums) = out.get_mut(start..start + width) {
                    vector::add(sums, parallel::row(gradient, token, width));
                }
            }
        });
        out
    }
}

impl CustomOp1 for Embedding {
    fn name(&self) -> &'static str {
        NAME
    }

    fn cpu_fwd(&self, weight: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (_, width) = layout.shape().dims2()?;
        by_dtype!(self.dtype, NAME, T => {
            let out = self.forward::<T>(weight, layout)?;
            Ok((T::to_cpu_storage_owned(out), Shape::from((self.ids.len(), width))))
        })
    }

    fn bwd(&self, weight: &Tensor, _: &Tensor, gradient: &Tensor) -> Result<Option<Tensor>> {
        let gradient = gradient.contiguous()?;
        let locked = Locked::new(&gradient);
        by_dtype!(self.dtype, NAME, T => {
            let sums = tensor(self.backward::<T>(locked.values()?, weight.dims2()?), weight)?;
            mixed::in_type_of(Some(sums), weight)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::check;
    use super::*;

    #[test]
    fn rows_are_gathered_and_their_gradients_added_up() {
        let weight = check::normal(&[6, 3], 1);
        let ids: Arc<[u32]> = [5, 0, 5, 5, 2].into();
        let rows = weight.to_vec2::<f64>().unwrap();
        let want: Vec<f64> = ids.iter().flat_map(|&id| rows[id as usize].clone()).collect();
        for weight in [&weight, &check::strided(&weight), &check::offset(&weight)] {
            assert_eq!(check::flat(&embedding(weight, &ids, DType::F64).unwrap()), want);
        }
        check::gradients(&[&weight], |t| embedding(&t[0], &ids, t[0].dtype()));
        check::f32_agrees(&[&weight], 1e-6, |t| embedding(&t[0], &ids, t[0].dtype()));
        assert_eq!(embedding(&weight, &[].into(), DType::F64).unwrap().dims(), [0, 3]);
    }

    #[test]
    fn many_ids_over_several_blocks_on_any_number_of_threads() {
        let weight = check::normal(&[1000, 8], 1);
        let ids: Arc<[u32]> = (0..5000_u32).map(|i| i * i % 997).collect();
        check::threads_agree(&[&weight], |t| embedding(&t[0], &ids, t[0].dtype()));
        check::f32_agrees(&[&weight], 1e-5, |t| embedding(&t[0], &ids, t[0].dtype()));
        let weight = candle_core::Var::from_tensor(&weight).unwrap();
        let sum = embedding(&weight, &ids, DType::F64).unwrap().sum_all().unwrap().backward().unwrap();
        let mut counts = vec![0.0; 8000];
        ids.iter().for_each(|&id| counts[id as usize * 8..][..8].iter_mut().for_each(|count| *count += 1.0));
        assert_eq!(check::flat(sum.get(&weight).unwrap()), counts);
    }

    #[test]
    fn a_table_of_another_type_is_read_in_the_type_asked_for() {
        let ids: Arc<[u32]> = [5, 0, 5, 5, 2].into();
        check::mixed(&check::normal(&[1], 1), &[&check::normal(&[6, 3], 2)], |x, w| embedding(&w[0], &ids, x.dtype()));
    }

    #[test]
    fn an_id_outside_the_vocabulary_is_refused() {
        let message = embedding(&check::normal(&[6, 3], 1), &[0, 6].into(), DType::F64).unwrap_err().to_string();
        assert!(message.starts_with("embedding: id 6 is outside the vocabulary of 6"), "{message}");
    }
}
