//! Rendered records become token examples with their loss targets.

use super::{ChatTemplate, DataError, Encoded, Image, Phase, Record, Rendered, Sequence, Template, Tokenize};
use std::ops::Range;
use std::path::Path;

/// Which tokens the loss is taken on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
#[cfg_attr(feature = "cli", derive(clap::ValueEnum))]
pub enum LossOn {
    /// Prompt and answer.
    All,
    /// The answer alone, its end of sequence included.
    Answer,
}

/// How records are encoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EncodingOptions {
    /// The most tokens of an example; what is longer loses its end.
    pub cutoff: usize,
    /// Which tokens the loss is taken on.
    pub loss_on: LossOn,
}

/// What happened to the records.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct EncodingReport {
    /// Records left out because no target is left, such as an answer that begins behind the cutoff.
    pub dropped: usize,
    /// Examples kept that lost tokens to the cutoff.
    pub truncated: usize,
}

/// A training example of n tokens.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Example {
    /// The token ids, `[n]`.
    pub ids: Vec<u32>,
    /// For each token whether it is a target of the loss, `[n]`; never true for the first, which nothing predicts.
    pub loss: Vec<bool>,
    /// The index of the first token of the response; n if there is none.
    pub response: usize,
    /// For each token whether it is special, `[n]`.
    pub special: Vec<bool>,
    /// For each token which text of a pair it belongs to, `[n]`; empty where all are 0.
    pub types: Vec<u32>,
    /// The text's class, where texts are classified.
    pub class: Option<u32>,
    /// The text's score, where scores are learned.
    pub score: Option<f32>,
    /// The image, where it is one.
    pub image: Option<Image>,
}

impl Example {
    /// What a model reads of it.
    #[must_use]
    pub fn sequence(&self) -> Sequence<'_> {
        Sequence { ids: &self.ids, types: &self.types, image: self.image.as_ref() }
    }
}

/// The tokens of a text, with BOS in front where the tokenizer adds one; for a text with `add_special` false,
/// such as a chat template's, the text's tokens alone.
///
/// # Errors
/// The tokenizer refuses the text.
pub fn encode_text(text: &str, add_special: bool, tokenizer: &dyn Tokenize) -> Result<Encoded, DataError> {
    let mut encoded = tokenizer.encode(text, add_special)?;
    // A configuration may ask for a BOS that the tokenizer's own post-processor does not know of.
    if let Some(bos) = tokenizer.bos().filter(|bos| encoded.ids.first() != Some(bos))
        && add_special
        && tokenizer.adds_bos()
    {
        encoded.ids.insert(0, bos);
        encoded.special.insert(0, true);
        encoded.offsets.insert(0, (0, 0));
        if !encoded.types.is_empty() {
            encoded.types.insert(0, 0);
        }
    }
    Ok(encoded)
}

/// The tokens of a text that is to be continued: as [`encode_text`] gives them, without an EOS behind.
///
/// # Errors
/// The tokenizer refuses the text.
pub fn encode_prompt(text: &str, add_special: bool, tokenizer: &dyn Tokenize) -> Result<Vec<u32>, DataError> {
    let mut encoded = encode_text(text, add_special, tokenizer)?;
    if add_special
        && tokenizer.eos().is_some()
        && encoded.ids.last().copied() == tokenizer.eos()
        && encoded.special.last() == Some(&true)
    {
        encoded.ids.pop();
    }
    Ok(encoded.ids)
}

