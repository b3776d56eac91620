//! The options of `train` that name other remedies of over-smoothing than the initial residual.

use crate::remedies::Fusion;
use clap::Args;
use serde::Serialize;

/// See [`crate::remedies::Remedies`]; each may be combined with the others and with the initial residual.
#[derive(Debug, Args, Serialize)]
#[serde(rename_all = "kebab-case")]
#[command(next_help_heading = "Other remedies of over-smoothing")]
pub(super) struct RemedyArgs {
    /// Stochastic depth (Huang et al. 2016): in a training step the last block's change of the stream is left out
    /// with this probability, earlier blocks' in proportion, and the rest scaled up [default: 0].
    #[arg(long, value_name = "P")]
    #[serde(skip_serializing_if = "Option::is_none")]
    stochastic_depth: Option<f64>,
    /// ContraNorm (Guo et al. 2023): in front of the feed-forward's norm tokens are pushed from those they resemble with this
    /// strength; 0.1 is a start [default: off].
    #[arg(long, value_name = "S", allow_negative_numbers = true)]
    #[serde(skip_serializing_if = "Option::is_none")]
    contranorm: Option<f64>,
    /// Its temperature [default: 1].
    #[arg(long, value_name = "T", requires = "contranorm")]
    #[serde(skip_serializing_if = "Option::is_none")]
    contranorm_temperature: Option<f64>,
    /// NeuTRENO (Nguyen et al. 2023): mu times what the first block's values are ahead of a block's own is added to what its
    /// heads give; 0.6 is the paper's [default: off].
    #[arg(long, value_name = "MU", allow_negative_numbers = true)]
    #[serde(skip_serializing_if = "Option::is_none")]
    neutreno: Option<f64>,
    /// AttnScale (Wang et al. 2022): every head learns a gain, from 0, on how far its attention is from uniform.
    #[arg(long)]
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    attn_scale: bool,
    /// FeatScale (Wang et al. 2022): gains, from 0, are learned on the mean of attention's output and on what deviates from it.
    #[arg(long)]
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    feat_scale: bool,
    /// Hierarchical fusion (Shi et al. 2022), for encoders: the head reads the states of all blocks, their maximum, a linear of
    /// them, or a gated sum [default: off].
    #[arg(long, value_name = "HOW")]
    #[serde(skip_serializing_if = "Option::is_none")]
    fusion: Option<Fusion>,
    /// Cosine regulariser (Gong et al. 2021): gamma times the mean |cosine| of a text's tokens behind the last block is added
    /// to the loss; below 0 it makes them alike [default: 0].
    #[arg(long, value_name = "GAMMA", allow_negative_numbers = true)]
    #[serde(skip_serializing_if = "Option::is_none")]
    cosine_regulariser: Option<f64>,
}
