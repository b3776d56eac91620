//! Parameter-efficient fine-tuning methods, vanilla or with the initial residual.

mod adapter_config;
mod base;
mod branch_pass;
mod config;
mod dose;
mod files;
mod initial_residual;
mod merge;
mod module;
mod once;
mod plan;
mod python;
mod released;
mod virtual_tokens;

pub use base::BaseTensor;
pub use branch_pass::{BranchObserver, BranchPass};
pub use config::{
    Arm, Biases, Details, LearnedBy, LowRank, Method, PeftConfig, Placement, Policy, ResidualConfig, targets_of,
};
pub use dose::Dose;
pub(crate) use files::PREFIX;
pub use files::{AdapterError, base_model, load_adapter, save_adapter};
pub use merge::{MergeError, Merged};
pub use plan::{Form, Mixing, Plan, PlanError, PlannedModule, Position};
pub use python::write_python;
pub use released::{Released, convert_released};

use crate::data::Packed;
use crate::model::{Embedded, Linear, ModelError, Pass, Role, Transformer};
use crate::random::stream;
use crate::remedies::Applied;
use candle_core::{Tensor, Var};
use initial_residual::InitialResidual;
use module::Module;
use once::Once;
use rand::{Rng, RngCore};
use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// The PEFT modules of one model.
#[derive(Debug, Clone)]
pub struct Peft {
    config: PeftConfig,
    plan: Plan,
    /// By block, then by role.
    modules: Vec<[Option<Module>; Role::ALL.len()]>,
    /// By block, λ and arm that stand in for [`ResidualConfig`]'s: the configured ones, or those of [`Self::with_doses`],
    /// which are never written to a file.
    doses: Option<Vec<Dose>>,
    /// What every λ is multiplied by while a schedule runs; shared by clones, so that what is watched is what is trained.
    share: Arc<AtomicU64>,
    /// Weights of the base model that were trained with the modules, by their names in its files.
    base: BTreeMap<String, Tensor>,
    /// Virtual tokens in front of every text: their embeddings `[virtual, d]`, or their keys and values,
    /// `[virtual, blocks · 2 · key width]`.
    virtual_table: Option<Tensor>,
    /// A head for classes that was trained with the modules, by its names in the model's files; hidden states do not need it.
    head: BTreeMap<String, Tensor>,
    /// Other remedies of over-smoothing, with what they have learned.
    remedies: Applied,
    /// What the arm `random` reads.
    random: Once,
    /// Golden tests state what the λ term reads where we would draw it.
    #[cfg(test)]
    stated_source: Option<Tensor>,
}

impl Peft {
    /// Seeded start values for `config` over `model`, ready to be trained.
    ///
    /// # Errors
    /// The plan cannot be made.
    pub fn initial(model: &Transformer, config: PeftConfig, seed: u64) -> Result<Self, AdapterError> {
        let plan = Plan::new(model.architecture(), &config)?;
        let (dropout, place) = (config.method.dropout(), (model.precision().trained(), model.device()));
        let lambda = config.residual.map_or(0.5, |residual| residual.lambda);
        let theta = Tensor::new(&[(lambda / (1.0 - lambda)).ln()], model.device())?.to_dtype(place.0)?;
        let mut peft =
            Self::build(model, config, plan, |planned, linear| Module::initial(planned, dropout, seed, place, linear))?;
        for module in peft.modules.iter_mut().flatten().flatten().filter(|module| module.planned.theta.is_some()) {
            module.theta = Some(theta.clone());
        }
        if let Some(shape) = peft.plan.virtual_table {
            peft.virtual_table = Some(virtual_tokens::initial(model, peft.config.method, shape, seed)?);
        }
        peft.remedies = Applied::initial(peft.config.details.remedies, model.architecture(), place)?;
        Ok(peft)
    }

    /// Gives every module whose λ is learned its θ, by their names in an adapter file.
    fn set_thetas(&mut self, thetas: &BTreeMap<String, Tensor>) {
        for module in self.modules.iter_mut().flatten().flatten() {
            module.theta = files::theta_name(&module.planned).and_then(|name| thetas.get(&name).cloned());
        }
    }

    /// Other remedies of over-smoothing, with what they have learned.
    #[must_use]
    pub fn remedies(&self) -> &Applied {
        &self.remedies
    }

    /// A head for classes that was trained with the modules, by its names in the model's files.
    #[must_use]
    pub fn class_head(&self) -> &BTreeMap<String, Tensor> {
        &self.head
    }

