//! `smooth-probe dose`: λ turned up and down on a trained, frozen adapter.

use super::progress::{EVERY, Progress};
use super::texts::file_texts;
use super::{device, objective, open, write_chart};
use crate::analysis::chunks::TextSupply;
use crate::analysis::dose::DoseStudy;
use crate::analysis::dose_grid::{DosePoint, DosedLayers, LambdaGrid, dose_points};
use crate::analysis::dose_spread::Difference;
use crate::analysis::dose_table::{DoseRow, LossSource, dose_chart, dose_frame, dose_rows, last_block};
use crate::analysis::estimates::LEVEL;
use crate::analysis::manifest::Manifest;
use crate::analysis::residual_figure::residual_chart;
use crate::analysis::residual_share::residual_frame;
use crate::analysis::similarity::EncodedText;
use crate::data::{EncodingOptions, Example, LossOn, Template, encode_records, read_records, split_validation};
use crate::hash;
use crate::model::LoadedModel;
use crate::peft::{Arm, Dose, Peft, Policy, ResidualConfig, load_adapter};
use crate::persist;
use crate::report;
use crate::statistics::REPLICATES;
use crate::train::{BaseDtypeName, DtypeName};
use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

#[derive(Debug, Args)]
pub(super) struct DoseArgs {
    /// A hub name, a folder, a GGUF file, or `embedded`.
    #[arg(long)]
    model: String,
    /// A hub revision.
    #[arg(long)]
    revision: Option<String>,
    /// The trained adapter, as DIR or NAME=DIR; nothing in it is changed.
    #[arg(long, value_name = "[NAME=]DIR")]
    adapter: String,
    /// The texts whose similarity is measured: .txt (a text a line), .csv, .tsv, .json or .jsonl.
    #[arg(long)]
    texts: PathBuf,
    /// The CSV column or JSON key that holds the text.
    #[arg(long)]
    field: Option<String>,
    /// The texts' file holds instruction or chat records; render them so: alpaca, released, short, or a file.
    #[arg(long, conflicts_with = "field", value_name = "TEMPLATE")]
    texts_template: Option<String>,
    /// Longest text in tokens; longer ones are cut. By default the model's context.
    #[arg(long, value_name = "N")]
    max_tokens: Option<usize>,
    /// Only the first N texts.
    #[arg(long, value_name = "N")]
    limit: Option<usize>,
    /// Records for the task loss, as `train` reads them; without them it is the loss over the texts.
    #[arg(long)]
    data: Option<PathBuf>,
    /// Only the first N examples of --data (of those held out, with --val-size).
    #[arg(long, value_name = "N", requires = "data")]
    data_limit: Option<usize>,
    /// Only the N examples that `train --val-size N --seed SEED` holds out of --data.
    #[arg(long, value_name = "N", requires = "data")]
    val_size: Option<usize>,
    /// How records become text: alpaca, released, short, or a file.
    #[arg(long, default_value = "alpaca", requires = "data")]
    template: String,
    /// Which tokens the task loss is taken on.
    #[arg(long, default_value = "all", requires = "data")]
    loss_on: LossOn,
    /// Longest example in tokens; longer ones lose their end.
    #[arg(long, default_value_t = 256, requires = "data")]
    cutoff: usize,
    /// The doses: FIRST:LAST:STEP (both ends included) or a list; the trained lambda is always among them.
    #[arg(long, default_value = "0:1:0.1", value_name = "GRID")]
    lambda: LambdaGrid,
    /// all: every block at once. each: one block at a time, the others as trained.
    #[arg(long, default_value = "all")]
    layers: DosedLayers,
    /// What the lambda term reads: h0, none, h0-normed, shuffled, random; several with commas. By default what the
    /// adapter was trained with.
    #[arg(long, value_delimiter = ',')]
    residual: Vec<Arm>,
    /// Which modules are dosed: official or all. For an adapter trained without a residual, whose file does not say.
    #[arg(long)]
    sibo_policy: Option<Policy>,
    /// Seed of --val-size, of the bootstrap, and of shuffled and random where the adapter's file has none.
    #[arg(long, default_value_t = 42)]
    seed: u64,
    /// Texts or examples that run through the model together; bounds memory, and moves no more than last digits.
    #[arg(long, default_value_t = 8)]
    batch_size: usize,
    /// What is computed in; bf16 and f16 are for GPUs.
    #[arg(long, default_value = "f32")]
    dtype: DtypeName,
    /// What the model's weights are stored in: 16 bits halve their memory and are widened where they are read. auto: as
    /// --dtype.
    #[arg(long, default_value = "auto")]
    base_dtype: BaseDtypeName,
    /// auto (a GPU if this build knows one and it answers), cpu, cuda, cuda:N or metal.
    #[arg(long, default_value = "auto")]
    device: String,
    /// Folder for dose.csv, .parquet, .png, .svg, residual.csv, .parquet, .png, .svg and manifest.json.
    #[arg(long, default_value = "dose")]
    out: PathBuf,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &DoseArgs, quiet: bool) -> Result<()> {
    ensure!(args.batch_size > 0, "--batch-size is 0; it must be at least 1");
    ensure!(args.max_tokens != Some(0), "--max-tokens is 0; it must be at least 1");
    ensure!(args.limit != Some(0), "--limit is 0; it must be at least 1");
    // The folder is made before any work: errors come early.
    persist::create_folder(&args.out)?;
    let mut manifest = Manifest::new("dose");
    let (name, folder) = adapter_name(&args.adapter)?;
    let (place, precision) = (device::open(&args.device)?, args.base_dtype.beside(args.dtype));
    device::check(precision, &place)?;
    let mut model = open::model(&args.model, args.revision.as_deref(), precision, &place)?;
    model.transformer.head().with_context(|| format!("--model {}", args.model))?;
    let objective = objective::of(&model, None, args.seed)?;
    let peft = with_policy(args, &model, load_adapter(&folder, &model.transformer)?)?;
    if let Some(tuned) = peft.tuned(&model.transformer) {
        model.transformer = tuned;
    }
    let texts = texts(args, &model)?;
    let (examples, loss_source) = examples(args, &model, &texts)?;
    let mut study = DoseStudy::new(&model.transformer, &peft, &texts, &examples, args.batch_size)?.learning(objective);
    let trained = *study.trained();
    let arms = arms(&args.residual, trained.arm);
    let points = dose_points(peft.plan(), &trained, &args.lambda, args.layers, &arms);
    let cost = study.cost(&points);
    if !quiet {
        note!(
            "{} points, {} sequences through the model: {} texts and {} examples for each of {} distinct settings",
            points.len(),
            cost,
            texts.len(),
            examples.len(),
            cost / (texts.len() + examples.len()).max(1)
        );
    }
    let mut progress = Progress::new("sequences", quiet, EVERY);
    progress.expect(cost as u64);
    progress.begin("dose", cost as u64);
    let mut found = Vec::with_capacity(points.len());
    for &point in &points {
        progress.rename(&format!("{} λ {}", point.dose.arm, point.dose.lambda));
        found.push((point, study.measure(&point, &mut |n| progress.advance(n as u64))?));
    }
    let as_trained = DosePoint { layer: None, dose: Dose { lambda: trained.lambda, arm: trained.arm } };
    let mut residual = study.measure(&as_trained, &mut |_| ())?.residual;
    residual.iter_mut().for_each(|row| row.run.clone_from(&name));
    progress.finish();
    let rows = dose_rows(&name, &found, &trained, args.seed)?;

    report::write_table(&args.out, "dose", &mut dose_frame(&rows)?)?;
    write_chart(&args.out, "dose", &dose_chart(&rows, &loss_source))?;
    report::write_table(&args.out, "residual", &mut residual_frame(&residual)?)?;
    write_chart(&args.out, "residual", &residual_chart(&residual))?;
    manifest
        .set("model", json!({"name": args.model, "revision": args.revision, "sha256": model.hashes()?}))
        .set("tokenizer_sha256", model.processor.sha256())
        .set("adapter", described_adapter(&name, &folder)?)
        .set("trained", described_residual(&trained))
        .set("texts", described_file(&args.texts, texts.len())?)
        .set("data", args.data.as_deref().map(|path| described_file(path, examples.len())).transpose()?)
        .set("lambda", json!(args.lambda.with(trained.lambda).values()))
        .set("sequences", cost)
        .set("bootstrap", json!({"replicates": REPLICATES, "level": LEVEL, "seed": args.seed}))
        .set("layers_convention", "0 embedding, 1..L blocks")
        .set("device", device::name(&place))
        .set("dtype", precision.compute.as_str())
        .set("base_dtype", precision.base_name());
    manifest.write(&args.out)?;
    match args.json {
        true => say!("{:#}", described(args, &trained, &loss_source, &rows)),
        false => print_table(&rows),
    }
    if !quiet {
        note!("wrote {}", args.out.display());
    }
    Ok(())
}

