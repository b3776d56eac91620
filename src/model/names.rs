//! What Hugging Face calls the tensors and modules of a family.

use super::role::Role;
use crate::kernels::Activation;

/// Hugging Face's names of a family's tensors, without `.weight`; what a family does not have is empty.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Names {
    /// What stands in front of every name but the head's, such as `bert.`; loading the weights corrects it.
    pub prefix: &'static str,
    /// What may stand there, as the same weights are saved with a head or without.
    pub prefixes: &'static [&'static str],
    /// The embedding table, or the convolution over an image's patches.
    pub embedding: &'static str,
    /// The vector in front of an image's patches.
    pub class_token: &'static str,
    /// The table of learned positions, of T5's biases by distance, or of DeBERTa's distances.
    pub positions: &'static str,
    /// The norm of that table.
    pub positions_norm: &'static str,
    /// What projects that table for keys, and for queries, inside a block.
    pub position_projections: [&'static str; 2],
    /// The table of token types.
    pub token_types: &'static str,
    /// The norm of the embeddings.
    pub embedding_norm: &'static str,
    /// The linear from the embeddings' width to the stream's.
    pub embedding_projection: &'static str,
    /// Prefix of the blocks; a block is `{layers}.{index}`.
    pub layers: &'static str,
    /// Consecutive blocks that share one set of weights (ALBERT); usually 1.
    pub shared: usize,
    /// The norms of attention and of the feed-forward, inside a block.
    pub norms: [SubLayerNorms; 2],
    /// The norm of the queries, inside a block.
    pub query_norm: &'static str,
    /// The norm of the keys, inside a block.
    pub key_norm: &'static str,
    /// Whether those two norm each head by itself, and not all heads as one vector.
    pub norms_of_heads: bool,
    /// The norm after the last block.
    pub final_norm: &'static str,
    /// The language-model head, by its whole name; so are the following.
    pub head: &'static str,
    /// The head's bias, `.bias` included.
    pub head_bias: &'static str,
    /// A linear in front of the head.
    pub head_dense: &'static str,
    /// Whether that linear carries a bias.
    pub head_dense_bias: bool,
    /// The norm behind that linear and its activation.
    pub head_norm: &'static str,
    /// The head that classifies texts.
    pub classes: ClassHead,
    /// The linears of a block, in the order of [`Role::ALL`].
    pub linears: [&'static str; 9],
    /// What transformers' modules are called, where the files call them otherwise.
    pub modules: Option<Modules>,
}

/// The names of a family's modules in transformers 5, where its files keep older ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Modules {
    /// Prefix of the blocks.
    pub layers: &'static str,
    /// The linears of a block, in the order of [`Role::ALL`].
    pub linears: [&'static str; 9],
}

/// The names of a head that classifies texts: decoders by their last token, encoders by their first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ClassHead {
    /// The last linear, by its whole name; so are the following.
    pub out: &'static str,
    /// Its bias, `.bias` included.
    pub out_bias: &'static str,
    /// A linear in front.
    pub dense: &'static str,
    /// Whether that carries a bias.
    pub dense_bias: bool,
    /// The norm behind it and its activation.
    pub norm: &'static str,
    /// What stands behind the first linear.
    pub activation: Option<Activation>,
}

impl ClassHead {
    /// A family without one.
    pub const NONE: Self = Self { out: "", out_bias: "", dense: "", dense_bias: true, norm: "", activation: None };
    /// One matrix over the last token: every decoder's.
    pub const SCORE: Self = Self { out: "score", ..Self::NONE };
}

/// The norms of a sub-layer, inside a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SubLayerNorms {
    /// Of what it reads.
    pub before: &'static str,
    /// Of what it adds to the stream.
    pub added: &'static str,
    /// Of the stream behind it.
    pub after: &'static str,
}

impl SubLayerNorms {
    const NONE: Self = Self { before: "", added: "", after: "" };

    /// Norms in front of attention and feed-forward (GPT-2, LLaMA).
    #[must_use]
    pub const fn before(attention: &'static str, feed_forward: &'static str) -> [Self; 2] {
        [Self { before: attention, ..Self::NONE }, Self { before: feed_forward, ..Self::NONE }]
    }

    /// Norms behind each sum of stream and sub-layer (BERT).
    #[must_use]
    pub const fn after(attention: &'static str, feed_forward: &'static str) -> [Self; 2] {
        [Self { after: attention, ..Self::NONE }, Self { after: feed_forward, ..Self::NONE }]
    }

    /// Norms of what attention and feed-forward add (OLMo 2).
    #[must_use]
    pub const fn added(attention: &'static str, feed_forward: &'static str) -> [Self; 2] {
        [Self { added: attention, ..Self::NONE }, Self { added: feed_forward, ..Self::NONE }]
    }
}

impl Names {
    /// A family without a name, for others to be written as what they have.
    pub const NONE: Self = Self {
        prefix: "",
        prefixes: &[""],
        embedding: "",
        class_token: "",
        positions: "",
        positions_norm: "",
        position_projections: [""; 2],
        token_types: "",
        embedding_norm: "",
        embedding_projection: "",
        layers: "",
        shared: 1,
        norms: [SubLayerNorms::NONE; 2],
        query_norm: "",
        key_norm: "",
        norms_of_heads: true,
        final_norm: "",
        head: "",
        head_bias: "",
        head_dense: "",
        head_dense_bias: true,
        head_norm: "",
        classes: ClassHead::NONE,
        linears: [""; 9],
        modules: None,
    };

    /// A module's full path.
    #[must_use]
    pub fn path(&self, name: &str) -> String {
        format!("{}{name}", self.prefix)
    }

    /// A tensor's full name.
    #[must_use]
    pub fn whole(&self, name: &str, tensor: &str) -> String {
        format!("{}{name}.{tensor}", self.prefix)
    }

    /// The full path of what a block calls `name`.
    #[must_use]
    pub fn in_block(&self, layer: usize, name: &str) -> String {
        format!("{}{}.{}.{name}", self.prefix, self.layers, layer / self.shared.max(1))
    }

    /// The path of a linear's module behind `prefix`.
    pub(super) fn module_in_block(&self, prefix: &str, layer: usize, role: Role) -> String {
        let layers = self.modules.map_or(self.layers, |modules| modules.layers);
        format!("{prefix}{layers}.{}.{}", layer / self.shared.max(1), self.module(role))
    }

    /// The name of a linear inside its block, such as `mlp.up_proj`.
    #[must_use]
    pub fn linear(&self, role: Role) -> &'static str {
        self.linears.get(role.index()).copied().unwrap_or_default()
    }

    /// The name of a linear's module inside its block: mostly that of the files.
    #[must_use]
    pub fn module(&self, role: Role) -> &'static str {
        self.modules
            .as_ref()
            .map_or(&self.linears, |modules| &modules.linears)
            .get(role.index())
            .copied()
            .unwrap_or_default()
    }

    /// By what PEFT's `target_modules` speak of a linear: the last part of its name, `up_proj`, or the whole name
    /// inside the block where several end alike, `intermediate.dense`.
    #[must_use]
    pub fn target(&self, role: Role) -> &'static str {
        let last = |name: &'static str| name.rsplit('.').next().unwrap_or(name);
        let name = self.module(role);
        let alike = Role::ALL.iter().filter(|&&other| last(self.module(other)) == last(name)).count();
        if alike > 1 { name } else { last(name) }
    }
}