    /// Multiplies every λ, by block or not, until the next call: a schedule's step.
    pub fn set_lambda_share(&self, share: f64) {
        self.share.store(share.to_bits(), Ordering::Relaxed);
    }

    /// What every λ is multiplied by.
    #[must_use]
    pub fn lambda_share(&self) -> f64 {
        f64::from_bits(self.share.load(Ordering::Relaxed))
    }

    /// The same modules with λ as the schedule left it, for good; vanilla where it left nothing.
    fn settled(&self) -> Self {
        let share = self.lambda_share();
        let mut settled = self.clone();
        settled.share = Arc::new(AtomicU64::new(1.0_f64.to_bits()));
        if share == 1.0 {
            return settled;
        }
        let scaled = |residual: ResidualConfig| ResidualConfig { lambda: residual.lambda * share, ..residual };
        settled.config.residual = self.config.residual.map(scaled).filter(|residual| residual.lambda != 0.0);
        settled.config.details.lambdas.iter_mut().for_each(|lambda| *lambda *= share);
        if settled.config.residual.is_none() {
            settled.config.details.lambdas.clear();
        }
        settled
    }

    /// The base model with those of its weights that were trained with the modules; `None` where none were.
    #[must_use]
    pub fn tuned(&self, model: &Transformer) -> Option<Transformer> {
        (!self.base.is_empty()).then(|| model.with_tensors(&self.base))
    }

    /// The learned λ as they are, by the path of the block or module that each belongs to.
    ///
    /// # Errors
    /// A tensor cannot be read.
    pub fn learned_lambdas(&self) -> Result<BTreeMap<String, f64>, AdapterError> {
        let learned = self.iter().filter_map(|module| Some((module.planned.theta.as_ref()?, module.theta.as_ref()?)));
        learned
            .map(|(name, theta)| {
                let place = name.rsplit_once('.').map_or(name.as_str(), |(place, _)| place);
                Ok((place.to_owned(), module::sigmoid(theta)?))
            })
            .collect()
    }

    /// Modules whose tensors come from `tensors(planned)`, in the order and the shapes of [`PlannedModule::tensors`].
    fn from_tensors(
        model: &Transformer,
        config: PeftConfig,
        tensors: impl Fn(&PlannedModule) -> Option<Vec<Tensor>>,
    ) -> Result<Self, AdapterError> {
        let plan = Plan::new(model.architecture(), &config)?;
        let dropout = config.method.dropout();
        Self::build(model, config, plan, |planned, linear| match tensors(&planned) {
            Some(tensors) => Module::new(planned, dropout, tensors, linear),
            None => candle_core::bail!("{}: no such module", planned.path),
        })
    }

    fn build(
        model: &Transformer,
        config: PeftConfig,
        plan: Plan,
        mut module: impl FnMut(PlannedModule, &Linear) -> candle_core::Result<Module>,
    ) -> Result<Self, AdapterError> {
        let mut modules: Vec<[Option<Module>; Role::ALL.len()]> = vec![Default::default(); model.architecture().layers];
        for planned in &plan.modules {
            let slot = modules.get_mut(planned.layer).and_then(|block| block.get_mut(planned.role.index()));
            let linear = model.linear(planned.layer, planned.role);
            if let (Some(slot), Some(linear)) = (slot, linear) {
                *slot = Some(module(planned.clone(), linear)?);
            }
        }
        let shared = model.architecture().names.shared.max(1);
        for layer in (0..modules.len()).filter(|layer| layer % shared != 0) {
            if let Some((own, before)) = modules.get_mut(..=layer).and_then(<[_]>::split_last_mut) {
                *own = before.last().cloned().unwrap_or_default();
                own.iter_mut().flatten().for_each(|module| module.planned.layer = layer);
            }
        }
        let dose = |&lambda: &f64| Some(Dose { lambda, arm: config.residual?.arm });
        let doses: Option<Vec<Dose>> = config.details.lambdas.iter().map(dose).collect();
        Ok(Self {
            plan,
            modules,
            doses: doses.filter(|doses| !doses.is_empty()),
            share: Arc::new(AtomicU64::new(1.0_f64.to_bits())),
            base: BTreeMap::new(),
            virtual_table: None,
            head: BTreeMap::new(),
            remedies: Applied::default(),
            random: Once::default(),
            config,
            #[cfg(test)]
            stated_source: None,
        })
    }

    /// What the modules were made from.
    #[must_use]
    pub fn config(&self) -> &PeftConfig {
        &self.config
    }