/// The run's name and the adapter's folder.
fn adapter_name(text: &str) -> Result<(String, PathBuf)> {
    // A folder may hold an = in its name; one that is there is meant.
    match text.split_once('=').filter(|_| !Path::new(text).exists()) {
        Some((name, folder)) if !name.is_empty() && !folder.is_empty() => Ok((name.to_owned(), folder.into())),
        Some(_) => bail!("--adapter {text}: write --adapter DIR or --adapter NAME=DIR"),
        None => Ok(("adapter".to_owned(), text.into())),
    }
}

/// The arms, each once; by default the trained one.
fn arms(wanted: &[Arm], trained: Arm) -> Vec<Arm> {
    let mut arms = Vec::new();
    for &arm in wanted {
        if !arms.contains(&arm) {
            arms.push(arm);
        }
    }
    if arms.is_empty() { vec![trained] } else { arms }
}

/// The adapter with a residual that says where doses go: its own, or λ = 0 under the policy asked for.
fn with_policy(args: &DoseArgs, model: &LoadedModel, peft: Peft) -> Result<Peft> {
    match (peft.config().residual, args.sibo_policy) {
        (Some(own), Some(asked)) if own.policy != asked => bail!(
            "--sibo-policy {asked}: the adapter was trained under the policy {}, where its doses go; leave the option \
             out",
            own.policy
        ),
        (Some(_), _) => Ok(peft),
        (None, None) => bail!(
            "{}: the adapter was trained without an initial residual and does not say which modules to dose; give \
             --sibo-policy official or all",
            args.adapter
        ),
        (None, Some(policy)) => {
            let residual = ResidualConfig {
                lambda: 0.0,
                policy,
                arm: args.residual.first().copied().unwrap_or(Arm::H0),
                h0_kind: model.transformer.architecture().h0_kind,
                seed: args.seed,
                learned: None,
            };
            Ok(peft.with_residual(&model.transformer, Some(residual))?)
        }
    }
}

