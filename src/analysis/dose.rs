//! An intervention: on a trained, frozen adapter λ is turned up and down and what the λ term reads is swapped, while
//! every weight stays as it is. What then changes is caused by the residual in the forward pass alone, and not by
//! another training.

use super::dose_grid::{DosePoint, canonical, mixed_blocks};
use super::residual_share::{ResidualRow, ResidualShares};
use super::similarity::EncodedText;
use crate::data::{Example, Packed};
use crate::measures::{CosineProbe, CosineValue, TokenSet, effective_rank};
use crate::model::{ModelError, Pass, Transformer};
use crate::peft::{AdapterError, Dose, Peft, ResidualConfig};
use crate::probe::{Probe, Site};
use crate::train::{ExampleLoss, Objective, TrainError, evaluate_examples};
use candle_core::{DType, Device, Tensor};

/// Why a study cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum DoseError {
    /// The doses do not fit the modules.
    #[error(transparent)]
    Adapter(#[from] AdapterError),
    /// The model cannot be run on the texts.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// The loss cannot be computed.
    #[error(transparent)]
    Loss(#[from] TrainError),
    /// No module receives the residual.
    #[error(
        "no module of the adapter receives the initial residual, so that no dose changes anything; name modules \
             that do with --sibo-policy all, or dose another adapter"
    )]
    NothingMixed,
}

/// What is dosed, and what it is measured on.
#[derive(Debug)]
pub struct DoseStudy<'a> {
    model: &'a Transformer,
    peft: Peft,
    trained: ResidualConfig,
    texts: &'a [EncodedText],
    examples: Vec<&'a Example>,
    objective: Objective,
    batch_size: usize,
    mixed: Vec<usize>,
    /// What was measured already, by what it computes.
    known: Vec<(Vec<Dose>, Measured)>,
}

/// One layer of one point.
#[derive(Debug, Clone, PartialEq)]
pub struct LayerValues {
    /// 0 is the embedding, 1 to L the blocks.
    pub layer: usize,
    /// Mean token cosine over texts, all tokens.
    pub similarity: Option<f64>,
    /// The same without each text's first token.
    pub similarity_no_first: Option<f64>,
    /// Texts with a similarity.
    pub texts: u64,
    /// Every text's similarity, all tokens; `None` where it is undefined.
    pub by_text: Vec<Option<f64>>,
}

/// What a point gave.
#[derive(Debug, Clone, PartialEq)]
pub struct Measured {
    /// The layers 0 to L.
    pub layers: Vec<LayerValues>,
    /// Mean effective rank over texts after the last block.
    pub effective_rank: Option<f64>,
    /// Every text's effective rank.
    pub ranks: Vec<Option<f64>>,
    /// Mean loss in nats over the target tokens.
    pub loss: f64,
    /// Every example's part of it.
    pub losses: Vec<ExampleLoss>,
    /// What every module read of h0.
    pub residual: Vec<ResidualRow>,
}

impl Measured {
    /// The real h0 share, mean over the modules with the residual in block `layer` (from 1), or in all blocks;
    /// `None` where a λ of 1 leaves nothing to compare with.
    #[must_use]
    pub fn real_share(&self, layer: Option<usize>) -> Option<f64> {
        let own = self.residual.iter().filter(|row| row.h0_mixed);
        let own = own.filter(|row| layer.is_none_or(|layer| row.layer as usize == layer));
        let shares: Vec<f64> = own.map(|row| row.share_mean).collect::<Option<_>>()?;
        (!shares.is_empty()).then(|| shares.iter().sum::<f64>() / shares.len() as f64)
    }

    /// Similarity after the last block.
    #[must_use]
    pub fn last(&self) -> Option<f64> {
        self.layers.last().and_then(|layer| layer.similarity)
    }
}

impl<'a> DoseStudy<'a> {
    /// A study of `peft`, whose configured residual is what it was trained with (λ = 0 for a vanilla adapter).
    ///
    /// # Errors
    /// The modules have no residual, or none of them receives it.
    pub fn new(
        model: &'a Transformer,
        peft: &Peft,
        texts: &'a [EncodedText],
        examples: &'a [Example],
        batch_size: usize,
    ) -> Result<Self, DoseError> {
        let trained = peft.config().residual.ok_or(DoseError::NothingMixed)?;
        let mixed = mixed_blocks(peft.plan());
        if mixed.is_empty() {
            return Err(DoseError::NothingMixed);
        }
        let examples = examples.iter().collect();
        let (objective, known) = (Objective::default(), Vec::new());
        Ok(Self { model, peft: peft.frozen(), trained, texts, examples, objective, batch_size, mixed, known })
    }

    /// The same with another loss than that of the next token.
    #[must_use]
    pub fn learning(self, objective: Objective) -> Self {
        Self { objective, ..self }
    }

    /// The residual that the adapter was trained with.
    #[must_use]
    pub fn trained(&self) -> &ResidualConfig {
        &self.trained
    }

