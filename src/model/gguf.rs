//! A GGUF file of the LLaMA family under Hugging Face's names: configuration, and tensors widened from
//! their quantised blocks.
//!
//! llama.cpp stores each head's query and key rows so that the two halves of a rotary pair are neighbours;
//! Hugging Face's rotary embedding takes the pair (i, i + half). The rows are put back in that order here:
//! read as stored, the model is only somewhat worse, not garbage.

use crate::model::gguf_header::{self, Block, Header, Value};
use crate::model::weights::{TensorSource, WeightsError, one_line};
use candle_core::quantized::gguf_file::TensorInfo;
use candle_core::{DType, Device, Tensor};
use serde_json::{Value as Json, json};
use std::fs::File;
use std::path::{Path, PathBuf};

const OTHER_EXPORT: &str = "use an export that this program reads, such as the model's Hugging Face folder";

/// An open GGUF file: its header; tensors are read when asked for.
#[derive(Debug)]
pub struct Gguf {
    path: PathBuf,
    header: Header,
}

/// Which rows of a tensor llama.cpp reordered.
#[derive(Clone, Copy, PartialEq)]
enum Rows {
    AsTheyAre,
    Queries,
    Keys,
}

impl Gguf {
    /// Opens `path` and checks its header.
    ///
    /// # Errors
    /// The file cannot be read, is cut off, claims more than it holds, or is of another family than LLaMA's.
    pub fn open(path: &Path) -> Result<Self, WeightsError> {
        let gguf = Self { path: path.to_path_buf(), header: gguf_header::read(path)? };
        let family = gguf.text("general.architecture").unwrap_or("(none)");
        if family != "llama" {
            let problem = format!("general.architecture is {}; only llama is read", one_line(family));
            return Err(gguf.refuse(problem));
        }
        if gguf.number("llama.expert_count").is_some_and(|n| n > 0.0) {
            return Err(gguf.refuse("llama.expert_count: mixtures of experts are not read".to_string()));
        }
        Ok(gguf)
    }

    /// The file.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The model's configuration in the spelling of Hugging Face's `config.json`.
    ///
    /// # Errors
    /// A required key is missing or no number, or the rotary scaling is of a kind that is not read.
    pub fn config_json(&self) -> Result<Json, WeightsError> {
        let hidden = self.whole("llama.embedding_length")?;
        let heads = self.whole("llama.attention.head_count")?;
        let head_dim = match self.optional("llama.rope.dimension_count")? {
            Some(n) => n,
            None => hidden.checked_div(heads).ok_or_else(|| self.bad_key("llama.attention.head_count", "is 0"))?,
        };
        let vocab = match self.header.tensors.get("token_embd.weight").and_then(|block| block.shape.first()) {
            Some(&rows) => rows as u64,
            None => self.whole("llama.vocab_size")?,
        };
        let mut config = json!({
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "hidden_size": hidden,
            "intermediate_size": self.whole("llama.feed_forward_length")?,
            "num_hidden_layers": self.whole("llama.block_count")?,
            "num_attention_heads": heads,
            "num_key_value_heads": self.optional("llama.attention.head_count_kv")?.unwrap_or(heads),
            "head_dim": head_dim,
            "vocab_size": vocab,
            "max_position_embeddings": self.whole("llama.context_length")?,
            "rms_norm_eps": self.real("llama.attention.layer_norm_rms_epsilon")?,
            "rope_theta": self.number("llama.rope.freq_base").map_or(10000.0, shortest),
            "hidden_act": "silu",
            "attention_bias": self.header.tensors.contains_key("blk.0.attn_q.bias"),
            "mlp_bias": self.header.tensors.contains_key("blk.0.ffn_down.bias"),
            "tie_word_embeddings": !self.header.tensors.contains_key("output.weight"),
        });
        let scaling = self.rope_scaling(head_dim)?;
        if let Some(map) = config.as_object_mut() {
            let ids =
                [("bos_token_id", "tokenizer.ggml.bos_token_id"), ("eos_token_id", "tokenizer.ggml.eos_token_id")];
            for (name, key) in ids {
                if let Some(id) = self.optional(key)? {
                    map.insert(name.to_string(), json!(id));
                }
            }
            if let Some(scaling) = scaling {
                map.insert("rope_scaling".to_string(), scaling);
            }
        }
        Ok(config)
    }

