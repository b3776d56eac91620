//! Stories: who holds how many, what happens, and what is asked.
//!
//! # Grammar
//! ```text
//! story    = opening, recap × opening_recaps, { event }, [ recap ], question, { question }
//! opening  = NAME "has" NUMBER OBJECT "." once for each holder
//! recap    = "together :" ITEM { "and" ITEM } "."        the last recap only after an event
//! ITEM     = NAME NUMBER, or in a reversed recap NUMBER NAME
//! event    = NAME VERB NUMBER OBJECT [ ("to" | "from") NAME ] ENDING "." change [ change ]
//! change   = NUMBER ("plus" | "minus") NUMBER "is" NUMBER "." "now" NAME "has" NUMBER OBJECT "."
//! question = "how many" OBJECT "has" NAME "?" NUMBER "."
//!          | "has" NAME "more" OBJECT "than" NAME "?" ("yes" | "no") "."
//!          | "compare" NAME "and" NAME ":" NUMBER "and" NUMBER "so" ("less" | "more" | "same") "."
//!          | "who has" NUMBER "?" NAME "."
//! ```
//! # Choices, in the order of the words
//! - Each holder: whether there is another (the count is uniform over the stage's), a name that makes no
//!   held-out pair with those before (uniform), a start (uniform); the object once, at its first mention.
//! - A recap: reversed or not (by the stage's weights), then its order (uniform over permutations). In a reversed recap of
//!   equal counts the number is drawn with the share of holders that have it, then the name among them.
//! - Events: whether there is another (the count is uniform over `0..=events`); the actor among holders who
//!   can do something; the verb among those they can do; the amount among those that leave nobody below 0 or
//!   above the cap; the other holder among those who can; the ending among the verb's endings of the split.
//! - Questions: whether there is another (uniform over the stage's counts), the kind (by the stage's weights among those the
//!   story allows), and who is asked about (uniform; an ordered pair of different holders; for "who" a holder whose
//!   count nobody else has).
//!
//! Everything else is determined: changes, recapped counts, answers, template words.
//!
//! # Entropy
//! Different outcomes of a choice write different next words, so a text has one history of choices and
//! −ln p(text) = Σ over its choices of −ln p(outcome | what was written before): see [`super::page`].

use super::cast::{Cast, partners};
use super::holdout::{Split, split_of_verb};
use super::page::Page;
use super::question::QuestionKind;
use super::vocabulary::{self, VerbKind};

/// The sizes of a generator: one constant a stage.
#[derive(Clone, Copy, Debug)]
pub struct Rules {
    /// How often a text is a recall text and how often anything else.
    pub recalls: [usize; 2],
    /// How many pairs a recall text may have, ascending from 1 or more.
    pub pairs: &'static [usize],
    /// How often any other text is a drill and how often a story.
    pub drills: [usize; 2],
    /// How many lines a drill text may have, ascending from 1 or more.
    pub drill_lines: &'static [usize],
    /// The first number of a drill line is 0 to this many, at most `cap`.
    pub drill_to: u32,
    /// The first this many of the names take part.
    pub names: usize,
    /// The first this many of the objects take part.
    pub objects: usize,
    /// The verbs that take part, as indices into [`vocabulary::VERBS`].
    pub verbs: &'static [usize],
    /// The first this many of the endings take part.
    pub endings: usize,
    /// How many holders a story may have, ascending.
    pub holders: &'static [usize],
    /// A holder starts with 1 to this many.
    pub largest_start: u32,
    /// An event moves 1 to this many.
    pub largest_amount: u32,
    /// No count and no sum passes this.
    pub cap: u32,
    /// How many events a story may have, ascending from 0.
    pub events: &'static [usize],
    /// How often the counts are recapped before the events, at least once.
    pub opening_recaps: usize,
    /// How often a recap is plain and how often reversed. "how many" finds its answer behind the name in a
    /// plain recap, "who" behind the number in a reversed one.
    pub recaps: [usize; 2],
    /// How many questions a story may have, ascending from 1 or more.
    pub questions: &'static [usize],
    /// How often each kind is asked among those that the story allows, as [`QuestionKind::ALL`] lists them.
    pub kinds: [usize; 4],
}

