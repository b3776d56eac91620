//! What is generated: against transformers' `generate`, with the cache and without, alone and in company.

use super::each_family::load;
use super::*;
use crate::generate::{
    Beams, Decoding, EarlyStopping, Finish, GenerateError, Generated, Generator, Listener, Prompt, Sampling, Silent,
    Strategy,
};
use crate::model::{LoadedModel, Memory, Positions};
use crate::peft::{Placement, Policy};
use rand::Rng;

fn numbers(value: &Value) -> Vec<u32> {
    value.as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect()
}

fn prompt(ids: &[u32]) -> Prompt {
    Prompt { ids: ids.to_vec(), number: 0 }
}

/// The decoding of a golden case.
fn decoding(case: &Value, new: u64) -> Decoding {
    let strategy = match case["beams"].as_u64().unwrap() {
        1 => Strategy::Greedy,
        beams => Strategy::Beams(Beams {
            beams: beams as usize,
            length_penalty: case["length_penalty"].as_f64().unwrap(),
            early_stopping: match &case["early_stopping"] {
                Value::Bool(true) => EarlyStopping::Yes,
                Value::Bool(false) => EarlyStopping::No,
                _ => EarlyStopping::Never,
            },
        }),
    };
    let texts = |value: &Value| value.as_array().unwrap().iter().map(|t| t.as_str().unwrap().to_owned()).collect();
    let stop = case.get("stop").map(texts).unwrap_or_default();
    Decoding { max_new_tokens: new as usize, strategy, stop, end: numbers(&case["ends"]) }
}

/// Decodes every case and compares tokens, scores and how the text ended.
fn compare(generator: &Generator<'_>, cases: &[Value], new: impl Fn(&Value) -> u64, what: &str) {
    for case in cases {
        let decoding = decoding(case, new(case));
        let prompts = [prompt(&numbers(&case["prompt"]))];
        let found = generator.generate(&prompts, &decoding, &mut Silent).unwrap().remove(0);
        let name = format!("{what}: {} {}", case["prompt"], serde_json::to_string(case).unwrap());
        assert_eq!(found.ids, numbers(&case["ids"]), "{name}");
        if let (Some(score), Strategy::Beams(beams)) = (case["score"].as_f64(), decoding.strategy) {
            let own = found.log_probability / (found.ids.len() as f64).powf(beams.length_penalty);
            assert!((own - score).abs() < 2e-5 * score.abs().max(1.0), "{name}: {own} for {score}");
        }
        let ended = found.ids.last().is_some_and(|id| decoding.end.contains(id));
        assert_eq!(found.finish == Finish::End, ended, "{name}");
    }
}

#[test]
fn what_transformers_generates_token_for_token() {
    let golden_cases = json(&golden("generation.json"));
    for stated in golden_cases["models"].as_array().unwrap() {
        let name = stated["model"].as_str().unwrap();
        let cases = stated["cases"].as_array().unwrap();
        assert!(cases.len() >= 57);
        let new = |_: &Value| stated["new"].as_u64().unwrap();
        let model = model(&golden(name), DType::F32);
        // The whole text at every step chooses the same.
        compare(&Generator::new(&model, None).unwrap().without_cache(), &cases[..4], new, &format!("{name}, whole"));
        compare(&Generator::new(&model, None).unwrap(), cases, new, name);
    }
}

#[test]
fn what_transformers_generates_on_a_real_model() {
    let shared = std::env::var("SMOOTH_PROBE_SHARED").unwrap_or_else(|_| "../shared".to_owned());
    let folder = Path::new(&shared).join("models/stories15M");
    if !folder.exists() {
        println!("SKIPPED: {} is not there; set SMOOTH_PROBE_SHARED", folder.display());
        return;
    }
    let loaded = LoadedModel::from_folder(&folder, "stories15M", DType::F32, &Device::Cpu).unwrap();
    let stated = json(&golden("generation.json"));
    let cases = stated["stories15M"]["cases"].as_array().unwrap();
    assert!(cases.len() > 40);
    let generator = Generator::new(&loaded.transformer, None).unwrap().with_tokenizer(loaded.tokenizer().unwrap());
    compare(&generator, cases, |case| case["new"].as_u64().unwrap(), "stories15M");
}