    /// Which module stands where.
    #[must_use]
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// The same modules under another residual (λ, policy or arm); the matrices are shared.
    ///
    /// # Errors
    /// λ out of range.
    pub fn with_residual(&self, model: &Transformer, residual: Option<ResidualConfig>) -> Result<Self, AdapterError> {
        let config = PeftConfig { residual, ..self.config.clone() };
        let tensors: BTreeMap<&str, Vec<Tensor>> =
            self.iter().map(|m| (m.planned.path.as_str(), m.tensors.clone())).collect();
        let mut peft = Self::from_tensors(model, config, |planned| tensors.get(planned.path.as_str()).cloned())?;
        let thetas = self.iter().filter_map(|m| Some((files::theta_name(&m.planned)?, m.theta.clone()?))).collect();
        peft.set_thetas(&thetas);
        peft.base.clone_from(&self.base);
        peft.virtual_table.clone_from(&self.virtual_table);
        peft.remedies.clone_from(&self.remedies);
        Ok(peft)
    }

    /// The trainable tensors by the names that they have in an adapter file.
    ///
    /// # Errors
    /// A tensor cannot be made a variable.
    pub fn variables(&mut self) -> Result<BTreeMap<String, Var>, AdapterError> {
        let mut variables = BTreeMap::new();
        for module in self.modules.iter_mut().flatten().flatten() {
            let names = files::tensor_names(&module.planned).into_iter().zip(&mut module.tensors);
            for (name, tensor) in names.chain(files::theta_name(&module.planned).zip(module.theta.as_mut())) {
                let variable = match variables.entry(name) {
                    Entry::Occupied(known) => known.into_mut(),
                    Entry::Vacant(new) => new.insert(Var::from_tensor(tensor)?),
                };
                *tensor = variable.as_tensor().clone();
            }
            module.lengths = Once::default();
        }
        if let Some(table) = &mut self.virtual_table {
            let variable = Var::from_tensor(table)?;
            *table = variable.as_tensor().clone();
            variables.insert(virtual_tokens::NAME.to_owned(), variable);
        }
        for (name, tensor) in self.remedies.tensors_mut() {
            let variable = match variables.entry(format!("{PREFIX}{name}")) {
                Entry::Occupied(known) => known.into_mut(),
                Entry::Vacant(new) => new.insert(Var::from_tensor(tensor)?),
            };
            *tensor = variable.as_tensor().clone();
        }
        Ok(variables)
    }

    /// The names of the tensors in an adapter file.
    pub(crate) fn tensor_names(&self) -> impl Iterator<Item = String> + '_ {
        self.iter()
            .flat_map(|module| {
                files::tensor_names(&module.planned).into_iter().chain(files::theta_name(&module.planned))
            })
            .chain(self.plan.virtual_table.map(|_| virtual_tokens::NAME.to_owned()))
            .chain(self.plan.remedies.iter().map(|(name, _)| format!("{PREFIX}{name}")))
    }

    /// The same modules with tensors that record no gradient.
    #[must_use]
    pub fn frozen(&self) -> Self {
        let mut frozen = self.clone();
        for module in frozen.modules.iter_mut().flatten().flatten() {
            module.tensors.iter_mut().chain(&mut module.theta).for_each(|tensor| *tensor = tensor.detach());
        }
        frozen.modules.iter_mut().flatten().flatten().for_each(|module| module.lengths = Once::kept());
        frozen.virtual_table.iter_mut().for_each(|table| *table = table.detach());
        frozen.remedies.tensors_mut().for_each(|(_, tensor)| *tensor = tensor.detach());
        frozen.random = Once::kept();
        frozen
    }

    #[cfg(test)]
    pub(crate) fn set_stated_source(&mut self, source: Option<Tensor>) {
        self.stated_source = source;
    }

    fn iter(&self) -> impl Iterator<Item = &Module> {
        self.modules.iter().flatten().flatten()
    }
}

/// Names the dropout masks of one training step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DropoutKey {
    /// The run's seed.
    pub seed: u64,
    /// The optimizer step.
    pub step: u64,
    /// The micro-batch inside the step.
    pub micro_batch: u64,
}

impl DropoutKey {
    /// A number in [0, 1) of this micro-batch.
    pub(crate) fn uniform(self, purpose: &[&str]) -> f64 {
        let (step, micro) = (self.step.to_string(), self.micro_batch.to_string());
        let labels: Vec<&str> = purpose.iter().copied().chain([step.as_str(), micro.as_str()]).collect();
        stream(self.seed, &labels).random::<f64>()
    }

    fn mask(self, path: &str) -> u64 {
        let (step, micro) = (self.step.to_string(), self.micro_batch.to_string());
        stream(self.seed, &["dropout", path, &step, &micro]).next_u64()
    }
}