/// Encodes records for training; `path` is their file, for messages.
///
/// # Errors
/// A record cannot be rendered or encoded, or has no answer though the loss is on answers; no example is left.
pub fn encode_records(
    records: &[Record],
    template: &Template,
    tokenizer: &dyn Tokenize,
    options: EncodingOptions,
    path: &Path,
) -> Result<(Vec<Example>, EncodingReport), DataError> {
    if options.cutoff < 2 {
        return Err(DataError::Cutoff { cutoff: options.cutoff });
    }
    let has_chats = records.iter().any(|record| matches!(record, Record::Chat { .. }));
    let chat = has_chats.then(|| ChatTemplate::of(tokenizer)).transpose();
    let chat = chat.map_err(|e| e.at(path.display().to_string()))?;
    let mut report = EncodingReport::default();
    let mut examples = Vec::with_capacity(records.len());
    for (index, record) in records.iter().enumerate() {
        let encoded = template
            .render(record, Phase::Train, chat.as_ref())
            .and_then(|rendered| encode_rendered(&rendered, tokenizer, options));
        let (example, truncated) = encoded.map_err(|e| e.at(format!("{}: record {}", path.display(), index + 1)))?;
        if example.loss.contains(&true) {
            report.truncated += usize::from(truncated);
            examples.push(example);
        } else {
            report.dropped += 1;
        }
    }
    if examples.is_empty() {
        let path = path.display().to_string();
        return Err(DataError::NothingToLearn { path, records: records.len(), cutoff: options.cutoff });
    }
    Ok((examples, report))
}

/// The example of a text, and whether the cutoff took tokens from it. A chat template has written its own
/// special tokens; any other text gets EOS behind, if it fits.
fn encode_rendered(
    rendered: &Rendered,
    tokenizer: &dyn Tokenize,
    options: EncodingOptions,
) -> Result<(Example, bool), DataError> {
    let text = &rendered.text;
    if options.loss_on == LossOn::Answer && !rendered.responses.iter().any(|range| !range.is_empty()) {
        let what = if rendered.responses.is_empty() { "answer in it" } else { "text in its answer" };
        let remedy = "use --loss-on all, or leave the record out";
        return Err(DataError::NoAnswer { what, remedy });
    }
    let mut encoded = encode_text(text, rendered.add_special, tokenizer)?;
    let eos = tokenizer.eos().filter(|_| rendered.add_special);
    // Tokenizers that put EOS themselves: taken off, so that it ends a text in one way only.
    if eos.is_some() && encoded.ids.last().copied() == eos && encoded.special.last() == Some(&true) {
        let length = encoded.ids.len() - 1;
        truncate(&mut encoded, length);
    }
    let truncated = encoded.ids.len() > options.cutoff;
    truncate(&mut encoded, options.cutoff);

    let response = rendered.response_start().and_then(|start| first_response_token(&encoded, text, start));
    let mut loss: Vec<bool> = match options.loss_on {
        LossOn::All => vec![true; encoded.ids.len()],
        LossOn::Answer => {
            let answers = |&offset: &(usize, usize)| rendered.responses.iter().any(|r| belongs(offset, text, r));
            encoded.offsets.iter().map(answers).collect()
        }
    };
    if let Some(eos) = eos.filter(|_| encoded.ids.len() < options.cutoff) {
        encoded.ids.push(eos);
        encoded.special.push(true);
        loss.push(true);
    }
    if let Some(first) = loss.first_mut() {
        *first = false;
    }
    let response = response.unwrap_or(encoded.ids.len());
    let Encoded { ids, special, types, .. } = encoded;
    Ok((Example { ids, loss, response, special, types, ..Example::default() }, truncated))
}

/// Keeps the first `length` tokens.
pub(super) fn truncate(encoded: &mut Encoded, length: usize) {
    encoded.ids.truncate(length);
    encoded.special.truncate(length);
    encoded.offsets.truncate(length);
    encoded.types.truncate(length);
}

/// The index of the first token of the response that begins at byte `start` of `text`.
pub(super) fn first_response_token(encoded: &Encoded, text: &str, start: usize) -> Option<usize> {
    encoded.offsets.iter().position(|&offset| belongs(offset, text, &(start..text.len())))
}