    /// Hugging Face's `rope_scaling`. LLaMA 3.1's is stored as a factor per frequency; its parameters are
    /// the published ones (low 1, high 4, 8192 positions) and a largest factor, which must reproduce it.
    fn rope_scaling(&self, head_dim: u64) -> Result<Option<Json>, WeightsError> {
        match self.text("llama.rope.scaling.type") {
            None | Some("none") => {}
            Some("linear") => {
                let factor = self.real("llama.rope.scaling.factor")?;
                return Ok(Some(json!({"rope_type": "linear", "factor": factor})));
            }
            Some(other) => {
                let problem = format!("{} is not read", one_line(other));
                return Err(self.bad_key("llama.rope.scaling.type", &problem));
            }
        }
        let Some(block) = self.header.tensors.get("rope_freqs.weight") else { return Ok(None) };
        let stored = self.widen("rope_freqs.weight", block)?.flatten_all().and_then(|t| t.to_vec1::<f32>());
        let stored = stored.map_err(|e| self.broken("rope_freqs.weight", e))?;
        let factor = stored.iter().copied().fold(1.0f32, f32::max);
        let theta = self.number("llama.rope.freq_base").map_or(10000.0, shortest);
        let expected = llama3_factors(head_dim, theta, f64::from(factor));
        let close = |(a, b): (&f32, &f64)| (f64::from(*a) - b).abs() <= 1e-3 * b;
        if stored.len() != expected.len() || !stored.iter().zip(&expected).all(close) {
            let problem = "its rotary factors are not LLaMA 3.1's (low 1, high 4, 8192 positions)";
            return Err(WeightsError::tensor(&self.path, "rope_freqs.weight", problem, OTHER_EXPORT));
        }
        Ok(Some(json!({
            "rope_type": "llama3",
            "factor": f64::from(factor),
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        })))
    }

    /// The widened tensor as it is stored, in f32 on the CPU.
    fn widen(&self, stored: &str, block: &Block) -> Result<Tensor, WeightsError> {
        let (kind, dtype) = block.kind;
        let ggml_dtype = dtype.ok_or_else(|| {
            let problem = format!("is stored in ggml's type {kind}, which candle cannot widen");
            WeightsError::tensor(&self.path, stored, problem, "use an export in Q8_0, Q4_K, F16 or another common type")
        })?;
        let mut file = File::open(&self.path).map_err(|e| WeightsError::read(&self.path, e))?;
        let info = TensorInfo { ggml_dtype, shape: block.shape.as_slice().into(), offset: 0 };
        info.read(&mut file, block.start, &Device::Cpu)
            .and_then(|blocks| blocks.dequantize(&Device::Cpu))
            .map_err(|e| self.broken(stored, e))
    }

    /// Each head's rows from (pair, half) order back to (half, pair).
    fn half_split(&self, tensor: &Tensor, heads: u64) -> candle_core::Result<Tensor> {
        let heads = usize::try_from(heads).unwrap_or_default();
        let rows = tensor.dim(0)?;
        let pairs = rows.checked_div(heads.saturating_mul(2)).unwrap_or_default();
        let dims = tensor.dims().to_vec();
        tensor
            .reshape((heads, pairs, 2, tensor.elem_count().checked_div(rows).unwrap_or_default()))?
            .transpose(1, 2)?
            .contiguous()?
            .reshape(dims)
    }

    fn broken(&self, tensor: &str, error: candle_core::Error) -> WeightsError {
        WeightsError::tensor(&self.path, tensor, format!("cannot be read: {error}"), super::weights::FETCH_AGAIN)
    }

    fn refuse(&self, problem: String) -> WeightsError {
        WeightsError::File { file: self.path.display().to_string(), problem, remedy: OTHER_EXPORT }
    }