/// What the linears of one forward pass share.
#[derive(Debug)]
pub struct PassState<'a> {
    peft: Option<&'a Peft>,
    dropout: Option<DropoutKey>,
    residual: Option<InitialResidual>,
    /// Who watches the branches, and h0.
    observed: Option<(&'a dyn BranchObserver, Tensor)>,
    remedies: Option<&'a Applied>,
}

impl<'a> PassState<'a> {
    /// Prepares a pass over `batch`, which is `embedded` so.
    pub(crate) fn new(
        pass: &Pass<'a>,
        model: &Transformer,
        embedded: &Embedded,
        batch: &Packed,
    ) -> Result<Self, ModelError> {
        let share = pass.peft.map_or(1.0, Peft::lambda_share);
        let scheduled = |residual: ResidualConfig| ResidualConfig { lambda: residual.lambda * share, ..residual };
        let residual = match pass.peft.and_then(|peft| peft.config.residual).map(scheduled) {
            Some(config) => {
                let h0 = embedded.h0(config.h0_kind);
                let once = pass.peft.map(|peft| peft.random.clone()).unwrap_or_default();
                Some(match pass.peft.and_then(|peft| peft.doses.as_deref()) {
                    None => InitialResidual::new(&config, (model, &once), h0, batch)?,
                    Some(doses) => {
                        let doses: Vec<Dose> =
                            doses.iter().map(|dose| Dose { lambda: dose.lambda * share, ..*dose }).collect();
                        InitialResidual::dosed(&config, &doses, (model, &once), h0, batch)?
                    }
                })
            }
            None => None,
        };
        #[cfg(test)]
        let residual = match pass.peft.and_then(|peft| Some((peft.config.residual?, peft.stated_source.clone()?))) {
            Some((config, source)) => Some(InitialResidual::from_source(&config, source)),
            None => residual,
        };
        let kind = pass.peft.and_then(|peft| peft.config.residual).map_or(model.architecture().h0_kind, |r| r.h0_kind);
        let observed = pass.observer.map(|observer| (observer, embedded.h0(kind).detach()));
        let remedies = pass.peft.map(|peft| &peft.remedies).filter(|remedies| !remedies.config().is_none());
        Ok(Self { peft: pass.peft, dropout: pass.dropout, residual, observed, remedies })
    }

    /// The same pass without PEFT; `None` if no linear of these roles in block `layer` (from 0) has a module, so
    /// that nothing would change there.
    pub(crate) fn without_peft(&self, layer: usize, roles: &[Role]) -> Option<Self> {
        roles.iter().find_map(|&role| self.module(layer, role))?;
        Some(Self { peft: None, dropout: self.dropout, residual: None, observed: None, remedies: self.remedies })
    }

    /// The same pass with nothing in the place of h0 (the arm `none`); `None` if no module of these roles in block
    /// `layer` (from 0) reads a λ term.
    pub(crate) fn without_h0(&self, layer: usize, roles: &[Role]) -> Option<Self> {
        let residual = self.residual.as_ref()?.in_block(layer).without_source()?;
        let mixed = |role: &Role| self.module(layer, *role).is_some_and(|m| m.planned.residual == Mixing::Mixed);
        let residual = roles.iter().any(mixed).then_some(residual)?;
        Some(Self { residual: Some(residual), observed: None, ..*self })
    }

    /// The same pass for a linear that reads no tokens: nothing is mixed in, nobody watches, and dropout draws masks of
    /// its own.
    pub(crate) fn without_tokens(&self) -> Self {
        // The micro-batches of tokens are counted from the other end.
        let dropout = self.dropout.map(|key| DropoutKey { micro_batch: !key.micro_batch, ..key });
        Self { dropout, residual: None, observed: None, ..*self }
    }

    /// The same pass, watched by nobody.
    pub(crate) fn unobserved(&self) -> Self {
        Self { residual: self.residual.clone(), observed: None, ..*self }
    }

    /// Other remedies than the initial residual, if there are any.
    pub(crate) fn remedies(&self) -> Option<&'a Applied> {
        self.remedies
    }

    /// Keys and values that stand in front of a block's own, `[virtual, key width]` each.
    pub(crate) fn prefix(&self, layer: usize) -> candle_core::Result<Option<[Tensor; 2]>> {
        self.peft.map_or(Ok(None), |peft| peft.prefix(layer))
    }

    pub(crate) fn module(&self, layer: usize, role: Role) -> Option<&'a Module> {
        self.peft?.modules.get(layer)?.get(role.index())?.as_ref()
    }
}
