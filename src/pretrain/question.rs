//! The questions about a story and their answers.

use super::page::Page;
use super::story::Story;
use super::vocabulary;

/// The four questions of the corpus.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QuestionKind {
    /// "how many apples has lily ? 4"
    HowMany,
    /// "has lily more apples than tom ? no"
    YesNo,
    /// "compare lily and tom : 4 and 8 so less"
    Compare,
    /// "who has 8 ? tom"
    Who,
}

impl QuestionKind {
    /// All kinds.
    pub const ALL: [Self; 4] = [Self::HowMany, Self::YesNo, Self::Compare, Self::Who];

    /// The kind's name in stream purposes and tables.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::HowMany => "how many",
            Self::YesNo => "yes/no",
            Self::Compare => "compare",
            Self::Who => "who",
        }
    }
}

impl Story {
    /// Writes the story's questions with their answers.
    pub fn questions(&self, page: &mut Page<'_>) {
        let mut asked = 0;
        while !page.stops(asked, self.rules.questions) {
            let Some(kind) = self.kind(page) else { break };
            let answer = self.ask(page, kind, None);
            page.word(answer);
            page.say(".");
            asked += 1;
        }
    }

    /// The positions of holders whose count nobody else has.
    fn alone(&self) -> Vec<usize> {
        let same = |count| self.holders.iter().filter(|holder| holder.count == count).count();
        (0..self.holders.len()).filter(|&position| same(self.holders[position].count) == 1).collect()
    }

    /// Draws the kind of the next question by the rules' weights among those that the story allows.
    fn kind(&self, page: &mut Page<'_>) -> Option<QuestionKind> {
        let possible = |kind: QuestionKind| match kind {
            QuestionKind::HowMany => true,
            QuestionKind::YesNo | QuestionKind::Compare => self.holders.len() > 1,
            QuestionKind::Who => !self.alone().is_empty(),
        };
        let weights = QuestionKind::ALL.map(|kind| if possible(kind) { self.rules.weight(kind) } else { 0 });
        let any = weights.iter().any(|&weight| weight > 0);
        any.then(|| page.weigh(&weights)).and_then(|drawn| QuestionKind::ALL.get(drawn).copied())
    }

    /// Whether the question can be asked of the holder at this position.
    #[must_use]
    pub fn can_ask(&self, kind: QuestionKind, position: usize) -> bool {
        kind != QuestionKind::Who || self.alone().contains(&position)
    }

    /// Writes a question up to where its answer begins; the id of the answer, a single token.
    ///
    /// `about` names the two positions asked about (the first alone where one is), otherwise they are drawn.
    pub fn ask(&self, page: &mut Page<'_>, kind: QuestionKind, about: Option<(usize, usize)>) -> u32 {
        let n = self.holders.len();
        let count = |position: usize| self.holders[position].count;
        let first = |page: &mut Page<'_>| about.map_or_else(|| page.pick(n), |about| about.0);
        let second = |page: &mut Page<'_>, first: usize| match about {
            Some(about) => about.1,
            None => (first + 1 + page.pick(n - 1)) % n,
        };
        match kind {
            QuestionKind::HowMany => {
                page.say("how many");
                self.thing(page);
                page.say("has");
                let a = first(page);
                self.name(page, a);
                page.say("?");
                vocabulary::number(count(a))
            }
            QuestionKind::YesNo => {
                page.say("has");
                let a = first(page);
                self.name(page, a);
                page.say("more");
                self.thing(page);
                page.say("than");
                let b = second(page, a);
                self.name(page, b);
                page.say("?");
                vocabulary::id(if count(a) > count(b) { "yes" } else { "no" })
            }
            QuestionKind::Compare => {
                page.say("compare");
                let a = first(page);
                self.name(page, a);
                page.say("and");
                let b = second(page, a);
                self.name(page, b);
                page.say(":");
                page.number(count(a));
                page.say("and");
                page.number(count(b));
                page.say("so");
                comparison(count(a), count(b))
            }
            QuestionKind::Who => {
                page.say("who has");
                let a = match about {
                    Some(about) => about.0,
                    None => page.one_of(&self.alone()).unwrap_or_default(),
                };
                page.number(count(a));
                page.say("?");
                vocabulary::name(self.holders[a].name)
            }
        }
    }
}

/// The word for how `a` compares with `b`: less, more or same.
pub(super) fn comparison(a: u32, b: u32) -> u32 {
    vocabulary::id(match a.cmp(&b) {
        std::cmp::Ordering::Less => "less",
        std::cmp::Ordering::Greater => "more",
        std::cmp::Ordering::Equal => "same",
    })
}
