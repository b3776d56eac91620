//! A study: its file, read and checked.

use super::grid::expand;
use super::schema::{
    ArmEntry, Column, ComparisonEntry, Figure, Gate, Margins, Measurement, PageWords, StudyFile, StudyScale,
};
use crate::data::LossOn;
use crate::model::{Architecture, LoadedModel};
use crate::peft::Plan;
use crate::pretrain::tasks::Task;
use crate::train::TrainConfig;
use candle_core::{DType, Device};
use std::collections::BTreeSet;
use std::path::Path;

/// The studies that are compiled in, by name.
const COMPILED_IN: [(&str, &str); 6] = [
    ("headline", include_str!("../../../analyses/headline.toml")),
    ("methods", include_str!("../../../analyses/methods.toml")),
    ("lambda", include_str!("../../../analyses/lambda.toml")),
    ("residuals", include_str!("../../../analyses/residuals.toml")),
    ("tasks", include_str!("../../../analyses/tasks.toml")),
    ("remedies", include_str!("../../../analyses/remedies.toml")),
];

/// Settings of `train` that a cell does not read: what they say, a study says elsewhere or not at all.
const NOT_OF_A_STUDY: [(&str, &str); 19] = [
    ("model", "the study's `model` names it"),
    ("revision", "the embedded model has none"),
    ("data", "the study's `task` names it"),
    ("out", "cells lie in their store"),
    ("init-adapter", "every cell begins anew"),
    ("lr", "an arm's `lr` says it"),
    ("seed", "the study's `seeds` say it"),
    ("val-size", "the task has its own validation items, see [measurement]"),
    ("probe-texts", "the task has its own, see [measurement]"),
    ("save-every", "a cell writes a checkpoint when it is asked to stop"),
    ("tensorboard", "a cell writes no events"),
    ("cutoff", "the task's items are shorter"),
    ("template", "the task has its own"),
    ("label-field", "the task has no classes"),
    ("field", "the task has no fields"),
    ("mask-share", "the embedded model is no encoder"),
    ("dtype", "cells compute in f32"),
    ("base-dtype", "cells compute in f32"),
    ("device", "cells run on the CPU, one on each thread"),
];

/// Why a study file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StudyFileError {
    /// No study of that name, and no file.
    #[error(
        "{name}: no study has this name (there are: {known}), and there is no such file; `reproduce --list` shows them"
    )]
    Unknown {
        /// What was asked for.
        name: String,
        /// The studies that are compiled in.
        known: String,
    },
    /// The file cannot be read.
    #[error("{file}: {source}; name a study or a TOML file")]
    Unreadable {
        /// The file.
        file: String,
        /// What the system said.
        source: std::io::Error,
    },
    /// It is no TOML, or not a study's.
    #[error("{file}:{line}: {problem}; correct the study file")]
    Parse {
        /// The file.
        file: String,
        /// The line, from 1.
        line: usize,
        /// What the reader said.
        problem: String,
    },
    /// A value that makes no sense.
    #[error("{file}: {place}: {problem}")]
    Value {
        /// The file.
        file: String,
        /// The table or arm.
        place: String,
        /// What is wrong, with its remedy.
        problem: String,
    },
}

/// An arm that can be run.
#[derive(Debug, Clone, PartialEq)]
pub struct Arm {
    /// Its name in tables.
    pub name: String,
    /// Its name in a figure beside its group's others.
    pub label: String,
    /// The method it is a variant of; empty: of none.
    pub group: String,
    /// Its task.
    pub task: Task,
    /// Seeds 1 to this.
    pub seeds: u64,
    /// The peak learning rate that was chosen.
    pub lr: Option<f64>,
    /// Peak learning rates that it may choose from; none where its rate is not searched.
    pub lr_candidates: Vec<f64>,
    /// What is trained, at seed and learning rate 0; `None`: nothing is.
    training: Option<TrainConfig>,
    /// Its own settings, as written.
    pub own: toml::Table,
}

