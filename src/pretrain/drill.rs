//! Drill lines: the arithmetic, the comparisons and the parities of numbers without a story.
//!
//! ```text
//! drill = line, { line }
//! line  = NUMBER "plus" NUMBER "is" NUMBER "." | NUMBER "minus" NUMBER "is" NUMBER "."
//!       | NUMBER "and" NUMBER "so" ("less" | "more" | "same") "." | NUMBER "is" ("even" | "odd") "."
//! ```
//! Choices in the order of the words: whether there is another line (the count is uniform over the
//! stage's), the first number (uniform), the kind of line (uniform), the second number (uniform over those
//! that stay within 0 and the cap, at most [`SECOND`] in sums). Second numbers beyond the events' 9 are
//! there because the difference of two holders needs them.

use super::page::Page;
use super::question::comparison;
use super::story::Rules;
use super::vocabulary;

/// The largest second number of a sum or difference.
pub const SECOND: u32 = 20;

/// Writes a drill text.
pub fn drill(page: &mut Page<'_>, rules: &Rules) {
    let mut lines = 0;
    while !page.stops(lines, rules.drill_lines) {
        line(page, rules);
        lines += 1;
    }
}

fn line(page: &mut Page<'_>, rules: &Rules) {
    let a = up_to(page, rules.drill_to);
    page.number(a);
    match page.pick(4) {
        0 => {
            page.say("plus");
            let b = up_to(page, SECOND.min(rules.cap.saturating_sub(a)));
            page.number(b);
            page.say("is");
            page.number(a + b);
        }
        1 => {
            page.say("minus");
            let b = up_to(page, SECOND.min(a));
            page.number(b);
            page.say("is");
            page.number(a.saturating_sub(b));
        }
        2 => {
            page.say("and");
            let b = up_to(page, rules.drill_to);
            page.number(b);
            page.say("so");
            page.word(comparison(a, b));
        }
        _ => {
            page.say("is");
            page.word(parity(a));
        }
    }
    page.say(".");
}

/// A uniform choice of `0..=largest`.
fn up_to(page: &mut Page<'_>, largest: u32) -> u32 {
    page.pick(largest as usize + 1) as u32
}

/// The word for whether a number is even or odd.
pub(super) fn parity(n: u32) -> u32 {
    vocabulary::id(if n.is_multiple_of(2) { "even" } else { "odd" })
}
