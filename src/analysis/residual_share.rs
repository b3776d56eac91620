//! How much of h0 a PEFT module really reads: its share of the mix, its part of the branch, and what the module's
//! own input still holds of it.
//!
//! A module with the initial residual reads `x~ = (1−λ)·x + λ·r` (Wen, Zhang, Fang, 2024). x mostly comes out of a
//! norm while h0 is a bare row of the embedding table, so λ is not h0's share. For every token:
//! - the **share** `‖λ·r‖ / ‖(1−λ)·x‖`;
//! - the **branch share**: for LoRA, linear in what it reads, `‖s·B·A·λr‖ / ‖s·B·A·x~‖`; for an adapter
//!   `‖f(x~) − f((1−λ)x)‖ / ‖f(x~)‖` with f the branch;
//! - the **input retention** `cos(x, h0)` of the module's own, unmixed input.
//!
//! Each is the mean over the tokens where it is defined: a denominator, or either vector of a cosine, that is not 0.

use super::chunks::pack;
use super::similarity::EncodedText;
use crate::data::Packed;
use crate::model::{ModelError, Pass, Transformer};
use crate::peft::{BranchObserver, BranchPass, Dose, Mixing, Peft};
use crate::probe::Silent;
use crate::report::{CellReader, TableError};
use candle_core::{DType, Device, Tensor};
use polars::df;
use polars::prelude::{DataFrame, PolarsError};
use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// What one module read of h0, over all measured tokens.
#[derive(Debug, Clone, PartialEq)]
pub struct ResidualRow {
    /// The run's name.
    pub run: String,
    /// The block, from 1 as in the similarity tables.
    pub layer: u32,
    /// The linear's module path.
    pub module: String,
    /// The linear's role: `query`, `up`, ….
    pub role: String,
    /// Whether the residual enters.
    pub h0_mixed: bool,
    /// λ, where it enters.
    pub lambda: Option<f64>,
    /// What r is, where it enters.
    pub arm: Option<String>,
    /// Mean over tokens of `‖λr‖ / ‖(1−λ)x‖`; `None` where the residual does not enter, or λ is 1.
    pub share_mean: Option<f64>,
    /// Its sample standard deviation over tokens.
    pub share_std: Option<f64>,
    /// Mean over tokens of h0's part of the branch's output; `None` as above, or while the branch writes zeros.
    pub branch_share: Option<f64>,
    /// Mean over tokens of `cos(x, h0)`; `None` where x is no token state of h0's width.
    pub input_retention: Option<f64>,
    /// Tokens that ran through the module and were measured.
    pub tokens: u64,
}

/// A mean and a spread that grow token by token (Welford 1962).
#[derive(Debug, Clone, Copy, Default, PartialEq)]
struct Moments {
    count: u64,
    mean: f64,
    squares: f64,
}

impl Moments {
    fn add(&mut self, value: f64) {
        self.count += 1;
        let before = value - self.mean;
        self.mean += before / self.count as f64;
        self.squares += before * (value - self.mean);
    }

    fn mean(&self) -> Option<f64> {
        (self.count > 0).then_some(self.mean)
    }

    fn std(&self) -> Option<f64> {
        (self.count > 1).then(|| (self.squares / (self.count - 1) as f64).sqrt())
    }
}

#[derive(Debug)]
struct ModuleSums {
    path: String,
    role: String,
    mixed: bool,
    dose: Option<Dose>,
    share: Moments,
    branch: Moments,
    retention: Moments,
    tokens: u64,
}

#[derive(Debug, Default)]
struct Sums {
    /// The rows of the batch that are measured.
    rows: Vec<u32>,
    /// By block, then by the role's place in it.
    modules: BTreeMap<(usize, usize), ModuleSums>,
}

/// An observer of PEFT branches that sums up what they read of h0.
#[derive(Debug, Default)]
pub struct ResidualShares {
    /// Only the forward pass that is watched takes it, so nobody ever waits.
    sums: Mutex<Sums>,
}

impl ResidualShares {
    /// Announces the next batch: which rows of it are measured.
    pub fn expect(&self, batch: &Packed, texts: &[EncodedText]) {
        let rows = texts.iter().enumerate().flat_map(|(index, text)| {
            let own = batch.rows(index);
            text.span.clone().map(move |row| own.start + row).filter(move |row| *row < own.end)
        });
        self.lock().rows = rows.map(|row| row as u32).collect();
    }

