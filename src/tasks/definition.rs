//! A task as data: where its items lie, how they are put to a model, what of its output counts, how it is scored.

use super::{Metric, TaskError};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;

/// The placeholder of a choice's word.
const WORD: &str = "{word}";
/// The field that every task has.
pub const LABEL: &str = "label";

/// A task, as its TOML states it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Task {
    /// What `--task` calls it.
    pub name: String,
    /// Counts the changes that move a score.
    pub version: u32,
    /// What a table calls it.
    pub title: String,
    /// Who made the data, and where they are from.
    pub source: String,
    /// The groups that it belongs to.
    #[serde(default)]
    pub groups: Vec<String>,
    /// How many test items the set has, where that is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub items: Option<usize>,
    /// How it may be scored; the first is the default.
    pub modes: Vec<Mode>,
    /// What is computed of the items; the first is the task's own.
    pub metrics: Vec<Metric>,
    /// The prompt outside of the modes `alpaca` and `released`: a name (`alpaca`, `released`, `short`), or a text with
    /// the fields in braces.
    pub template: String,
    /// Where the items lie.
    #[serde(default)]
    pub files: Files,
    /// For each field of the task its names in files; the first that a row has is read.
    pub fields: BTreeMap<String, Vec<String>>,
    /// What the answer is.
    pub answer: Answer,
    /// How an answer is generated.
    #[serde(default)]
    pub decoding: Generation,
}

/// Where in a data folder a task's items lie; of each list the first file that is there is read.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub struct Files {
    /// What is scored.
    pub test: Vec<String>,
    /// What is trained on.
    pub train: Vec<String>,
    /// The columns of a tab-separated file that has no header line.
    pub columns: Vec<String>,
}

/// What the answer is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Answer {
    /// Its kind.
    pub kind: AnswerKind,
    /// The label words: those of a word or letter, or what stands for each class in words.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub words: Vec<String>,
    /// The classes by the names that they have in files; a file may also number them, from 0.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub classes: Vec<String>,
    /// Of a choice: the field that lists the item's choices.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub choices: Option<String>,
    /// The label is what follows this in its field, where it occurs: GSM8K's `####`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub after: Option<String>,
    /// Of the words those that an item offers: the ones that its prompt has in this form. Without it all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub offered: Option<String>,
    /// The text of a choice, whose likelihood is taken.
    #[serde(default = "bare_word")]
    pub choice: String,
    /// What stands between prompt and choice.
    #[serde(default)]
    pub delimiter: String,
}

fn bare_word() -> String {
    WORD.to_owned()
}

impl Answer {
    /// The text of the choice `word`.
    #[must_use]
    pub fn choice_text(&self, word: &str) -> String {
        self.choice.replace(WORD, word)
    }

    /// The form in which a prompt offers `word`.
    #[must_use]
    pub fn offered_form(&self, word: &str) -> Option<String> {
        self.offered.as_ref().map(|form| form.replace(WORD, word))
    }
}

/// The kinds of answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum AnswerKind {
    /// A number: right within 0.001.
    Number,
    /// One of a few capital letters.
    Letter,
    /// One of a few words.
    Word,
    /// A class of the text.
    Class,
    /// One of the choices that the item lists itself; the label is its text, or its number from 0.
    Choice,
    /// A real number that a head is trained to give.
    Score,
}

/// How an answer is generated.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub struct Generation {
    /// The most tokens of an answer.
    pub max_new_tokens: usize,
    /// Beams; 1 is greedy.
    pub beams: usize,
}

impl Default for Generation {
    fn default() -> Self {
        Self { max_new_tokens: 32, beams: 4 }
    }
}

/// How a task is put to a model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[cfg_attr(feature = "cli", derive(clap::ValueEnum))]
pub enum Mode {
    /// Alpaca's prompt; the answer is generated and extracted by our rules.
    Alpaca,
    /// The prompt, decoding and extraction of the released scripts.
    Released,
    /// The task's own template; the answer is generated and extracted by our rules.
    Template,
    /// Every choice is scored by its likelihood, as lm-evaluation-harness does; the prompt is the task's own template.
    #[cfg_attr(feature = "cli", value(name = "loglikelihood"))]
    #[serde(rename = "loglikelihood")]
    LogLikelihood,
    /// By the head for classes that `train` trained.
    Classify,
}