    fn bad_key(&self, key: &str, problem: &str) -> WeightsError {
        self.refuse(format!("key {key}: {problem}"))
    }

    pub(crate) fn value(&self, key: &str) -> Option<&Value> {
        self.header.metadata.get(key)
    }

    pub(crate) fn text(&self, key: &str) -> Option<&str> {
        match self.value(key) {
            Some(Value::Text(text)) => Some(text),
            _ => None,
        }
    }

    fn number(&self, key: &str) -> Option<f64> {
        match self.value(key) {
            Some(Value::Whole(n)) => Some(*n as f64),
            Some(Value::Real(x)) => Some(*x),
            _ => None,
        }
    }

    fn real(&self, key: &str) -> Result<f64, WeightsError> {
        let number = self.number(key).filter(|x| x.is_finite());
        number.map(shortest).ok_or_else(|| self.bad_key(key, "is missing or no number"))
    }

    pub(crate) fn optional(&self, key: &str) -> Result<Option<u64>, WeightsError> {
        match self.value(key) {
            None => Ok(None),
            Some(Value::Whole(n)) => match u32::try_from(*n) {
                Ok(n) => Ok(Some(n.into())),
                Err(_) => Err(self.bad_key(key, &format!("{n} is out of range"))),
            },
            Some(_) => Err(self.bad_key(key, "is no whole number; layers that differ are not read")),
        }
    }

    fn whole(&self, key: &str) -> Result<u64, WeightsError> {
        self.optional(key)?.ok_or_else(|| self.bad_key(key, "is missing"))
    }
}

impl TensorSource for Gguf {
    fn contains(&self, name: &str) -> bool {
        stored_name(name).is_some_and(|(stored, _)| self.header.tensors.contains_key(&stored))
    }

    fn load(&self, name: &str, shape: &[usize], dtype: DType, device: &Device) -> Result<Tensor, WeightsError> {
        let missing = || WeightsError::missing(&self.path, name);
        let (stored, rows) = stored_name(name).ok_or_else(missing)?;
        let block = self.header.tensors.get(&stored).ok_or_else(missing)?;
        if block.shape != shape {
            return Err(WeightsError::Shape {
                file: self.path.display().to_string(),
                tensor: one_line(name),
                found: block.shape.clone(),
                expected: shape.to_vec(),
            });
        }
        let heads = match rows {
            Rows::AsTheyAre => None,
            Rows::Queries => Some(self.whole("llama.attention.head_count")?),
            Rows::Keys => {
                let queries = self.whole("llama.attention.head_count")?;
                Some(self.optional("llama.attention.head_count_kv")?.unwrap_or(queries))
            }
        };
        let bad = |e: candle_core::Error| self.broken(&stored, e);
        let mut tensor = self.widen(&stored, block)?;
        if let Some(heads) = heads {
            tensor = self.half_split(&tensor, heads).map_err(bad)?;
        }
        let tensor = tensor.to_dtype(dtype).map_err(bad)?;
        let values = tensor.flatten_all().and_then(|t| t.to_dtype(DType::F32)?.to_vec1::<f32>()).map_err(bad)?;
        let count = values.iter().filter(|v| !v.is_finite()).count();
        if count > 0 {
            return Err(WeightsError::NotFinite {
                file: self.path.display().to_string(),
                tensor: one_line(name),
                count,
                of: values.len(),
                dtype: dtype.as_str(),
            });
        }
        tensor.to_device(device).map_err(bad)
    }

    fn names(&self) -> Vec<String> {
        let mut names = self.header.tensors.keys().filter_map(|stored| public_name(stored)).collect::<Vec<_>>();
        names.sort();
        names
    }
}

/// Names outside the layers: llama.cpp's and Hugging Face's.
const OUTSIDE: [(&str, &str); 3] =
    [("token_embd.", "model.embed_tokens."), ("output_norm.", "model.norm."), ("output.", "lm_head.")];

