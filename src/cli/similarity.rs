//! `smooth-probe similarity`: curves over the layers, of several runs over the same texts.

use super::{open, progress};
use crate::analysis::layers::Layers;
use crate::analysis::manifest::Manifest;
use crate::analysis::runs::RunSpec;
use crate::analysis::similarity::{self, CosineForm, EncodedText, RunValues};
use crate::data::{ChatTemplate, Content, Span, Template, TextOptions, TextSource, Tokenize, clip};
use crate::hash;
use crate::model::LoadedModel;
use crate::peft::load_adapter;
use crate::persist;
use crate::report::{
    self, CurveOptions, Depth, Shown, SimilarityRow, Width, per_text_frame, similarity_chart, similarity_frame,
};
use crate::train::DtypeName;
use anyhow::{Context, Result, anyhow, ensure};
use clap::Args;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

#[derive(Debug, Args)]
pub(super) struct SimilarityArgs {
    /// A hub name, a folder, a GGUF file, or `embedded`; measured as the run "base".
    #[arg(long)]
    model: Option<String>,
    /// A hub revision.
    #[arg(long)]
    revision: Option<String>,
    /// An adapter of --model, as NAME=DIR; any number of times.
    #[arg(long, value_name = "NAME=DIR")]
    adapter: Vec<String>,
    /// Another run, as NAME=MODEL[@REVISION][+ADAPTER]; any number of times.
    #[arg(long, value_name = "NAME=MODEL")]
    run: Vec<String>,
    /// The run that differences are against; by default the first.
    #[arg(long, value_name = "NAME")]
    reference: Option<String>,
    /// The texts: .txt (a text a line), .csv, .json or .jsonl.
    #[arg(long)]
    texts: PathBuf,
    /// The CSV column or JSON key that holds the text.
    #[arg(long)]
    field: Option<String>,
    /// One curve for each value of this column or key, beside the one for all texts.
    #[arg(long, value_name = "FIELD")]
    group_by: Option<String>,
    /// The file holds instruction or chat records; render them so: alpaca, released, short, or a file.
    #[arg(long, conflicts_with = "field")]
    template: Option<String>,
    /// Which part is measured; the whole text runs through the model. The constant words of a prompt
    /// raise similarity: `response` leaves them out.
    #[arg(long, default_value = "all")]
    span: Span,
    /// Only texts of at least N tokens, cut to N: equal length, since similarity depends on it.
    #[arg(long, value_name = "N")]
    tokens: Option<usize>,
    /// Longest text in tokens; longer ones are cut. By default the model's context.
    #[arg(long, value_name = "N")]
    max_tokens: Option<usize>,
    /// Only the first N texts.
    #[arg(long, value_name = "N")]
    limit: Option<usize>,
    /// Texts that run through the model together; changes speed, not results.
    #[arg(long, default_value_t = 8)]
    batch_size: usize,
    /// all, 0,4,8 or 2..10 (both ends). 0 is the embedding, 1..L the blocks; transformers' hidden_states[l]
    /// is layer l for l < L, its hidden_states[L] is layer L at the site final_norm, or layer L itself where a
    /// model has no final norm (BERT).
    #[arg(long, default_value = "all")]
    layers: Layers,
    /// Draw depth as a share of each model's layers.
    #[arg(long)]
    relative: bool,
    /// Seed of the bootstrap.
    #[arg(long, default_value_t = 42)]
    seed: u64,
    /// What is computed in.
    #[arg(long, default_value = "f32")]
    dtype: DtypeName,
    /// auto or cpu.
    #[arg(long, default_value = "auto")]
    device: String,
    /// Folder for similarity.csv, .parquet, .png, .svg, per_text.parquet and manifest.json.
    #[arg(long, default_value = "similarity")]
    out: PathBuf,
}