impl Arm {
    /// Its settings at a seed and a peak learning rate; `None` where nothing is trained.
    #[must_use]
    pub fn settings(&self, seed: u64, lr: f64) -> Option<TrainConfig> {
        self.training.clone().map(|config| TrainConfig { seed, lr, ..config })
    }

    /// Whether anything is trained.
    #[must_use]
    pub fn is_tuned(&self) -> bool {
        self.training.is_some()
    }

    /// Optimizer steps, where they are given.
    #[must_use]
    pub fn steps(&self) -> Option<u64> {
        self.training.as_ref().and_then(|config| config.steps)
    }
}

/// An arm that cannot be run, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// Its name.
    pub name: String,
    /// Why, in the words of the settings' own check.
    pub reason: String,
}

/// A study, checked.
#[derive(Debug, Clone, PartialEq)]
pub struct Study {
    /// The name of its file without the ending: the name of its report's folder.
    pub name: String,
    /// The page's title.
    pub title: String,
    /// What is asked.
    pub question: String,
    /// What was expected.
    pub hypothesis: String,
    /// How large it is.
    pub scale: StudyScale,
    /// The task.
    pub task: Task,
    /// Tokens whose loss is trained on.
    pub loss_on: LossOn,
    /// Paired seeds, 1 to this.
    pub seeds: u64,
    /// Settings that all arms share, as written.
    pub common: toml::Table,
    /// What is read and measured.
    pub measurement: Measurement,
    /// Differences below these do not matter.
    pub margins: Margins,
    /// What is run, in the order of tables.
    pub arms: Vec<Arm>,
    /// What cannot be run.
    pub refused: Vec<Refusal>,
    /// What is compared.
    pub comparisons: Vec<ComparisonEntry>,
    /// What has to hold.
    pub gates: Vec<Gate>,
    /// What is drawn.
    pub figures: Vec<Figure>,
    /// What the page says.
    pub page: PageWords,
    /// The file as it was read, for manifests.
    pub text: String,
}

