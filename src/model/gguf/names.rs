//! The families of GGUF files: their names for tensors, and what llama.cpp's converter did to the values.
//!
//! Names: llama.cpp's `gguf-py/gguf/constants.py`; what is done to values: `convert_hf_to_gguf.py` and `conversion/`.

/// An architecture of GGUF files that is read.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Family {
    Llama,
    Qwen2,
    Qwen3,
    Gemma,
    Gemma2,
    Gemma3,
    Phi3,
}

/// How a tensor's stored values differ from Hugging Face's.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Change {
    Nothing,
    /// The rows of each query head are in rotary pairs.
    QueryRows,
    /// The rows of each key head are in rotary pairs.
    KeyRows,
    /// A norm's weight has the 1 added that Gemma adds when it runs.
    OneAdded,
}

/// Names outside the layers: llama.cpp's and Hugging Face's.
const OUTSIDE: &[(&str, &str)] =
    &[("token_embd.", "model.embed_tokens."), ("output_norm.", "model.norm."), ("output.", "lm_head.")];

/// Names within a layer that no family uses otherwise.
const WITHIN: &[(&str, &str)] = &[
    ("attn_norm.", "input_layernorm."),
    ("attn_q.", "self_attn.q_proj."),
    ("attn_k.", "self_attn.k_proj."),
    ("attn_v.", "self_attn.v_proj."),
    ("attn_qkv.", "self_attn.qkv_proj."),
    ("attn_q_norm.", "self_attn.q_norm."),
    ("attn_k_norm.", "self_attn.k_norm."),
    ("attn_output.", "self_attn.o_proj."),
    ("ffn_down.", "mlp.down_proj."),
];

const PLAIN: &[(&str, &str)] =
    &[("ffn_norm.", "post_attention_layernorm."), ("ffn_gate.", "mlp.gate_proj."), ("ffn_up.", "mlp.up_proj.")];

/// Norms before and after attention and feed-forward.
const SANDWICH: &[(&str, &str)] = &[
    ("post_attention_norm.", "post_attention_layernorm."),
    ("ffn_norm.", "pre_feedforward_layernorm."),
    ("post_ffw_norm.", "post_feedforward_layernorm."),
    ("ffn_gate.", "mlp.gate_proj."),
    ("ffn_up.", "mlp.up_proj."),
];

/// Gate and up in one, the gate first as in Hugging Face's.
const FUSED: &[(&str, &str)] = &[("ffn_norm.", "post_attention_layernorm."), ("ffn_up.", "mlp.gate_up_proj.")];

impl Family {
    const ALL: [(Self, &'static str); 7] = [
        (Self::Llama, "llama"),
        (Self::Qwen2, "qwen2"),
        (Self::Qwen3, "qwen3"),
        (Self::Gemma, "gemma"),
        (Self::Gemma2, "gemma2"),
        (Self::Gemma3, "gemma3"),
        (Self::Phi3, "phi3"),
    ];

    /// The family that `general.architecture` names.
    pub(super) fn named(name: &str) -> Option<Self> {
        Self::ALL.iter().find(|(_, theirs)| *theirs == name).map(|(family, _)| *family)
    }

    /// What is read, for messages.
    pub(super) fn known() -> String {
        Self::ALL.map(|(_, name)| name).join(", ")
    }

    /// The name that its keys begin with.
    pub(super) fn name(self) -> &'static str {
        Self::ALL.iter().find(|(family, _)| *family == self).map_or("", |(_, name)| name)
    }

    /// Whether it is one of Gemma's.
    pub(super) fn is_gemma(self) -> bool {
        matches!(self, Self::Gemma | Self::Gemma2 | Self::Gemma3)
    }

