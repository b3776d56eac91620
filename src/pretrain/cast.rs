//! Who is in a story that was made for a split, and which of them make its pair.

use super::holdout::{Split, held_out_names, split_of_names};
use super::page::Page;
use super::vocabulary::NAMES;

/// The names of a story in the order of its opening, with the pair that is held out for its split.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cast {
    /// Indices into [`NAMES`], all different.
    pub names: Vec<usize>,
    /// The positions of the pair, in a drawn order: a held-out one of the split, in the training split any.
    pub pair: (usize, usize),
}

impl Cast {
    /// `size` names, at least 2, of which two make a pair of `split` and no other two a held-out one.
    pub fn draw(page: &mut Page<'_>, split: Split, size: usize) -> Self {
        let mut pair = page.one_of(held_out_names(split)).unwrap_or_else(|| {
            let first = page.pick(NAMES.len());
            (first, page.one_of(&partners(&[first], NAMES.len())).unwrap_or(first))
        });
        let mut names = vec![pair.0, pair.1];
        while names.len() < size {
            match page.one_of(&partners(&names, NAMES.len())) {
                Some(name) => names.push(name),
                None => break,
            }
        }
        for last in (1..names.len()).rev() {
            names.swap(last, page.pick(last + 1));
        }
        if page.pick(2) == 1 {
            pair = (pair.1, pair.0);
        }
        let place = |wanted| names.iter().position(|&name| name == wanted).unwrap_or_default();
        let pair = (place(pair.0), place(pair.1));
        Self { names, pair }
    }
}

/// The first `limit` names that make no held-out pair with any of `present`.
pub(super) fn partners(present: &[usize], limit: usize) -> Vec<usize> {
    let fits = |name: usize| present.iter().all(|&p| p != name && split_of_names(p, name) == Split::Train);
    (0..limit).filter(|&name| fits(name)).collect()
}
