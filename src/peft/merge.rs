//! Modules merged into the weights of the base model: wholly where that is exact, in part where a term of the token
//! remains.

use super::config::{Arm, Method, PeftConfig};
use super::module::Module;
use super::plan::{Form, Mixing, Position};
use super::{AdapterError, Peft, ResidualConfig};
use crate::model::Transformer;
use candle_core::{DType, Result, Tensor};
use std::collections::BTreeMap;

/// Why modules cannot be merged.
#[derive(Debug, thiserror::Error)]
pub enum MergeError {
    /// Their branch is not linear in what it reads.
    #[error("an adapter with tanh inside is not linear in its input and cannot be merged into the weights")]
    NotLinear,
    /// They are no part of any weight.
    #[error("virtual tokens stand in front of the text and are no part of any weight; run the adapter as it is")]
    InFront,
    /// A factor of the whole output stands before a term that depends on the token.
    #[error(
        "{method} with the initial residual cannot be merged: its factors rescale a term that depends on the token beside the \
         linear; run the adapter as it is"
    )]
    Rescaled {
        /// The method.
        method: String,
    },
    /// Part of the modules would be left out.
    #[error(
        "{modules} modules read {arm}, which depends on the token: merged weights alone would compute something else. --partial \
         writes them with the adapter that is left"
    )]
    Remainder {
        /// How many modules read it.
        modules: usize,
        /// What they read.
        arm: Arm,
    },
    /// The model's attention or its states are changed beside the modules.
    #[error(
        "an adapter with remedies that change the architecture is no part of the weights; run the adapter as it is"
    )]
    Remedied,
    /// The remainder cannot be made, or a tensor operation fails.
    #[error(transparent)]
    Adapter(#[from] AdapterError),
    /// What is read depends on more than the token.
    #[error(
        "--tables holds a row for every token, and what {arm} reads is no function of the token alone; leave it out"
    )]
    NoTable {
        /// What is read.
        arm: Arm,
    },
    /// The model cannot be run.
    #[error(transparent)]
    Model(#[from] crate::model::ModelError),
    /// A tensor operation fails.
    #[error(transparent)]
    Tensor(#[from] candle_core::Error),
}

/// A base model into which modules were merged.
#[derive(Debug)]
pub struct Merged {
    /// The model.
    pub model: Transformer,
    /// What is left beside it: modules that read r alone, `λ·s·B·A·r`, as LoRA with λ = 1 whose α is λ times what it was.
    pub remainder: Option<Peft>,
    /// How many modules were merged.
    pub modules: usize,
}

impl Peft {
    /// The base model with these modules merged in; `partial` allows a remainder.
    ///
    /// Exact but for rounding: `W' = W + (1−λ)·s·B·A` where h0 is mixed in and `W' = W + s·B·A` elsewhere; DoRA's
    /// `(m/‖V‖)·V`; (IA)³'s factors times rows or columns.
    ///
    /// # Errors
    /// The method, or the residual, allows no exact merge.
    pub fn merged(&self, model: &Transformer, partial: bool) -> std::result::Result<Merged, MergeError> {
        if !self.config.details.remedies.is_none() {
            return Err(MergeError::Remedied);
        }
        let base = self.tuned(model).unwrap_or_else(|| model.clone());
        let mixed: Vec<&Module> = self.first_modules().filter(|m| m.planned.residual == Mixing::Mixed).collect();
        let residual = self.config.residual.filter(|_| !mixed.is_empty());
        match (self.config.method, residual) {
            (Method::Adapter { .. }, _) => return Err(MergeError::NotLinear),
            (Method::Prefix { .. } | Method::Prompt { .. }, _) => return Err(MergeError::InFront),
            (Method::Dora { .. } | Method::Ia3, Some(_)) => {
                return Err(MergeError::Rescaled { method: self.config.method.to_string() });
            }
            (_, Some(residual)) if residual.arm != Arm::None && !partial => {
                return Err(MergeError::Remainder { modules: mixed.len(), arm: residual.arm });
            }
            _ => {}
        }
        let mut tensors = BTreeMap::new();
        for module in self.first_modules() {
            let planned = &module.planned;
            let Some(linear) = base.linear(planned.layer, planned.role) else { continue };
            let kept = 1.0 - self.lambda_of(module)?;
            let (weight, bias) = merged_linear(module, &linear.weight()?.detach(), linear.bias(), kept)?;
            let path = model.architecture().linear_path(planned.layer, planned.role);
            tensors.insert(format!("{path}.weight"), weight);
            tensors.extend(bias.map(|bias| (format!("{path}.bias"), bias)));
        }
        let remainder = match residual.filter(|residual| residual.arm != Arm::None) {
            Some(residual) => Some(self.remainder(model, residual, &mixed)?),
            None => None,
        };
        let modules = self.first_modules().count();
        Ok(Merged { model: base.with_tensors(&tensors), remainder, modules })
    }

    /// The modules, each once: blocks may share theirs.
    pub(super) fn first_modules(&self) -> impl Iterator<Item = &Module> {
        let planned = self.plan.modules.iter();
        planned.filter_map(|p| self.modules.get(p.layer)?.get(p.role.index())?.as_ref())
    }

    /// λ of a module as it is; 0 where nothing is mixed in.
    pub(super) fn lambda_of(&self, module: &Module) -> Result<f64> {
        let Some(residual) = self.config.residual.filter(|_| module.planned.residual == Mixing::Mixed) else {
            return Ok(0.0);
        };
        if let Some(theta) = &module.theta {
            return super::module::sigmoid(theta);
        }
        let own = self.doses.as_ref().and_then(|doses| doses.get(module.planned.layer));
        Ok(own.map_or(residual.lambda, |dose| dose.lambda))
    }

    /// What is left where r is mixed in.
    fn remainder(
        &self,
        model: &Transformer,
        residual: ResidualConfig,
        mixed: &[&Module],
    ) -> std::result::Result<Peft, MergeError> {
        let mut details = super::Details::default();
        let mut tensors: BTreeMap<String, Vec<Tensor>> = BTreeMap::new();
        for module in mixed {
            let path = &module.planned.path;
            let Form::LowRank { rank, scale } = module.planned.form else { continue };
            // Without α/√r, and with α over the module's own rank.
            details.ranks.push((regex::escape(path), rank));
            details.alphas.push((regex::escape(path), self.lambda_of(module)? * scale * rank as f64));
            tensors.insert(path.clone(), module.tensors.clone());
        }
        // A module whose λ is 0 has nothing left.
        let left = |alpha: &(String, f64)| alpha.1 > 0.0;
        let dead: Vec<bool> = details.alphas.iter().map(|alpha| !left(alpha)).collect();
        let mut targets: Vec<String> = mixed.iter().map(|module| module.planned.path.clone()).collect();
        let mut keep = dead.iter().map(|dead| !dead);
        targets.retain(|_| keep.next().unwrap_or(false));
        details.alphas.retain(left);
        let rank = details.ranks.first().map_or(1, |(_, rank)| *rank);
        let config = PeftConfig {
            method: Method::Lora { rank, alpha: rank as f64, dropout: 0.0, rank_stabilised: false },
            targets,
            residual: Some(ResidualConfig { lambda: 1.0, learned: None, ..residual }),
            details,
        };
        Ok(Peft::from_tensors(model, config, |planned| tensors.get(&planned.path).cloned())?)
    }

    /// `λ·s·A·e` of every row e of the embedding table, for each module of a remainder: `[vocabulary, rank]` by
    /// `PATH.table`. What such a module adds is `table[token]·Bᵀ`, without a product over the width.
    ///
    /// # Errors
    /// h0 is not the embedding row, or a tensor operation fails.
    pub fn tables(&self, model: &Transformer) -> std::result::Result<BTreeMap<String, Tensor>, MergeError> {
        if let Some(residual) = self.config.residual.filter(|residual| residual.arm != Arm::H0) {
            return Err(MergeError::NoTable { arm: residual.arm });
        }
        let all: Vec<u32> = (0..model.architecture().vocab_size as u32).collect();
        let rows = model.token_rows(&all)?;
        let table = |module: &Module| -> Result<(String, Tensor)> {
            let a = module.tensors.first().map(Tensor::detach);
            let Some(a) = a else { candle_core::bail!("{}: has no tensor", module.planned.path) };
            let rows = rows.to_dtype(DType::F64)?.matmul(&a.to_dtype(DType::F64)?.t()?)?;
            let scaled = (rows * module.planned.form.scale())?.to_dtype(DType::F32)?;
            Ok((format!("{}.table", module.planned.path), scaled))
        };
        Ok(self.first_modules().map(table).collect::<Result<_>>()?)
    }
}

/// Weight and, if it changes, bias of a linear with a module merged in, computed in f64.
fn merged_linear(
    module: &Module,
    weight: &Tensor,
    bias: Option<&Tensor>,
    kept: f64,
) -> Result<(Tensor, Option<Tensor>)> {
    let wide = |tensor: &Tensor| tensor.detach().to_dtype(DType::F64);
    let tensors = module.tensors.iter().map(wide).collect::<Result<Vec<_>>>()?;
    let own = wide(weight)?;
    let as_stored = |tensor: Tensor| tensor.to_dtype(weight.dtype());
    let product = |scale: f64| match tensors.as_slice() {
        [a, b, ..] => b.matmul(a)? * scale,
        _ => candle_core::bail!("{}: has too few tensors", module.planned.path),
    };
    Ok(match (module.planned.form, tensors.as_slice()) {
        (Form::LowRank { scale, .. }, _) => (as_stored((own + product(kept * scale)?)?)?, None),
        (Form::Decomposed { scale, .. }, [_, _, magnitude]) => {
            let v = (own + product(scale)?)?;
            let lengths = v.sqr()?.sum_keepdim(1)?.sqrt()?;
            (as_stored(v.broadcast_mul(&magnitude.unsqueeze(1)?.broadcast_div(&lengths)?)?)?, None)
        }
        (Form::Factors, [factors]) if module.planned.position == Position::Before => {
            (as_stored(own.broadcast_mul(factors)?)?, None)
        }
        (Form::Factors, [factors]) => {
            let bias = bias.map(|bias| wide(bias)?.mul(factors)?.to_dtype(bias.dtype())).transpose()?;
            (as_stored(own.broadcast_mul(&factors.unsqueeze(1)?)?)?, bias)
        }
        _ => candle_core::bail!("{}: cannot be merged", module.planned.path),
    })
}
