//! `smooth-probe similarity`: curves over the layers, of several runs over the same texts.

mod amount;
mod checks;
mod curves;
pub(super) mod figures;
mod follow;
pub(super) mod identity;
pub(super) mod pages;
mod run;
mod split;
mod work;

use super::terminal::{self, Charset};
use super::{states, texts, token_pairs};
use crate::analysis::baselines::Baseline;
use crate::analysis::convention::Convention;
use crate::analysis::layers::Layers;
use crate::analysis::manifest::Manifest;
use crate::analysis::plan::{LOOKUP_TEXTS, Sites};
use crate::analysis::residual_share::residual_frame;
use crate::analysis::results::{self, Results};
use crate::analysis::run_values::RunValues;
use crate::analysis::runs::RunSpec;
use crate::analysis::tables;
use crate::data::Span;
use crate::measures::{Measure, Need, parse_measures};
use crate::model::Precision;
use crate::peft::base_model;
use crate::persist;
use crate::report::{self, SimilarityRow, Width, per_text_frame};
use crate::train::{BaseDtypeName, DtypeName};
use anyhow::{Context, Result, anyhow, bail, ensure};
use clap::Args;
use figures::Look;
use serde_json::{Value, json};
use std::path::PathBuf;

#[derive(Debug, Clone, Args)]
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
    /// The texts: .txt (a text a line), .csv, .tsv, .json or .jsonl; for a model that reads images a folder of .jpg and
    /// .png. Stored states (--states) hold their own.
    #[arg(long, visible_alias = "images", required_unless_present = "states")]
    texts: Option<PathBuf>,
    /// The CSV column or JSON key that holds the text.
    #[arg(long, requires = "texts")]
    field: Option<String>,
    /// One curve for each value of this column or key, beside the one for all texts; of images `folder`, the one that each
    /// lies in.
    #[arg(long, value_name = "FIELD", requires = "texts")]
    group_by: Option<String>,
    /// The file holds instruction or chat records; render them so: alpaca, released, short, or a file.
    #[arg(long, conflicts_with = "field", requires = "texts")]
    template: Option<String>,
    /// Which part is measured; the whole text runs through the model. The constant words of a prompt
    /// raise similarity: `response` leaves them out.
    #[arg(long, default_value = "all", requires = "texts")]
    span: Span,
    /// Only texts of at least N tokens, cut to N: equal length, since similarity depends on it.
    #[arg(long, value_name = "N", requires = "texts")]
    tokens: Option<usize>,
    /// Longest text in tokens; longer ones are cut. By default the model's context.
    #[arg(long, value_name = "N", requires = "texts")]
    max_tokens: Option<usize>,
    /// Only the first N texts.
    #[arg(long, value_name = "N", requires = "texts")]
    limit: Option<usize>,
    /// Names and classes of measures: all, streaming, matrix, lookup, or cosine,effective_rank,…
    #[arg(long, value_name = "LIST", default_value = "cosine,cosine_centred")]
    measures: String,
    /// Where in the model: usual (embedding, blocks, final norm), all, or names such as
    /// attention,feed_forward,after_attention,head_0; heads is every head. Sites inside a block cost their own
    /// computation.
    #[arg(long, value_name = "LIST", default_value = "usual")]
    sites: Sites,
    /// Split each layer's change of every measure among attention, feed-forward, PEFT and the λ term: split.csv and
    /// a figure a measure. Looks inside the blocks, as --sites does.
    #[arg(long, requires = "texts")]
    split: bool,
    /// Texts, drawn by --seed, that the lookup measures and the reading of h0 are taken of: they cost far more than
    /// the others.
    #[arg(long, value_name = "N", default_value_t = LOOKUP_TEXTS)]
    lookup_texts: usize,
    /// Corpus means of an earlier run (its means.safetensors): centres on them, and saves the second pass.
    #[arg(long, value_name = "FILE")]
    means: Option<PathBuf>,
    /// Null baselines of every run, drawn grey: texts (tokens of different texts), untrained (the same
    /// architecture, random weights), shuffled (token order).
    #[arg(long, value_name = "LIST", value_delimiter = ',', requires = "texts")]
    baselines: Vec<Baseline>,
    /// Check the numbers on N drawn texts: alone against in a batch, f64 against the compute type, all pairs
    /// against the one sweep. The largest deviations go into manifest.json and below the figures.
    #[arg(long, value_name = "N", num_args = 0..=1, default_missing_value = "8", requires = "texts")]
    audit: Option<usize>,
    /// Texts that run through the model together; bounds memory. Results keep all but their last digits (means move by
    /// 1e-6 at most): a matrix product of another shape may round otherwise.
    #[arg(long, default_value_t = 8)]
    batch_size: usize,
    /// Disk space in GiB, in --out, that the hidden states of a first pass may take while the command runs, so that
    /// a second pass (centred measures) reads them instead of running the model again; 0 runs it again. Changes no
    /// result.
    #[arg(long, value_name = "GIB", default_value_t = 4.0)]
    scratch_gib: f64,
    /// all, 0,4,8 or 2..10 (both ends). 0 is the embedding, 1..L the blocks; transformers' hidden_states[l]
    /// is layer l for l < L, its hidden_states[L] is layer L at the site final_norm, or layer L itself where a
    /// model has no final norm (BERT).
    #[arg(long, default_value = "all")]
    layers: Layers,
    /// Draw depth as a share of each model's layers.
    #[arg(long)]
    relative: bool,
    /// Draw a panel for each run, with its own baselines, over the figure's first token set.
    #[arg(long)]
    panel_by_run: bool,
    /// What similarity.png, differences.png and the printed table count; the tables hold every number either way.
    #[arg(long, value_enum, default_value_t)]
    convention: Convention,
    /// Seed of the bootstrap, of samples and of baselines.
    #[arg(long, default_value_t = 42)]
    seed: u64,
    /// Seconds between two saves of unfinished work; the same command goes on from the last.
    #[arg(long, value_name = "SECONDS", default_value_t = 10)]
    save_every: u64,
    /// Seconds between two lines of progress where stderr is no terminal.
    #[arg(long, value_name = "SECONDS", default_value_t = 10, hide = true)]
    progress_every: u64,
    /// What is computed in; bf16 and f16 are for GPUs, and are measured in f32.
    #[arg(long, default_value = "f32", requires = "texts")]
    dtype: DtypeName,
    /// What the models' weights are stored in: 16 bits halve their memory and are widened where they are read. auto: as
    /// --dtype.
    #[arg(long, default_value = "auto", requires = "texts")]
    base_dtype: BaseDtypeName,
    /// auto (a GPU if this build knows one and it answers), cpu, cuda, cuda:N or metal.
    #[arg(long, default_value = "auto")]
    device: String,
    /// Folder for similarity.csv, .parquet, .png, .svg, per_text.parquet, means.safetensors and manifest.json.
    #[arg(long, default_value = "similarity")]
    out: PathBuf,
    /// Print JSON.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    pairs: token_pairs::PairArgs,
    #[command(flatten)]
    states: states::StatesArgs,
}