/// Modules with random values in every tensor.
fn random_peft(model: &Transformer, config: PeftConfig) -> Peft {
    let mut peft = Peft::initial(model, config, 1).unwrap();
    let mut rng = crate::random::stream(9, &["generation"]);
    for (_, variable) in peft.variables().unwrap() {
        let values: Vec<f64> = (0..variable.elem_count()).map(|_| rng.random_range(-0.3..0.3)).collect();
        let values = Tensor::from_vec(values, variable.shape().clone(), &Device::Cpu).unwrap();
        variable.set(&(values.to_dtype(variable.dtype()).unwrap() + variable.as_tensor()).unwrap()).unwrap();
    }
    peft
}

/// Every method that reads on, over `model`.
fn methods(model: &Transformer) -> Vec<(String, Option<Peft>)> {
    let lora = Method::Lora { rank: 3, alpha: 5.0, dropout: 0.1, rank_stabilised: false };
    let adapter = |placement| Method::Adapter { bottleneck: 4, scale: 1.3, placement };
    let residual = |arm| {
        let h0_kind = model.architecture().h0_kind;
        Some(ResidualConfig { lambda: 0.3, policy: Policy::All, arm, h0_kind, seed: 4, learned: None })
    };
    let cases = [
        ("lora", lora, Some(Arm::H0)),
        ("lora, vanilla", lora, None),
        ("lora, h0-normed", lora, Some(Arm::H0Normed)),
        ("lora, random", lora, Some(Arm::Random)),
        ("lora, none", lora, Some(Arm::None)),
        ("dora", Method::Dora { rank: 2, alpha: 5.0, dropout: 0.0, rank_stabilised: false }, Some(Arm::H0)),
        ("ia3", Method::Ia3, None),
        ("series", adapter(Placement::Series), Some(Arm::H0)),
        ("parallel", adapter(Placement::Parallel), Some(Arm::H0)),
        ("prefix", Method::Prefix { tokens: 3 }, None),
        ("prompt", Method::Prompt { tokens: 3 }, None),
    ];
    let mut all = vec![("base".to_owned(), None)];
    for (name, method, arm) in cases {
        let targets = method.default_targets(model.architecture());
        let config = PeftConfig::new(method, targets, arm.and_then(residual));
        all.push((name.to_owned(), Some(random_peft(model, config))));
    }
    all
}

fn decoders() -> Vec<String> {
    let names = std::fs::read_dir(golden("families")).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<String> = names
        .filter(|name| {
            let stated = json(&golden("families").join(name).join("golden.json"));
            stated["loss_kind"] == "next_token"
        })
        .collect();
    names.sort();
    names
}

/// Reads texts step by step and whole, in `dtype`; logits must agree.
fn steps_and_whole(model: &Transformer, peft: Option<&Peft>, tolerance: f64, name: &str) {
    let pass = Pass::inference(peft);
    let vocab = model.architecture().vocab_size as u32;
    let mut rng = crate::random::stream(2, &["texts", name]);
    let texts: Vec<Vec<u32>> = [17, 9, 20].map(|n| (0..n).map(|_| rng.random_range(0..vocab)).collect()).to_vec();
    let whole: Vec<Tensor> =
        texts.iter().map(|text| model.logits(&Packed::from_sequences(&[text]), &pass).unwrap()).collect();
    let mut memories = vec![Memory::default(); 3];
    let begun = 4;
    for (text, (memory, whole)) in texts.iter().zip(memories.iter_mut().zip(&whole)) {
        let states = model.read_on(&[&text[..begun]], vec![memory], &pass).unwrap();
        let logits = model.logits_of(&states).unwrap();
        close(name, &logits, &whole.narrow(0, 0, begun).unwrap(), tolerance);
    }
    // As many at once as still go on: one text after the other leaves.
    for step in begun..20 {
        let going: Vec<usize> = (0..3).filter(|&s| texts[s].len() > step).collect();
        let newest: Vec<[u32; 1]> = going.iter().map(|&s| [texts[s][step]]).collect();
        let of_going = memories.iter_mut().enumerate().filter(|(s, _)| going.contains(s)).map(|(_, memory)| memory);
        let states = model.read_on(&newest, of_going.collect(), &pass).unwrap();
        let logits = model.logits_of(&states).unwrap();
        for (row, &s) in going.iter().enumerate() {
            let (found, wanted) = (logits.narrow(0, row, 1).unwrap(), whole[s].narrow(0, step, 1).unwrap());
            close(&format!("{name}, text {s}, token {step}"), &found, &wanted, tolerance);
        }
    }
}