fn texts(args: &DoseArgs, model: &LoadedModel) -> Result<Vec<EncodedText>> {
    let (template, field) = (args.texts_template.as_deref(), args.field.as_deref());
    let mut texts = file_texts(model, &args.texts, template, field, args.max_tokens)?;
    texts.limit = args.limit;
    let all: Vec<EncodedText> = texts.open()?.collect::<Result<_, _>>()?;
    ensure!(!all.is_empty(), "{}: no text in it", args.texts.display());
    Ok(all)
}

/// What the loss is taken on: the records, or every token of the texts but the first.
fn examples(args: &DoseArgs, model: &LoadedModel, texts: &[EncodedText]) -> Result<(Vec<Example>, LossSource)> {
    let Some(data) = &args.data else {
        let example = |text: &EncodedText| Example {
            ids: text.ids.clone(),
            loss: (0..text.ids.len()).map(|i| i > 0).collect(),
            response: text.ids.len(),
            special: text.special.clone(),
            types: text.types.clone(),
            ..Example::default()
        };
        return Ok((texts.iter().map(example).collect(), LossSource("the texts".to_owned())));
    };
    let records = read_records(data)?;
    let context = model.transformer.architecture().max_positions;
    let options = EncodingOptions { cutoff: args.cutoff.min(context), loss_on: args.loss_on };
    let template = Template::parse(&args.template)?;
    let (mut examples, _) = encode_records(&records, &template, model.tokenizer()?, options, data)?;
    if let Some(size) = args.val_size {
        let (_, held_out) = split_validation(examples.len(), size, args.seed)?;
        examples = held_out.iter().filter_map(|&i| examples.get(i).cloned()).collect();
    }
    examples.truncate(args.data_limit.unwrap_or(usize::MAX));
    ensure!(!examples.is_empty(), "{}: no example is left; raise --data-limit or --val-size", data.display());
    let file = data.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let source = LossSource(format!("{} examples of {file}", examples.len()));
    Ok((examples, source))
}

