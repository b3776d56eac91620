//! The closed word list of the embedded model and its `tokenizer.json`.
//!
//! One word is one token, so token identity is word identity: a similarity between tokens is never a
//! similarity between pieces of the same word. Every word of pre-training and of the fine-tuning tasks is
//! inside; nothing else is, so a text of another domain is `<unk>` throughout.

use serde_json::json;
use std::collections::HashMap;
use std::sync::LazyLock;

/// The id of `<unk>`, which no generated text holds.
pub const UNKNOWN: u32 = 0;
/// The id of `<s>`, which stands in front of every sequence.
pub const BOS: u32 = 1;
/// The id of `</s>`, which ends every text of the corpus.
pub const EOS: u32 = 2;
/// Numbers below this are single tokens.
pub const NUMBERS: u32 = 200;

/// The holders of a story.
///
/// 24: with 40 the lookup of a number by its name was not learned in the time there is (see
/// `models/embedded/attempts`).
pub const NAMES: [&str; 24] = [
    "lily", "tom", "ann", "ben", "max", "sam", "kim", "joe", "amy", "dan", "eva", "leo", "mia", "zoe", "ian", "ron",
    "sue", "tim", "pam", "ray", "ivy", "gus", "nina", "omar",
];

/// What is held; a story of the corpus is about one of them.
pub const OBJECTS: [&str; 12] =
    ["apples", "pears", "coins", "books", "balls", "cards", "stones", "shells", "stars", "cups", "pens", "nuts"];

/// The verbs of events, four of each [`VerbKind`], in its order.
pub const VERBS: [&str; 16] = [
    "gives", "hands", "sends", "lends", "takes", "borrows", "grabs", "steals", "finds", "buys", "picks", "earns",
    "loses", "eats", "drops", "sells",
];

/// The last word of an event; they change nothing, so they are noise that the verb is paired with.
pub const ENDINGS: [&str; 8] = ["today", "outside", "again", "quickly", "gladly", "later", "upstairs", "alone"];

/// The words of the sentences of the corpus, `even` and `odd` from drill lines.
const SENTENCES: [&str; 25] = [
    ".", "?", ":", "and", "has", "more", "than", "how", "many", "compare", "so", "less", "same", "who", "together",
    "now", "plus", "minus", "is", "to", "from", "yes", "no", "even", "odd",
];

/// The words that only the fine-tuning tasks use. The head is tied to the embedding, so pre-training makes
/// unseen words alike: they are never an answer, and no task has to tell one of them from another.
const QUESTIONS: [&str; 8] = ["most", "named", "what", "have", "all", "or", "events", "label"];

/// What an event does to the two counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VerbKind {
    /// From the actor to another holder.
    Give,
    /// From another holder to the actor.
    Take,
    /// The actor gets, nobody loses.
    Gain,
    /// The actor loses, nobody gets.
    Lose,
}

impl VerbKind {
    /// The kind of the verb of this index in [`VERBS`].
    #[must_use]
    pub fn of(verb: usize) -> Self {
        match verb / 4 {
            0 => Self::Give,
            1 => Self::Take,
            2 => Self::Gain,
            _ => Self::Lose,
        }
    }
}

static WORDS: LazyLock<Vec<String>> = LazyLock::new(|| {
    let special = ["<unk>", "<s>", "</s>"].map(str::to_owned);
    let numbers = (0..NUMBERS).map(|n| n.to_string());
    let lists: [&[&str]; 6] = [&NAMES, &OBJECTS, &VERBS, &ENDINGS, &SENTENCES, &QUESTIONS];
    let words = lists.into_iter().flatten().map(|&word| word.to_owned());
    special.into_iter().chain(numbers).chain(words).collect()
});

static IDS: LazyLock<HashMap<&'static str, u32>> =
    LazyLock::new(|| WORDS.iter().zip(0..).map(|(word, id)| (word.as_str(), id)).collect());

/// The number of words, special tokens included.
#[must_use]
pub fn size() -> usize {
    WORDS.len()
}

/// The id of a word, [`UNKNOWN`] if it is not in the list.
#[must_use]
pub fn id(word: &str) -> u32 {
    IDS.get(word).copied().unwrap_or(UNKNOWN)
}