impl SimilarityArgs {
    /// The options that say something of texts alone, and whether they were given.
    fn of_texts(&self) -> [(&'static str, bool); 5] {
        let table = parse_measures(&self.measures).unwrap_or_default();
        [
            ("--span", self.span != Span::All),
            ("--tokens", self.tokens.is_some()),
            ("--token-classes", self.pairs.token_classes),
            ("--distance", self.pairs.distance),
            ("--measures nearest_embedding", table.iter().any(|m| m.need() == Some(Need::EmbeddingTable))),
        ]
    }

    /// What was asked for, for the manifest: what is measured and how it is drawn.
    fn described(&self) -> Value {
        let span = match self.span {
            Span::All => "all",
            Span::Instruction => "instruction",
            Span::Response => "response",
        };
        json!({
            "field": self.field, "template": self.template, "group_by": self.group_by,
            "span": span, "tokens": self.tokens, "max_tokens": self.max_tokens, "limit": self.limit,
            "split": self.split, "lookup_texts": self.lookup_texts, "means": self.means.as_ref().map(|path| path.display().to_string()),
            "baselines": self.baselines.iter().map(|baseline| baseline.name()).collect::<Vec<_>>(),
            "batch_size": self.batch_size, "relative": self.relative, "panel_by_run": self.panel_by_run,
        })
    }

    fn precision(&self) -> Precision {
        self.base_dtype.beside(self.dtype)
    }
}

pub(super) fn run(args: &SimilarityArgs, quiet: bool) -> Result<()> {
    let measures = parse_measures(&args.measures).map_err(|e| anyhow!("--measures: {e}"))?;
    checks::check_options(args, &measures)?;
    let specs = run_specs(args)?;
    let stored = args.states.specs()?;
    let names = specs.iter().map(|s| s.name.as_str()).chain(stored.iter().map(|s| s.name.as_str()));
    let names: Vec<&str> = names.collect();
    checks::check_names(&names)?;
    let reference = match &args.reference {
        None => 0,
        Some(name) => names
            .iter()
            .position(|n| n == name)
            .ok_or_else(|| anyhow!("--reference {name}: no such run; there are {}", names.join(", ")))?,
    };
    let asked = args.measures.split(',').any(|name| name.trim() == Measure::CkaBase.name());
    ensure!(
        !asked || specs.len() > 1,
        "--measures cka_base compares a run with the reference run; add an --adapter or a --run"
    );
    // The folder is made before any work: errors come early.
    persist::create_folder(&args.out)?;
    let mut manifest = Manifest::new("similarity");
    let texts = args.texts.as_ref();
    let texts_sha256 = texts.map(|texts| texts::sha256(texts)).transpose()?;
    let done = work::measure(args, &measures, &specs, &stored, reference, quiet)?;

    let table = tables::similarity_table(&done.runs, &done.references, args.seed)?;
    let written = Results::begin(&args.out, args.out.join(follow::PROGRESS).join("results"))?;
    let beside = SimilarityArgs { out: written.staging().to_owned(), ..args.clone() };
    let out = &beside.out;
    report::write_table(out, "similarity", &mut table.frame()?)?;
    let rows = table.rows;
    report::write_parquet(&out.join("per_text.parquet"), &mut per_text_frame(&tables::per_text_rows(&done.runs))?)?;
    if !done.means.is_empty() {
        done.means.write(&out.join("means.safetensors"))?;
    }
    if let Some(audit) = &done.audit {
        manifest.set("audit", audit.json());
        report::write_table(out, "audit", &mut audit.frame()?)?;
    }
    if !done.residual.is_empty() {
        report::write_table(out, "residual", &mut residual_frame(&done.residual)?)?;
    }
    let split = if args.split { split::write(&beside, &done.runs)? } else { Vec::new() };
    let heatmaps = token_pairs::write(out, &done.request, &done.pairs, args.seed)?;
    if !done.request.is_empty() {
        manifest.set("token_pairs", args.pairs.describe(heatmaps));
    }
    let measured: Vec<&str> = measures.iter().map(|m| m.name()).collect();
    manifest
        .set("runs", done.described)
        .set("reference", names.get(reference).copied().unwrap_or_default())
        .set("measures", measured)
        .set("texts", texts.map(|texts| texts.display().to_string()))
        .set("texts_sha256", texts_sha256)
        .set("layers_convention", "0 embedding, 1..L blocks, final_norm = layer L after the final norm")
        .set("bootstrap", json!({"replicates": crate::statistics::REPLICATES, "level": 0.95, "seed": args.seed}))
        .set("convention", json!({"name": args.convention.name(), "counted": args.convention.counted()}))
        .set("config", args.described())
        .set("device", done.device)
        .set("dtype", args.precision().compute.as_str())
        .set("base_dtype", args.precision().base_name())
        .set(results::TABLE_HASHES, results::table_hashes(out)?)
        .stop();
    let look = Look {
        out,
        relative: args.relative,
        panel_by_run: args.panel_by_run,
        width: Width::TwoColumn,
        convention: args.convention,
        png: true,
    };
    pages::draw(out, &look, &manifest.json())?;
    pages::write(out, out, &manifest.json())?;
    let settled = written.settle("similarity")?;
    manifest.set(results::FILES, settled.files);
    manifest.write(&args.out)?;
    follow::remove_progress(&args.out)?;
    if args.json {
        let reference = names.get(reference).copied().unwrap_or_default();
        say!("{:#}", curves::json(&args.out, reference, &manifest, &rows));
    } else {
        // What only the split asked for stands in its tables.
        let counted = args.convention.rows(&rows);
        print_table(&counted, &done.runs, args.sites == Sites::Usual);
        curves::print(&counted, terminal::stdout_columns(), Charset::of_locale());
        if args.convention != Convention::Ours {
            say!("{}", args.convention.counted());
        }
        split::print(&split);
    }
    if !quiet && !settled.removed.is_empty() {
        note!("removed what an earlier run wrote there and this one does not: {}", settled.removed.join(", "));
    }
    if !quiet {
        note!("wrote {}", args.out.display());
    }
    Ok(())
}

fn run_specs(args: &SimilarityArgs) -> Result<Vec<RunSpec>> {
    let mut specs = Vec::new();
    let named = match (&args.model, args.adapter.is_empty()) {
        (None, false) => Some(base_of_adapters(&args.adapter)?),
        (model, _) => model.clone(),
    };
    if let Some(model) = &named {
        let revision = args.revision.clone();
        specs.push(RunSpec { name: "base".to_owned(), model: model.clone(), revision, adapter: None });
        for text in &args.adapter {
            specs.push(RunSpec::adapter(text, model, args.revision.as_deref()).map_err(|e| anyhow!(e))?);
        }
    }
    for text in &args.run {
        specs.push(RunSpec::parse(text).map_err(|e| anyhow!(e))?);
    }
    let nothing = specs.is_empty() && args.states.states.is_empty();
    ensure!(!nothing, "nothing to measure: give --model, --run or --states");
    ensure!(specs.is_empty() || args.texts.is_some(), "--texts is missing: a model is measured on texts");
    let unread = specs.is_empty() && args.texts.is_some();
    ensure!(!unread, "--texts needs --model or --run: stored states hold their own texts");
    let saved = args.states.save_states.is_some();
    ensure!(!saved || !specs.is_empty(), "--save-states needs a model: give --model or --run");
    Ok(specs)
}

/// The model that all the adapters say they were trained on.
fn base_of_adapters(adapters: &[String]) -> Result<String> {
    let mut base: Option<String> = None;
    for text in adapters {
        let folder = RunSpec::adapter(text, "", None).map_err(|e| anyhow!(e))?.adapter.unwrap_or_default();
        let Some(own) = base_model(&folder).with_context(|| format!("--adapter {text}"))? else {
            bail!("--adapter {text}: its adapter_config.json names no base model; give --model");
        };
        match &base {
            Some(other) if *other != own => {
                bail!("--adapter {text}: trained on {own}, another on {other}; give --model, or --run for each");
            }
            _ => base = Some(own),
        }
    }
    base.ok_or_else(|| anyhow!("--model is missing"))
}

/// The means of every run for the first measure that was asked for, a line a layer and site.
fn print_table(rows: &[SimilarityRow], runs: &[RunValues], usual: bool) {
    let Some(measure) = rows.first().map(|row| row.measure.clone()) else { return };
    let inner = |row: &SimilarityRow| !figures::USUAL.contains(&row.site.as_str());
    let shown: Vec<&SimilarityRow> = rows
        .iter()
        .filter(|r| r.group.is_none() && r.measure == measure && r.tokens == "all" && !(usual && inner(r)))
        .collect();
    let mut points: Vec<(u32, &str)> = Vec::new();
    for row in &shown {
        let point = (row.layer, row.site.as_str());
        if !points.contains(&point) {
            points.push(point);
        }
    }
    let wide = runs.iter().map(|run| run.run.chars().count()).max().unwrap_or(0).max(10) + 2;
    let site_wide = points.iter().map(|(_, site)| site.len()).max().unwrap_or(0).max(10);
    let heads = runs.iter().map(|run| format!("{:>wide$}", run.run)).collect::<String>();
    if measure != Measure::Cosine.name() {
        say!("{measure}, all tokens");
    }
    say!("{:>5}  {:<site_wide$}  {heads}", "layer", "site");
    for (layer, site) in points {
        let values = runs.iter().map(|run| {
            let row = shown.iter().find(|r| r.run == run.run && r.layer == layer && r.site == site);
            row.and_then(|r| r.mean).map_or_else(|| format!("{:>wide$}", "-"), |mean| format!("{mean:>wide$.4}"))
        });
        say!("{layer:>5}  {site:<site_wide$}  {}", values.collect::<String>());
    }
}
