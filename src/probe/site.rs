//! Where in the model a hidden state is taken.

use std::fmt;
use std::str::FromStr;

/// A place in the model where vectors of width d are taken, one a token.
///
/// All sites but [`Site::Embedding`], [`Site::Block`] and [`Site::FinalNorm`] are computed only when a probe
/// [wants](super::Probe::wants) them. With `h` the residual stream that a sub-layer (attention or feed-forward)
/// receives, `f(h)` the vectors that it adds with PEFT, `f₀(h)` those without PEFT and `f₋(h)` those with PEFT
/// under the arm `none` (λ kept, nothing added), all on the same `h`: `*_peft` is `f − f₀`, `*_h0` is `f − f₋`,
/// and the streams `*_no_peft` and `*_no_h0` are `h` joined with `f₀` and `f₋`: this sub-layer alone is
/// changed, everything before it is not. In a post-norm model the norm after the sum belongs to the stream, not
/// to what is added.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Site {
    /// Layer 0: what the first block receives.
    Embedding,
    /// What attention adds to the stream.
    Attention,
    /// What this head, counted from 0, adds through its columns of the output projection, by the base weights.
    /// The projection's bias and a PEFT module on the projection belong to no head.
    Head(usize),
    /// What the PEFT modules change in the vectors that attention adds.
    AttentionPeft,
    /// What the λ term changes in the vectors that attention adds.
    AttentionH0,
    /// The residual stream after attention.
    AfterAttention,
    /// That stream if this layer's attention had no PEFT modules.
    AfterAttentionNoPeft,
    /// That stream if this layer's attention had no λ term.
    AfterAttentionNoH0,
    /// What the feed-forward adds to the stream.
    FeedForward,
    /// What the PEFT modules change in the vectors that the feed-forward adds.
    FeedForwardPeft,
    /// What the λ term changes in the vectors that the feed-forward adds.
    FeedForwardH0,
    /// The residual stream after a block, layers 1 to L.
    Block,
    /// That stream if this layer's feed-forward had no PEFT modules.
    BlockNoPeft,
    /// That stream if this layer's feed-forward had no λ term.
    BlockNoH0,
    /// After the final norm, layer L; models without one have no such site.
    FinalNorm,
}

impl Site {
    /// Every site that every model can have, in the order of a forward pass; the heads are asked for by number.
    pub const ALL: [Self; 14] = [
        Self::Embedding,
        Self::Attention,
        Self::AttentionPeft,
        Self::AttentionH0,
        Self::AfterAttention,
        Self::AfterAttentionNoPeft,
        Self::AfterAttentionNoH0,
        Self::FeedForward,
        Self::FeedForwardPeft,
        Self::FeedForwardH0,
        Self::Block,
        Self::BlockNoPeft,
        Self::BlockNoH0,
        Self::FinalNorm,
    ];

    /// Whether a probe sees the site without asking for it.
    #[must_use]
    pub fn is_usual(self) -> bool {
        matches!(self, Self::Embedding | Self::Block | Self::FinalNorm)
    }
}

impl fmt::Display for Site {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Embedding => "embedding",
            Self::Attention => "attention",
            Self::Head(head) => return write!(f, "head_{head}"),
            Self::AttentionPeft => "attention_peft",
            Self::AttentionH0 => "attention_h0",
            Self::AfterAttention => "after_attention",
            Self::AfterAttentionNoPeft => "after_attention_no_peft",
            Self::AfterAttentionNoH0 => "after_attention_no_h0",
            Self::FeedForward => "feed_forward",
            Self::FeedForwardPeft => "feed_forward_peft",
            Self::FeedForwardH0 => "feed_forward_h0",
            Self::Block => "block",
            Self::BlockNoPeft => "block_no_peft",
            Self::BlockNoH0 => "block_no_h0",
            Self::FinalNorm => "final_norm",
        })
    }
}

impl FromStr for Site {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Some(head) = text.strip_prefix("head_").and_then(|n| n.parse().ok()) {
            return Ok(Self::Head(head));
        }
        Self::ALL.into_iter().find(|site| site.to_string() == text).ok_or_else(|| {
            let names = Self::ALL.map(|site| site.to_string()).join(", ");
            format!("\"{text}\" is no site; choose among {names}, head_0, head_1, …")
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_back() {
        for site in Site::ALL.into_iter().chain([Site::Head(0), Site::Head(31)]) {
            assert_eq!(site.to_string().parse(), Ok(site));
        }
        assert!(Site::ALL.is_sorted());
        for wrong in ["", "head", "head_", "head_-1", "blocks"] {
            assert!(wrong.parse::<Site>().unwrap_err().contains("after_attention, "), "{wrong}");
        }
    }
}