impl Study {
    /// The names of the studies that are compiled in.
    #[must_use]
    pub fn names() -> Vec<&'static str> {
        COMPILED_IN.iter().map(|(name, _)| *name).collect()
    }

    /// The study that is compiled in under a name or, if there is none, the file.
    ///
    /// # Errors
    /// There is neither, or the file says what makes no sense.
    pub fn open(name: &str) -> Result<Self, StudyFileError> {
        if let Some((name, text)) = COMPILED_IN.iter().find(|(known, _)| *known == name) {
            return Self::parse(name, &format!("analyses/{name}.toml"), text);
        }
        let path = Path::new(name);
        if !path.exists() {
            return Err(StudyFileError::Unknown { name: name.to_owned(), known: Self::names().join(", ") });
        }
        let text = std::fs::read_to_string(path)
            .map_err(|source| StudyFileError::Unreadable { file: name.to_owned(), source })?;
        let stem = path.file_stem().map(|stem| stem.to_string_lossy().into_owned()).unwrap_or_default();
        Self::parse(&stem, name, &text)
    }

    /// Reads and checks the text of a study file; `file` is its name in errors.
    ///
    /// # Errors
    /// It says what makes no sense.
    pub fn parse(name: &str, file: &str, text: &str) -> Result<Self, StudyFileError> {
        let read: StudyFile = toml::from_str(text).map_err(|error| StudyFileError::Parse {
            file: file.to_owned(),
            line: error.span().map_or(1, |span| text.get(..span.start).unwrap_or(text).matches('\n').count() + 1),
            problem: error.message().to_owned(),
        })?;
        let at = |place: &str, problem: String| StudyFileError::Value {
            file: file.to_owned(),
            place: place.to_owned(),
            problem,
        };
        check_numbers(&read).map_err(|(key, problem)| at(key, problem))?;
        let task = task(&read.task).map_err(|problem| at("task", problem))?;
        let common = settings(&toml::Table::new(), &read.training).map_err(|problem| at("training", problem))?;
        let model = LoadedModel::embedded(DType::F32, &Device::Cpu).map_err(|error| at("model", error.to_string()))?;
        let architecture = model.transformer.architecture();
        let arm = |entry: &ArmEntry| arm(entry, &read).and_then(|arm| planned(arm, architecture));
        let grid = expand(&read).map_err(|(place, problem)| at(&place, problem))?;
        let (before, behind): (Vec<&ArmEntry>, Vec<&ArmEntry>) = read.arms.iter().partition(|entry| !entry.tuned);
        let mut arms = Vec::new();
        let mut names = BTreeSet::new();
        for entry in before.into_iter().chain(&grid.arms).chain(behind) {
            if !names.insert(entry.name.as_str()) {
                return Err(at("arms", format!("two arms are named {}; give each its own name", entry.name)));
            }
            arms.push(arm(entry).map_err(|problem| at(&format!("arm {}", entry.name), problem))?);
        }
        let mut refused = Vec::new();
        for entry in grid.refused.iter().chain(&read.refused) {
            let place = format!("refused {}", entry.name);
            match arm(entry) {
                Ok(_) => return Err(at(&place, "can be run; write it among [[arms]]".to_owned())),
                Err(reason) => refused.push(Refusal { name: entry.name.clone(), reason }),
            }
        }
        let study = Self {
            name: name.to_owned(),
            title: read.title,
            question: read.question,
            hypothesis: read.hypothesis,
            scale: read.scale,
            task,
            loss_on: common.loss_on,
            seeds: read.seeds,
            common: read.training,
            measurement: read.measurement,
            margins: read.margins,
            arms,
            refused,
            comparisons: grid.comparisons.into_iter().chain(read.comparisons).collect(),
            gates: read.gates,
            figures: read.figures,
            page: read.page,
            text: text.to_owned(),
        };
        study.check_references().map_err(|(place, problem)| at(&place, problem))?;
        Ok(study)
    }

    /// The arm of a name.
    #[must_use]
    pub fn arm(&self, name: &str) -> Option<&Arm> {
        self.arms.iter().find(|arm| arm.name == name)
    }

    /// The methods, in the order in which the arms name them.
    #[must_use]
    pub fn groups(&self) -> Vec<&str> {
        let mut groups: Vec<&str> = Vec::new();
        for arm in &self.arms {
            if !arm.group.is_empty() && !groups.contains(&arm.group.as_str()) {
                groups.push(&arm.group);
            }
        }
        groups
    }

    /// The number of an arm's colour and marker: the same for the same label in every figure.
    #[must_use]
    pub fn style(&self, label: &str) -> usize {
        let mut labels: Vec<&str> = Vec::new();
        for arm in &self.arms {
            if !labels.contains(&arm.label.as_str()) {
                labels.push(&arm.label);
            }
        }
        labels.iter().position(|known| *known == label).unwrap_or_default()
    }

    /// The same study with another number of seeds.
    #[must_use]
    pub fn with_seeds(mut self, seeds: u64) -> Self {
        for arm in &mut self.arms {
            // An arm of fewer seeds than the study's keeps them.
            arm.seeds = if arm.seeds == self.seeds { seeds } else { arm.seeds.min(seeds) };
        }
        self.seeds = seeds;
        self
    }

    /// The same study with cells of `steps` steps: to try it out.
    #[must_use]
    pub fn with_steps(mut self, steps: u64) -> Self {
        for config in self.arms.iter_mut().filter_map(|arm| arm.training.as_mut()) {
            config.steps = Some(steps);
            config.eval_every = config.eval_every.min(steps);
            config.probe_every = config.probe_every.min(steps);
        }
        self.common.insert("steps".to_owned(), toml::Value::Integer(steps.try_into().unwrap_or(i64::MAX)));
        for arm in &mut self.arms {
            arm.own.remove("steps");
        }
        self
    }

    /// Names that stand for nothing.
    fn check_references(&self) -> Result<(), (String, String)> {
        let arm = |place: &str, name: &str| match self.arm(name) {
            Some(_) => Ok(()),
            None => Err((place.to_owned(), format!("there is no arm {name}; name one of [[arms]]"))),
        };
        for comparison in &self.comparisons {
            arm("comparisons", &comparison.treatment)?;
            arm("comparisons", &comparison.control)?;
        }
        for gate in &self.gates {
            arm("gates", &gate.arm)?;
            if gate.at_least.is_none() && gate.at_most.is_none() && gate.at_most_over_commonest.is_none() {
                let problem =
                    format!("that of {} has no bound; give at-least, at-most or at-most-over-commonest", gate.arm);
                return Err(("gates".to_owned(), problem));
            }
        }
        let groups = self.groups();
        let mut files = BTreeSet::new();
        for figure in &self.figures {
            let (file, _, _) = figure.place();
            let plain = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
            if file.is_empty() || !file.chars().all(plain) || !files.insert(file) {
                let problem =
                    format!("the file {file:?} is named twice or is no plain name; use letters, digits, - and _");
                return Err(("figures".to_owned(), problem));
            }
            if let Some(group) = figure.groups().iter().find(|group| !groups.contains(&group.as_str())) {
                return Err((format!("figure {file}"), format!("no arm has the group {group}")));
            }
        }
        let needs_reference = self.page.columns.contains(&Column::Cost) || self.figures.iter().any(costs);
        match &self.page.cost_reference {
            Some(name) => arm("page: cost-reference", name),
            None if needs_reference => {
                Err(("page".to_owned(), "cost-reference is missing: the arm that costs are multiples of".to_owned()))
            }
            None => Ok(()),
        }
    }
}

