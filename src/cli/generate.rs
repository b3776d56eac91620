//! `smooth-probe generate`: what a model writes behind prompts.

mod output;
mod prompts;

use super::{device, open, progress};
use crate::generate::{Beams, Decoding, EarlyStopping, Generator, Sampling, Strategy};
use crate::model::LoadedModel;
use crate::peft::{Peft, load_adapter};
use crate::train::{BaseDtypeName, DtypeName};
use anyhow::{Context, Result, ensure};
use clap::{Args, ValueEnum};
use output::{Lines, Terminal};
use std::path::PathBuf;
use std::time::Instant;

#[derive(Debug, Args)]
pub(super) struct GenerateArgs {
    /// A hub name, a folder, a GGUF file, or `embedded`; by default the base model that the adapter names.
    #[arg(long, required_unless_present = "adapter")]
    model: Option<String>,
    /// A hub revision.
    #[arg(long)]
    revision: Option<String>,
    /// An adapter: ours or PEFT's.
    #[arg(long, value_name = "DIR")]
    adapter: Option<PathBuf>,
    /// The text to continue; what is written appears as it comes.
    #[arg(long, value_name = "TEXT", required_unless_present = "prompts", conflicts_with = "prompts")]
    prompt: Option<String>,
    /// A file of prompts: .txt (a prompt a line), .csv, .tsv, .json or .jsonl. Answers are JSON lines in its order.
    #[arg(long, value_name = "FILE")]
    prompts: Option<PathBuf>,
    /// The CSV column or JSON key that holds the prompt.
    #[arg(long, conflicts_with = "prompt")]
    field: Option<String>,
    /// Prompts are instructions, or records of instructions or chats; render them so: alpaca, released, short, or a file.
    #[arg(long, conflicts_with = "field")]
    template: Option<String>,
    /// Only the first N prompts.
    #[arg(long, value_name = "N", conflicts_with = "prompt")]
    limit: Option<usize>,
    /// New tokens at most.
    #[arg(long, value_name = "N", default_value_t = 256)]
    max_new_tokens: usize,
    /// A text behind which nothing more is wanted, and which is left out itself; may be given several times.
    #[arg(long, value_name = "TEXT")]
    stop: Vec<String>,
    /// Go on behind the tokens that end a text.
    #[arg(long)]
    ignore_end: bool,
    /// Beam search with N beams; without it and the options of draws the likeliest token is taken.
    #[arg(long, value_name = "N", conflicts_with_all = ["temperature", "top_k", "top_p", "seed"])]
    beams: Option<usize>,
    /// Above 0 longer texts gain, below 0 they lose: a finished text counts log p / tokens^PENALTY.
    #[arg(long, value_name = "PENALTY", requires = "beams", default_value_t = 1.0, allow_negative_numbers = true)]
    length_penalty: f64,
    /// When the beam search ends: no (when the best beam, at its length, is no better than what is finished), yes (at N
    /// finished texts), never (when no beam can become better).
    #[arg(long, requires = "beams", num_args = 0..=1, default_value = "no", default_missing_value = "yes")]
    early_stopping: Early,
    /// Draw tokens: logits are divided by T first.
    #[arg(long, value_name = "T", allow_negative_numbers = true)]
    temperature: Option<f64>,
    /// Draw among the K largest logits.
    #[arg(long, value_name = "K")]
    top_k: Option<usize>,
    /// Draw among the likeliest tokens that together reach probability P.
    #[arg(long, value_name = "P", allow_negative_numbers = true)]
    top_p: Option<f64>,
    /// Seed of the draws, which alone makes them too; a prompt's draws do not depend on those beside it.
    #[arg(long)]
    seed: Option<u64>,
    /// Prompts in work at once; bounds memory, and changes no answer.
    #[arg(long, value_name = "N", default_value_t = 16)]
    batch_size: usize,
    /// Read the whole text anew for every token. Slow; what the cache is checked against.
    #[arg(long)]
    no_cache: bool,
    /// Answer by a JSON line, as for files: prompt, text, tokens, why it ends, log-probability.
    #[arg(long)]
    json: bool,
    /// A new file for the JSON lines, each written as soon as it and those before it are done.
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
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
}