/// Names within a layer, and whose rows are reordered.
const WITHIN: [(&str, &str, Rows); 9] = [
    ("attn_norm.", "input_layernorm.", Rows::AsTheyAre),
    ("attn_q.", "self_attn.q_proj.", Rows::Queries),
    ("attn_k.", "self_attn.k_proj.", Rows::Keys),
    ("attn_v.", "self_attn.v_proj.", Rows::AsTheyAre),
    ("attn_output.", "self_attn.o_proj.", Rows::AsTheyAre),
    ("ffn_norm.", "post_attention_layernorm.", Rows::AsTheyAre),
    ("ffn_gate.", "mlp.gate_proj.", Rows::AsTheyAre),
    ("ffn_up.", "mlp.up_proj.", Rows::AsTheyAre),
    ("ffn_down.", "mlp.down_proj.", Rows::AsTheyAre),
];

/// Hugging Face's name to llama.cpp's.
fn stored_name(name: &str) -> Option<(String, Rows)> {
    if let Some((layer, part)) = name.strip_prefix("model.layers.").and_then(|rest| rest.split_once('.')) {
        let renamed = |(theirs, ours, rows): &(&str, &str, Rows)| {
            part.strip_prefix(ours).map(|end| (format!("blk.{layer}.{theirs}{end}"), *rows))
        };
        return WITHIN.iter().find_map(renamed);
    }
    let renamed = |(theirs, ours): &(&str, &str)| name.strip_prefix(ours).map(|end| format!("{theirs}{end}"));
    OUTSIDE.iter().find_map(renamed).map(|stored| (stored, Rows::AsTheyAre))
}

/// llama.cpp's name to Hugging Face's; none for what is no weight, such as rotary factors.
fn public_name(stored: &str) -> Option<String> {
    if let Some((layer, part)) = stored.strip_prefix("blk.").and_then(|rest| rest.split_once('.')) {
        let renamed = |(theirs, ours, _): &(&str, &str, Rows)| {
            part.strip_prefix(theirs).map(|end| format!("model.layers.{layer}.{ours}{end}"))
        };
        return WITHIN.iter().find_map(renamed);
    }
    OUTSIDE.iter().find_map(|(theirs, ours)| stored.strip_prefix(theirs).map(|end| format!("{ours}{end}")))
}

/// LLaMA 3.1's division of each rotary frequency (transformers, `_compute_llama3_parameters`).
fn llama3_factors(head_dim: u64, theta: f64, factor: f64) -> Vec<f64> {
    let (low, high, positions) = (1.0, 4.0, 8192.0);
    let one = |pair: u64| {
        let wavelength = 2.0 * std::f64::consts::PI * theta.powf(2.0 * pair as f64 / head_dim as f64);
        if wavelength < positions / high {
            1.0
        } else if wavelength > positions / low {
            factor
        } else {
            let smooth = (positions / wavelength - low) / (high - low);
            1.0 / ((1.0 - smooth) / factor + smooth)
        }
    };
    // A head has at most a few hundred pairs; a claim beyond that cannot match what is stored.
    (0..(head_dim / 2).min(65_536)).map(one).collect()
}

