//! For tests: reads a text back, word by word, and does its arithmetic again. Shares nothing with the
//! generator but the lists of names, verbs and endings.

use super::vocabulary::{ENDINGS, NAMES, VERBS};

/// What a text told.
#[derive(Default)]
pub struct Seen {
    /// The holders in the order of the opening, with their present counts.
    pub holders: Vec<(String, i64)>,
    /// The object of each holder's opening.
    pub objects: Vec<String>,
    /// Indices of the holders' names.
    pub names: Vec<usize>,
    /// Verb and ending of each event.
    pub verbs: Vec<(usize, usize)>,
    /// The largest number written.
    pub largest: u32,
    /// How many questions were asked and answered.
    pub questions: usize,
    /// The pairs that were compared.
    pub asked: Vec<(usize, usize)>,
    /// How many events happened.
    pub events: usize,
    /// Counts that changed and have not been said since.
    unsaid: Vec<(String, i64)>,
}

fn index(list: &[&str], word: &str) -> usize {
    list.iter().position(|other| *other == word).unwrap_or_else(|| panic!("{word} is not in {list:?}"))
}

fn int(word: &str) -> i64 {
    word.parse().unwrap_or_else(|_| panic!("{word} is no number"))
}

impl Seen {
    /// The present count of a holder.
    pub fn count(&self, name: &str) -> i64 {
        self.holders.iter().find(|(holder, _)| holder == name).unwrap_or_else(|| panic!("who is {name}?")).1
    }

    /// The indices of the names of the opening.
    pub fn indices(&self) -> Vec<usize> {
        self.names.clone()
    }

    fn add(&mut self, name: &str, change: i64) {
        let holder = self.holders.iter_mut().find(|(holder, _)| holder == name).unwrap();
        holder.1 += change;
        assert!(holder.1 >= 0, "{name} has less than nothing");
        let after = holder.clone();
        self.unsaid.push(after);
    }

    fn event(&mut self, actor: &str, verb: &str, amount: i64, other: Option<(&str, &str)>, ending: &str) {
        assert!((1..=9).contains(&amount));
        self.events += 1;
        self.verbs.push((index(&VERBS, verb), index(&ENDINGS, ending)));
        match (verb, other) {
            ("gives" | "hands" | "sends" | "lends", Some(("to", other))) => {
                self.add(actor, -amount);
                self.add(other, amount);
            }
            ("takes" | "borrows" | "grabs" | "steals", Some(("from", other))) => {
                self.add(actor, amount);
                self.add(other, -amount);
            }
            ("finds" | "buys" | "picks" | "earns", None) => self.add(actor, amount),
            ("loses" | "eats" | "drops" | "sells", None) => self.add(actor, -amount),
            other => panic!("{other:?}"),
        }
    }

    fn recap(&mut self, words: &[&str]) {
        let mut said = Vec::new();
        for item in words.split(|word| *word == "and") {
            let [a, b] = item else { panic!("{item:?}") };
            let (name, count) = if NAMES.contains(a) { (a, b) } else { (b, a) };
            assert_eq!(self.count(name), int(count), "{words:?}");
            said.push(*name);
        }
        said.sort_unstable();
        let mut all: Vec<&str> = self.holders.iter().map(|(name, _)| name.as_str()).collect();
        all.sort_unstable();
        assert_eq!(said, all);
    }

    fn recall(&mut self, words: &[&str]) {
        assert!(self.holders.is_empty() && words.len().is_multiple_of(2));
        for pair in words.chunks(2) {
            if !self.holders.iter().any(|(name, _)| name == pair[0]) {
                self.names.push(index(&NAMES, pair[0]));
                self.holders.push((pair[0].to_owned(), int(pair[1])));
            }
            assert_eq!(self.count(pair[0]), int(pair[1]), "{words:?}");
        }
    }

