//! What is written, where the user sees it.

use super::prompts::Asked;
use crate::generate::{Decoding, Finish, GenerateError, Generated, Listener};
use crate::model::tokenizer::TextTokenizer;
use anyhow::{Context, Result, ensure};
use indicatif::ProgressBar;
use serde_json::json;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};

/// Tokens of the prompt that are decoded in front of the new ones, so that a first space is not lost.
const CONTEXT: usize = 8;

/// A new file with its name.
pub(super) fn create(path: &Path) -> Result<(PathBuf, File)> {
    ensure!(!path.exists(), "{}: is there already; choose another --out", path.display());
    let file = File::create(path).with_context(|| format!("--out {}: cannot be written", path.display()))?;
    Ok((path.to_owned(), file))
}

/// One prompt's text as it comes.
pub(super) struct Terminal<'a> {
    tokenizer: &'a TextTokenizer,
    decoding: &'a Decoding,
    /// The end of the prompt, and what is new.
    ids: Vec<u32>,
    /// The text of the prompt's end.
    before: String,
    /// What was shown of the new text, in bytes.
    shown: usize,
}

impl<'a> Terminal<'a> {
    pub(super) fn new(tokenizer: &'a TextTokenizer, decoding: &'a Decoding, asked: &[Asked]) -> Self {
        let all = asked.first().map(|asked| asked.prompt.ids.as_slice()).unwrap_or_default();
        let ids = all.get(all.len().saturating_sub(CONTEXT)..).unwrap_or_default().to_vec();
        let before = tokenizer.decode(&ids, true).unwrap_or_default();
        Self { tokenizer, decoding, ids, before, shown: 0 }
    }

    /// The new text up to the first stop text; without its last characters where more may change them.
    fn text(&self, over: bool) -> Result<String, GenerateError> {
        let all = self.tokenizer.decode(&self.ids, true)?;
        let mut new = all.strip_prefix(&self.before).unwrap_or(&all).to_owned();
        let stops = || self.decoding.stop.iter();
        if let Some(end) = stops().filter_map(|stop| new.find(stop.as_str())).min() {
            new.truncate(end);
        } else if !over {
            // The beginning of a character or of a stop text.
            let whole = new.trim_end_matches('\u{fffd}').len();
            let begun = |stop: &String| {
                let starts = stop.char_indices().map(|(at, _)| at).filter(|&at| at > 0);
                starts.filter(|&at| stop.get(..at).is_some_and(|start| new.ends_with(start))).max().unwrap_or(0)
            };
            let held = stops().map(begun).max().unwrap_or(0);
            new.truncate(whole.min(new.len() - held));
        }
        Ok(new)
    }

    fn show(&mut self, over: bool) -> Result<(), GenerateError> {
        let text = self.text(over)?;
        let Some(new) = text.get(self.shown..).filter(|new| !new.is_empty()) else { return Ok(()) };
        self.shown = text.len();
        print(new)
    }
}

impl Listener for Terminal<'_> {
    fn token(&mut self, _: usize, id: u32) -> Result<(), GenerateError> {
        if !self.decoding.end.contains(&id) {
            self.ids.push(id);
        }
        self.show(false)
    }

    fn done(&mut self, _: usize, generated: &Generated) -> Result<(), GenerateError> {
        // A beam search has said nothing before.
        if self.decoding.width() > 1 {
            self.ids.extend(generated.text_ids());
        }
        self.show(true)?;
        print("\n")
    }
}

/// Shows a text at once. A reader that has seen enough (`| head`) is no failure.
fn print(text: &str) -> Result<(), GenerateError> {
    let mut out = std::io::stdout();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => Err(GenerateError::Listener(format!("stdout: {error}"))),
        _ => Ok(()),
    }
}

/// A JSON line a prompt, in the prompts' order, each as soon as those before it are out.
pub(super) struct Lines<'a> {
    tokenizer: &'a TextTokenizer,
    decoding: &'a Decoding,
    asked: &'a [Asked],
    file: Option<(PathBuf, File)>,
    bar: ProgressBar,
    /// Lines that wait for those before them.
    waiting: BTreeMap<usize, String>,
    next: usize,
}

