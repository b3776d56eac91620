//! Stored states: what is read is what was written, and nothing that is wrong is believed.

use super::*;
use crate::analysis::layers::Layers;
use crate::analysis::states_save::{ORIGIN_FILE, SavePlan, SavedRun, SavedText, save_states};
use crate::measures::points;
use crate::model::LoadedModel;
use candle_core::DType;

fn saved(index: u64, ids: &[u32]) -> SavedText {
    let tokens = ids.iter().map(|id| format!(" {id}")).collect();
    let special = (0..ids.len()).map(|i| i == 0).collect();
    let offsets = Some((0..ids.len() as u64).map(|i| (i, i + 1)).collect());
    let line = StoredText { text: index, tokens, special, offsets, span: None, group: None };
    SavedText { line, ids: ids.to_vec(), types: Vec::new(), image: None }
}

/// Three texts of the embedded model, saved at the layers given.
fn folder(layers: &Layers) -> (tempfile::TempDir, PathBuf, LoadedModel, Vec<SavedText>) {
    let dir = tempfile::tempdir().unwrap();
    let model = LoadedModel::embedded(DType::F32, &Device::Cpu).unwrap();
    let mut texts = vec![saved(0, &[1, 5, 9, 12]), saved(2, &[3]), saved(7, &[1, 8, 8, 20, 21])];
    texts[2].line.span = Some((1, 4));
    texts[2].line.group = Some("g".to_owned());
    let architecture = model.transformer.architecture();
    let chosen: Vec<Point> = points(architecture.layers).into_iter().filter(|p| layers.contains(*p)).collect();
    let plan = SavePlan::new(&chosen, &texts, architecture.hidden_size);
    let path = dir.path().join("new/states");
    plan.check(&path, false).unwrap();
    let made_from = serde_json::json!("the embedded model");
    let run = SavedRun { name: "base", model: &model, peft: None, made_from: &made_from, batch_size: 2 };
    let mut told = Vec::new();
    assert!(!run.is_saved(&plan, &texts, &path));
    save_states(&run, &texts, &plan, &path, &mut |n| told.push(n)).unwrap();
    assert_eq!(told, [2, 1]);
    assert!(run.is_saved(&plan, &texts, &path));
    let other = SavedRun { made_from: &serde_json::json!("another model"), ..run };
    assert!(!other.is_saved(&plan, &texts, &path) && !run.is_saved(&plan, &texts[..2], &path));
    let header = |entry: &fs::DirEntry| ![TOKENS_FILE, ORIGIN_FILE].map(Into::into).contains(&entry.file_name());
    let files: Vec<fs::DirEntry> = fs::read_dir(&path).unwrap().map(Result::unwrap).filter(header).collect();
    let total: u64 = files.iter().map(|file| file.metadata().unwrap().len()).sum();
    assert!(total - plan.bytes() < 400 * files.len() as u64, "the size that is printed is that of the files");
    assert!(plan.check(&path, true).unwrap_err().to_string().contains("not an empty folder"));
    (dir, path, model, texts)
}

/// Keeps every record.
#[derive(Default)]
struct Kept(Vec<(Site, usize, Vec<f32>, Packed)>);

impl Probe for Kept {
    fn record(&mut self, site: Site, layer: usize, states: &Tensor, batch: &Packed) -> Result<(), ModelError> {
        self.0.push((site, layer, states.flatten_all()?.to_vec1()?, batch.clone()));
        Ok(())
    }
}

#[test]
fn what_is_replayed_is_what_the_model_showed() {
    let (_dir, path, model, texts) = folder(&Layers::All);
    let states = StoredStates::open(&path).unwrap();
    assert_eq!(states.texts(), texts.iter().map(|t| t.line.clone()).collect::<Vec<_>>());
    assert_eq!(states.texts()[2].rows(), 1..4);
    assert_eq!(states.width(), model.transformer.architecture().hidden_size);
    assert_eq!(states.points().count(), model.transformer.architecture().layers + 2);
    assert_eq!(states.encoded()[2].span, 1..4);
    let sequences: Vec<&[u32]> = texts[1..].iter().map(|t| t.ids.as_slice()).collect();
    let (mut shown, mut replayed) = (Kept::default(), Kept::default());
    let pass = crate::model::Pass::default();
    model.transformer.hidden_states(&Packed::from_sequences(&sequences), &pass, &mut shown).unwrap();
    states.replay(&[2, 7], &mut replayed).unwrap();
    let missing = states.replay(&[2, 3], &mut Kept::default()).unwrap_err().to_string();
    assert!(missing.contains("holds no text 3"), "{missing}");
    assert_eq!(shown.0.len(), replayed.0.len());
    for (shown, replayed) in shown.0.iter().zip(&replayed.0) {
        assert_eq!((shown.0, shown.1, &shown.3), (replayed.0, replayed.1, &replayed.3));
        // The texts ran in other company when they were saved: rounding may differ.
        let apart = shown.2.iter().zip(&replayed.2).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        let large = shown.2.iter().map(|a| a.abs()).fold(0.0, f32::max);
        assert!(apart <= 1e-5 * large, "{:?} {}: {apart} of {large}", shown.0, shown.1);
    }
}

