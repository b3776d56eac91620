//! Falcon: 7B (one key head, one norm), 40B and 180B (groups, two norms), and the RW models (ALiBi, one after the other).

use super::bloom;
use super::common::{Defaults, decoder, rope};
use super::config::{Config, ConfigError};
use crate::kernels::Pairing;
use crate::model::architecture::{Architecture, FusedOrder, Names, Positions, Role, SubLayerNorms};

const NAMES: Names = Names { embedding_norm: "", ..bloom::NAMES };

pub(super) fn architecture(config: &Config<'_>) -> Result<Architecture, ConfigError> {
    let new = config.flag("new_decoder_architecture")?.unwrap_or(false);
    let one_key_head = !new && config.flag("multi_query")?.unwrap_or(true);
    let defaults = Defaults { activation: "gelu", positions: 2048, ..Defaults::GPT };
    let mut a = decoder(config, "falcon", NAMES, defaults)?;
    // Without the new architecture, num_kv_heads says nothing.
    a.kv_heads = match (new, one_key_head) {
        (true, _) => a.kv_heads,
        (false, true) => 1,
        (false, false) => a.heads,
    };
    a.fused_order = FusedOrder::Groups;
    a.parallel = new || config.flag("parallel_attn")?.unwrap_or(true);
    if new && config.optional_size("num_ln_in_parallel_attn")?.unwrap_or(2) == 2 {
        a.names.norms = SubLayerNorms::before("ln_attn", "ln_mlp");
    } else if a.parallel {
        a.names.norms = SubLayerNorms::before("input_layernorm", "input_layernorm");
    }
    a.positions = match config.flag("alibi")?.unwrap_or(false) {
        true => Positions::Alibi { factor: a.attention_scale, rounded: true },
        false => Positions::Rotary(rope(config, a.head_dim, Pairing::Halves, 10_000.0)?),
    };
    if config.flag("bias")?.unwrap_or(false) {
        a.biased = vec![Role::QueryKeyValue, Role::AttentionOutput, Role::Up, Role::Down];
    }
    Ok(a)
}