fn costs(figure: &Figure) -> bool {
    matches!(figure, Figure::Bars { value: super::schema::ArmValue::Cost, .. })
}

fn check_numbers(file: &StudyFile) -> Result<(), (&'static str, String)> {
    if file.model != "embedded" {
        return Err(("model", format!("{} is none that a study can run yet; write embedded", file.model)));
    }
    if !(1..=100).contains(&file.seeds) {
        return Err(("seeds", format!("{} seeds; it must be from 1 to 100", file.seeds)));
    }
    let counts = &file.measurement;
    for (key, value, most) in [
        ("measurement: validation-items", counts.validation_items, 500),
        ("measurement: watched-texts", counts.watched_texts, 500),
        ("measurement: probe-texts", counts.probe_texts, 2000),
        ("measurement: test-items", counts.test_items, 2000),
    ] {
        if !(1..=most).contains(&value) {
            return Err((key, format!("{value} items; it must be from 1 to {most}, which the task has")));
        }
    }
    let positive = |value: f64| value.is_finite() && value > 0.0;
    if !positive(file.margins.accuracy) || !positive(file.margins.similarity) {
        return Err(("margins", "a margin must be a number above 0: the least difference that matters".to_owned()));
    }
    if file.margins.above_base.is_some_and(|share| !(0.0..1.0).contains(&share)) {
        return Err(("margins: above-base", "it is a share, in [0, 1)".to_owned()));
    }
    Ok(())
}

fn task(name: &str) -> Result<Task, String> {
    let known = || Task::ALL.iter().map(|task| task.name()).collect::<Vec<_>>().join(", ");
    let found = Task::ALL.into_iter().find(|task| task.name() == name);
    found.ok_or_else(|| format!("{name} is unknown; choose one of {}", known()))
}

/// An arm of its entry and the study's common settings.
fn arm(entry: &ArmEntry, study: &StudyFile) -> Result<Arm, String> {
    let seeds = entry.seeds.unwrap_or(study.seeds);
    if !(1..=study.seeds).contains(&seeds) {
        return Err(format!("seeds is {seeds}; it must be from 1 to the study's {}", study.seeds));
    }
    let candidates = entry.lr_candidates.clone().unwrap_or_else(|| study.lr_candidates.clone());
    if let Some(lr) = candidates.iter().chain(&entry.lr).find(|lr| !(lr.is_finite() && **lr > 0.0)) {
        return Err(format!("the learning rate {lr} must be a number above 0"));
    }
    let training = match entry.tuned {
        false if entry.lr.is_some() || entry.lr_candidates.is_some() || !entry.training.is_empty() => {
            return Err("nothing is tuned, so leave lr, lr-candidates and training out".to_owned());
        }
        false => None,
        true => Some(settings(&study.training, &entry.training)?),
    };
    Ok(Arm {
        name: entry.name.clone(),
        label: entry.label.clone(),
        group: entry.group.clone(),
        task: task(entry.task.as_ref().unwrap_or(&study.task)).map_err(|problem| format!("task {problem}"))?,
        seeds,
        lr: entry.lr,
        lr_candidates: if entry.tuned { candidates } else { Vec::new() },
        training,
        own: entry.training.clone(),
    })
}

