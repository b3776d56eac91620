//! What a study file may say, as it stands in the file.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// A study file, as written.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct StudyFile {
    /// The page's title.
    pub title: String,
    /// What is asked.
    pub question: String,
    /// What was expected, written before the first cell ran.
    pub hypothesis: String,
    /// How large the study is.
    pub scale: StudyScale,
    /// The model; `embedded`.
    pub model: String,
    /// The task's name, for every arm that has none of its own.
    pub task: String,
    /// Paired seeds, 1 to this.
    pub seeds: u64,
    /// Peak learning rates that an arm may choose from, where it names none of its own.
    #[serde(default)]
    pub lr_candidates: Vec<f64>,
    /// Settings of `train` that all arms share, by its own keys.
    #[serde(default)]
    pub training: toml::Table,
    /// What is read and measured.
    pub measurement: Measurement,
    /// Differences below these do not matter.
    pub margins: Margins,
    /// What is run beside the grid: in tables, what is not tuned stands before it and the others behind it.
    #[serde(default)]
    pub arms: Vec<ArmEntry>,
    /// The grid's methods; each is run in every variant.
    #[serde(default)]
    pub methods: Vec<MethodEntry>,
    /// The grid's variants.
    #[serde(default)]
    pub variants: Vec<Variant>,
    /// What is compared within every method.
    #[serde(default)]
    pub contrasts: Vec<Contrast>,
    /// What cannot be run: the page says why, in the words of the settings' own check.
    #[serde(default)]
    pub refused: Vec<ArmEntry>,
    /// What is compared beside the contrasts.
    #[serde(default)]
    pub comparisons: Vec<ComparisonEntry>,
    /// What has to hold before a comparison is worth reading.
    #[serde(default)]
    pub gates: Vec<Gate>,
    /// What is drawn, in the order of the page.
    #[serde(default)]
    pub figures: Vec<Figure>,
    /// What the page says beyond what is computed.
    pub page: PageWords,
}

/// How large a study is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum StudyScale {
    /// Minutes on two cores.
    Tiny,
    /// Hours on two cores, in pieces.
    Small,
    /// GPUs.
    Paper,
}

impl StudyScale {
    /// Its name in files and on pages.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Tiny => "tiny",
            Self::Small => "small",
            Self::Paper => "paper",
        }
    }
}

/// What is read and measured.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Measurement {
    /// Validation items read at each validation.
    pub validation_items: usize,
    /// Validation items whose similarity is watched while training.
    pub watched_texts: usize,
    /// Texts of the similarity measurement at the end of a cell.
    pub probe_texts: usize,
    /// Items of the test.
    pub test_items: usize,
}

/// Differences below these do not matter: the margins of equivalence, fixed before the run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Margins {
    /// Of accuracy, as a share.
    pub accuracy: f64,
    /// Of token similarity.
    pub similarity: f64,
    /// A method is interpreted only where its best arm lies this share above base model and commonest answer; unset: every
    /// method is.
    #[serde(default)]
    pub above_base: Option<f64>,
}

/// An arm, as written.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct ArmEntry {
    /// Its name in tables.
    pub name: String,
    /// Its name in a figure beside its group's others.
    pub label: String,
    /// The method it is a variant of; empty: of none.
    #[serde(default)]
    pub group: String,
    /// Its task, where that is not the study's.
    #[serde(default)]
    pub task: Option<String>,
    /// Whether anything is trained; the model as it was pretrained where not.
    #[serde(default = "yes")]
    pub tuned: bool,
    /// Seeds, where they are fewer than the study's.
    #[serde(default)]
    pub seeds: Option<u64>,
    /// The peak learning rate that was chosen.
    #[serde(default)]
    pub lr: Option<f64>,
    /// Peak learning rates that this arm may choose from; empty: its rate is not searched.
    #[serde(default)]
    pub lr_candidates: Option<Vec<f64>>,
    /// Its own settings of `train`, over the common ones.
    #[serde(default)]
    pub training: toml::Table,
}

fn yes() -> bool {
    true
}

/// A method of the grid.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct MethodEntry {
    /// The first part of its arms' names.
    pub name: String,
    /// Its name in figures.
    pub group: String,
    /// Its task, where that is not the study's.
    #[serde(default)]
    pub task: Option<String>,
    /// The peak learning rate that was chosen, by variant.
    #[serde(default)]
    pub lr: BTreeMap<String, f64>,
    /// Peak learning rates that its arms may choose from, where they are not the study's.
    #[serde(default)]
    pub lr_candidates: Option<Vec<f64>>,
    /// Variants that it cannot have.
    #[serde(default)]
    pub refused: Vec<String>,
    /// Its settings of `train`.
    #[serde(default)]
    pub training: toml::Table,
}

/// A variant of every method of the grid.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Variant {
    /// The last part of its arms' names.
    pub name: String,
    /// Its name in figures.
    pub label: String,
    /// Its settings of `train`, over the method's.
    #[serde(default)]
    pub training: toml::Table,
}

/// A comparison of two variants within every method that has both.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Contrast {
    /// The variant that is judged.
    pub treatment: String,
    /// The variant that it is judged against.
    pub control: String,
    /// Contrasts of the same family are judged together over the methods, by Holm's correction; unset: each alone.
    #[serde(default)]
    pub family: Option<String>,
    /// Whether it answers the study's question and so stands at the page's top.
    #[serde(default)]
    pub answer: bool,
}