    /// The rows of every module, by block and role.
    #[must_use]
    pub fn rows(&self, run: &str) -> Vec<ResidualRow> {
        let row = |(key, m): (&(usize, usize), &ModuleSums)| ResidualRow {
            run: run.to_owned(),
            layer: key.0 as u32 + 1,
            module: m.path.clone(),
            role: m.role.clone(),
            h0_mixed: m.mixed,
            lambda: m.dose.map(|dose| dose.lambda),
            arm: m.dose.map(|dose| dose.arm.to_string()),
            share_mean: m.share.mean(),
            share_std: m.share.std(),
            branch_share: m.branch.mean(),
            input_retention: m.retention.mean(),
            tokens: m.tokens,
        };
        self.lock().modules.iter().map(row).collect()
    }

    fn lock(&self) -> MutexGuard<'_, Sums> {
        self.sums.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl BranchObserver for ResidualShares {
    fn observe(&self, branch: &BranchPass<'_>) -> candle_core::Result<()> {
        let mut sums = self.lock();
        let planned = branch.planned();
        let chosen = Tensor::new(sums.rows.as_slice(), branch.input().device())?;
        let values = |t: &Tensor| -> candle_core::Result<Vec<f64>> {
            t.detach().index_select(&chosen, 0)?.to_device(&Device::Cpu)?.to_dtype(DType::F64)?.flatten_all()?.to_vec1()
        };
        let tokens = sums.rows.len() as u64;
        let module = sums.modules.entry((planned.layer, planned.role.index())).or_insert_with(|| ModuleSums {
            path: planned.path.clone(),
            role: snake_case(&format!("{:?}", planned.role)),
            mixed: planned.residual == Mixing::Mixed,
            dose: branch.dose(),
            share: Moments::default(),
            branch: Moments::default(),
            retention: Moments::default(),
            tokens: 0,
        });
        module.tokens += tokens;
        if tokens == 0 {
            return Ok(());
        }
        // Attention's output and the feed-forward's inner activation are no token states, even of the same width.
        if !matches!(planned.residual, Mixing::ReadsAttention | Mixing::ReadsInner)
            && branch.input().dims() == branch.h0().dims()
        {
            let width = branch.h0().dim(1)?;
            cosines(&values(branch.input())?, &values(branch.h0())?, width).for_each(|c| module.retention.add(c));
        }
        if branch.dose().is_none() {
            return Ok(());
        }
        let kept = branch.kept()?;
        let (kept_values, width) = (values(&kept)?, kept.dim(1)?);
        let whole = branch.output(branch.mixed())?;
        let (whole_values, out_width) = (values(&whole)?, whole.dim(1)?);
        let (added, part) = match branch.added()? {
            None => (vec![0.0; kept_values.len()], vec![0.0; whole_values.len()]),
            Some(added) if branch.is_linear() => (values(&added)?, values(&branch.output(&added)?)?),
            Some(added) => {
                let without = values(&branch.output(&kept)?)?;
                (values(&added)?, whole_values.iter().zip(without).map(|(a, b)| a - b).collect())
            }
        };
        ratios(&added, &kept_values, width).for_each(|share| module.share.add(share));
        ratios(&part, &whole_values, out_width).for_each(|share| module.branch.add(share));
        Ok(())
    }
}

fn norm(row: &[f64]) -> f64 {
    row.iter().map(|x| x * x).sum::<f64>().sqrt()
}

/// `‖part‖ / ‖whole‖` of every row where it is defined; both row-major and `width` wide.
fn ratios<'a>(part: &'a [f64], whole: &'a [f64], width: usize) -> impl Iterator<Item = f64> + 'a {
    let rows = part.chunks(width.max(1)).zip(whole.chunks(width.max(1)));
    rows.map(|(part, whole)| (norm(part), norm(whole))).filter(|(_, whole)| *whole > 0.0).map(|(p, w)| p / w)
}

/// The cosine of every pair of rows where both have a direction.
fn cosines<'a>(a: &'a [f64], b: &'a [f64], width: usize) -> impl Iterator<Item = f64> + 'a {
    let rows = a.chunks(width.max(1)).zip(b.chunks(width.max(1)));
    rows.filter_map(|(a, b)| {
        let norms = norm(a) * norm(b);
        (norms > 0.0).then(|| a.iter().zip(b).map(|(x, y)| x * y).sum::<f64>() / norms)
    })
}

/// `AttentionOutput` as `attention_output`.
fn snake_case(name: &str) -> String {
    let mut text = String::new();
    for letter in name.chars() {
        if letter.is_ascii_uppercase() && !text.is_empty() {
            text.push('_');
        }
        text.push(letter.to_ascii_lowercase());
    }
    text
}

/// Measures what every PEFT module of a run reads of h0, in one forward pass over the texts; `done` is told of every
/// batch how many texts it held.
///
/// # Errors
/// The model cannot be run.
pub fn measure_residual(
    run: &str,
    model: &Transformer,
    peft: &Peft,
    texts: &[EncodedText],
    batch_size: usize,
    done: &mut dyn FnMut(usize),
) -> Result<Vec<ResidualRow>, ModelError> {
    let shares = ResidualShares::default();
    let frozen = peft.frozen();
    let pass = Pass::inference(Some(&frozen)).observed_by(&shares);
    for group in texts.chunks(batch_size.max(1)) {
        let batch = pack(group, &(0..group.len()).collect::<Vec<_>>());
        shares.expect(&batch, group);
        model.hidden_states(&batch, &pass, &mut Silent)?;
        done(group.len());
    }
    Ok(shares.rows(run))
}

/// The frame of `residual.csv` and `.parquet`.
///
/// # Errors
/// None in practice; polars' constructor is fallible.
pub fn residual_frame(rows: &[ResidualRow]) -> Result<DataFrame, PolarsError> {
    fn cells<'a, T>(rows: &'a [ResidualRow], cell: impl Fn(&'a ResidualRow) -> T) -> Vec<T> {
        rows.iter().map(cell).collect()
    }
    df!(
        "run" => cells(rows, |r| r.run.as_str()),
        "layer" => cells(rows, |r| r.layer),
        "module" => cells(rows, |r| r.module.as_str()),
        "role" => cells(rows, |r| r.role.as_str()),
        "h0_mixed" => cells(rows, |r| r.h0_mixed),
        "lambda" => cells(rows, |r| r.lambda),
        "arm" => cells(rows, |r| r.arm.as_deref()),
        "share_mean" => cells(rows, |r| r.share_mean),
        "share_std" => cells(rows, |r| r.share_std),
        "branch_share" => cells(rows, |r| r.branch_share),
        "input_retention" => cells(rows, |r| r.input_retention),
        "tokens" => cells(rows, |r| r.tokens),
    )
}

/// The rows of a frame that [`residual_frame`] made.
///
/// # Errors
/// A column is missing, of another type, or empty where it may not be.
pub fn residual_rows(frame: &DataFrame) -> Result<Vec<ResidualRow>, TableError> {
    let mut cells = CellReader::new(frame);
    let (run, layer) = (cells.strings("run")?, cells.integers("layer")?);
    let (module, role) = (cells.strings("module")?, cells.strings("role")?);
    let (mixed, lambda, arm) = (cells.booleans("h0_mixed")?, cells.floats("lambda")?, cells.strings("arm")?);
    let (share_mean, share_std) = (cells.floats("share_mean")?, cells.floats("share_std")?);
    let (branch, retention) = (cells.floats("branch_share")?, cells.floats("input_retention")?);
    let tokens = cells.integers("tokens")?;
    (0..frame.height())
        .map(|at| {
            Ok(ResidualRow {
                run: run.filled(at)?.to_owned(),
                layer: layer.narrow(at)?,
                module: module.filled(at)?.to_owned(),
                role: role.filled(at)?.to_owned(),
                h0_mixed: mixed.filled(at)?,
                lambda: lambda.get(at),
                arm: arm.get(at).map(str::to_owned),
                share_mean: share_mean.get(at),
                share_std: share_std.get(at),
                branch_share: branch.get(at),
                input_retention: retention.get(at),
                tokens: tokens.filled(at)?,
            })
        })
        .collect()
}

#[cfg(test)]
mod tests;