/// Whether a token with these byte offsets belongs to the response in `range`.
///
/// A token that begins in the response does. So does one that begins before and reaches into it, as long as
/// only white space lies before: byte-level BPE and SentencePiece put the space in front of a word into the
/// word's token, so that the response's first word seems to begin one byte early. A token that holds any
/// other byte of the prompt is the prompt's. Added special tokens, at `(0, 0)`, belong to none.
fn belongs((start, end): (usize, usize), text: &str, range: &Range<usize>) -> bool {
    let reaches = end > range.start && start < range.end && start < end;
    let blank = |bytes: &[u8]| bytes.iter().all(u8::is_ascii_whitespace);
    reaches && (start >= range.start || text.as_bytes().get(start..range.start).is_some_and(blank))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::records::{Message, read_records};
    use crate::data::toy::{Real, Words, instruction, shared};
    use std::collections::HashMap;
    use tokenizers::models::bpe::BPE;
    use tokenizers::pre_tokenizers::byte_level::ByteLevel;

    const ALL: EncodingOptions = EncodingOptions { cutoff: 256, loss_on: LossOn::All };
    const ANSWER: EncodingOptions = EncodingOptions { cutoff: 256, loss_on: LossOn::Answer };

    fn encode(
        records: &[Record],
        tokenizer: &dyn Tokenize,
        options: EncodingOptions,
    ) -> Result<(Vec<Example>, EncodingReport), DataError> {
        encode_records(records, &Template::Short, tokenizer, options, Path::new("a.jsonl"))
    }

    fn one(record: &Record, tokenizer: &dyn Tokenize, options: EncodingOptions) -> Example {
        encode(std::slice::from_ref(record), tokenizer, options).unwrap().0.remove(0)
    }

    #[test]
    fn bos_in_front_eos_behind_and_targets_on_all_or_the_answer() {
        let words = Words::default();
        let record = instruction("how many ?", "", "4 apples");
        let all = one(&record, &words, ALL);
        assert_eq!(all.ids, [1, 10, 11, 12, 13, 14, 2]);
        assert_eq!(all.loss, [false, true, true, true, true, true, true]);
        assert_eq!(all.special, [true, false, false, false, false, false, true]);
        assert_eq!(all.response, 4);
        let answer = one(&record, &words, ANSWER);
        assert_eq!(answer.ids, all.ids);
        assert_eq!(answer.loss, [false, false, false, false, true, true, true]);
        let bare = Words { no_specials: true, ..Words::default() };
        let text = one(&Record::Text { text: "a b".into() }, &bare, ALL);
        assert_eq!((text.ids, text.loss, text.response), (vec![10, 11], vec![false, true], 2));
    }

    #[test]
    fn the_cutoff_takes_the_end_and_what_has_no_target_is_dropped() {
        let words = Words::default();
        let records = [instruction("a b", "", "c d"), instruction("a b c d e", "", "f"), instruction("a", "", "b")];
        let cut = |cutoff| encode(&records, &words, EncodingOptions { cutoff, loss_on: LossOn::Answer }).unwrap();
        let (examples, report) = cut(4);
        assert_eq!(report, EncodingReport { dropped: 1, truncated: 1 });
        assert_eq!(examples.len(), 2);
        // BOS a b c | d: no EOS, for it does not fit.
        assert_eq!((examples[0].ids.as_slice(), examples[0].response), ([1, 10, 11, 12].as_slice(), 3));
        assert_eq!(examples[0].loss, [false, false, false, true]);
        // BOS a b EOS fits to the last token.
        assert_eq!((examples[1].ids.as_slice(), examples[1].response), ([1, 10, 11, 2].as_slice(), 2));
        // Exactly the cutoff without EOS: nothing truncated.
        let (examples, report) = cut(5);
        assert_eq!(examples[0].ids, [1, 10, 11, 12, 13]);
        assert_eq!(report, EncodingReport { dropped: 1, truncated: 0 });
        let all = encode(&records, &words, EncodingOptions { cutoff: 3, loss_on: LossOn::All }).unwrap();
        assert_eq!(all.1, EncodingReport { dropped: 0, truncated: 2 });
        assert_eq!(all.0[1].response, 3);
    }

    #[test]
    fn a_chat_learns_every_turn_of_the_assistant() {
        let template = "{% for m in messages %}<{{ m.role }}> {{ m.content }} <end> {% endfor %}\
                        {% if add_generation_prompt %}<assistant> {% endif %}";
        let words = Words { template: Some(template.into()), ..Words::default() };
        let turns = [("user", "a"), ("assistant", "b c"), ("user", "d"), ("assistant", "e")];
        let messages = turns.map(|(role, content)| Message { role: role.into(), content: content.into() });
        let chat = one(&Record::Chat { messages: messages.to_vec() }, &words, ANSWER);
        // <user> a <end> <assistant> b c <end> <user> d <end> <assistant> e <end>, and no token of ours around.
        assert_eq!(chat.ids, [10, 11, 12, 13, 14, 15, 12, 10, 16, 12, 13, 17, 12]);
        let targets: Vec<usize> = (0..13).filter(|&i| chat.loss[i]).collect();
        assert_eq!(targets, [4, 5, 6, 11, 12]);
        assert_eq!(chat.response, 4);
        assert!(chat.special[0] && chat.special[6] && !chat.special[1]);
    }

    #[test]
    fn errors_name_the_record_and_the_remedy() {
        let words = Words::default();
        let message = |records: &[Record], options| encode(records, &words, options).unwrap_err().to_string();
        let empty = [instruction("a", "", "b"), instruction("a", "", "")];
        let remedy = "use --loss-on all, or leave the record out";
        assert_eq!(message(&empty, ANSWER), format!("a.jsonl: record 2: there is no text in its answer; {remedy}"));
        assert_eq!(encode(&empty, &words, ALL).unwrap().0[1].ids, [1, 10, 2]);
        let text = [Record::Text { text: "a".into() }];
        assert_eq!(message(&text, ANSWER), format!("a.jsonl: record 1: there is no answer in it; {remedy}"));
        let long = [instruction("a b c d", "", "e")];
        assert_eq!(
            message(&long, EncodingOptions { cutoff: 3, loss_on: LossOn::Answer }),
            "a.jsonl: none of 1 records has a token to learn within 3 tokens; raise --cutoff"
        );
        assert_eq!(
            message(&long, EncodingOptions { cutoff: 1, loss_on: LossOn::All }),
            "--cutoff 1: nothing is left to predict; give at least 2 tokens"
        );
        let chat = [Record::Chat { messages: vec![] }];
        assert!(message(&chat, ALL).starts_with("a.jsonl: messages need the tokenizer's chat template"));
    }

    /// A byte-level BPE as GPT-2 has it: `Ġ` is a space inside the next word's token, `Ċ` a line end.
    fn byte_level() -> Real {
        let mut pieces: Vec<String> = ByteLevel::alphabet().into_iter().map(String::from).collect();
        pieces.sort();
        pieces.extend(["ab", "Ġab", "Ġd", "ĊĊ"].map(String::from));
        let vocab: HashMap<String, u32> = (0..).zip(pieces).map(|(id, piece)| (piece, id)).collect();
        let merges = [("a", "b"), ("Ġ", "ab"), ("Ġ", "d"), ("Ċ", "Ċ")];
        let merges = merges.map(|(a, b)| (a.to_owned(), b.to_owned())).to_vec();
        let bpe =
            BPE::builder().vocab_and_merges(vocab.into_iter().collect::<tokenizers::models::bpe::Vocab>(), merges);
        let mut tokenizer = tokenizers::Tokenizer::new(bpe.build().unwrap());
        tokenizer.with_pre_tokenizer(Some(ByteLevel::new(false, false, true)));
        Real { tokenizer, bos: None, eos: None }
    }

    #[test]
    fn a_space_before_the_response_does_not_cost_its_first_word() {
        let tokenizer = byte_level();
        let targets = |record: &Record, template: &Template| {
            let (mut examples, _) =
                encode_records(std::slice::from_ref(record), template, &tokenizer, ANSWER, Path::new("a")).unwrap();
            let example = examples.remove(0);
            let tokens: Vec<String> =
                example.ids.iter().map(|&id| tokenizer.tokenizer.id_to_token(id).unwrap()).collect();
            let of = |wanted: bool| -> Vec<String> {
                (0..tokens.len()).filter(|&i| example.loss[i] == wanted).map(|i| tokens[i].clone()).collect()
            };
            assert_eq!(example.loss.iter().position(|&l| l), Some(example.response));
            (of(false), of(true))
        };
        let strings = |a: &[&str]| a.iter().map(|s| (*s).to_owned()).collect::<Vec<_>>();
        // "ab ab d": the first token of the response holds the prompt's space.
        let (prompt, response) = targets(&instruction("ab", "", "ab d"), &Template::Short);
        assert_eq!((prompt, response), (strings(&["ab"]), strings(&["Ġab", "Ġd"])));
        // The response's own line end merges with the prompt's.
        let file = |text: &str| Template::File(crate::data::FileTemplate::parse("t", text).unwrap());
        let (prompt, response) = targets(&instruction("ab", "", "\n\nd"), &file("{instruction}\n{output}"));
        assert_eq!((prompt, response), (strings(&["ab"]), strings(&["ĊĊ", "Ċ", "d"])));
        // A token with a letter of the prompt is the prompt's.
        let (prompt, response) = targets(&instruction("d", "", "b d"), &file("{instruction} a{output}"));
        assert_eq!((prompt, response), (strings(&["d", "Ġab"]), strings(&["Ġd"])));
        // Bytes of one character share its offsets.
        let (prompt, response) = targets(&instruction("ab", "", "é"), &file("{instruction}:{output}"));
        assert_eq!((prompt, response), (strings(&["ab", ":"]), strings(&["Ã", "©"])));
    }

    #[test]
    fn bos_is_put_once_and_an_own_eos_is_not_doubled() {
        struct Ends(Words);
        impl Tokenize for Ends {
            fn encode(&self, text: &str, add_special: bool) -> Result<Encoded, DataError> {
                // Puts EOS behind, but leaves BOS to the caller.
                let mut encoded = self.0.encode(text, false)?;
                if add_special {
                    encoded.ids.push(2);
                    encoded.special.push(true);
                    encoded.offsets.push((0, 0));
                }
                Ok(encoded)
            }
            fn bos(&self) -> Option<u32> {
                self.0.bos()
            }
            fn eos(&self) -> Option<u32> {
                self.0.eos()
            }
            fn adds_bos(&self) -> bool {
                true
            }
            fn chat_template(&self) -> Option<String> {
                None
            }
            fn special_token_text(&self, _: &str) -> Option<String> {
                None
            }
        }
        let example = one(&instruction("a", "", "b"), &Ends(Words::default()), ANSWER);
        assert_eq!(example.ids, [1, 10, 11, 2]);
        assert_eq!(example.loss, [false, false, true, true]);
    }

    #[test]
    fn gsm8k_with_a_real_tokenizer() {
        let Some(shared) = shared() else { return };
        let file = shared.join("models/stories15M/tokenizer.json");
        let tokenizer = tokenizers::Tokenizer::from_file(file).unwrap();
        let tokenizer = Real { tokenizer, bos: Some(1), eos: Some(2) };
        let path = shared.join("data/gsm8k/train.jsonl");
        let records = read_records(&path).unwrap();
        let records = &records[..200];
        let (examples, report) = encode_records(records, &Template::Alpaca, &tokenizer, ANSWER, &path).unwrap();
        assert_eq!(examples.len() + report.dropped, 200);
        assert!(report.truncated > 0 && report.truncated < 100, "{report:?}");
        let example = &examples[0];
        let decode = |ids: &[u32]| tokenizer.tokenizer.decode(ids, false).unwrap();
        let Record::Instruction { instruction, output, .. } = &records[0] else { panic!("an instruction") };
        let (prompt, response) = example.ids.split_at(example.response);
        assert_eq!(decode(response), format!("{output}</s>"));
        assert!(decode(prompt).ends_with(&format!("{instruction}\n\n### Response:\n")));
        assert_eq!((prompt[0], &example.special[..2]), (1, &[true, false][..]));
        assert!(example.loss.iter().enumerate().all(|(i, &target)| target == (i >= example.response)));
        assert!(examples.iter().all(|e| e.ids.len() <= 256 && e.ids[0] == 1));
    }
}