impl<'a> Lines<'a> {
    pub(super) fn new(
        tokenizer: &'a TextTokenizer,
        decoding: &'a Decoding,
        asked: &'a [Asked],
        file: Option<(PathBuf, File)>,
        bar: ProgressBar,
    ) -> Self {
        Self { tokenizer, decoding, asked, file, bar, waiting: BTreeMap::new(), next: 0 }
    }

    fn line(&self, place: usize, generated: &Generated) -> Result<String, GenerateError> {
        let finish = match generated.finish {
            Finish::End => "end",
            Finish::Stop => "stop",
            Finish::Length => "length",
        };
        let line = json!({
            "index": place,
            "prompt": self.asked.get(place).map(|asked| asked.text.as_str()),
            "text": generated.text(self.tokenizer, self.decoding)?,
            "tokens": generated.ids.len(),
            "finish": finish,
            "log_probability": generated.log_probability,
        });
        Ok(format!("{line}\n"))
    }

    fn write(&mut self, line: &str) -> Result<(), GenerateError> {
        let Some((path, file)) = &mut self.file else { return print(line) };
        let failed = |error| GenerateError::Listener(format!("{}: cannot be written: {error}", path.display()));
        file.write_all(line.as_bytes()).map_err(failed)
    }
}

impl Listener for Lines<'_> {
    fn token(&mut self, _: usize, _: u32) -> Result<(), GenerateError> {
        Ok(())
    }

    fn done(&mut self, place: usize, generated: &Generated) -> Result<(), GenerateError> {
        let line = self.line(place, generated)?;
        self.waiting.insert(place, line);
        while let Some(line) = self.waiting.remove(&self.next) {
            self.next += 1;
            self.write(&line)?;
        }
        self.bar.inc(1);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::generate::Prompt;
    use crate::model::LoadedModel;
    use candle_core::{DType, Device};

    /// What a terminal would show after each token of `text` behind `prompt`, and at the end.
    fn shown(prompt: &str, text: &str, stop: &[&str]) -> Vec<String> {
        let model = LoadedModel::embedded(DType::F32, &Device::Cpu).unwrap();
        let tokenizer = model.tokenizer().unwrap();
        let ids = |text: &str| tokenizer.encode(text, true).unwrap().ids;
        let whole = ids(&format!("{prompt}{text}"));
        let begun = ids(prompt).len();
        let asked = Asked { text: prompt.to_owned(), prompt: Prompt { ids: whole[..begun].to_vec(), number: 0 } };
        let decoding = Decoding { stop: stop.iter().map(|stop| (*stop).to_owned()).collect(), ..Decoding::greedy(100) };
        let mut terminal = Terminal::new(tokenizer, &decoding, &[asked]);
        let mut all = Vec::new();
        for &id in &whole[begun..] {
            terminal.ids.push(id);
            all.push(terminal.text(false).unwrap());
        }
        all.push(terminal.text(true).unwrap());
        all
    }

    #[test]
    fn a_text_appears_whole_and_never_takes_anything_back() {
        let steps = shown("lily gives", " tom books today and ann sells cards .", &[]);
        assert!(steps.len() > 3 && steps.windows(2).all(|pair| pair[1].starts_with(&pair[0])), "{steps:?}");
        assert_eq!(steps.last().unwrap(), " tom books today and ann sells cards .");
    }

    #[test]
    fn what_may_begin_a_stop_text_is_held_back() {
        let steps = shown("lily gives", " tom books today .", &["books today", "today . ."]);
        assert!(steps.iter().all(|step| !step.contains("books")), "{steps:?}");
        assert_eq!(steps.last().unwrap(), " tom ");
        let steps = shown("lily gives", " tom books today .", &["today . ."]);
        let (last, before) = steps.split_last().unwrap();
        assert!(before.iter().all(|step| !step.contains('.')) && last == " tom books today .", "{steps:?}");
    }
}