    fn within(self) -> impl Iterator<Item = &'static (&'static str, &'static str)> {
        let own = match self {
            Self::Llama | Self::Qwen2 | Self::Qwen3 | Self::Gemma => PLAIN,
            Self::Gemma2 | Self::Gemma3 => SANDWICH,
            Self::Phi3 => FUSED,
        };
        own.iter().chain(WITHIN)
    }

    /// Hugging Face's name to llama.cpp's.
    pub(super) fn stored(self, name: &str) -> Option<String> {
        if let Some((layer, part)) = name.strip_prefix("model.layers.").and_then(|rest| rest.split_once('.')) {
            let renamed =
                |(theirs, ours): &(&str, &str)| part.strip_prefix(ours).map(|end| format!("blk.{layer}.{theirs}{end}"));
            return self.within().find_map(renamed);
        }
        OUTSIDE.iter().find_map(|(theirs, ours)| name.strip_prefix(ours).map(|end| format!("{theirs}{end}")))
    }

    /// llama.cpp's name to Hugging Face's; what has none keeps its own, so that it can be named as unread.
    pub(super) fn public(self, stored: &str) -> String {
        let renamed = match stored.strip_prefix("blk.").and_then(|rest| rest.split_once('.')) {
            Some((layer, part)) => self.within().find_map(|(theirs, ours)| {
                part.strip_prefix(theirs).map(|end| format!("model.layers.{layer}.{ours}{end}"))
            }),
            None => {
                OUTSIDE.iter().find_map(|(theirs, ours)| stored.strip_prefix(theirs).map(|end| format!("{ours}{end}")))
            }
        };
        renamed.unwrap_or_else(|| stored.to_owned())
    }

    /// What was done to the values of a tensor, by its stored name.
    pub(super) fn change(self, stored: &str) -> Change {
        let part = stored.strip_prefix("blk.").and_then(|rest| rest.split_once('.')).map_or(stored, |(_, part)| part);
        match self {
            // ggml rotates neighbours in LLaMA alone; in the others it takes the pair (i, i + half), as Hugging Face does.
            Self::Llama if part.starts_with("attn_q.") => Change::QueryRows,
            Self::Llama if part.starts_with("attn_k.") => Change::KeyRows,
            _ if self.is_gemma() && part.ends_with("norm.weight") => Change::OneAdded,
            _ => Change::Nothing,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_go_there_and_back_in_every_family() {
        for (family, name) in Family::ALL {
            assert_eq!(Family::named(name), Some(family));
            for (theirs, _) in family.within() {
                let stored = format!("blk.7.{theirs}weight");
                let public = family.public(&stored);
                assert!(public.starts_with("model.layers.7."), "{public}");
                assert_eq!(family.stored(&public), Some(stored), "{name}");
            }
            assert_eq!(family.public("blk.0.attn_sinks.weight"), "blk.0.attn_sinks.weight");
            assert_eq!(family.stored("model.layers.0.mlp.experts.0.weight"), None);
        }
        // The same stored name means another norm in Gemma 2, and another linear in Phi-3.
        assert_eq!(Family::Gemma.public("blk.0.ffn_norm.weight"), "model.layers.0.post_attention_layernorm.weight");
        assert_eq!(Family::Gemma2.public("blk.0.ffn_norm.weight"), "model.layers.0.pre_feedforward_layernorm.weight");
        assert_eq!(Family::Phi3.public("blk.0.ffn_up.weight"), "model.layers.0.mlp.gate_up_proj.weight");
    }

    #[test]
    fn each_family_is_undone_by_its_own_rule() {
        let change = |family: Family, part: &str| family.change(&format!("blk.0.{part}"));
        assert_eq!(change(Family::Llama, "attn_q.bias"), Change::QueryRows);
        assert_eq!(change(Family::Llama, "attn_k.weight"), Change::KeyRows);
        assert_eq!(change(Family::Llama, "attn_norm.weight"), Change::Nothing);
        for family in [Family::Qwen2, Family::Qwen3, Family::Phi3] {
            for part in ["attn_q.weight", "attn_k.weight", "attn_q_norm.weight", "attn_norm.weight"] {
                assert_eq!(change(family, part), Change::Nothing, "{}", family.name());
            }
        }
        assert_eq!(change(Family::Gemma3, "attn_q_norm.weight"), Change::OneAdded);
        assert_eq!(change(Family::Gemma3, "attn_q.weight"), Change::Nothing);
        assert_eq!(Family::Gemma.change("output_norm.weight"), Change::OneAdded);
    }
}
