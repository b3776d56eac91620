//! A GGUF file of a supported family under Hugging Face's names: configuration, and tensors widened from
//! their quantised blocks.
//!
//! In files of the architecture `llama`, each head's query and key rows stand so that the two halves of a rotary
//! pair are neighbours; Hugging Face's rotary embedding takes the pair (i, i + half). The rows are put back in that
//! order here: read as stored, the model is only somewhat worse, not garbage. The same goes for the 1 that is added
//! to the weights of Gemma's norms.

mod config;
mod names;

use crate::model::gguf_header::{self, Block, Header, Value};
use crate::model::weights::{TensorSource, WeightsError, one_line};
use candle_core::quantized::gguf_file::TensorInfo;
use candle_core::{DType, Device, Tensor};
use names::{Change, Family};
use std::fs::File;
use std::path::{Path, PathBuf};

const OTHER_EXPORT: &str = "use an export that this program reads, such as the model's Hugging Face folder";

/// An open GGUF file: its header; tensors are read when asked for.
#[derive(Debug)]
pub struct Gguf {
    path: PathBuf,
    header: Header,
    family: Family,
}

impl Gguf {
    /// Opens `path` and checks its header.
    ///
    /// # Errors
    /// The file cannot be read, is cut off, claims more than it holds, is one of several parts, or is of a family
    /// that is not read.
    pub fn open(path: &Path) -> Result<Self, WeightsError> {
        let header = gguf_header::read(path)?;
        let named = match header.metadata.get("general.architecture") {
            Some(Value::Text(name)) => name.as_str(),
            _ => "(none)",
        };
        let Some(family) = Family::named(named) else {
            let known = Family::known();
            let problem = format!("general.architecture is {}; read are {known}", one_line(named));
            return Err(WeightsError::File { file: path.display().to_string(), problem, remedy: OTHER_EXPORT });
        };
        let gguf = Self { path: path.to_path_buf(), header, family };
        let experts = gguf.key("expert_count");
        if gguf.number(&experts).is_some_and(|n| n > 0.0) {
            return Err(gguf.bad_key(&experts, "mixtures of experts are not read"));
        }
        if gguf.number("split.count").is_some_and(|n| n > 1.0) {
            let remedy = "join the parts with llama.cpp's llama-gguf-split --merge";
            let problem = "is one of several parts (key split.count)".to_owned();
            return Err(WeightsError::File { file: path.display().to_string(), problem, remedy });
        }
        Ok(gguf)
    }

    /// The file.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
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

    /// The values before llama.cpp's converter changed them.
    fn as_before(&self, stored: &str, tensor: Tensor) -> Result<Tensor, WeightsError> {
        let queries = || self.whole(&self.key("attention.head_count"));
        let changed = match self.family.change(stored) {
            Change::Nothing => Ok(tensor),
            Change::QueryRows => self.half_split(&tensor, queries()?),
            Change::KeyRows => {
                let keys = self.optional(&self.key("attention.head_count_kv"))?;
                self.half_split(&tensor, keys.map_or_else(queries, Ok)?)
            }
            Change::OneAdded => tensor.affine(1.0, -1.0),
        };
        changed.map_err(|e| self.broken(stored, e))
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
        self.family.stored(name).is_some_and(|stored| self.header.tensors.contains_key(&stored))
    }

    fn load(&self, name: &str, shape: &[usize], dtype: DType, device: &Device) -> Result<Tensor, WeightsError> {
        let missing = || WeightsError::missing(&self.path, name);
        let stored = self.family.stored(name).ok_or_else(missing)?;
        let block = self.header.tensors.get(&stored).ok_or_else(missing)?;
        if block.shape != shape {
            return Err(WeightsError::Shape {
                file: self.path.display().to_string(),
                tensor: one_line(name),
                found: block.shape.clone(),
                expected: shape.to_vec(),
            });
        }
        let bad = |e: candle_core::Error| self.broken(&stored, e);
        let tensor = self.as_before(&stored, self.widen(&stored, block)?)?.to_dtype(dtype).map_err(bad)?;
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
        // The configuration holds what these factors say.
        let weights = self.header.tensors.keys().filter(|stored| *stored != "rope_freqs.weight");
        let mut names = weights.map(|stored| self.family.public(stored)).collect::<Vec<_>>();
        names.sort();
        names
    }
}

/// The number that a 32-bit value was written as: 1e-5, not 9.99999974e-6.
fn shortest(value: f64) -> f64 {
    let single = value as f32;
    if f64::from(single) == value { single.to_string().parse().unwrap_or(value) } else { value }
}

#[cfg(test)]
mod tests {
    use super::config::llama3_factors;
    use super::*;
    use crate::model::gguf_header::tests::{File as Made, Item};
    use serde_json::{Value as Json, json};

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

    /// The keys that every family needs, without tensors.
    fn keys(family: &str, layers: u32) -> Made {
        let made = Made::default().key("general.architecture", Item::Text(family));
        let key = |name: &str| format!("{family}.{name}");
        made.key(&key("embedding_length"), Item::U32(48))
            .key(&key("feed_forward_length"), Item::U32(16))
            .key(&key("block_count"), Item::U32(layers))
            .key(&key("attention.head_count"), Item::U32(4))
            .key(&key("context_length"), Item::U32(64))
            .key(&key("vocab_size"), Item::U32(7))
            .key(&key("attention.layer_norm_rms_epsilon"), Item::F32(1e-6))
            .key(&key("attention.key_length"), Item::U32(8))
    }