pub(super) fn run(args: &SimilarityArgs, quiet: bool) -> Result<()> {
    ensure!(args.batch_size > 0, "--batch-size is 0; it must be at least 1");
    let specs = run_specs(args)?;
    let reference = match &args.reference {
        None => 0,
        Some(name) => specs.iter().position(|s| &s.name == name).ok_or_else(|| {
            let names: Vec<&str> = specs.iter().map(|s| s.name.as_str()).collect();
            anyhow!("--reference {name}: no such run; there are {}", names.join(", "))
        })?,
    };
    // The folder is made before any work: errors come early.
    persist::create_folder(&args.out)?;
    let mut manifest = Manifest::new("similarity");
    let texts_sha256 = hash::sha256_file(&args.texts).with_context(|| open::unreadable(&args.texts))?;
    let (runs, described) = measure(args, &specs, quiet)?;

    let rows = similarity::similarity_rows(&runs, &args.layers, reference, args.seed)?;
    report::write_table(&args.out, "similarity", &mut similarity_frame(&rows)?)?;
    let per_text = similarity::per_text_rows(&runs, &args.layers);
    report::write_parquet(&args.out.join("per_text.parquet"), &mut per_text_frame(&per_text)?)?;
    draw(args, &rows)?;
    manifest
        .set("runs", described)
        .set("reference", specs.get(reference).map(|s| s.name.clone()).unwrap_or_default())
        .set("texts", args.texts.display().to_string())
        .set("texts_sha256", texts_sha256)
        .set("layers_convention", "0 embedding, 1..L blocks, final_norm = layer L after the final norm")
        .set("bootstrap", json!({"replicates": crate::statistics::REPLICATES, "level": 0.95, "seed": args.seed}))
        .set("device", "cpu")
        .set("dtype", format!("{:?}", args.dtype).to_lowercase());
    manifest.write(&args.out)?;
    print_table(&rows, &runs);
    eprintln_unless(quiet, &format!("wrote {}", args.out.display()));
    Ok(())
}

fn eprintln_unless(quiet: bool, line: &str) {
    if !quiet {
        eprintln!("{line}");
    }
}

fn run_specs(args: &SimilarityArgs) -> Result<Vec<RunSpec>> {
    let mut specs = Vec::new();
    if let Some(model) = &args.model {
        let revision = args.revision.clone();
        specs.push(RunSpec { name: "base".to_owned(), model: model.clone(), revision, adapter: None });
        for text in &args.adapter {
            specs.push(RunSpec::adapter(text, model, args.revision.as_deref()).map_err(|e| anyhow!(e))?);
        }
    } else if !args.adapter.is_empty() {
        return Err(anyhow!("--adapter needs --model: name the model that the adapter belongs to"));
    }
    for text in &args.run {
        specs.push(RunSpec::parse(text).map_err(|e| anyhow!(e))?);
    }
    ensure!(!specs.is_empty(), "nothing to measure: give --model or --run");
    for (i, spec) in specs.iter().enumerate() {
        let twice = specs.iter().take(i).any(|other| other.name == spec.name);
        ensure!(!twice, "two runs are called {}; give each its own name", spec.name);
    }
    Ok(specs)
}

/// The model that the last run used, with the texts in its tokens.
struct Current<'s> {
    key: (&'s str, Option<&'s str>),
    model: LoadedModel,
    texts: Vec<EncodedText>,
}

fn measure(args: &SimilarityArgs, specs: &[RunSpec], quiet: bool) -> Result<(Vec<RunValues>, Vec<Value>)> {
    let device = open::device(&args.device)?;
    let (mut runs, mut described) = (Vec::new(), Vec::new());
    // Runs of the same model, which mostly follow each other, load it once.
    let mut current: Option<Current<'_>> = None;
    let bar = progress::bar(0, "texts", quiet);
    for spec in specs {
        bar.set_prefix(spec.name.clone());
        let key = (spec.model.as_str(), spec.revision.as_deref());
        let (model, encoded) = match current.take() {
            Some(current) if current.key == key => (current.model, current.texts),
            _ => {
                let model = open::model(&spec.model, spec.revision.as_deref(), args.dtype.into(), &device)?;
                let depth = model.transformer.architecture().layers;
                args.layers.check(depth, &spec.model).map_err(|e| anyhow!(e))?;
                let encoded = encode(args, &model)?;
                (model, encoded)
            }
        };
        let peft = match &spec.adapter {
            Some(folder) => Some(load_adapter(folder, &model.transformer)?),
            None => None,
        };
        bar.inc_length(2 * encoded.len() as u64);
        let mut tick = |n: usize| bar.inc(n as u64);
        runs.push(similarity::measure_run(
            &spec.name,
            &model,
            peft.as_ref(),
            &encoded,
            &args.layers,
            args.batch_size,
            &mut tick,
        )?);
        described.push(describe(spec, &model, encoded.len())?);
        current = Some(Current { key, model, texts: encoded });
    }
    bar.finish_and_clear();
    Ok((runs, described))
}