/// The arm, if the model has a place for its modules.
fn planned(arm: Arm, architecture: &Architecture) -> Result<Arm, String> {
    if let Some(peft) = arm.training.as_ref().and_then(|config| config.peft(architecture)) {
        Plan::new(architecture, &peft).map_err(|error| error.to_string())?;
    }
    Ok(arm)
}

/// The settings of `train` that two tables say, the second over the first.
fn settings(common: &toml::Table, own: &toml::Table) -> Result<TrainConfig, String> {
    for (key, why) in NOT_OF_A_STUDY {
        if own.contains_key(key) {
            return Err(format!("{key} is no setting of a study: {why}; leave it out"));
        }
    }
    let mut both = common.clone();
    both.extend(own.clone());
    let config: TrainConfig = both.try_into().map_err(|error: toml::de::Error| error.message().to_owned())?;
    // As everywhere where items of a task are read.
    let config = TrainConfig { template: "short".to_owned(), seed: 0, lr: 0.0, ..config };
    config.check().map_err(|error| error.to_string())?;
    Ok(config)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::peft::{self, Policy};
    use crate::train::{MethodName, Schedule};

    /// The settings of the headline study's arms as they stood in the program before studies were files: the committed
    /// numbers are theirs.
    fn headline(arm: &str, seed: u64, lr: f64) -> TrainConfig {
        let (method, residual) = match arm {
            "full" => (MethodName::Full, None),
            "lora-vanilla" => (MethodName::Lora, None),
            "lora-none" => (MethodName::Lora, Some(peft::Arm::None)),
            "lora-sibo" => (MethodName::Lora, Some(peft::Arm::H0)),
            "adapter-vanilla" => (MethodName::Adapter, None),
            "adapter-none" => (MethodName::Adapter, Some(peft::Arm::None)),
            "adapter-sibo" => (MethodName::Adapter, Some(peft::Arm::H0)),
            other => panic!("{other}"),
        };
        let targets = ["q_proj", "k_proj", "v_proj", "gate_proj", "up_proj"].map(str::to_owned).to_vec();
        TrainConfig {
            method,
            targets: if method == MethodName::Adapter { targets } else { Vec::new() },
            rank: 8,
            dropout: 0.0,
            bottleneck: 32,
            sibo_lambda: if residual.is_some() { 0.3 } else { 0.0 },
            sibo_policy: Policy::All,
            residual: residual.unwrap_or(peft::Arm::H0),
            lr,
            schedule: Schedule::Linear,
            warmup_steps: 20,
            batch_size: 16,
            accumulate: 1,
            steps: Some(if method == MethodName::Full { 600 } else { 220 }),
            eval_every: 44,
            probe_every: 44,
            loss_on: LossOn::Answer,
            template: "short".to_owned(),
            seed,
            ..TrainConfig::default()
        }
    }

    #[test]
    fn the_headline_study_is_the_one_that_was_run() {
        let study = Study::open("headline").unwrap();
        assert_eq!((study.seeds, study.task, study.loss_on), (5, Task::Difference, LossOn::Answer));
        let names: Vec<&str> = study.arms.iter().map(|arm| arm.name.as_str()).collect();
        assert_eq!(names[0], "base");
        assert_eq!(study.arms[0].settings(1, 0.0), None);
        let rates = [5e-3, 5e-3, 5e-3, 2.5e-3, 2.5e-3, 2.5e-3, 1e-3];
        for (arm, lr) in study.arms[1..].iter().zip(rates) {
            assert_eq!(arm.lr, Some(lr), "{}", arm.name);
            assert_eq!(arm.settings(3, lr), Some(headline(&arm.name, 3, lr)), "{}", arm.name);
        }
        assert_eq!(study.arms.last().map(|arm| (arm.seeds, arm.lr_candidates.len())), Some((1, 0)));
    }

    #[test]
    fn every_compiled_in_study_can_be_opened() {
        for name in Study::names() {
            let study = Study::open(name).unwrap();
            assert_eq!(study.name, name);
        }
    }

    fn refused(change: impl Fn(&str) -> String) -> String {
        let text = include_str!("../../../analyses/headline.toml");
        Study::parse("mine", "mine.toml", &change(text)).unwrap_err().to_string()
    }

    #[test]
    fn nonsense_is_named_with_its_file_and_key() {
        let error = refused(|text| text.replace("warmup-steps", "warmup_steps"));
        assert!(error.starts_with("mine.toml: training: unknown field `warmup_steps`"), "{error}");
        let error = refused(|text| text.replace("{ sibo-lambda = 0.3 }", "{ sibo-lambda = 3.0 }"));
        assert!(error.starts_with("mine.toml: arm lora-sibo: sibo-lambda is 3"), "{error}");
        let error = refused(|text| text.replacen("title =", "titel =", 1));
        assert!(error.starts_with("mine.toml:4: unknown field `titel`"), "{error}");
        let error = refused(|text| text.replace("identity/difference", "identity/sum"));
        assert!(error.contains("identity/sum is unknown; choose one of identity/difference"), "{error}");
        let error = refused(|text| text.replace("control = \"none\"", "control = \"nun\""));
        assert_eq!(error, "mine.toml: contrasts: there is no variant nun; name one of [[variants]]");
        let error = refused(|text| text.replace("arm = \"lora-vanilla\"", "arm = \"lora\""));
        assert_eq!(error, "mine.toml: gates: there is no arm lora; name one of [[arms]]");
        let error = refused(|text| text.replace("sibo = 5e-3", "sibbo = 5e-3"));
        assert_eq!(error, "mine.toml: method lora: there is no variant sibbo; name one of [[variants]]");
        let error = refused(|text| text.replace("\"gate_proj\"", "\"gate\""));
        assert!(error.starts_with("mine.toml: arm adapter-vanilla: target \"gate\" matches no linear"), "{error}");
        let error = refused(|text| text.replace("schedule = \"linear\"", "schedule = \"linear\"\nseed = 3"));
        assert!(error.contains("seed is no setting of a study: the study's `seeds` say it"), "{error}");
        let error = refused(|text| text.replace("columns = [\"trained\"", "columns = [\"cost\""));
        assert_eq!(error, "mine.toml: page: cost-reference is missing: the arm that costs are multiples of");
        let error = refused(|text| text.replace("file = \"accuracy\"", "file = \"../accuracy\""));
        assert!(error.contains("is no plain name"), "{error}");
    }

    #[test]
    fn what_cannot_be_run_says_why_in_the_settings_own_words() {
        let text = include_str!("../../../analyses/headline.toml");
        let with = |method: &str| {
            let entry = "[[refused]]\nname = \"x\"\nlabel = \"x\"\n[refused.training]\n";
            let entry = format!("{entry}method = \"{method}\"\nsibo-lambda = 0.3\n[[gates]]");
            Study::parse("mine", "mine.toml", &text.replacen("[[gates]]", &entry, 1))
        };
        let study = with("bitfit").unwrap();
        assert!(study.refused[0].reason.contains("has no linear input that h0 could be mixed into"), "{study:?}");
        let error = with("lora").unwrap_err().to_string();
        assert_eq!(error, "mine.toml: refused x: can be run; write it among [[arms]]");
    }

    #[test]
    fn fewer_steps_are_validated_within_them() {
        let study = Study::open("headline").unwrap().with_steps(10);
        for config in study.arms.iter().filter_map(|arm| arm.settings(1, 1e-3)) {
            assert_eq!((config.steps, config.eval_every, config.probe_every), (Some(10), 10, 10));
        }
    }
}