    fn compare(&mut self, a: &str, b: &str) -> std::cmp::Ordering {
        assert_ne!(a, b);
        self.asked.push((index(&NAMES, a), index(&NAMES, b)));
        self.count(a).cmp(&self.count(b))
    }

    fn sentence(&mut self, words: &[&str]) {
        let order = |a: i64, b: i64| match a.cmp(&b) {
            std::cmp::Ordering::Less => "less",
            std::cmp::Ordering::Equal => "same",
            std::cmp::Ordering::Greater => "more",
        };
        for word in words {
            self.largest = self.largest.max(word.parse().unwrap_or(0));
        }
        match *words {
            [name, count, ..] if NAMES.contains(&name) && count.parse::<i64>().is_ok() => self.recall(words),
            ["now", name, "has", count, _] => {
                assert_eq!(self.unsaid.remove(0), (name.to_owned(), int(count)));
                if self.unsaid.is_empty() {
                    assert_eq!(self.count(name), int(count));
                }
            }
            ["together", ":", ref rest @ ..] => {
                assert!(self.unsaid.is_empty());
                self.recap(rest);
            }
            [a, "plus", b, "is", c] => assert_eq!(int(a) + int(b), int(c)),
            [a, "minus", b, "is", c] => assert_eq!(int(a) - int(b), int(c)),
            [a, "and", b, "so", word] => assert_eq!(order(int(a), int(b)), word),
            [a, "is", word] => assert_eq!(["even", "odd"][int(a) as usize % 2], word),
            ["how", "many", _, "has", name, "?", count] => {
                self.questions += 1;
                assert_eq!(self.count(name), int(count));
            }
            ["has", a, "more", _, "than", b, "?", answer] => {
                self.questions += 1;
                assert_eq!(if self.compare(a, b).is_gt() { "yes" } else { "no" }, answer);
            }
            ["compare", a, "and", b, ":", x, "and", y, "so", word] => {
                self.questions += 1;
                self.compare(a, b);
                assert_eq!((self.count(a), self.count(b)), (int(x), int(y)));
                assert_eq!(order(int(x), int(y)), word);
            }
            ["who", "has", count, "?", name] => {
                self.questions += 1;
                let who: Vec<_> = self.holders.iter().filter(|(_, has)| *has == int(count)).collect();
                assert_eq!(who.len(), 1);
                assert_eq!(who[0].0, name);
            }
            [name, "has", count, object] => {
                assert!(self.events == 0 && self.questions == 0);
                let number = index(&NAMES, name);
                assert!(!self.names.contains(&number), "{name} twice");
                self.names.push(number);
                self.holders.push((name.to_owned(), int(count)));
                self.objects.push(object.to_owned());
            }
            [actor, verb, amount, _, ending] => self.event(actor, verb, int(amount), None, ending),
            [actor, verb, amount, _, side, other, ending] => {
                self.event(actor, verb, int(amount), Some((side, other)), ending);
            }
            _ => panic!("not understood: {words:?}"),
        }
    }
}

/// Reads a whole text and asserts that everything it says is so.
pub fn read(text: &str) -> Seen {
    let mut seen = Seen::default();
    let body = text.strip_suffix(" .").unwrap_or_else(|| panic!("no full stop: {text}"));
    for sentence in body.split(" . ") {
        let words: Vec<&str> = sentence.split(' ').collect();
        seen.sentence(&words);
    }
    assert!(seen.unsaid.is_empty());
    seen
}

/// Reads a text up to a question that has no answer yet.
pub fn story_of(instruction: &str) -> Seen {
    let (story, _) = instruction.rsplit_once(" . ").unwrap();
    let mut seen = Seen::default();
    for sentence in story.split(" . ") {
        let words: Vec<&str> = sentence.split(' ').collect();
        seen.sentence(&words);
        if words.len() > 3 && words[0] != "now" && seen.events > 0 && !story.contains("now") {
            seen.unsaid.clear(); // bare events are not followed by their arithmetic
        }
    }
    seen
}