fn describe(spec: &RunSpec, model: &LoadedModel, texts: usize) -> Result<Value> {
    let adapter = match &spec.adapter {
        Some(folder) => {
            let weights = folder.join("adapter_model.safetensors");
            let sha = hash::sha256_file(&weights).with_context(|| open::unreadable(&weights))?;
            json!({"folder": folder.display().to_string(), "sha256": sha})
        }
        None => Value::Null,
    };
    Ok(json!({
        "name": spec.name,
        "model": spec.model,
        "revision": spec.revision,
        "model_sha256": model.hashes()?,
        "tokenizer_sha256": model.tokenizer.sha256(),
        "adapter": adapter,
        "texts_measured": texts,
    }))
}

fn encode(args: &SimilarityArgs, model: &LoadedModel) -> Result<Vec<EncodedText>> {
    let tokenizer: &dyn Tokenize = &model.tokenizer;
    let content = match &args.template {
        Some(template) => Content::Record(Template::parse(template)?),
        None => Content::Field(args.field.clone()),
    };
    let chat = match tokenizer.chat_template() {
        Some(_) => Some(ChatTemplate::of(tokenizer)?),
        None => None,
    };
    let options = TextOptions { content, group_by: args.group_by.clone(), chat };
    let context = model.transformer.architecture().max_positions;
    let longest = args.max_tokens.map_or(context, |n| n.min(context));
    let limit = args.limit.unwrap_or(usize::MAX);
    let mut all = Vec::new();
    for text in TextSource::open(&args.texts, options)?.take(limit) {
        let text = text?;
        let encoded = text.encode(tokenizer)?;
        let span = args.span.rows(&text, &encoded).map_err(|e| e.at(args.texts.display().to_string()))?;
        if let Some(encoded) = clip(encoded, Some(longest), args.tokens) {
            let end = encoded.ids.len();
            all.push(EncodedText {
                index: text.index as u64,
                group: text.group,
                ids: encoded.ids,
                special: encoded.special,
                types: encoded.types,
                span: span.start.min(end)..span.end.min(end),
            });
        }
    }
    let what =
        args.tokens.map_or_else(|| "no text in it".to_owned(), |n| format!("no text of {n} tokens; lower --tokens"));
    ensure!(!all.is_empty(), "{}: {what}", args.texts.display());
    Ok(all)
}

fn draw(args: &SimilarityArgs, rows: &[SimilarityRow]) -> Result<()> {
    let options = CurveOptions {
        title: "Token similarity over the layers".to_owned(),
        panels: vec![("cosine".to_owned(), "all".to_owned()), ("cosine_centred".to_owned(), "no_first".to_owned())],
        depth: if args.relative { Depth::Relative } else { Depth::Layers },
        shown: Shown::Mean,
        width: Width::TwoColumn,
    };
    write_chart(&args.out, "similarity", &similarity_chart(rows, &options))
}

/// Writes a chart as PNG and SVG.
pub(super) fn write_chart(folder: &Path, stem: &str, chart: &report::Chart) -> Result<()> {
    persist::write_file(&folder.join(format!("{stem}.png")), &chart.png()?)?;
    persist::write_file(&folder.join(format!("{stem}.svg")), chart.svg()?.as_bytes())?;
    Ok(())
}

/// The mean cosine of every run, a line a layer.
fn print_table(rows: &[SimilarityRow], runs: &[RunValues]) {
    let shown: Vec<&SimilarityRow> = rows
        .iter()
        .filter(|r| r.group.is_none() && r.measure == CosineForm::Plain.name() && r.tokens == "all")
        .collect();
    let mut points: Vec<(u32, &str)> = shown.iter().map(|r| (r.layer, r.site.as_str())).collect();
    points.dedup();
    let mut seen = Vec::new();
    points.retain(|point| {
        if seen.contains(point) {
            false
        } else {
            seen.push(*point);
            true
        }
    });
    say!("{:>5}  {:<10}  {}", "layer", "site", runs.iter().map(|r| format!("{:>12}", r.run)).collect::<String>());
    for (layer, site) in points {
        let values = runs.iter().map(|run| {
            let row = shown.iter().find(|r| r.run == run.run && r.layer == layer && r.site == site);
            row.and_then(|r| r.mean).map_or_else(|| format!("{:>12}", "-"), |mean| format!("{mean:>12.4}"))
        });
        say!("{layer:>5}  {site:<10}  {}", values.collect::<String>());
    }
}
