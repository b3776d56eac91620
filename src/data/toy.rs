//! What the tests of this module share: a toy tokenizer, records, the folder of real data.

use super::{DataError, Encoded, Record, Tokenize};
use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Mutex;

/// A tokenizer of words: ids from 10 in order of first sight, BOS 1 in front, EOS 2; `<…>` words are special.
#[derive(Default)]
pub(crate) struct Words {
    pub(crate) template: Option<String>,
    pub(crate) no_specials: bool,
    pub(crate) seen: Mutex<HashMap<String, u32>>,
}

impl Tokenize for Words {
    fn encode(&self, text: &str, add_special: bool) -> Result<Encoded, DataError> {
        let mut encoded = Encoded::default();
        if add_special && self.adds_bos() {
            encoded.ids.push(1);
            encoded.special.push(true);
            encoded.offsets.push((0, 0));
        }
        let mut seen = self.seen.lock().unwrap();
        for word in text.split_whitespace() {
            let start = word.as_ptr() as usize - text.as_ptr() as usize;
            let next = 10 + seen.len() as u32;
            encoded.ids.push(*seen.entry(word.to_owned()).or_insert(next));
            encoded.special.push(word.starts_with('<') && word.ends_with('>'));
            encoded.offsets.push((start, start + word.len()));
        }
        Ok(encoded)
    }

    fn bos(&self) -> Option<u32> {
        (!self.no_specials).then_some(1)
    }

    fn eos(&self) -> Option<u32> {
        (!self.no_specials).then_some(2)
    }

    fn adds_bos(&self) -> bool {
        !self.no_specials
    }

    fn chat_template(&self) -> Option<String> {
        self.template.clone()
    }

    fn special_token_text(&self, name: &str) -> Option<String> {
        match name {
            "bos_token" => Some("<s>".into()),
            "eos_token" => Some("</s>".into()),
            _ => None,
        }
    }
}

/// A real tokenizer; BOS and EOS by their ids.
pub(crate) struct Real {
    pub(crate) tokenizer: tokenizers::Tokenizer,
    pub(crate) bos: Option<u32>,
    pub(crate) eos: Option<u32>,
}

impl Tokenize for Real {
    fn encode(&self, text: &str, add_special: bool) -> Result<Encoded, DataError> {
        let encoding =
            self.tokenizer.encode(text, add_special).map_err(|e| DataError::Tokenizer { reason: e.to_string() })?;
        Ok(Encoded {
            ids: encoding.get_ids().to_vec(),
            special: encoding.get_special_tokens_mask().iter().map(|&m| m == 1).collect(),
            offsets: encoding.get_offsets().to_vec(),
            ..Encoded::default()
        })
    }

    fn bos(&self) -> Option<u32> {
        self.bos
    }

    fn eos(&self) -> Option<u32> {
        self.eos
    }

    fn adds_bos(&self) -> bool {
        self.bos.is_some()
    }

    fn chat_template(&self) -> Option<String> {
        None
    }

    fn special_token_text(&self, _: &str) -> Option<String> {
        None
    }
}

pub(crate) fn instruction(instruction: &str, input: &str, output: &str) -> Record {
    Record::Instruction { instruction: instruction.into(), input: input.into(), output: output.into() }
}

/// The folder of real models and data, if it is there.
pub(crate) fn shared() -> Option<PathBuf> {
    let folder = std::env::var_os("SMOOTH_PROBE_SHARED").map_or_else(|| PathBuf::from("../shared"), PathBuf::from);
    let there = folder.join("data").is_dir();
    if !there {
        println!("SKIPPED: no real data in {}; set SMOOTH_PROBE_SHARED", folder.display());
    }
    there.then_some(folder)
}