    #[test]
    fn what_no_key_says_is_as_in_llama_cpp() {
        let dir = tempfile::tempdir().unwrap();
        let config = |made: Made| Gguf::open(&made.write(dir.path())).unwrap().config_json().unwrap();
        for (family, largest, period) in [("gemma2", 46, 2), ("gemma3", 62, 6)] {
            // The scale is a head's width, but in the models of 27 billion weights the width over the heads.
            assert_eq!(config(keys(family, 26))["query_pre_attn_scalar"], json!(8));
            let deep = config(keys(family, largest));
            assert_eq!(deep["query_pre_attn_scalar"], json!(12));
            let kinds: Vec<bool> =
                deep["layer_types"].as_array().unwrap().iter().map(|kind| kind == "full_attention").collect();
            let expected: Vec<bool> = (1..=largest).map(|layer| layer % period == 0).collect();
            assert_eq!(kinds, expected, "{family}");
        }
        let gemma3 = config(keys("gemma3", 26));
        assert_eq!((&gemma3["rope_local_base_freq"], &gemma3["sliding_window"]), (&json!(10000.0), &Json::Null));
        assert_eq!(config(keys("gemma2", 26)).get("sliding_window"), None);
        // A factor without a kind is linear, and 0 is none.
        let linear = keys("qwen3", 2).key("qwen3.rope.scaling.factor", Item::F32(4.0));
        assert_eq!(config(linear)["rope_scaling"], json!({"rope_type": "linear", "factor": 4.0}));
        assert_eq!(config(keys("qwen3", 2).key("qwen3.rope.scaling.factor", Item::F32(0.0))).get("rope_scaling"), None);
        // A share that the product must not fall short of: 2 of 98.
        let partial = Made::default().key("general.architecture", Item::Text("phi3"));
        let partial = partial.key("phi3.rope.dimension_count", Item::U32(2)).write(dir.path());
        let share = Gguf::open(&partial).unwrap().rotated_share(98).unwrap().unwrap();
        assert_eq!((share * 98.0) as u64, 2);
    }

    #[test]
    fn what_would_be_computed_otherwise_is_refused_in_one_line() {
        let dir = tempfile::tempdir().unwrap();
        let with = |family: &str, key: &str, item: Item<'_>| keys(family, 2).key(&format!("{family}.{key}"), item);
        for (made, expected) in [
            (
                keys("phi3", 2).tensor("rope_factors_long.weight", &[4], &[2.0; 4]),
                "tensor rope_factors_long.weight: rotary",
            ),
            (
                with("phi3", "rope.scaling.attn_factor", Item::F32(1.2)),
                "key phi3.rope.scaling.attn_factor: rotary scaling",
            ),
            (keys("qwen2", 2).tensor("rope_freqs.weight", &[4], &[1.0; 4]), "rotary factors are not read for qwen2"),
            (with("qwen3", "rope.scaling.type", Item::Text("yarn")), "key qwen3.rope.scaling.type: yarn is not read"),
            (with("qwen3", "rope.dimension_count", Item::U32(16)), "rope.dimension_count: is 16, and a head has 8"),
            (with("llama", "rope.dimension_count", Item::U32(4)), "rope.dimension_count: is 4, and a head has 8"),
            (with("qwen3", "attention.value_length", Item::U32(4)), "attention.value_length: is 4, and keys have 8"),
            (with("qwen3", "attention.causal", Item::Truth(false)), "key qwen3.attention.causal: is false"),
            (with("gemma2", "rope.freq_base_swa", Item::F32(5.0)), "key gemma2.rope.freq_base_swa: differs"),
            (
                with("gemma3", "attention.sliding_window_pattern", Item::I32s(vec![1, 0])),
                "sliding_window_pattern: is no whole number",
            ),
            (
                with("llama", "attention.sliding_window", Item::U32(4)).tensor("blk.0.attn_q.bias", &[1], &[0.0]),
                "key llama.attention.sliding_window: a window is Mistral's",
            ),
        ] {
            let message = Gguf::open(&made.write(dir.path())).unwrap().config_json().unwrap_err().to_string();
            assert!(message.contains(expected) && !message.contains('\n'), "{expected}: {message}");
        }
        for (made, expected) in [
            (with("qwen3", "expert_count", Item::U32(8)), "key qwen3.expert_count: mixtures of experts"),
            (keys("qwen3", 2).key("split.count", Item::U32(3)), "is one of several parts (key split.count); join"),
        ] {
            let message = Gguf::open(&made.write(dir.path())).unwrap_err().to_string();
            assert!(message.contains(expected) && !message.contains('\n'), "{expected}: {message}");
        }
    }

    #[test]
    fn other_families_and_broken_values_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let open = |made: Made| Gguf::open(&made.write(dir.path()));
        let family = open(Made::default().key("general.architecture", Item::Text("mamba"))).unwrap_err().to_string();
        assert!(family.contains("general.architecture is mamba; read are llama, qwen2, "), "{family}");
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
