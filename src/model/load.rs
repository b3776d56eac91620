//! A [`Transformer`] from the tensors of a file.

use super::ModelError;
use super::architecture::{Architecture, Head, NormKind, Positions, Role, SubLayerNorms};
use super::block::{Block, Inner, Norms, Projections, Reads};
use super::disentangled::DistanceTable;
use super::distance::DistanceBias;
use super::embeddings::{Embedder, Embeddings, Projection};
use super::initialise::{Initialisation, RandomWeights};
use super::linear::Linear;
use super::norm::Norm;
use super::patches::PatchEmbedding;
use super::precision::Precision;
use super::rotary::RotaryTables;
use super::transformer::{HeadTensors, Transformer};
use super::weights::TensorSource;
use crate::kernels::{self, Columns, FrozenWeight};
use candle_core::{DType, Device, Tensor};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

impl Transformer {
    /// Reads every tensor that `architecture` names from `source`; a type alone is both stored and computed in.
    ///
    /// A model whose file has no head, an encoder or one that was saved without, is read without one.
    ///
    /// # Errors
    /// A tensor is missing, has another shape, or cannot be read.
    pub fn load(
        name: &str,
        architecture: Architecture,
        source: &dyn TensorSource,
        precision: impl Into<Precision>,
        device: &Device,
    ) -> Result<Self, ModelError> {
        let precision = precision.into();
        let architecture = architecture.of_file(source);
        let lacks = |tensor: &String| stored_name(source, tensor).is_none();
        let expected = architecture.tensors();
        // A head for classes begins at random where the file has none.
        let head = architecture.classes.map(|_| architecture.head_tensors()).unwrap_or_default();
        let needed = expected.keys().filter(|tensor| !head.contains_key(*tensor));
        let missing: Vec<&str> = needed.filter(|tensor| lacks(tensor)).map(String::as_str).collect();
        if !missing.is_empty() {
            let shown = missing.iter().take(3).copied().collect::<Vec<_>>().join(", ");
            let missing = match missing.len() {
                n @ 4.. => format!("{shown} and {} more", n - 3),
                _ => shown,
            };
            return Err(ModelError::Missing { model: name.to_owned(), missing });
        }
        let reader = Reader { architecture: &architecture, expected, source, precision, device };
        let blocks = reader.blocks()?;
        let (embedder, final_norm, head) = (reader.embedder()?, reader.final_norm()?, reader.head()?);
        let angles = kernels::wide(precision.compute);
        let tables = |rope: Option<&_>| rope.map(|rope| Arc::new(RotaryTables::new(rope, angles, device)));
        let rotary = [tables(architecture.rope()), tables(architecture.local_rope.as_ref())];
        let distance_bias = match architecture.positions {
            Positions::Alibi { factor, rounded } => {
                let alibi = if rounded { DistanceBias::rounded_alibi } else { DistanceBias::alibi };
                Some(alibi(architecture.heads, factor, angles, device))
            }
            Positions::Buckets { max_distance, .. } => {
                let table = reader.tensor(&architecture.names.whole(architecture.names.positions, "weight"))?;
                Some(DistanceBias::buckets(&table, max_distance, angles, device)?)
            }
            Positions::Rotary(_) | Positions::Learned { .. } | Positions::Disentangled(_) => None,
        };
        let distance_bias = distance_bias.map(Arc::new);
        let distances = reader.distances()?;
        let device = device.clone();
        Ok(Self {
            embedder,
            blocks,
            final_norm,
            head,
            rotary,
            distance_bias,
            distances,
            precision,
            device,
            architecture,
        })
    }
}

impl Architecture {
    /// The same with what the files of a model decide: what stands in front of its tensors' names, and whether its head is
    /// there.
    #[must_use]
    pub fn of_file(mut self, source: &dyn TensorSource) -> Self {
        let usual = self.names.prefixes.first().copied().unwrap_or_default();
        self.names.prefix = prefix(&self, source);
        let bare = self.names.prefix != usual;
        let lacks = |tensor: &String| stored_name(source, tensor).is_none();
        if (bare || !self.causal) && self.classes.is_none() && self.head_tensors().keys().any(lacks) {
            self.head = Head::Absent;
        }
        self
    }