impl Rules {
    /// How often a kind of question is asked; 0 for one that is never.
    #[must_use]
    pub fn weight(&self, kind: QuestionKind) -> usize {
        self.kinds[kind as usize]
    }
}

/// A holder and what they have now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Holder {
    /// An index into [`vocabulary::NAMES`].
    pub name: usize,
    /// The present count.
    pub count: u32,
}

/// An event of a story; `actor` and `other` are positions among its holders.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Event {
    /// Who acts.
    pub actor: usize,
    /// An index into [`vocabulary::VERBS`].
    pub verb: usize,
    /// How many change hands.
    pub amount: u32,
    /// The other holder of a give or take.
    pub other: Option<usize>,
}

/// A story being told: the present state of its world.
#[derive(Clone, Debug)]
pub struct Story {
    pub(super) rules: Rules,
    split: Split,
    /// The holders in the order of the opening.
    pub holders: Vec<Holder>,
    /// An index into the objects.
    pub object: usize,
    /// What has happened so far.
    pub events: Vec<Event>,
}

impl Story {
    /// Writes the opening. Without a cast the names are chosen word by word, each at its price.
    pub fn open(page: &mut Page<'_>, rules: &Rules, split: Split, cast: Option<&Cast>) -> Self {
        let mut story = Self { rules: *rules, split, holders: Vec::new(), object: 0, events: Vec::new() };
        loop {
            let position = story.holders.len();
            let name = match cast {
                Some(cast) => {
                    page.mark_free();
                    cast.names.get(position).copied()
                }
                None if page.stops(position, rules.holders) => None,
                None => {
                    let present: Vec<usize> = story.holders.iter().map(|holder| holder.name).collect();
                    page.one_of(&partners(&present, rules.names))
                }
            };
            let Some(name) = name else { return story };
            page.word(vocabulary::name(name));
            page.say("has");
            let count = 1 + page.pick(rules.largest_start as usize) as u32;
            page.number(count);
            if position == 0 {
                story.object = page.pick(rules.objects);
            }
            story.holders.push(Holder { name, count });
            story.thing(page);
            page.say(".");
        }
    }

    /// Tells a whole story: opening, recaps, events; what is asked comes after.
    pub fn tell(page: &mut Page<'_>, rules: &Rules, split: Split, cast: Option<&Cast>) -> Self {
        let mut story = Self::open(page, rules, split, cast);
        for _ in 0..rules.opening_recaps {
            story.recap(page);
        }
        loop {
            let actors = story.actors();
            if actors.is_empty() {
                story.mark_held_out(page);
                break;
            }
            if page.stops(story.events.len(), rules.events) {
                break;
            }
            let Some(event) = story.event(page, &actors) else { break };
            story.change(page, &event);
        }
        if !story.events.is_empty() {
            story.recap(page);
        }
        story
    }

    pub(super) fn name(&self, page: &mut Page<'_>, position: usize) {
        page.word(vocabulary::name(self.holders[position].name));
    }

    pub(super) fn thing(&self, page: &mut Page<'_>) {
        page.word(vocabulary::object(self.object));
    }

    /// Writes everybody's count in a drawn order, each name before its count or each after it.
    pub fn recap(&self, page: &mut Page<'_>) {
        page.say("together :");
        let reversed = page.weigh(&self.rules.recaps) == 1;
        let mut left: Vec<usize> = (0..self.holders.len()).collect();
        while !left.is_empty() {
            let chosen = if reversed {
                let mut counts: Vec<u32> = left.iter().map(|&position| self.holders[position].count).collect();
                counts.sort_unstable();
                counts.dedup();
                let who = |count| left.iter().copied().filter(move |&position| self.holders[position].count == count);
                let shares: Vec<usize> = counts.iter().map(|&count| who(count).count()).collect();
                let count = counts[page.weigh(&shares)];
                page.number(count);
                let who: Vec<usize> = who(count).collect();
                let chosen = who[page.pick(who.len())];
                self.name(page, chosen);
                chosen
            } else {
                let chosen = left[page.pick(left.len())];
                self.name(page, chosen);
                page.number(self.holders[chosen].count);
                chosen
            };
            left.retain(|&position| position != chosen);
            page.say(if left.is_empty() { "." } else { "and" });
        }
    }