fn described_adapter(name: &str, folder: &Path) -> Result<Value> {
    let weights = folder.join("adapter_model.safetensors");
    let sha256 = hash::sha256_file(&weights).with_context(|| open::unreadable(&weights))?;
    Ok(json!({"name": name, "folder": folder.display().to_string(), "sha256": sha256}))
}

fn described_residual(residual: &ResidualConfig) -> Value {
    json!({
        "lambda": residual.lambda,
        "residual": residual.arm,
        "policy": residual.policy,
        "h0": residual.h0_kind,
        "seed": residual.seed,
    })
}

fn described_file(path: &Path, used: usize) -> Result<Value> {
    let sha256 = hash::sha256_file(path).with_context(|| open::unreadable(path))?;
    Ok(json!({"file": path.display().to_string(), "sha256": sha256, "used": used}))
}

/// The study for machines, the last block of each point: `docs/json.md`.
fn described(args: &DoseArgs, trained: &ResidualConfig, loss_on: &LossSource, rows: &[DoseRow]) -> Value {
    let rows = last_block(rows);
    let difference = |difference: Option<Difference>| {
        difference.map(|d| json!({"mean": d.mean, "ci_low": d.interval.low, "ci_high": d.interval.high, "texts": d.n}))
    };
    let points: Vec<Value> = rows
        .iter()
        .map(|row| {
            json!({
                "residual": row.arm,
                "block": row.dose_layer,
                "lambda": row.lambda,
                "trained": row.trained,
                "h0_share": row.real_share,
                "similarity": row.similarity,
                "effective_rank": row.effective_rank,
                "loss": row.loss,
                "minus_trained": difference(row.spreads.similarity.trained),
                "minus_none": difference(row.spreads.similarity.none),
            })
        })
        .collect();
    json!({
        "out": args.out.display().to_string(),
        "trained": described_residual(trained),
        "loss_on": loss_on.0,
        "layer": rows.first().map(|row| row.layer),
        "points": points,
    })
}

/// A line a point: the last block.
fn print_table(rows: &[DoseRow]) {
    let points = last_block(rows);
    let layer = points.first().map_or(0, |row| row.layer);
    say!(
        "similarity and effective rank after block {layer}; loss in nats; * as trained; minus: of similarity, paired by \
         text [95 %]"
    );
    let against_none = points.iter().any(|row| row.spreads.similarity.none.is_some());
    let none_title = if against_none { "minus none" } else { "" };
    let line = format!(
        "{:<10} {:>6} {:>7}  {:>8}  {:>10} {:>8} {:>9}  {:<25}  {none_title}",
        "residual", "blocks", "lambda", "h0 share", "similarity", "rank", "loss", "minus trained"
    );
    say!("{}", line.trim_end());
    for row in points {
        let number = |value: Option<f64>, decimals: usize| {
            value.map_or_else(|| "-".to_owned(), |value| format!("{value:.decimals$}"))
        };
        let difference = |difference: Option<Difference>| {
            let text = |d: Difference| format!("{:+.4} [{:+.4}, {:+.4}]", d.mean, d.interval.low, d.interval.high);
            difference.map_or_else(|| "-".to_owned(), text)
        };
        let none = if against_none { difference(row.spreads.similarity.none) } else { String::new() };
        let line = format!(
            "{:<10} {:>6} {:>6.3}{}  {:>8}  {:>10} {:>8} {:>9}  {:<25}  {none}",
            row.arm,
            row.dose_layer.map_or_else(|| "all".to_owned(), |layer| layer.to_string()),
            row.lambda,
            if row.trained { "*" } else { " " },
            number(row.real_share, 4),
            number(row.similarity, 4),
            number(row.effective_rank, 2),
            number(Some(row.loss), 4),
            difference(row.spreads.similarity.trained)
        );
        say!("{}", line.trim_end());
    }
}