#[test]
fn a_text_read_step_by_step_has_the_logits_of_the_whole() {
    let names = decoders();
    assert!(names.len() >= 18, "{names:?}");
    for name in &names {
        let exact = load(name, DType::F64);
        for (method, peft) in methods(&exact) {
            steps_and_whole(&exact, peft.as_ref(), 1e-12, &format!("{name}, {method}"));
        }
        let single = load(name, DType::F32);
        for (method, peft) in methods(&single) {
            steps_and_whole(&single, peft.as_ref(), 2e-5, &format!("{name} in f32, {method}"));
        }
        // As another device computes it.
        crate::kernels::instead_of_fused(|| {
            for (method, peft) in methods(&exact).into_iter().take(2) {
                steps_and_whole(
                    &exact,
                    peft.as_ref().map(Peft::frozen).as_ref(),
                    1e-12,
                    &format!("{name}, composed, {method}"),
                );
            }
        });
    }
}

#[test]
fn weights_of_16_bits_and_blocks_read_on_too() {
    for name in ["gemma2", "falcon_alibi"] {
        let wide = crate::model::Precision { base: DType::BF16, compute: DType::F32, quantised: None };
        let folder = golden("families").join(name);
        let architecture = families::read_config(&folder).unwrap();
        let load = |precision| {
            let weights = Weights::open(&folder).unwrap();
            Transformer::load("golden", architecture.clone(), &weights, precision, &Device::Cpu).unwrap()
        };
        steps_and_whole(&load(wide), None, 2e-5, name);
        let narrow = crate::model::Precision::from(DType::BF16);
        steps_and_whole(&load(narrow), None, 3e-2, name);
    }
}

/// The arm that reads other tokens is not read on, but generates all the same.
#[test]
fn an_arm_that_reads_other_tokens_is_read_whole() {
    let model = model(&golden("models/gqa_tied"), DType::F64);
    let lora = Method::Lora { rank: 3, alpha: 5.0, dropout: 0.0, rank_stabilised: false };
    let residual = ResidualConfig {
        lambda: 0.3,
        policy: Policy::All,
        arm: Arm::Shuffled,
        h0_kind: model.architecture().h0_kind,
        seed: 4,
        learned: None,
    };
    let targets = lora.default_targets(model.architecture());
    let mut remedied = PeftConfig::new(lora, targets.clone(), None);
    remedied.details.remedies.attn_scale = true;
    assert!(!random_peft(&model, remedied).reads_on());
    let peft = random_peft(&model, PeftConfig::new(lora, targets, Some(residual)));
    assert!(!peft.reads_on());
    let error = model.read_on(&[[5_u32]], vec![&mut Memory::default()], &Pass::inference(Some(&peft)));
    assert!(error.unwrap_err().to_string().contains("reads more than the newest tokens"));
    let prompts = [prompt(&[5, 6, 7])];
    let decoding = Decoding::greedy(6);
    let found = Generator::new(&model, Some(&peft)).unwrap().generate(&prompts, &decoding, &mut Silent).unwrap();
    let mut text = prompts[0].ids.clone();
    for _ in 0..6 {
        let logits = model.logits(&Packed::from_sequences(&[&text]), &Pass::inference(Some(&peft))).unwrap();
        let last: Vec<f64> = logits.get(text.len() - 1).unwrap().to_vec1().unwrap();
        let best = (0..last.len()).max_by(|&a, &b| last[a].total_cmp(&last[b])).unwrap();
        text.push(best as u32);
    }
    assert_eq!(found[0].ids, text[3..]);
}

