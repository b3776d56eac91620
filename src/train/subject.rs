//! What is being trained: a model with its PEFT modules, or a model whole.

use super::{Objective, TrainConfig, TrainError};
use crate::model::{Pass, Transformer, weights};
use crate::peft::{DropoutKey, PREFIX, Peft, save_adapter};
use candle_core::{Tensor, Var};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

/// A model under training, and the variables that training moves.
#[derive(Debug)]
pub struct Subject {
    model: Transformer,
    peft: Option<Peft>,
    variables: BTreeMap<String, Var>,
    checkpointing: bool,
    objective: Objective,
    drop_depth: f64,
    cosine: f64,
}

impl Subject {
    /// Trains `peft` on the frozen `model`, and with it the model's head for classes, if it has one.
    ///
    /// # Errors
    /// A tensor cannot be made a variable.
    pub fn adapter(mut model: Transformer, mut peft: Peft) -> Result<Self, TrainError> {
        let mut variables = peft.variables()?;
        if let Some(tuned) = peft.tuned(&model) {
            model = tuned;
        }
        let mut base = model.make_classes_trainable()?;
        let files: BTreeMap<&str, &str> =
            peft.plan().base.iter().map(|t| (t.model.as_str(), t.file.as_str())).collect();
        let wanted = files.keys().map(|name| (*name).to_owned()).collect();
        base.extend(model.make_some_trainable(&wanted)?);
        let in_file = |name: &str| format!("{PREFIX}{}", files.get(name).copied().unwrap_or(name));
        variables.extend(base.into_iter().map(|(name, variable)| (in_file(&name), variable)));
        Ok(Self {
            model,
            peft: Some(peft),
            variables,
            checkpointing: false,
            objective: Objective::NextToken,
            drop_depth: 0.0,
            cosine: 0.0,
        })
    }

    /// Trains every weight of `model`.
    ///
    /// # Errors
    /// A tensor cannot be made a variable.
    pub fn full(mut model: Transformer) -> Result<Self, TrainError> {
        let variables = model.make_trainable()?;
        Ok(Self {
            model,
            peft: None,
            variables,
            checkpointing: false,
            objective: Objective::NextToken,
            drop_depth: 0.0,
            cosine: 0.0,
        })
    }

    /// The same, with each block computed again in the backward pass instead of kept, or not.
    #[must_use]
    pub fn checkpointing(self, checkpointing: bool) -> Self {
        Self { checkpointing, ..self }
    }

    /// The same with stochastic depth: the probability with which the last block is left out in a training step.
    #[must_use]
    pub fn dropping_depth(self, drop_depth: f64) -> Self {
        Self { drop_depth, ..self }
    }

    /// The same with the cosine regulariser: γ times how alike a text's tokens are behind the last block is added to the loss.
    #[must_use]
    pub fn regularised(self, cosine: f64) -> Self {
        Self { cosine, ..self }
    }

    /// γ of the cosine regulariser; 0 without.
    #[must_use]
    pub fn cosine_regulariser(&self) -> f64 {
        self.cosine
    }

    /// The same with everything that settings say of how it is trained, beside its objective.
    #[must_use]
    pub fn configured(self, config: &TrainConfig) -> Self {
        self.checkpointing(config.checkpointing)
            .dropping_depth(config.stochastic_depth)
            .regularised(config.cosine_regulariser)
    }

    /// The same that learns another objective.
    #[must_use]
    pub fn learning(self, objective: Objective) -> Self {
        Self { objective, ..self }
    }

    /// What the loss asks for.
    #[must_use]
    pub fn objective(&self) -> &Objective {
        &self.objective
    }

    /// Whether blocks are computed again in the backward pass.
    #[must_use]
    pub fn is_checkpointing(&self) -> bool {
        self.checkpointing
    }

    /// The model.
    #[must_use]
    pub fn model(&self) -> &Transformer {
        &self.model
    }

    /// The PEFT modules, if that is what is trained.
    #[must_use]
    pub fn peft(&self) -> Option<&Peft> {
        self.peft.as_ref()
    }

    /// The trainable tensors by name.
    #[must_use]
    pub fn variables(&self) -> &BTreeMap<String, Var> {
        &self.variables
    }

    /// How many numbers are trained.
    #[must_use]
    pub fn trainable(&self) -> usize {
        self.variables.values().map(|v| v.elem_count()).sum()
    }

    /// A pass in training.
    #[must_use]
    pub fn pass(&self, dropout: Option<DropoutKey>) -> Pass<'_> {
        Pass { peft: self.peft.as_ref(), dropout, observer: None, drop_depth: self.drop_depth }
    }

    /// Writes what was trained into the existing folder `folder`: the adapter, or the model's weights.
    ///
    /// # Errors
    /// The folder cannot be written.
    pub fn save(&self, folder: &Path, base_model: &str) -> Result<(), TrainError> {
        match &self.peft {
            Some(peft) => save_adapter(folder, peft, &self.head(), base_model)?,
            None => {
                let as_stored = |(name, v): (&String, &Var)| {
                    let stored = self.model.architecture().stored_shape(name);
                    Ok((name.clone(), self.turned(name, &v.as_detached_tensor(), stored)?.contiguous()?))
                };
                let tensors = self.variables.iter().map(as_stored).collect::<Result<BTreeMap<_, _>, TrainError>>()?;
                let path = folder.join("model.safetensors");
                weights::save_tensors(&path, &tensors, Some(("format", "pt")))
                    .map_err(crate::model::ModelError::from)?;
            }
        }
        Ok(())
    }

    /// What of the model itself is trained beside PEFT modules, by its name in the model.
    fn head(&self) -> BTreeMap<String, Tensor> {
        let modules: BTreeSet<String> = self.peft.iter().flat_map(Peft::tensor_names).collect();
        let others = self.variables.iter().filter(|(name, _)| !modules.contains(*name));
        others.map(|(name, v)| (name.trim_start_matches(PREFIX).to_owned(), v.as_detached_tensor())).collect()
    }

    /// A tensor in the files' layout from one in ours, or the reverse: `shape` is the one it has then, where that is not ours.
    fn turned(&self, name: &str, tensor: &Tensor, shape: Option<Vec<usize>>) -> Result<Tensor, TrainError> {
        match (self.peft.is_none() && self.model.architecture().is_transposed(name), shape) {
            (true, _) => Ok(tensor.t()?),
            (false, Some(shape)) => Ok(tensor.reshape(shape)?),
            (false, None) => Ok(tensor.clone()),
        }
    }

    /// Sets every variable from tensors of the same names.
    ///
    /// # Errors
    /// A tensor is missing or misshapen.
    pub fn restore(&self, tensors: &BTreeMap<String, Tensor>) -> Result<(), TrainError> {
        for (name, variable) in &self.variables {
            // (IA)³'s factors are a row or a column in the file.
            let other = name.ends_with(".ia3_l") || self.model.architecture().stored_shape(name).is_some();
            let ours = other.then(|| variable.dims().to_vec());
            match tensors.get(name).map(|t| self.turned(name, t, ours)).transpose()? {
                Some(t) if t.shape() == variable.shape() => {
                    variable.set(&t.to_dtype(variable.dtype())?.to_device(variable.device())?)?;
                }
                _ => return Err(TrainError::Checkpoint { problem: format!("{name} is missing or misshapen") }),
            }
        }
        Ok(())
    }
}
