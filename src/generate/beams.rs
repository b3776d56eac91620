//! Beam search as transformers 5 does it (`GenerationMixin._beam_search`), for one prompt.

use super::chances::normaliser;
use super::ending::Ending;
use super::text::Text;
use super::{Beams, EarlyStopping, Finish, GenerateError, Generated};
use std::cmp::Ordering;

/// What a score loses that is out of the question; also that of a place that nobody has taken.
const OUT: f64 = -1e9;

/// A prompt whose best continuations are followed.
#[derive(Debug)]
pub(super) struct BeamSearch {
    settings: Beams,
    /// The texts that go on, the best first.
    running: Vec<Running>,
    /// As many places for texts that ended, the best first.
    finished: Vec<Finished>,
    /// Whether a running text may still become better than a finished one.
    hopeful: bool,
    /// New tokens so far.
    tokens: usize,
    over: bool,
}

#[derive(Debug)]
struct Running {
    text: Text,
    /// `Σ ln p`, or that and [`OUT`].
    score: f64,
}

#[derive(Debug, Clone)]
struct Finished {
    /// Over the length penalty.
    score: f64,
    /// `None` while nobody has taken the place.
    text: Option<Generated>,
}

/// One more token behind a running text.
#[derive(Debug, Clone, Copy)]
struct Candidate {
    beam: usize,
    id: usize,
    score: f64,
}

/// The higher score first, then the earlier beam, then the lower token.
fn better(a: &Candidate, b: &Candidate) -> Ordering {
    b.score.total_cmp(&a.score).then(a.beam.cmp(&b.beam)).then(a.id.cmp(&b.id))
}

impl BeamSearch {
    /// Every beam begins as the prompt; all but the first count nothing, so that the first step takes different tokens of
    /// one.
    pub(super) fn new(text: Text, settings: Beams) -> Self {
        let score = |beam: usize| if beam == 0 { 0.0 } else { OUT };
        Self {
            settings,
            running: (0..settings.beams).map(|beam| Running { text: text.clone(), score: score(beam) }).collect(),
            finished: vec![Finished { score: OUT, text: None }; settings.beams],
            hopeful: true,
            tokens: 0,
            over: false,
        }
    }

    /// The texts whose next logits are wanted.
    pub(super) fn texts(&mut self) -> impl Iterator<Item = &mut Text> {
        self.running.iter_mut().map(|running| &mut running.text)
    }

    /// The best text, if the search is over.
    pub(super) fn generated(&self) -> Option<Generated> {
        let unfinished = || {
            let Running { text, score } = self.running.first()?;
            Some(Generated { ids: text.new_ids().to_vec(), log_probability: *score, finish: Finish::Length })
        };
        let best = || self.finished.iter().find_map(|finished| finished.text.clone()).or_else(unfinished);
        self.over.then(best).flatten()
    }

    /// Adds a token to every text, by the logits behind each; false if one is not a number.
    pub(super) fn advance(&mut self, logits: &[&[f64]], ending: &Ending<'_>) -> Result<bool, GenerateError> {
        let ends = ending.decoding.end.len();
        let keep = (1 + ends).max(2) * self.settings.beams;
        let Some(candidates) = self.candidates(logits, keep) else { return Ok(false) };
        let mut texts = Vec::with_capacity(candidates.len());
        let mut finishes = Vec::with_capacity(candidates.len());
        for candidate in &candidates {
            let Some(running) = self.running.get(candidate.beam) else { continue };
            let text = running.text.with(candidate.id as u32);
            finishes.push(ending.of(text.new_ids())?);
            texts.push(text);
        }
        self.finish(&candidates, &texts, &finishes);
        let mut next: Vec<Running> = candidates
            .iter()
            .zip(texts)
            .zip(&finishes)
            .map(|((candidate, text), finish)| Running {
                text,
                score: candidate.score + if finish.is_some() { OUT } else { 0.0 },
            })
            .collect();
        next.sort_by(|a, b| b.score.total_cmp(&a.score));
        next.truncate(self.settings.beams);
        self.running = next;
        self.tokens += 1;
        self.look_ahead(ending.most);
        let full = self.finished.iter().all(|finished| finished.text.is_some());
        self.over = !self.hopeful
            || (full && self.settings.early_stopping == EarlyStopping::Yes)
            || finishes.iter().all(Option::is_some);
        Ok(true)
    }

    /// The best `keep` continuations by one token, the best first.
    fn candidates(&self, logits: &[&[f64]], keep: usize) -> Option<Vec<Candidate>> {
        let mut best: Vec<Candidate> = Vec::with_capacity(2 * keep);
        for (beam, (logits, running)) in logits.iter().zip(&self.running).enumerate() {
            let normaliser = normaliser(logits)?;
            // Below this nothing can be among the best.
            let mut least = f64::NEG_INFINITY;
            for (id, &logit) in logits.iter().enumerate() {
                let score = logit - normaliser + running.score;
                if score.is_nan() {
                    return None;
                }
                if score >= least {
                    best.push(Candidate { beam, id, score });
                    if best.len() == 2 * keep {
                        best.sort_unstable_by(better);
                        best.truncate(keep);
                        least = best.last().map_or(least, |last| last.score);
                    }
                }
            }
        }
        best.sort_unstable_by(better);
        best.truncate(keep);
        Some(best)
    }

    /// Gives texts that end with this token, and are among the best as many as there are beams, their places.
    fn finish(&mut self, candidates: &[Candidate], texts: &[Text], finishes: &[Option<Finish>]) {
        let length = (self.tokens + 1) as f64;
        let full = self.finished.iter().all(|finished| finished.text.is_some());
        if !self.hopeful || (full && self.settings.early_stopping == EarlyStopping::Yes) {
            return;
        }
        for ((candidate, text), finish) in candidates.iter().zip(texts).zip(finishes).take(self.settings.beams) {
            let Some(finish) = *finish else { continue };
            let generated = Generated { ids: text.new_ids().to_vec(), log_probability: candidate.score, finish };
            let score = candidate.score / length.powf(self.settings.length_penalty);
            self.finished.push(Finished { score, text: Some(generated) });
        }
        self.finished.sort_by(|a, b| b.score.total_cmp(&a.score));
        self.finished.truncate(self.settings.beams);
    }

    /// Gives up hope where the best running text cannot beat the worst finished one; `most` are the new tokens at most.
    fn look_ahead(&mut self, most: usize) {
        let penalty = self.settings.length_penalty;
        let length = match self.settings.early_stopping {
            EarlyStopping::Never if penalty > 0.0 => most,
            _ => self.tokens,
        };
        let best = self.running.first().map_or(OUT, |running| running.score) / (length as f64).powf(penalty);
        let worst = self.finished.last().map_or(OUT, |finished| finished.score);
        let beatable = |finished: &Finished| best > if finished.text.is_some() { worst } else { OUT };
        self.hopeful = self.hopeful && self.finished.iter().any(beatable);
    }
}