#[test]
fn only_the_layers_asked_for_are_written() {
    let (_dir, path, ..) = folder(&Layers::Some(vec![0, 2]));
    let points: Vec<(Site, usize)> = StoredStates::open(&path).unwrap().points().map(|p| (p.site, p.layer)).collect();
    assert_eq!(points, [(Site::Embedding, 0), (Site::Block, 2)]);
}

#[test]
fn names_give_points() {
    let sites = [
        ("embedding_0", Site::Embedding, 0),
        ("block_1", Site::Block, 1),
        ("head_3_12", Site::Head(3), 12),
        ("after_attention_2", Site::AfterAttention, 2),
        ("final_norm_6", Site::FinalNorm, 6),
    ];
    for (name, site, layer) in sites {
        let point = Some((site, layer));
        let found = point_of(&format!("{name}.safetensors"));
        assert_eq!(found.map(|p| (p.site, p.layer)), point);
        assert_eq!(found.map(file_name), Some(format!("{name}.safetensors")));
    }
    for name in [
        "block_0",
        "block_01",
        "block_+1",
        "block_-1",
        "block_99999",
        "embedding_1",
        "model",
        "head_1",
        "head_+1_2",
        "_1",
    ] {
        assert_eq!(point_of(&format!("{name}.safetensors")), None, "{name}");
    }
}

/// A file with the tensors given: name, type, shape and bytes.
fn write(path: &Path, tensors: &[(&str, &str, &[usize], Vec<u8>)]) {
    let (mut header, mut data) = (serde_json::Map::new(), Vec::<u8>::new());
    for (name, kind, shape, bytes) in tensors {
        let ends = [data.len(), data.len() + bytes.len()];
        header.insert((*name).to_owned(), serde_json::json!({"dtype": kind, "shape": shape, "data_offsets": ends}));
        data.extend(bytes);
    }
    let header = serde_json::Value::Object(header).to_string();
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend(header.into_bytes());
    file.extend(data);
    fs::write(path, file).unwrap();
}

fn states_of(path: &Path, states: &[f32], width: usize, ids: &[u32], offsets: &[i64]) {
    let bytes = |values: &[f32]| values.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<u8>>();
    write(
        path,
        &[
            ("states", "F32", &[states.len() / width, width], bytes(states)),
            ("ids", "U32", &[ids.len()], ids.iter().flat_map(|v| v.to_le_bytes()).collect()),
            ("offsets", "I64", &[offsets.len()], offsets.iter().flat_map(|v| v.to_le_bytes()).collect()),
        ],
    );
}

const LINES: &str = "{\"text\": 3, \"tokens\": [\"a\", \"b\"], \"special\": [true, false]}\n\
                     {\"text\": 4, \"tokens\": [\"c\"], \"special\": [false], \"more\": 1}\n";
const STATES: [f32; 6] = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0];

/// A good folder of two texts, spoiled by `spoil`; the one-line error of opening and replaying it.
fn spoiled(spoil: impl Fn(&Path)) -> String {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join(TOKENS_FILE), LINES).unwrap();
    for name in ["embedding_0", "block_1"] {
        states_of(&dir.path().join(format!("{name}.safetensors")), &STATES, 2, &[7, 8, 9], &[0, 2, 3]);
    }
    spoil(dir.path());
    let read = StoredStates::open(dir.path()).and_then(|states| states.replay(&[3, 4], &mut Kept::default()));
    let error = read.err().map_or_else(|| "none".to_owned(), |e| e.to_string());
    assert!(!error.contains('\n'), "{error}");
    error.replace(&format!("{}/", dir.path().display()), "")
}