/// The number that a 32-bit value was written as: 1e-5, not 9.99999974e-6.
fn shortest(value: f64) -> f64 {
    let single = value as f32;
    if f64::from(single) == value { single.to_string().parse().unwrap_or(value) } else { value }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::gguf_header::tests::{File as Made, Item};

    fn smollm() -> Option<PathBuf> {
        let shared = std::env::var_os("SMOOTH_PROBE_SHARED").map_or_else(|| PathBuf::from("../shared"), PathBuf::from);
        let path = shared.join("models/SmolLM2-135M/SmolLM2-135M-Instruct.Q4_1.gguf");
        if path.exists() {
            return Some(path);
        }
        println!("SKIPPED: {} is not there (SMOOTH_PROBE_SHARED)", path.display());
        None
    }

    #[test]
    fn the_real_model_has_transformers_configuration_and_values() {
        let Some(path) = smollm() else { return };
        let gguf = Gguf::open(&path).unwrap();
        let config = gguf.config_json().unwrap();
        for (key, expected) in [
            ("hidden_size", json!(576)),
            ("intermediate_size", json!(1536)),
            ("num_hidden_layers", json!(30)),
            ("num_attention_heads", json!(9)),
            ("num_key_value_heads", json!(3)),
            ("head_dim", json!(64)),
            ("vocab_size", json!(49152)),
            ("max_position_embeddings", json!(8192)),
            ("rms_norm_eps", json!(1e-5)),
            ("rope_theta", json!(100_000.0)),
            ("tie_word_embeddings", json!(true)),
            ("attention_bias", json!(false)),
            ("bos_token_id", json!(1)),
            ("eos_token_id", json!(2)),
        ] {
            assert_eq!(config[key], expected, "{key}");
        }
        assert_eq!(config.get("rope_scaling"), None);
        assert_eq!(gguf.names().len(), 272);
        assert!(gguf.contains("model.layers.29.mlp.down_proj.weight") && !gguf.contains("lm_head.weight"));

        // Rows as transformers reads them from the same file: see tests/golden/loading.py.
        let golden: Json = serde_json::from_str(include_str!("../../tests/golden/smollm2.json")).unwrap();
        for (name, rows) in golden["rows"].as_object().unwrap() {
            let height = if name.contains("q_proj") { 576 } else { 192 };
            let tensor = gguf.load(name, &[height, 576], DType::F32, &Device::Cpu).unwrap().to_vec2::<f32>().unwrap();
            for (row, expected) in rows.as_object().unwrap() {
                let expected: Vec<f32> = serde_json::from_value(expected.clone()).unwrap();
                assert_eq!(tensor[row.parse::<usize>().unwrap()][..4], expected, "{name} {row}");
            }
        }
        let table = gguf.load("model.embed_tokens.weight", &[49152, 576], DType::F32, &Device::Cpu).unwrap();
        let row: Vec<f32> = table.get(30).unwrap().to_vec1().unwrap();
        let expected: Vec<f32> = serde_json::from_value(golden["last_token"]["embedding"]["first"].clone()).unwrap();
        assert_eq!(row[..4], expected);
    }

    /// A model of two heads and one key head, four wide each, whose rows count up as they are stored.
    fn tiny() -> Made {
        let rows = |n: u16| (0..n * 8).map(f32::from).collect::<Vec<_>>();
        Made::default()
            .key("general.architecture", Item::Text("llama"))
            .key("llama.embedding_length", Item::U32(8))
            .key("llama.feed_forward_length", Item::U32(16))
            .key("llama.block_count", Item::U32(1))
            .key("llama.attention.head_count", Item::U32(2))
            .key("llama.attention.head_count_kv", Item::U32(1))
            .key("llama.context_length", Item::U32(64))
            .key("llama.attention.layer_norm_rms_epsilon", Item::F32(1e-6))
            .tensor("token_embd.weight", &[8, 3], &rows(3))
            .tensor("blk.0.attn_q.weight", &[8, 8], &rows(8))
            .tensor("blk.0.attn_q.bias", &[8], &rows(1))
            .tensor("blk.0.attn_k.weight", &[8, 4], &rows(4))
            .tensor("output.weight", &[8, 3], &rows(3))
    }

    #[test]
    fn query_and_key_rows_go_back_to_half_split_order() {
        let dir = tempfile::tempdir().unwrap();
        let gguf = Gguf::open(&tiny().write(dir.path())).unwrap();
        let first = |name: &str, rows: usize| -> Vec<f32> {
            let tensor = gguf.load(name, &[rows, 8], DType::F32, &Device::Cpu).unwrap().to_vec2::<f32>().unwrap();
            tensor.iter().map(|row| row[0] / 8.0).collect()
        };
        assert_eq!(first("model.layers.0.self_attn.q_proj.weight", 8), [0., 2., 1., 3., 4., 6., 5., 7.]);
        assert_eq!(first("model.layers.0.self_attn.k_proj.weight", 4), [0., 2., 1., 3.]);
        assert_eq!(first("lm_head.weight", 3), [0., 1., 2.]);
        let bias = gguf.load("model.layers.0.self_attn.q_proj.bias", &[8], DType::F64, &Device::Cpu).unwrap();
        assert_eq!(bias.to_vec1::<f64>().unwrap(), [0., 2., 1., 3., 4., 6., 5., 7.]);
        let config = gguf.config_json().unwrap();
        assert_eq!((&config["head_dim"], &config["tie_word_embeddings"]), (&json!(4), &json!(false)));
        assert_eq!((&config["attention_bias"], &config["rope_theta"]), (&json!(true), &json!(10000.0)));
        assert_eq!(config["vocab_size"], json!(3));
        let shape = gguf.load("lm_head.weight", &[3, 9], DType::F32, &Device::Cpu).unwrap_err().to_string();
        assert!(shape.contains("tensor lm_head.weight has shape [3, 8]"), "{shape}");
        assert!(gguf.load("model.norm.weight", &[8], DType::F32, &Device::Cpu).is_err());
    }

    #[test]
    fn rotary_scaling_of_llama_3_1_is_recognised_and_any_other_refused() {
        let dir = tempfile::tempdir().unwrap();
        let with = |factors: &[f32]| {
            let made = tiny().key("llama.rope.dimension_count", Item::U32(128));
            let made = made.key("llama.rope.freq_base", Item::F32(500_000.0));
            let path = made.tensor("rope_freqs.weight", &[factors.len() as u64], factors).write(dir.path());
            Gguf::open(&path).unwrap().config_json()
        };
        let mut factors: Vec<f32> = llama3_factors(128, 500_000.0, 8.0).into_iter().map(|f| f as f32).collect();
        // Llama 3.1's own file: ones, then a ramp from pair 29 to 34, then eights.
        assert_eq!((factors[28], factors[35], factors.len()), (1.0, 8.0, 64));
        assert!((factors[30] - 1.5).abs() < 0.6, "{}", factors[30]);
        let scaling = with(&factors).unwrap()["rope_scaling"].clone();
        assert_eq!((&scaling["rope_type"], &scaling["factor"]), (&json!("llama3"), &json!(8.0)));
        factors[0] = 2.0;
        assert!(with(&factors).unwrap_err().to_string().contains("tensor rope_freqs.weight: its rotary factors"));
        let linear = tiny().key("llama.rope.scaling.type", Item::Text("linear"));
        let linear = linear.key("llama.rope.scaling.factor", Item::F32(4.0)).write(dir.path());
        let config = Gguf::open(&linear).unwrap().config_json().unwrap();
        assert_eq!(config["rope_scaling"], json!({"rope_type": "linear", "factor": 4.0}));
        let yarn = tiny().key("llama.rope.scaling.type", Item::Text("yarn")).write(dir.path());
        assert!(Gguf::open(&yarn).unwrap().config_json().unwrap_err().to_string().contains("yarn is not read"));
    }

    #[test]
    fn other_families_and_broken_values_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let open = |made: Made| Gguf::open(&made.write(dir.path()));
        let family = open(Made::default().key("general.architecture", Item::Text("gemma"))).unwrap_err().to_string();
        assert!(family.contains("general.architecture is gemma; only llama is read"), "{family}");
        let empty = Made::default().key("general.architecture", Item::Text("llama"));
        let missing = open(empty).unwrap().config_json().unwrap_err().to_string();
        assert!(missing.contains("key llama.embedding_length: is missing"), "{missing}");
        let zero = Made::default()
            .key("general.architecture", Item::Text("llama"))
            .key("llama.embedding_length", Item::U32(8))
            .key("llama.attention.head_count", Item::U32(0));
        assert!(open(zero).unwrap().config_json().unwrap_err().to_string().contains("head_count: is 0"));
        let nan = tiny().tensor("output_norm.weight", &[2], &[1.0, f32::NAN]);
        let nan = open(nan).unwrap().load("model.norm.weight", &[2], DType::F32, &Device::Cpu).unwrap_err();
        assert!(nan.to_string().contains("tensor model.norm.weight: 1 of 2 values are NaN"), "{nan}");
    }
}