    /// The name that a tensor has in a model's files, if it is there.
    #[must_use]
    pub fn stored_name(&self, source: &dyn TensorSource, name: &str) -> Option<String> {
        stored_name(source, name)
    }

    /// The tensors of a model's files that nothing reads, in their order.
    #[must_use]
    pub fn unread(&self, source: &dyn TensorSource) -> Vec<String> {
        let read: BTreeSet<String> = self.tensors().keys().filter_map(|tensor| stored_name(source, tensor)).collect();
        source.names().into_iter().filter(|name| !read.contains(name)).collect()
    }
}

/// Reads tensors by the names and shapes of an architecture.
struct Reader<'a> {
    architecture: &'a Architecture,
    expected: BTreeMap<String, Vec<usize>>,
    source: &'a dyn TensorSource,
    precision: Precision,
    device: &'a Device,
}

impl Reader<'_> {
    fn tensor(&self, name: &str) -> Result<Tensor, ModelError> {
        self.stored(name, &stored_name(self.source, name).unwrap_or_else(|| name.to_owned()))
    }

    fn stored(&self, name: &str, stored: &str) -> Result<Tensor, ModelError> {
        let shape = self.expected.get(name).map(Vec::as_slice).unwrap_or_default();
        Ok(self.source.load(stored, shape, self.precision.base, self.device)?)
    }

    fn tensor_if(&self, wanted: bool, name: &str) -> Result<Option<Tensor>, ModelError> {
        wanted.then(|| self.tensor(name)).transpose()
    }

    fn norm(&self, path: &str) -> Result<Norm, ModelError> {
        let kind = self.architecture.norm;
        let weight = self.tensor(&format!("{path}.weight"))?;
        let bias = match kind {
            NormKind::Rms | NormKind::ShiftedRms => None,
            NormKind::Layer => Some(self.tensor(&format!("{path}.bias"))?),
            NormKind::BareLayer => Some(weight.zeros_like()?),
        };
        Ok(Norm { kind, weight, bias, eps: self.architecture.norm_eps })
    }

    /// A norm inside a block, where the family has it.
    fn block_norm(&self, layer: usize, name: &str) -> Result<Option<Norm>, ModelError> {
        let path = self.architecture.names.in_block(layer, name);
        (!name.is_empty()).then(|| self.norm(&path)).transpose()
    }

    fn linear(&self, layer: usize, role: Role) -> Result<Linear, ModelError> {
        let path = self.architecture.linear_path(layer, role);
        let bias = self.tensor_if(self.architecture.has_bias(role), &format!("{path}.bias"))?;
        let weight = self.tensor(&format!("{path}.weight"))?;
        let weight = if self.architecture.transposed { weight.t()?.contiguous()? } else { weight };
        let weight = match self.precision.quantised {
            Some(dtype) => FrozenWeight::quantised(weight.to_dtype(DType::F32)?, dtype)?,
            None => FrozenWeight::Plain(weight),
        };
        Ok(Linear { layer, role, weight, bias })
    }

    fn blocks(&self) -> Result<Vec<Block>, ModelError> {
        let shared = self.architecture.names.shared.max(1);
        let mut blocks: Vec<Block> = Vec::with_capacity(self.architecture.layers);
        for layer in 0..self.architecture.layers {
            let block = match blocks.last().filter(|_| layer % shared != 0) {
                Some(before) => before.at(layer),
                None => self.block(layer)?,
            };
            blocks.push(block);
        }
        Ok(blocks)
    }

    fn block(&self, layer: usize) -> Result<Block, ModelError> {
        let (a, names) = (self.architecture, &self.architecture.names);
        let linear = |role| self.linear(layer, role);
        let [attention, feed_forward] = names.norms;
        let shares_norm = a.parallel && attention.before == feed_forward.before;
        let norms = |own: SubLayerNorms, bare: bool| -> Result<Norms, ModelError> {
            Ok(Norms {
                before: self.block_norm(layer, if bare { "" } else { own.before })?,
                added: self.block_norm(layer, own.added)?,
                after: self.block_norm(layer, own.after)?,
            })
        };
        let halves = [(0, a.intermediate_size), (a.intermediate_size, a.intermediate_size)];
        Ok(Block {
            index: layer,
            norms: [norms(attention, a.bare_first && layer == 0)?, norms(feed_forward, shares_norm)?],
            feed_forward_reads: match (a.parallel, shares_norm) {
                (false, _) => Reads::AfterAttention,
                (true, false) => Reads::BlockInput,
                (true, true) => Reads::WithAttention,
            },
            projections: match a.has(Role::QueryKeyValue) {
                true => Projections::Fused { all: linear(Role::QueryKeyValue)?, columns: a.fused_columns() },
                false => Projections::Separate {
                    query: linear(Role::Query)?,
                    key: linear(Role::Key)?,
                    value: linear(Role::Value)?,
                },
            },
            distance_projections: {
                let [q, k] = a.position_projections(layer);
                [self.position_projection(q)?, self.position_projection(k)?]
            },
            head_norms: [self.block_norm(layer, names.query_norm)?, self.block_norm(layer, names.key_norm)?],
            output: linear(Role::AttentionOutput)?,
            inner: match (a.has(Role::GateUp), a.has(Role::Gate)) {
                (true, _) => Inner::FusedGated {
                    both: linear(Role::GateUp)?,
                    columns: halves.map(|range| Columns::from([range])),
                },
                (false, true) => Inner::Gated { gate: linear(Role::Gate)?, up: linear(Role::Up)? },
                (false, false) => Inner::Plain { up: linear(Role::Up)? },
            },
            activation: a.activation,
            down: linear(Role::Down)?,
        })
    }

    fn position_projection(&self, path: Option<String>) -> Result<Option<(Tensor, Tensor)>, ModelError> {
        let Some(path) = path else { return Ok(None) };
        Ok(Some((self.tensor(&format!("{path}.weight"))?, self.tensor(&format!("{path}.bias"))?)))
    }

    fn distances(&self) -> Result<Option<DistanceTable>, ModelError> {
        let names = &self.architecture.names;
        let Positions::Disentangled(form) = self.architecture.positions else { return Ok(None) };
        let weight = self.tensor(&names.whole(names.positions, "weight"))?;
        let norm = form.normed.then(|| self.norm(&names.path(names.positions_norm))).transpose()?;
        Ok(Some(DistanceTable { form, weight, norm }))
    }

    fn embedder(&self) -> Result<Embedder, ModelError> {
        let Some(grid) = self.architecture.patches else { return Ok(Embedder::Tokens(self.embeddings()?)) };
        let tensors = self
            .architecture
            .patch_tensors(&grid)
            .map(|(name, [_, shape])| -> Result<_, ModelError> { Ok(self.tensor(&name)?.reshape(shape)?) });
        let [weight, bias, class, positions] = tensors;
        let embedding = PatchEmbedding { weight: weight?, bias: bias?, class: class?, positions: positions? };
        Ok(Embedder::Patches(grid, embedding))
    }

    fn embeddings(&self) -> Result<Embeddings, ModelError> {
        let (a, names) = (self.architecture, &self.architecture.names);
        let learned = matches!(a.positions, Positions::Learned { .. });
        Ok(Embeddings {
            tokens: self.tensor(&names.whole(names.embedding, "weight"))?,
            positions: self.tensor_if(learned, &names.whole(names.positions, "weight"))?,
            types: self.tensor_if(a.token_types > 0, &names.whole(names.token_types, "weight"))?,
            norm: a.embedding_norm.then(|| self.norm(&names.path(names.embedding_norm))).transpose()?,
            projection: match a.projection_path() {
                None => None,
                Some(path) => Some(Projection {
                    weight: self.tensor(&format!("{path}.weight"))?,
                    bias: self.tensor_if(!a.projects_tokens(), &format!("{path}.bias"))?,
                }),
            },
        })
    }

    fn final_norm(&self) -> Result<Option<Norm>, ModelError> {
        let names = &self.architecture.names;
        self.architecture.has_final_norm().then(|| self.norm(&names.path(names.final_norm))).transpose()
    }

    fn head(&self) -> Result<HeadTensors, ModelError> {
        let (a, names) = (self.architecture, &self.architecture.names);
        let there = |name: &str| a.head != Head::Absent && !name.is_empty();
        let mut fresh = BTreeSet::new();
        // A head for other classes than these, such as ImageNet's, is none.
        let fits = |name: &String, stored: &String| {
            self.source
                .shape(stored)
                .is_none_or(|shape| self.expected.get(name).is_none_or(|expected| *expected == shape))
        };
        let stored_head =
            |name: &String| self.head_name(name).filter(|stored| a.classes.is_none() || fits(name, stored));
        let mut tensor = |name: String| match (a.classes, stored_head(&name)) {
            (Some(_), None) => {
                let made = self.initial(&name)?;
                fresh.insert(name);
                Ok(made)
            }
            (_, stored) => self.stored(&name, &stored.unwrap_or_else(|| name.clone())),
        };
        let dense = match there(names.head_dense) {
            false => None,
            true => {
                let weight = tensor(format!("{}.weight", names.head_dense))?;
                let bias = names.head_dense_bias.then(|| tensor(format!("{}.bias", names.head_dense))).transpose()?;
                Some((weight, bias))
            }
        };
        let norm = match there(names.head_norm) {
            false => None,
            true => {
                let weight = tensor(format!("{}.weight", names.head_norm))?;
                let bias = match a.norm {
                    NormKind::Rms | NormKind::ShiftedRms => None,
                    NormKind::Layer => Some(tensor(format!("{}.bias", names.head_norm))?),
                    NormKind::BareLayer => Some(weight.zeros_like()?),
                };
                Some(Norm { kind: a.norm, weight, bias, eps: a.norm_eps })
            }
        };
        let weight = (a.head == Head::Own).then(|| tensor(format!("{}.weight", names.head))).transpose()?;
        let bias = there(names.head_bias).then(|| tensor(names.head_bias.to_owned())).transpose()?;
        Ok(HeadTensors { weight, bias, dense, norm, fresh })
    }

    /// The name under which the file has a tensor of the head: a model that was saved without its head may still have the
    /// pooler, without the prefix.
    fn head_name(&self, name: &str) -> Option<String> {
        let bare = || {
            let usual = self.architecture.names.prefixes.first().filter(|prefix| !prefix.is_empty())?;
            stored_name(self.source, name.strip_prefix(usual)?)
        };
        stored_name(self.source, name).or_else(bare)
    }

    /// Where a new head begins: matrices N(0, 0.02²), as in transformers, drawn by their names alone.
    fn initial(&self, name: &str) -> Result<Tensor, ModelError> {
        let shape = self.expected.get(name).map(Vec::as_slice).unwrap_or_default();
        let random = RandomWeights::new(self.architecture, Initialisation::Transformers, 0);
        Ok(random.load(name, shape, self.precision.base, self.device)?)
    }
}

/// What stands in front of the tensors' names in this file: the same weights are saved with and without a head.
fn prefix(architecture: &Architecture, source: &dyn TensorSource) -> &'static str {
    let names = &architecture.names;
    let here = |prefix: &&&'static str| source.contains(&format!("{prefix}{}.weight", names.embedding));
    [&names.prefix].into_iter().chain(names.prefixes).find(here).copied().unwrap_or(names.prefix)
}

/// The name under which `source` has a tensor; old files of BERT call a norm's weight gamma and its bias beta.
fn stored_name(source: &dyn TensorSource, name: &str) -> Option<String> {
    let old = || {
        let (path, tensor) = name.rsplit_once('.').filter(|(path, _)| path.ends_with("LayerNorm"))?;
        Some(format!("{path}.{}", if tensor == "weight" { "gamma" } else { "beta" }))
    };
    // T5's encoder alone may name its table by itself.
    let other = || (name == "shared.weight").then(|| "encoder.embed_tokens.weight".to_owned());
    let there = |name: &String| source.contains(name);
    Some(name.to_owned()).filter(there).or_else(|| old().filter(there)).or_else(|| other().filter(there))
}