    /// How many sequences will run through the model for these points: those that compute the same run once.
    #[must_use]
    pub fn cost(&self, points: &[DosePoint]) -> usize {
        let mut distinct: Vec<Vec<Dose>> = Vec::new();
        for point in points {
            let doses = self.canonical(point);
            if !distinct.contains(&doses) {
                distinct.push(doses);
            }
        }
        distinct.len() * (self.texts.len() + self.examples.len())
    }

    fn canonical(&self, point: &DosePoint) -> Vec<Dose> {
        canonical(&point.doses(&self.trained, self.model.architecture().layers), &self.mixed)
    }

    /// Measures a point; `tick` hears how many sequences ran.
    ///
    /// # Errors
    /// The model cannot be run.
    pub fn measure(&mut self, point: &DosePoint, tick: &mut dyn FnMut(usize)) -> Result<Measured, DoseError> {
        let key = self.canonical(point);
        if let Some((_, known)) = self.known.iter().find(|(doses, _)| *doses == key) {
            return Ok(known.clone());
        }
        let doses = point.doses(&self.trained, self.model.architecture().layers);
        let peft = self.peft.with_doses(&doses)?;
        let measured = self.run(&peft, tick)?;
        self.known.push((key, measured.clone()));
        Ok(measured)
    }

    fn run(&self, peft: &Peft, tick: &mut dyn FnMut(usize)) -> Result<Measured, DoseError> {
        let blocks = self.model.architecture().layers;
        let shares = ResidualShares::default();
        let pass = Pass::inference(Some(peft)).observed_by(&shares);
        let mut probe = DoseProbe::new(blocks);
        for group in self.texts.chunks(self.batch_size.max(1)) {
            let batch = Packed::pack(group.iter().map(EncodedText::sequence));
            shares.expect(&batch, group);
            probe.expect(group);
            self.model.hidden_states(&batch, &pass, &mut probe)?;
            tick(group.len());
        }
        let evaluation = evaluate_examples(self.model, Some(peft), &self.objective, &self.examples, self.batch_size)?;
        tick(self.examples.len());
        Ok(Measured {
            layers: probe.layers(),
            effective_rank: probe.effective_rank(),
            ranks: probe.ranks,
            loss: evaluation.loss,
            losses: evaluation.examples,
            residual: shares.rows(""),
        })
    }
}

/// Similarity at every layer, and effective rank after the last block.
struct DoseProbe<'a> {
    blocks: usize,
    cosine: CosineProbe,
    texts: &'a [EncodedText],
    ranks: Vec<Option<f64>>,
}

impl<'a> DoseProbe<'a> {
    fn new(blocks: usize) -> Self {
        let cosine = CosineProbe::new(blocks, None).only(|point| point.site != Site::FinalNorm);
        Self { blocks, cosine, texts: &[], ranks: Vec::new() }
    }

    fn expect(&mut self, texts: &'a [EncodedText]) {
        self.cosine.expect(texts.iter().map(|text| (text.special.as_slice(), text.span.clone())));
        self.texts = texts;
    }

    fn layers(&self) -> Vec<LayerValues> {
        let (all, no_first) = (self.cosine.curve(TokenSet::All), self.cosine.curve(TokenSet::NoFirst));
        let points = self.cosine.points().iter().enumerate().filter(|(_, point)| point.site != Site::FinalNorm);
        let by_text = |at: usize| -> Vec<Option<f64>> {
            let value = |text: &Vec<[CosineValue; 3]>| text.get(at)?.get(TokenSet::All as usize)?.value;
            self.cosine.values().iter().map(value).collect()
        };
        points
            .map(|(at, point)| {
                let by_text = by_text(at);
                LayerValues {
                    layer: point.layer,
                    similarity: all.get(at).copied().flatten(),
                    similarity_no_first: no_first.get(at).copied().flatten(),
                    texts: by_text.iter().flatten().count() as u64,
                    by_text,
                }
            })
            .collect()
    }

    fn effective_rank(&self) -> Option<f64> {
        let (sum, count) = self.ranks.iter().flatten().fold((0.0, 0u32), |(sum, count), rank| (sum + rank, count + 1));
        (count > 0).then(|| sum / f64::from(count))
    }
}

impl Probe for DoseProbe<'_> {
    fn record(&mut self, site: Site, layer: usize, states: &Tensor, batch: &Packed) -> Result<(), ModelError> {
        self.cosine.record(site, layer, states, batch)?;
        if site != Site::Block || layer != self.blocks {
            return Ok(());
        }
        let values = states.detach().to_device(&Device::Cpu)?.to_dtype(DType::F64)?;
        let width = values.dim(1)?;
        let rows: Vec<f64> = values.flatten_all()?.to_vec1()?;
        for (index, text) in self.texts.iter().enumerate() {
            let start = batch.rows(index).start;
            let chosen = (start + text.span.start) * width..(start + text.span.end) * width;
            self.ranks.push(rows.get(chosen).and_then(|rows| effective_rank(rows, width)));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
