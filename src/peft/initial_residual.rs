//! The initial residual: what the λ term reads, and the mix `x~ = (1−λ)·x + λ·r`.

use super::Dose;
use super::config::{Arm, ResidualConfig};
use super::once::Once;
use super::plan::PlanError;
use crate::data::Packed;
use crate::kernels::{self, Residual};
use crate::model::Transformer;
use crate::random::stream;
use candle_core::{D, DType, Device, Result, Tensor, bail};
use rand::Rng;
use rand_distr::{Distribution, StandardNormal};

/// The initial residual of one forward pass.
#[derive(Debug, Clone)]
pub(crate) struct InitialResidual {
    lambda: f64,
    arm: Arm,
    /// r for every token of the batch, `[tokens, d]`; for `h0-normed` before rescaling; unused for `none`.
    source: Tensor,
    /// By block, where each has its own dose; else empty.
    blocks: Vec<InitialResidual>,
    /// Whether it is such a block's.
    dosed: bool,
}

impl InitialResidual {
    /// Prepares r for a batch whose h0 is `h0` (`[tokens, d]`).
    pub(crate) fn new(
        config: &ResidualConfig,
        (model, random): (&Transformer, &Once),
        h0: &Tensor,
        batch: &Packed,
    ) -> Result<Self> {
        let h0 = h0.detach();
        let source = match config.arm {
            Arm::H0 | Arm::H0Normed | Arm::None => h0,
            Arm::Shuffled => {
                let rows = Tensor::new(shuffled_rows(batch, config.seed), h0.device())?;
                h0.index_select(&rows, 0)?
            }
            Arm::Random => {
                let vector = random.get(model.embedding().map(Tensor::id), || random_vector(model, config.seed))?;
                vector.broadcast_as(h0.shape())?.contiguous()?
            }
        };
        Ok(Self::from_source(config, source))
    }

    /// A residual whose r is given.
    pub(crate) fn from_source(config: &ResidualConfig, source: Tensor) -> Self {
        Self { lambda: config.lambda, arm: config.arm, source, blocks: Vec::new(), dosed: false }
    }

    /// The same with a dose of its own for every block.
    pub(crate) fn dosed(
        config: &ResidualConfig,
        doses: &[Dose],
        model: (&Transformer, &Once),
        h0: &Tensor,
        batch: &Packed,
    ) -> Result<Self> {
        let mut whole = Self::new(config, model, h0, batch)?;
        // Each arm is prepared once: what `random` reads costs a walk over the embedding table.
        let mut prepared: Vec<Self> = vec![whole.clone()];
        for dose in doses {
            let known = prepared.iter().find(|residual| residual.arm == dose.arm).cloned();
            let residual = match known {
                Some(residual) => residual,
                None => {
                    let made = Self::new(&ResidualConfig { arm: dose.arm, ..*config }, model, h0, batch)?;
                    prepared.push(made.clone());
                    made
                }
            };
            whole.blocks.push(Self { lambda: dose.lambda, dosed: true, ..residual });
        }
        Ok(whole)
    }

    /// What the modules of a block (from 0) read.
    pub(crate) fn in_block(&self, layer: usize) -> &Self {
        self.blocks.get(layer).unwrap_or(self)
    }

    /// Whether each block has a stated dose, which stands in for a learned λ.
    pub(crate) fn is_dosed(&self) -> bool {
        self.dosed
    }

    /// λ and what r is.
    pub(crate) fn dose(&self) -> Dose {
        Dose { lambda: self.lambda, arm: self.arm }
    }

    /// r for the input `x`; `None` where nothing is added.
    pub(crate) fn source_for(&self, x: &Tensor) -> Result<Option<Tensor>> {
        match self.arm {
            Arm::None => Ok(None),
            Arm::H0Normed => {
                let wide = |t: &Tensor| t.detach().to_dtype(kernels::wide(t.dtype()));
                let norm = |t: &Tensor| t.sqr()?.sum_keepdim(D::Minus1)?.sqrt();
                let source = wide(&self.source)?;
                let (target, own) = (norm(&wide(x)?)?, norm(&source)?);
                // A zero h0 row has no direction to rescale: it stays zero.
                let own = own.clamp(f64::from(f32::MIN_POSITIVE), f64::from(f32::MAX))?;
                // The direction first: the quotient of a large norm and a clamped one has no number.
                Ok(Some(source.broadcast_div(&own)?.broadcast_mul(&target)?.to_dtype(x.dtype())?))
            }
            _ => Ok(Some(self.source.clone())),
        }
    }