/// A comparison, as written.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct ComparisonEntry {
    /// The arm that is judged.
    pub treatment: String,
    /// The arm that it is judged against.
    pub control: String,
    /// Comparisons of the same family are judged together, by Holm's correction; unset: alone.
    #[serde(default)]
    pub family: Option<String>,
    /// Whether it answers the study's question and so stands at the page's top.
    #[serde(default)]
    pub answer: bool,
}

/// A condition on an arm's mean accuracy.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Gate {
    /// The arm.
    pub arm: String,
    /// Its name in the sentence.
    pub what: String,
    /// At least this share.
    #[serde(default)]
    pub at_least: Option<f64>,
    /// At most this share.
    #[serde(default)]
    pub at_most: Option<f64>,
    /// At most this share above the commonest answer.
    #[serde(default)]
    pub at_most_over_commonest: Option<f64>,
}

/// A figure.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(tag = "kind", deny_unknown_fields, rename_all = "kebab-case", rename_all_fields = "kebab-case")]
pub enum Figure {
    /// The models before any tuning; drawn before the first cell runs.
    Phenomenon {
        /// The file's name without its ending.
        file: String,
        /// The section's title on the page, where it begins one.
        #[serde(default)]
        section: Option<String>,
        /// What it shows, for those who cannot see it.
        alt: String,
    },
    /// A value over the layers, a panel a method.
    Curves {
        /// The file's name without its ending.
        file: String,
        /// The section's title on the page, where it begins one.
        #[serde(default)]
        section: Option<String>,
        /// The first line above it.
        title: String,
        /// What it shows, for those who cannot see it.
        alt: String,
        /// What is drawn.
        value: LayerValue,
        /// Panels in a row.
        #[serde(default)]
        columns: Option<usize>,
        /// The methods; empty: all.
        #[serde(default)]
        groups: Vec<String>,
        /// Lines below it.
        #[serde(default)]
        notes: Vec<String>,
    },
    /// A bar an arm, with its seeds.
    Bars {
        /// The file's name without its ending.
        file: String,
        /// The section's title on the page, where it begins one.
        #[serde(default)]
        section: Option<String>,
        /// The first line above it.
        title: String,
        /// What it shows, for those who cannot see it.
        alt: String,
        /// What is drawn.
        value: ArmValue,
        /// The methods; empty: all.
        #[serde(default)]
        groups: Vec<String>,
        /// Lines below it.
        #[serde(default)]
        notes: Vec<String>,
    },
    /// A bar a comparison, with its seeds.
    Differences {
        /// The file's name without its ending.
        file: String,
        /// The section's title on the page, where it begins one.
        #[serde(default)]
        section: Option<String>,
        /// The first line above it.
        title: String,
        /// What it shows, for those who cannot see it.
        alt: String,
        /// What is drawn.
        outcome: Outcome,
        /// The methods; empty: all.
        #[serde(default)]
        groups: Vec<String>,
        /// Lines below it.
        #[serde(default)]
        notes: Vec<String>,
    },
}

impl Figure {
    /// Its file, section and alternative text.
    #[must_use]
    pub fn place(&self) -> (&str, Option<&str>, &str) {
        match self {
            Self::Phenomenon { file, section, alt }
            | Self::Curves { file, section, alt, .. }
            | Self::Bars { file, section, alt, .. }
            | Self::Differences { file, section, alt, .. } => (file, section.as_deref(), alt),
        }
    }

    /// The methods that it names.
    #[must_use]
    pub fn groups(&self) -> &[String] {
        match self {
            Self::Phenomenon { .. } => &[],
            Self::Curves { groups, .. } | Self::Bars { groups, .. } | Self::Differences { groups, .. } => groups,
        }
    }
}

/// A value of every layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LayerValue {
    /// Token similarity.
    Similarity,
    /// Effective rank.
    EffectiveRank,
}

/// A value of a cell.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ArmValue {
    /// Test accuracy.
    Accuracy,
    /// Token similarity of the last block after training.
    LastBlockSimilarity,
    /// CPU time of a step as a multiple of the reference arm's of the same seed.
    Cost,
}

/// What is compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// Test accuracy.
    Accuracy,
    /// Token similarity of the last block after the same number of steps; lower is less smooth.
    SimilarityAtEqualSteps,
    /// The same at the same validation loss.
    SimilarityAtEqualLoss,
}

/// A column of the table of arms.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Column {
    /// Trained numbers.
    Trained,
    /// Peak learning rate.
    Lr,
    /// Test accuracy.
    Accuracy,
    /// Test loss.
    Loss,
    /// Token similarity of the last block after training.
    LastBlockSimilarity,
    /// CPU seconds of a training step on one thread.
    StepSeconds,
    /// The same as a multiple of the reference arm's.
    Cost,
}

/// What the page says beyond what is computed.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct PageWords {
    /// The title above the comparisons that answer the question.
    pub answers: String,
    /// Columns of the table of arms.
    pub columns: Vec<Column>,
    /// The arm that costs are multiples of.
    #[serde(default)]
    pub cost_reference: Option<String>,
    /// What was done beyond what the settings say.
    #[serde(default)]
    pub made: String,
    /// What the study cannot tell.
    pub limits: Vec<String>,
}