impl Mode {
    /// Its name on the command line.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Alpaca => "alpaca",
            Self::Released => "released",
            Self::Template => "template",
            Self::LogLikelihood => "loglikelihood",
            Self::Classify => "classify",
        }
    }

    /// Whether an answer is generated.
    #[must_use]
    pub fn generates(self) -> bool {
        matches!(self, Self::Alpaca | Self::Released | Self::Template)
    }
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl Task {
    /// A task from its TOML; `place` is for messages.
    ///
    /// # Errors
    /// It is no TOML, lacks a key, has an unknown one, or states what cannot be.
    pub fn parse(place: &str, text: &str) -> Result<Self, TaskError> {
        let wrong = |reason: String| TaskError::Definition { place: place.to_owned(), reason };
        let task: Self = toml::from_str(text).map_err(|e| {
            let line = e.span().map(|span| 1 + text.bytes().take(span.start).filter(|&b| b == b'\n').count());
            let line = line.map(|line| format!("line {line}: ")).unwrap_or_default();
            wrong(format!("{line}{}", e.message().lines().next().unwrap_or_default()))
        })?;
        task.check().map_err(wrong)?;
        Ok(task)
    }

    /// The mode that is meant where none is named, or `mode` if the task has it.
    ///
    /// # Errors
    /// The task has no such mode.
    pub fn mode(&self, mode: Option<Mode>) -> Result<Mode, TaskError> {
        let found = match mode {
            None => self.modes.first(),
            Some(mode) => self.modes.iter().find(|known| **known == mode),
        };
        found.copied().ok_or_else(|| TaskError::Mode {
            mode: mode.map(|mode| mode.to_string()).unwrap_or_default(),
            task: self.name.clone(),
            modes: self.modes.iter().map(|mode| mode.name()).collect::<Vec<_>>().join(", "),
        })
    }

    /// What the task's choices or classes are called in results; empty where each item has its own.
    #[must_use]
    pub fn names(&self) -> &[String] {
        match self.answer.kind {
            AnswerKind::Class => &self.answer.classes,
            AnswerKind::Letter | AnswerKind::Word => &self.answer.words,
            AnswerKind::Number | AnswerKind::Choice | AnswerKind::Score => &[],
        }
    }

    /// The text whose likelihood is taken for an item's choice or class, and that is trained for it.
    #[must_use]
    pub fn choice_text(&self, name: &str) -> String {
        let class = self.answer.classes.iter().position(|class| class == name);
        let word = class.and_then(|index| self.answer.words.get(index)).map_or(name, String::as_str);
        self.answer.choice_text(word)
    }

    fn check(&self) -> Result<(), String> {
        let Answer { kind, words, classes, choices, choice, .. } = &self.answer;
        let needs = |there: bool, key: &str, why: &str| match there {
            true => Ok(()),
            false => Err(format!("{key}: {why}")),
        };
        needs(!self.name.trim().is_empty(), "name", "is empty; give one")?;
        needs(!self.modes.is_empty(), "modes", "is empty; name at least one")?;
        needs(!self.metrics.is_empty(), "metrics", "is empty; name at least one")?;
        needs(self.fields.contains_key(LABEL), "fields.label", "is missing; name the field of the right answer")?;
        needs(self.fields.values().all(|names| !names.is_empty()), "fields", "a field has no name in files")?;
        needs(self.decoding.max_new_tokens > 0, "decoding.max-new-tokens", "is 0; give at least 1")?;
        needs(self.decoding.beams > 0, "decoding.beams", "is 0; give at least 1")?;
        let enough = |list: &[String]| list.len() >= 2;
        match kind {
            AnswerKind::Letter | AnswerKind::Word => {
                needs(enough(words), "answer.words", "a letter or word needs at least two")?;
                let single = |word: &String| word.chars().count() == 1;
                needs(
                    *kind == AnswerKind::Word || words.iter().all(single),
                    "answer.words",
                    "a letter is one character",
                )?;
            }
            AnswerKind::Class => {
                needs(enough(classes), "answer.classes", "a class needs at least two")?;
                let paired = words.is_empty() || words.len() == classes.len();
                needs(paired, "answer.words", "must be as many as answer.classes, or none")?;
            }
            AnswerKind::Choice => {
                let listed = choices.as_ref().is_some_and(|field| self.fields.contains_key(field));
                needs(listed, "answer.choices", "must name the field of fields that lists the choices")?;
            }
            AnswerKind::Number | AnswerKind::Score => {}
        }
        needs(choice.contains(WORD), "answer.choice", "has no {word}")?;
        for mode in &self.modes {
            let (fits, why) = match mode {
                Mode::Alpaca | Mode::Released => (
                    self.fields.contains_key("instruction") && self.extracts(),
                    "needs the field instruction, and a number, letter, word or choice",
                ),
                Mode::Template => (self.extracts(), "needs a number, letter, word or choice"),
                Mode::LogLikelihood => {
                    (enough(words) || *kind == AnswerKind::Choice, "needs answer.words, or the kind choice")
                }
                Mode::Classify => {
                    let one = self.fields.contains_key("sentence");
                    let two = ["sentence1", "sentence2"].iter().all(|field| self.fields.contains_key(*field));
                    let fits = matches!(kind, AnswerKind::Class | AnswerKind::Score) && (one || two);
                    (fits, "needs the kind class or score, and the field sentence, or sentence1 and sentence2")
                }
            };
            needs(fits, &format!("modes: {mode}"), why)?;
        }
        for metric in &self.metrics {
            let fits = match metric {
                Metric::Accuracy => *kind != AnswerKind::Score,
                Metric::F1 => classes.len() == 2,
                Metric::Matthews => *kind == AnswerKind::Class,
                Metric::Pearson | Metric::Spearman => *kind == AnswerKind::Score,
            };
            needs(fits, &format!("metrics: {metric}"), "is not defined for this kind of answer")?;
        }
        Ok(())
    }

    fn extracts(&self) -> bool {
        !matches!(self.answer.kind, AnswerKind::Class | AnswerKind::Score)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "name = \"t\"\nversion = 1\ntitle = \"T\"\nsource = \"us\"\nmodes = [\"loglikelihood\"]\n\
        metrics = [\"accuracy\"]\ntemplate = \"{question}\"\n[fields]\nquestion = [\"q\"]\nlabel = [\"a\"]\n[answer]\n\
        kind = \"word\"\nwords = [\"yes\", \"no\"]\n";

    fn refused(from: &str, to: &str) -> String {
        assert!(GOOD.contains(from), "{from}");
        Task::parse("t.toml", &GOOD.replace(from, to)).unwrap_err().to_string()
    }

    #[test]
    fn a_short_task_has_its_defaults() {
        let task = Task::parse("t.toml", GOOD).unwrap();
        assert_eq!(task.mode(None).unwrap(), Mode::LogLikelihood);
        assert_eq!((task.decoding.max_new_tokens, task.decoding.beams), (32, 4));
        assert_eq!((task.answer.choice_text("yes").as_str(), task.names().len()), ("yes", 2));
        let error = task.mode(Some(Mode::Classify)).unwrap_err().to_string();
        assert_eq!(error, "--mode classify: t has no such mode; it has loglikelihood");
    }

    #[test]
    fn what_cannot_be_is_refused_by_key() {
        let end = "; docs/tasks.md has the keys of a task";
        assert_eq!(
            refused("label = [\"a\"]\n", ""),
            format!("t.toml: fields.label: is missing; name the field of the right answer{end}")
        );
        assert!(refused("version = 1", "version = \"x\"").contains("t.toml: line 2: "), "the line is named");
        assert!(refused("title = ", "tittle = ").contains("unknown field `tittle`"));
        assert!(refused("words = [\"yes\", \"no\"]", "words = [\"yes\"]").contains("answer.words: "));
        assert!(refused("kind = \"word\"", "kind = \"letter\"").contains("a letter is one character"));
        assert!(refused("\"loglikelihood\"", "\"alpaca\"").contains("modes: alpaca: needs the field instruction"));
        assert!(refused("\"loglikelihood\"", "\"classify\"").contains("modes: classify: needs the kind class"));
        assert!(refused("\"accuracy\"", "\"pearson\"").contains("metrics: pearson: is not defined"));
        assert!(refused("kind = \"word\"", "kind = \"choice\"").contains("answer.choices: "));
    }
}