/// [`EarlyStopping`] as the command line spells it.
#[derive(Debug, Clone, Copy, ValueEnum)]
enum Early {
    No,
    Yes,
    Never,
}

pub(super) fn run(args: &GenerateArgs, quiet: bool) -> Result<()> {
    ensure!(args.batch_size > 0, "--batch-size is 0; it must be at least 1");
    ensure!(args.limit != Some(0), "--limit is 0; it must be at least 1");
    let mut decoding = decoding(args);
    decoding.check()?;
    // The file is made before any work: errors come early.
    let file = args.out.as_deref().map(output::create).transpose()?;
    let (model, peft) = opened(args)?;
    let tokenizer = model.tokenizer()?;
    if !args.ignore_end {
        decoding.end = model.end_tokens();
    }
    let mut generator =
        Generator::new(&model.transformer, peft.as_ref())?.with_tokenizer(tokenizer).at_once(args.batch_size);
    if args.no_cache {
        generator = generator.without_cache();
    }
    let texts = prompts::read(args, tokenizer)?;
    let prompts: Vec<_> = texts.iter().map(|text| text.prompt.clone()).collect();
    let started = Instant::now();
    let generated = if args.prompts.is_none() && !args.json && file.is_none() {
        let mut terminal = Terminal::new(tokenizer, &decoding, &texts);
        generator.generate(&prompts, &decoding, &mut terminal)?
    } else {
        let bar = progress::bar(prompts.len() as u64, "prompts", quiet);
        let mut lines = Lines::new(tokenizer, &decoding, &texts, file, bar);
        generator.generate(&prompts, &decoding, &mut lines)?
    };
    if !quiet {
        let tokens: usize = generated.iter().map(|text| text.ids.len()).sum();
        let seconds = started.elapsed().as_secs_f64();
        note!("{tokens} tokens for {} prompts in {seconds:.1} s: {:.1} a second", texts.len(), tokens as f64 / seconds);
    }
    Ok(())
}

/// The model and its adapter.
fn opened(args: &GenerateArgs) -> Result<(LoadedModel, Option<Peft>)> {
    let name = match &args.adapter {
        Some(adapter) => open::base_of(adapter, args.model.as_deref())?,
        None => args.model.clone().context("--model is missing")?,
    };
    let (place, precision) = (device::open(&args.device)?, args.base_dtype.beside(args.dtype));
    device::check(precision, &place)?;
    let mut model = open::model(&name, args.revision.as_deref(), precision, &place)?;
    let Some(adapter) = &args.adapter else {
        model.refuse_partial()?;
        return Ok((model, None));
    };
    let peft = load_adapter(adapter, &model.transformer)?;
    if let Some(tuned) = peft.tuned(&model.transformer) {
        model.transformer = tuned;
    }
    Ok((model, Some(peft)))
}

fn decoding(args: &GenerateArgs) -> Decoding {
    let draws = args.temperature.is_some() || args.top_k.is_some() || args.top_p.is_some() || args.seed.is_some();
    let strategy = match args.beams {
        Some(beams) => Strategy::Beams(Beams {
            beams,
            length_penalty: args.length_penalty,
            early_stopping: match args.early_stopping {
                Early::No => EarlyStopping::No,
                Early::Yes => EarlyStopping::Yes,
                Early::Never => EarlyStopping::Never,
            },
        }),
        None if draws => Strategy::Sample(Sampling {
            temperature: args.temperature.unwrap_or(1.0),
            top_k: args.top_k,
            top_p: args.top_p.unwrap_or(1.0),
            seed: args.seed.unwrap_or(42),
        }),
        None => Strategy::Greedy,
    };
    Decoding { max_new_tokens: args.max_new_tokens, strategy, stop: args.stop.clone(), end: Vec::new() }
}