    /// The same λ with nothing to read; `None` if it reads nothing as it is.
    pub(crate) fn without_source(&self) -> Option<Self> {
        (self.lambda != 0.0 && self.arm != Arm::None).then(|| Self { arm: Arm::None, ..self.clone() })
    }

    /// What is mixed into the input `x`; `None` where λ is 0.
    pub(crate) fn for_input(&self, x: &Tensor) -> Result<Option<Residual>> {
        if self.lambda == 0.0 {
            return Ok(None);
        }
        Ok(Some(Residual { lambda: self.lambda, source: self.source_for(x)? }))
    }

    /// `(1−λ)·x + λ·r`; λ = 0 is `x` itself.
    pub(crate) fn mix(&self, x: &Tensor) -> Result<Tensor> {
        if self.lambda == 0.0 {
            return Ok(x.clone());
        }
        match self.source_for(x)? {
            None => kernels::scale(x, 1.0 - self.lambda),
            Some(r) => kernels::residual_mix(x, &r, self.lambda),
        }
    }
}

/// For every row of the batch the row whose h0 it reads under the arm `shuffled`.
///
/// Position i ≥ 1 reads a position drawn from 0..i, position 0 itself. A permutation of the whole text
/// would show a position its own future, the very answer it is to predict. The draw for i depends on the
/// seed and i alone, so it is the same in every batch and while generating.
fn shuffled_rows(batch: &Packed, seed: u64) -> Vec<u32> {
    let mut rng = stream(seed, &["shuffled-residual"]);
    let earlier: Vec<usize> = (0..batch.longest()).map(|i| if i == 0 { 0 } else { rng.random_range(0..i) }).collect();
    let spans = batch.offsets.windows(2);
    spans
        .flat_map(|span| {
            let (start, end) = (span[0], span[1]);
            earlier.iter().take(end - start).map(move |&i| (start + i) as u32)
        })
        .collect()
}

/// The fixed vector of the arm `random`: a seeded direction with the mean norm of the embedding table's rows, where the model
/// projects them of the projected ones.
fn random_vector(model: &Transformer, seed: u64) -> Result<Tensor> {
    let Some(table) = model.projected_embedding()? else { bail!("{}", PlanError::NoRows) };
    let table = table.detach().to_device(&Device::Cpu)?.to_dtype(DType::F64)?;
    let mean_norm = table.sqr()?.sum(D::Minus1)?.sqrt()?.mean_all()?.to_scalar::<f64>()?;
    let mut rng = stream(seed, &["random-residual"]);
    let direction: Vec<f64> = (0..table.dim(1)?).map(|_| StandardNormal.sample(&mut rng)).collect();
    let norm = direction.iter().map(|v: &f64| v * v).sum::<f64>().sqrt();
    let vector: Vec<f64> = direction.iter().map(|v| v * mean_norm / norm).collect();
    let width = vector.len();
    Tensor::from_vec(vector, (1, width), &Device::Cpu)?.to_dtype(model.dtype())?.to_device(model.device())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shuffled_position_reads_an_earlier_one_of_its_own_text() {
        let batch = Packed::from_sequences(&[vec![0; 5], vec![0; 1], vec![0; 40]]);
        let rows = shuffled_rows(&batch, 7);
        for span in batch.offsets.windows(2) {
            for (i, &row) in rows[span[0]..span[1]].iter().enumerate() {
                let row = row as usize;
                assert!(row >= span[0] && row < span[0] + i.max(1), "position {i} reads row {row}");
            }
        }
        // A text reads the same in another batch, and a longer text begins as a shorter one.
        let alone = shuffled_rows(&Packed::from_sequences(&[vec![0; 40]]), 7);
        assert!(alone.iter().zip(&rows[6..]).all(|(a, b)| a + 6 == *b));
        assert!(alone.iter().zip(&rows[..5]).all(|(a, b)| a == b));
        assert_ne!(rows, shuffled_rows(&batch, 8));
    }
}