/// What is written for each prompt, by the prompts' order.
fn all(
    model: &Transformer,
    peft: Option<&Peft>,
    decoding: &Decoding,
    order: &[usize],
    at_once: usize,
) -> Vec<Generated> {
    let mut rng = crate::random::stream(8, &["prompts"]);
    let vocab = model.architecture().vocab_size as u32;
    let lengths = [3, 11, 1, 7, 5, 2, 9];
    let prompts: Vec<Prompt> = (0..lengths.len())
        .map(|place| Prompt {
            ids: (0..lengths[place]).map(|_| rng.random_range(0..vocab)).collect(),
            number: place as u64,
        })
        .collect();
    let chosen: Vec<Prompt> = order.iter().map(|&place| prompts[place].clone()).collect();
    let generator = Generator::new(model, peft).unwrap().at_once(at_once);
    generator.generate(&chosen, decoding, &mut Silent).unwrap()
}

#[test]
fn company_and_order_change_no_bit() {
    let model = model(&golden("models/gqa_tied"), DType::F32);
    let (_, peft) = methods(&model).remove(1);
    let sampling = Sampling { temperature: 1.2, top_k: Some(40), top_p: 0.9, seed: 7 };
    let beams = Beams { beams: 5, length_penalty: 1.0, early_stopping: EarlyStopping::No };
    for strategy in [Strategy::Greedy, Strategy::Sample(sampling), Strategy::Beams(beams)] {
        let decoding = Decoding { max_new_tokens: 12, strategy, stop: Vec::new(), end: vec![5, 17] };
        let together = all(&model, peft.as_ref(), &decoding, &[0, 1, 2, 3, 4, 5, 6], 7);
        assert!(together.iter().all(|text| !text.ids.is_empty() && text.log_probability < 0.0));
        assert_eq!(all(&model, peft.as_ref(), &decoding, &[0, 1, 2, 3, 4, 5, 6], 1), together);
        assert_eq!(all(&model, peft.as_ref(), &decoding, &[0, 1, 2, 3, 4, 5, 6], 2), together);
        let mut turned = all(&model, peft.as_ref(), &decoding, &[6, 5, 4, 3, 2, 1, 0], 4);
        turned.reverse();
        assert_eq!(turned, together);
        assert_eq!(all(&model, peft.as_ref(), &decoding, &[3], 3), together[3..4]);
    }
    // Two draws of one prompt are two.
    let decoding = Decoding { strategy: Strategy::Sample(sampling), ..Decoding::greedy(12) };
    let generator = Generator::new(&model, None).unwrap();
    let twice = [4, 5].map(|number| Prompt { ids: vec![3, 4], number });
    let found = generator.generate(&twice, &decoding, &mut Silent).unwrap();
    assert_ne!(found[0].ids, found[1].ids);
}

/// The sum of the chosen tokens' log-probabilities, by the whole text's logits.
fn log_probability(model: &Transformer, prompt: &[u32], new: &[u32]) -> f64 {
    let text = [prompt, new].concat();
    let logits = model.logits(&Packed::from_sequences(&[&text]), &Pass::default()).unwrap().to_vec2::<f64>().unwrap();
    let at = |place: usize| {
        let row = &logits[prompt.len() - 1 + place];
        row[new[place] as usize] - row.iter().map(|x| x.exp()).sum::<f64>().ln()
    };
    (0..new.len()).map(at).sum()
}

#[test]
fn log_probabilities_are_those_of_the_text() {
    let model = model(&golden("models/gqa_tied"), DType::F64);
    let sampling = Sampling { temperature: 0.7, top_k: None, top_p: 1.0, seed: 7 };
    let beams = Beams { beams: 3, length_penalty: 2.0, early_stopping: EarlyStopping::Yes };
    for strategy in [Strategy::Greedy, Strategy::Sample(sampling), Strategy::Beams(beams)] {
        let decoding = Decoding { strategy, end: vec![11], ..Decoding::greedy(9) };
        let ids = [7, 30, 2];
        let found = Generator::new(&model, None).unwrap().generate(&[prompt(&ids)], &decoding, &mut Silent).unwrap();
        let wanted = log_probability(&model, &ids, &found[0].ids);
        assert!((found[0].log_probability - wanted).abs() < 1e-5, "{strategy:?}: {found:?} {wanted}");
    }
}

