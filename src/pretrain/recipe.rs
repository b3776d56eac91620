//! How the embedded model is made: its architecture and its recipe, fixed by validation loss alone.

use super::corpus::{Corpus, Stage};
use super::holdout::Split;
use super::page::Text;
use super::vocabulary;
use crate::model::Architecture;
use crate::model::families::{ConfigError, parse_config};
use crate::random::stream;
use crate::train::AdamW;
use rand::Rng;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

/// Everything that decides the embedded model's weights.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct Recipe {
    /// Blocks.
    pub layers: usize,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Query heads.
    pub heads: usize,
    /// Key and value heads.
    pub kv_heads: usize,
    /// Width of the feed-forward.
    pub intermediate_size: usize,
    /// Longest sequence.
    pub context: usize,
    /// Seed of weights and corpus.
    pub seed: u64,
    /// Peak learning rate.
    pub lr: f64,
    /// Where the cosine ends, as a share of the peak.
    pub lr_floor: f64,
    /// Steps of linear warm-up.
    pub warmup_steps: u64,
    /// Weight decay, on matrices.
    pub weight_decay: f64,
    /// Gradient norm to clip at.
    pub max_grad_norm: f64,
    /// Optimizer steps of the stages 1, 2 and 3.
    pub stage_steps: [u64; 3],
    /// Texts of a step in the stages 1, 2 and 3.
    pub texts_per_step: [usize; 3],
    /// Share of stage-2 texts that are kept among those of stage 3.
    pub stage_two_share: f64,
    /// Steps between validations.
    pub eval_every: u64,
    /// Steps between checkpoints.
    pub save_every: u64,
    /// Steps of the two tunings behind the log's last lines; 0 leaves them out.
    pub tuning_steps: u64,
}

impl Default for Recipe {
    fn default() -> Self {
        Self {
            layers: 16,
            hidden_size: 96,
            heads: 3,
            kv_heads: 3,
            intermediate_size: 256,
            context: 256,
            seed: 1,
            lr: 3e-3,
            lr_floor: 0.05,
            warmup_steps: 50,
            weight_decay: 0.05,
            max_grad_norm: 1.0,
            stage_steps: [400, 600, 1400],
            texts_per_step: [20, 18, 18],
            stage_two_share: 0.25,
            eval_every: 200,
            save_every: 200,
            tuning_steps: 290,
        }
    }
}

impl Recipe {
    /// Optimizer steps in all.
    #[must_use]
    pub fn total_steps(&self) -> u64 {
        self.stage_steps.iter().sum()
    }

    /// AdamW's constants: β 0.9 and 0.95, decay on matrices only.
    #[must_use]
    pub fn optimizer(&self) -> AdamW {
        AdamW { beta1: 0.9, beta2: 0.95, epsilon: 1e-8, weight_decay: self.weight_decay, decay_vectors: false }
    }

    /// The model's `config.json`.
    #[must_use]
    pub fn config_json(&self) -> Value {
        json!({
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "hidden_size": self.hidden_size,
            "intermediate_size": self.intermediate_size,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "vocab_size": vocabulary::size(),
            "max_position_embeddings": self.context,
            "rms_norm_eps": 1e-5,
            "rope_theta": 10000.0,
            "hidden_act": "silu",
            "tie_word_embeddings": true,
            "bos_token_id": vocabulary::BOS,
            "eos_token_id": vocabulary::EOS,
            "torch_dtype": "float32",
        })
    }

    /// The model's shape.
    ///
    /// # Errors
    /// The recipe names sizes that no model can have.
    pub fn architecture(&self) -> Result<Architecture, ConfigError> {
        parse_config("recipe", &self.config_json())
    }

    /// The texts of optimizer step `step`, counted from 0: a function of the seed and the step alone.
    #[must_use]
    pub fn texts(&self, step: u64) -> Vec<Text> {
        let corpus = Corpus { seed: self.seed };
        let (stage, count, first) = self.place(step);
        let mut rng = stream(self.seed, &["stage-mix", &step.to_string()]);
        (0..count as u64)
            .map(|i| {
                let early = stage == Stage::Three && rng.random_bool(self.stage_two_share.clamp(0.0, 1.0));
                corpus.text(if early { Stage::Two } else { stage }, Split::Train, first + i)
            })
            .collect()
    }

    /// The stage of a step, the texts it reads, and the index of the first of them in the whole run.
    fn place(&self, step: u64) -> (Stage, usize, u64) {
        let stages = [Stage::One, Stage::Two, Stage::Three];
        let (mut begun, mut texts) = (0, 0);
        for ((stage, steps), count) in stages.into_iter().zip(self.stage_steps).zip(self.texts_per_step) {
            if step < begun + steps || stage == Stage::Three {
                return (stage, count, texts + (step - begun) * count as u64);
            }
            begun += steps;
            texts += steps * count as u64;
        }
        (Stage::Three, self.texts_per_step[2], texts)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_model_fits_its_budget() {
        let architecture = Recipe::default().architecture().unwrap();
        assert!(architecture.parameter_count() * 4 < 8_000_000, "{}", architecture.parameter_count());
    }

    #[test]
    fn no_text_is_read_twice_and_stages_follow() {
        let recipe = Recipe { stage_steps: [2, 2, 3], texts_per_step: [4, 3, 2], ..Recipe::default() };
        let places: Vec<_> = (0..7).map(|step| recipe.place(step)).collect();
        let expected = [
            (Stage::One, 4, 0),
            (Stage::One, 4, 4),
            (Stage::Two, 3, 8),
            (Stage::Two, 3, 11),
            (Stage::Three, 2, 14),
            (Stage::Three, 2, 16),
            (Stage::Three, 2, 18),
        ];
        assert_eq!(places, expected);
        assert_eq!(recipe.texts(5), recipe.texts(5));
        assert_eq!(recipe.texts(0).len(), 4);
    }
}