#[test]
fn what_is_wrong_is_said() {
    assert_eq!(spoiled(|_| ()), "none");
    let block = |dir: &Path| dir.join("block_1.safetensors");
    let lines = |text: &'static str| move |dir: &Path| fs::write(dir.join(TOKENS_FILE), text).unwrap();
    let made = |states: &'static [f32], width: usize, ids: &'static [u32], offsets: &'static [i64]| {
        move |dir: &Path| states_of(&block(dir), states, width, ids, offsets)
    };
    type Spoil = Box<dyn Fn(&Path)>;
    let cases: [(&str, Spoil); 23] = [
        ("tokens.jsonl: cannot read", Box::new(|dir| fs::remove_file(dir.join(TOKENS_FILE)).unwrap())),
        ("tokens.jsonl: holds no texts", Box::new(lines(""))),
        ("tokens.jsonl:1: EOF while parsing", Box::new(lines("{\"text\": 3"))),
        ("tokens.jsonl:1: missing field `special`", Box::new(lines("{\"text\": 3, \"tokens\": [\"a\"]}"))),
        (
            "tokens.jsonl:1: 2 tokens, but 1 flags",
            Box::new(lines("{\"text\":3,\"tokens\":[\"a\",\"b\"],\"special\":[true]}")),
        ),
        ("tokens.jsonl:1: a text without tokens", Box::new(lines("{\"text\":3,\"tokens\":[],\"special\":[]}"))),
        (
            "tokens.jsonl:1: `span` does not lie within the 1 tokens",
            Box::new(lines("{\"text\":3,\"tokens\":[\"a\"],\"special\":[true],\"span\":[0,2]}")),
        ),
        (
            "tokens.jsonl:1: 1 tokens, but not as many `offsets`",
            Box::new(lines("{\"text\":3,\"tokens\":[\"a\"],\"special\":[true],\"offsets\":[]}")),
        ),
        (
            "tokens.jsonl:3: text 3 comes after text 4",
            Box::new(|dir| {
                let twice = format!("{LINES}{}\n", LINES.lines().next().unwrap());
                fs::write(dir.join(TOKENS_FILE), twice).unwrap();
            }),
        ),
        (
            "embedding_0.safetensors: holds 2 texts where tokens.jsonl has 1",
            Box::new(|dir| {
                fs::write(dir.join(TOKENS_FILE), LINES.lines().next().unwrap()).unwrap();
            }),
        ),
        (
            "embedding_0.safetensors: text 4 has 1 rows where tokens.jsonl names 2 tokens",
            Box::new(|dir| {
                let other = LINES.replace("[\"c\"]", "[\"c\", \"d\"]").replace("[false]", "[false, false]");
                fs::write(dir.join(TOKENS_FILE), other).unwrap();
            }),
        ),
        (
            "block.safetensors: the name gives no site and layer",
            Box::new(move |dir| {
                fs::rename(block(dir), dir.join("block.safetensors")).unwrap();
            }),
        ),
        (
            "no states here",
            Box::new(move |dir| {
                fs::remove_file(block(dir)).unwrap();
                fs::remove_file(dir.join("embedding_0.safetensors")).unwrap();
            }),
        ),
        (
            "block_1.safetensors: tensor ids: lies at bytes 24..36 of 24",
            Box::new(move |dir| {
                let whole = fs::read(block(dir)).unwrap();
                fs::write(block(dir), &whole[..whole.len() - 36]).unwrap();
            }),
        ),
        ("block_1.safetensors", Box::new(move |dir| fs::write(block(dir), [255; 20]).unwrap())),
        (
            "block_1.safetensors: has no tensor `offsets`",
            Box::new(move |dir| {
                write(&block(dir), &[("states", "F32", &[1, 1], vec![0; 4]), ("ids", "U32", &[1], vec![0; 4])]);
            }),
        ),
        (
            "block_1.safetensors: `states` is F16 [3, 2], not F32 [tokens, d]",
            Box::new(move |dir| {
                write(&block(dir), &[("states", "F16", &[3, 2], vec![0; 12])]);
            }),
        ),
        ("block_1.safetensors: `ids` has the shape [2] for 3 rows", Box::new(made(&STATES, 2, &[7, 8], &[0, 2, 3]))),
        (
            "block_1.safetensors: `offsets` does not rise from 0 to 3",
            Box::new(made(&STATES, 2, &[7, 8, 9], &[0, 0, 3])),
        ),
        ("block_1.safetensors: `offsets` does not rise", Box::new(made(&STATES, 2, &[7, 8, 9], &[0, -2, 3]))),
        ("block_1.safetensors: is 1 wide where", Box::new(made(&STATES[..3], 1, &[7, 8, 9], &[0, 2, 3]))),
        ("block_1.safetensors: holds other tokens than", Box::new(made(&STATES, 2, &[7, 8, 1], &[0, 2, 3]))),
        (
            "block_1.safetensors: text 4 holds a value that is NaN or infinite",
            Box::new(made(&[1.0, 2.0, 3.0, 4.0, f32::NAN, 6.0], 2, &[7, 8, 9], &[0, 2, 3])),
        ),
    ];
    for (wanted, spoil) in cases {
        let error = spoiled(spoil);
        assert!(error.contains(wanted), "wanted {wanted}\nfound  {error}");
    }
}

#[test]
fn a_size_beyond_reason_is_refused_before_anything_is_written() {
    let dir = tempfile::tempdir().unwrap();
    let texts = vec![saved(0, &[1; 1000])];
    let plan = |width: usize| SavePlan::new(&points(3), &texts, width);
    assert_eq!(plan(100).bytes(), 5 * (1000 * 101 * 4 + 16));
    assert!(plan(100).describe().ends_with("5 files of 1000 tokens (1 texts) × 100 values in f32: 2.0 MB"));
    let error = plan(usize::MAX >> 20).check(&dir.path().join("a/b"), true).unwrap_err().to_string();
    assert!(error.contains("are needed and") && error.contains("are free"), "{error}");
    assert!(!dir.path().join("a").exists());
}

#[test]
fn the_documented_writer_is_the_tested_one() {
    let writer = include_str!("../../tests/golden/write_states.py");
    let (_, body) = writer.split_once("\"\"\"\n\n").unwrap();
    assert!(
        include_str!("../../docs/states.md").contains(body),
        "copy tests/golden/write_states.py into docs/states.md"
    );
}