#[derive(Default)]
struct Heard {
    tokens: BTreeMap<usize, Vec<u32>>,
    done: Vec<usize>,
}

impl Listener for Heard {
    fn token(&mut self, prompt: usize, id: u32) -> Result<(), GenerateError> {
        self.tokens.entry(prompt).or_default().push(id);
        Ok(())
    }

    fn done(&mut self, prompt: usize, generated: &Generated) -> Result<(), GenerateError> {
        assert_eq!(self.tokens[&prompt], generated.ids);
        self.done.push(prompt);
        if self.done.len() == 2 { Err(GenerateError::Listener("enough".to_owned())) } else { Ok(()) }
    }
}

#[test]
fn a_listener_hears_every_token_and_may_stop() {
    let model = model(&golden("models/gqa_tied"), DType::F32);
    let generator = Generator::new(&model, None).unwrap();
    let mut heard = Heard::default();
    let prompts = [prompt(&[4]), prompt(&[5, 6]), prompt(&[7])];
    let error = generator.generate(&prompts, &Decoding::greedy(4), &mut heard).unwrap_err();
    assert_eq!(error.to_string(), "enough");
    assert_eq!((heard.done.len(), heard.tokens.len()), (2, 3));
}

#[test]
fn positions_that_were_learned_bound_the_text() {
    let model = model(&golden("families/gpt2"), DType::F32);
    assert!(matches!(model.architecture().positions, Positions::Learned { .. }));
    let generator = Generator::new(&model, None).unwrap();
    let run = |tokens: usize| generator.generate(&[prompt(&vec![3; tokens])], &Decoding::greedy(10), &mut Silent);
    let found = run(30).unwrap();
    // Two more are read, and a third is written behind them.
    assert_eq!((found[0].ids.len(), found[0].finish), (3, Finish::Length));
    let error = run(33).unwrap_err().to_string();
    assert_eq!(error, "prompt 1 has 33 tokens and the model 32 learned positions; shorten it");
}

#[test]
fn what_cannot_be_generated_is_refused() {
    let encoder = load("bert_mlm", DType::F32);
    let error = Generator::new(&encoder, None).unwrap_err().to_string();
    assert_eq!(error, "a bert model sees the whole text and predicts no next token; generate with a decoder");
    let classifier = load("llama_classification", DType::F32);
    assert!(Generator::new(&classifier, None).unwrap_err().to_string().contains("tells 3 classes apart"));
    let model = model(&golden("models/gqa_tied"), DType::F32);
    let generator = Generator::new(&model, None).unwrap();
    let refused = |prompts: &[Prompt], decoding: &Decoding| {
        generator.generate(prompts, decoding, &mut Silent).unwrap_err().to_string()
    };
    let plain = Decoding::greedy(3);
    assert_eq!(refused(&[prompt(&[])], &plain), "prompt 1 has no tokens; a model continues at least one");
    assert!(refused(&[prompt(&[1000])], &plain).contains("outside the model's vocabulary"));
    assert!(refused(&[], &Decoding::greedy(0)).contains("it must be at least 1"));
    let stop = Decoding { stop: vec!["x".to_owned()], ..plain.clone() };
    assert_eq!(refused(&[prompt(&[1])], &stop), "stop texts need a tokenizer that writes tokens as text");
    let sampling = |temperature, top_k, top_p| Decoding {
        strategy: Strategy::Sample(Sampling { temperature, top_k, top_p, seed: 0 }),
        ..plain.clone()
    };
    assert!(refused(&[], &sampling(0.0, None, 1.0)).starts_with("temperature is 0; it must be greater than 0"));
    assert!(refused(&[], &sampling(1.0, Some(0), 1.0)).starts_with("top-k is 0"));
    assert!(refused(&[], &sampling(1.0, None, 0.0)).starts_with("top-p is 0; it must be in (0, 1]"));
    let beams = Beams { beams: 0, length_penalty: 1.0, early_stopping: EarlyStopping::No };
    let beams = Decoding { strategy: Strategy::Beams(beams), ..plain };
    assert!(refused(&[], &beams).starts_with("the number of beams is 0"));
}