    /// Whether the counts allow it, and with whom: `[None]` for an event without another holder.
    fn others(&self, actor: usize, kind: VerbKind, amount: u32) -> Vec<Option<usize>> {
        let cap = self.rules.cap;
        let gets = |position: usize| self.holders[position].count + amount <= cap;
        let loses = |position: usize| self.holders[position].count >= amount;
        let others = (0..self.holders.len()).filter(|&other| other != actor);
        match kind {
            VerbKind::Gain if gets(actor) => vec![None],
            VerbKind::Lose if loses(actor) => vec![None],
            VerbKind::Give if loses(actor) => others.filter(|&other| gets(other)).map(Some).collect(),
            VerbKind::Take if gets(actor) => others.filter(|&other| loses(other)).map(Some).collect(),
            _ => Vec::new(),
        }
    }

    fn amounts(&self, actor: usize, verb: usize) -> Vec<u32> {
        let kind = VerbKind::of(verb);
        (1..=self.rules.largest_amount).filter(|&amount| !self.others(actor, kind, amount).is_empty()).collect()
    }

    fn endings(&self, verb: usize) -> Vec<usize> {
        (0..self.rules.endings).filter(|&ending| split_of_verb(verb, ending) == self.split).collect()
    }

    fn verbs(&self, actor: usize) -> Vec<usize> {
        let possible = |&verb: &usize| !self.endings(verb).is_empty() && !self.amounts(actor, verb).is_empty();
        self.rules.verbs.iter().copied().filter(possible).collect()
    }

    /// A choice that is narrower in a held-out split than in training is no knowledge of the model's.
    fn mark_held_out(&self, page: &mut Page<'_>) {
        if self.split != Split::Train {
            page.mark_free();
        }
    }

    /// The holders who can do something.
    fn actors(&self) -> Vec<usize> {
        (0..self.holders.len()).filter(|&actor| !self.verbs(actor).is_empty()).collect()
    }

    /// Writes an event without its arithmetic and changes the counts; `None`, with nothing written, if
    /// nobody can do anything.
    pub fn bare_event(&mut self, page: &mut Page<'_>) -> Option<Event> {
        let actors = self.actors();
        self.event(page, &actors)
    }

    fn event(&mut self, page: &mut Page<'_>, actors: &[usize]) -> Option<Event> {
        let actor = page.one_of(actors)?;
        self.mark_held_out(page);
        self.name(page, actor);
        self.mark_held_out(page);
        let verb = page.one_of(&self.verbs(actor))?;
        page.word(vocabulary::verb(verb));
        let amount = page.one_of(&self.amounts(actor, verb))?;
        page.number(amount);
        self.thing(page);
        let kind = VerbKind::of(verb);
        match kind {
            VerbKind::Give => page.say("to"),
            VerbKind::Take => page.say("from"),
            VerbKind::Gain | VerbKind::Lose => {}
        }
        let other = page.one_of(&self.others(actor, kind, amount))?;
        if let Some(other) = other {
            self.name(page, other);
        }
        self.mark_held_out(page);
        let ending = page.one_of(&self.endings(verb))?;
        page.word(vocabulary::ending(ending));
        page.say(".");
        let event = Event { actor, verb, amount, other };
        for (position, gets) in changes(&event) {
            let count = &mut self.holders[position].count;
            *count = if gets { *count + amount } else { count.saturating_sub(amount) };
        }
        self.events.push(event);
        Some(event)
    }

    /// Writes the arithmetic of an event that has just happened, the actor's first.
    fn change(&self, page: &mut Page<'_>, event: &Event) {
        for (position, gets) in changes(event) {
            let after = self.holders[position].count;
            page.number(if gets { after.saturating_sub(event.amount) } else { after + event.amount });
            page.say(if gets { "plus" } else { "minus" });
            page.number(event.amount);
            page.say("is");
            page.number(after);
            page.say(". now");
            self.name(page, position);
            page.say("has");
            page.number(after);
            self.thing(page);
            page.say(".");
        }
    }
}

/// Whose counts an event changes, the actor's first, and whether they get or lose.
fn changes(event: &Event) -> Vec<(usize, bool)> {
    let actor_gets = matches!(VerbKind::of(event.verb), VerbKind::Take | VerbKind::Gain);
    let other = event.other.map(|other| (other, !actor_gets));
    std::iter::once((event.actor, actor_gets)).chain(other).collect()
}
