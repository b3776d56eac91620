//! Recall texts: names with their numbers again and again, in which every number after a name's first is
//! determined by what stood behind the name before.
//!
//! ```text
//! recall = NAME NUMBER { NAME NUMBER } "."
//! ```
//! Nothing but association is in them: half of their tokens ask for it, where a story asks now and then.
//!
//! Choices in the order of the words: whether there is another pair (the count is uniform over the
//! stage's), whether the name is new (3 : the names so far, while fewer than [`MOST_NAMES`]), which one
//! (uniform among those that make no held-out pair, or among those so far), a new name's number (uniform).

use super::cast::partners;
use super::page::Page;
use super::story::Rules;
use super::vocabulary;

/// The most different names of a text.
const MOST_NAMES: usize = 8;

/// Writes a recall text.
pub fn recall(page: &mut Page<'_>, rules: &Rules) {
    let mut seen: Vec<(usize, u32)> = Vec::new();
    let mut pairs = 0;
    while !page.stops(pairs, rules.pairs) {
        let present: Vec<usize> = seen.iter().map(|&(name, _)| name).collect();
        let unseen = if seen.len() < MOST_NAMES { partners(&present, rules.names) } else { Vec::new() };
        let new = if unseen.is_empty() { 0 } else { 3 };
        if page.weigh(&[new, seen.len()]) == 0 {
            let Some(name) = page.one_of(&unseen) else { break };
            page.word(vocabulary::name(name));
            let count = 1 + page.pick(rules.largest_start as usize) as u32;
            page.number(count);
            seen.push((name, count));
        } else if let Some((name, count)) = page.one_of(&seen) {
            page.word(vocabulary::name(name));
            page.number(count);
        }
        pairs += 1;
    }
    page.say(".");
}