/// The word of an id; `<unk>` for an id beyond the list.
#[must_use]
pub fn word(id: u32) -> &'static str {
    WORDS.get(id as usize).map_or("<unk>", String::as_str)
}

/// The words of `ids`, a space between two, special tokens left out.
#[must_use]
pub fn sentence(ids: &[u32]) -> String {
    let words: Vec<&str> = ids.iter().filter(|&&id| id > EOS).map(|&id| word(id)).collect();
    words.join(" ")
}

/// The id of a number, [`UNKNOWN`] from [`NUMBERS`] on.
#[must_use]
pub fn number(n: u32) -> u32 {
    if n < NUMBERS { EOS + 1 + n } else { UNKNOWN }
}

/// The id of the name of this index in [`NAMES`].
#[must_use]
pub fn name(index: usize) -> u32 {
    id(NAMES[index])
}

/// The id of the object of this index in [`OBJECTS`].
#[must_use]
pub fn object(index: usize) -> u32 {
    id(OBJECTS[index])
}

/// The id of the verb of this index in [`VERBS`].
#[must_use]
pub fn verb(index: usize) -> u32 {
    id(VERBS[index])
}

/// The id of the ending of this index in [`ENDINGS`].
#[must_use]
pub fn ending(index: usize) -> u32 {
    id(ENDINGS[index])
}

/// A Hugging Face `tokenizer.json`: word level, split at white space, `<s>` put in front.
#[must_use]
pub fn tokenizer_json() -> String {
    let special = |id: u32| {
        json!({"id": id, "content": word(id), "single_word": false, "lstrip": false, "rstrip": false,
               "normalized": false, "special": true})
    };
    let ids: serde_json::Map<_, _> = WORDS.iter().zip(0u32..).map(|(word, id)| (word.clone(), id.into())).collect();
    let first = json!({"SpecialToken": {"id": word(BOS), "type_id": 0}});
    let text = |sequence: &str, type_id: u32| json!({"Sequence": {"id": sequence, "type_id": type_id}});
    let document = json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": [special(UNKNOWN), special(BOS), special(EOS)],
        "normalizer": null,
        "pre_tokenizer": {"type": "WhitespaceSplit"},
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [first, text("A", 0)],
            "pair": [first, text("A", 0), text("B", 1)],
            "special_tokens": {(word(BOS)): {"id": word(BOS), "ids": [BOS], "tokens": [word(BOS)]}},
        },
        "decoder": null,
        "model": {"type": "WordLevel", "vocab": ids, "unk_token": word(UNKNOWN)},
    });
    format!("{document:#}\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokenizers::Tokenizer;

    #[test]
    fn every_word_is_listed_once_and_the_list_is_small() {
        assert_eq!(IDS.len(), WORDS.len(), "a word is listed twice");
        assert_eq!(size(), 3 + 200 + 24 + 12 + 16 + 8 + 25 + 8);
        assert!(size() <= 330);
        assert_eq!((id("<unk>"), id("<s>"), id("</s>")), (UNKNOWN, BOS, EOS));
        assert_eq!(word(number(0)), "0");
        assert_eq!(word(number(199)), "199");
        assert_eq!(number(200), UNKNOWN);
        assert_eq!(id("quokka"), UNKNOWN);
        assert_eq!(word(u32::MAX), "<unk>");
    }

    #[test]
    fn the_tokenizer_loads_and_is_word_identity() {
        let tokenizer = Tokenizer::from_bytes(tokenizer_json()).unwrap();
        assert_eq!(tokenizer.get_vocab_size(true), size());
        let text = "lily has 7 apples . who has 7 ? lily .";
        let encoding = tokenizer.encode(text, true).unwrap();
        let expected: Vec<u32> = std::iter::once(BOS).chain(text.split(' ').map(id)).collect();
        assert_eq!(encoding.get_ids(), expected);
        assert!(!expected.contains(&UNKNOWN));
        assert_eq!(tokenizer.decode(encoding.get_ids(), true).unwrap(), text);
        assert_eq!(sentence(&expected), text);
        for n in 0..size() as u32 {
            assert_eq!(tokenizer.id_to_token(n).as_deref(), Some(word(n)));
        }
        assert_eq!(tokenizer.encode("has quokka </s>", false).unwrap().get_ids(), [id("has"), UNKNOWN, EOS]);
    }
}
