//! What can be wrong with a data file, said in one line with the place and the remedy.

use std::io;

/// An error of reading, rendering or encoding data. Each message is one line that names the place, the key
/// and the remedy.
#[derive(Debug, thiserror::Error)]
pub enum DataError {
    /// The file cannot be opened or read.
    #[error("{path}: cannot be read: {source}; check the name and the permissions")]
    Read {
        /// The file.
        path: String,
        /// What the system said.
        source: io::Error,
    },
    /// The file holds bytes that are no UTF-8.
    #[error("{path}:{line}: not UTF-8 at byte {offset} of the file; convert the file to UTF-8")]
    NotUtf8 {
        /// The file.
        path: String,
        /// The line, counting from 1.
        line: usize,
        /// The offset of the first wrong byte in the file.
        offset: u64,
    },
    /// The file holds nothing.
    #[error("{path}: holds no {wanted}; give a file that does")]
    Empty {
        /// The file.
        path: String,
        /// What was looked for.
        wanted: &'static str,
    },
    /// A file that is no image, or no image of the right size.
    #[error("{path}: cannot be read as an image: {reason}; leave it out, or write it as JPEG or PNG")]
    Image {
        /// The file.
        path: String,
        /// What is wrong.
        reason: String,
    },
    /// An image that lies in no folder within the folder.
    #[error("{path}: lies in no folder that names its class; put every image into one")]
    NoClass {
        /// The image.
        path: String,
    },
    /// A configuration of an image processor that cannot be followed.
    #[error("{file}: {reason}; is this the file that belongs to the model?")]
    Preprocessor {
        /// The file.
        file: String,
        /// What is wrong.
        reason: String,
    },
    /// A field that names no classes.
    #[error(
        "{path}: the field {label} has {classes} value{}; a classifier needs 2 to 1000", if *.classes == 1 { "" } else { "s" }
    )]
    Classes {
        /// The file.
        path: String,
        /// The field.
        label: String,
        /// How many values it has.
        classes: usize,
    },
    /// A folder whose folders are no classes.
    #[error(
        "{path}: holds {classes} folder{} of images; a classifier needs 2 to 1000", if *.classes == 1 { "" } else { "s" }
    )]
    Folders {
        /// The folder.
        path: String,
        /// How many folders with images it has.
        classes: usize,
    },
    /// The name does not say what the file holds.
    #[error("{path}: the kind of file is unknown; end its name in {known}")]
    UnknownFormat {
        /// The file.
        path: String,
        /// The endings that are known.
        known: &'static str,
    },
    /// JSON that does not parse, or is no object.
    #[error("{place}: {reason}; write one whole JSON object a line, or one array of objects")]
    Json {
        /// The file and line, or the file and record.
        place: String,
        /// What is wrong.
        reason: String,
    },
    /// A CSV file that does not parse.
    #[error("{path}: {reason}; every line must have the header's number of fields, and a .csv file's close its quotes")]
    Csv {
        /// The file.
        path: String,
        /// What the reader said.
        reason: String,
    },
    /// A Parquet file that cannot be read, or holds what no row of data does.
    #[error("{reason}")]
    Parquet {
        /// File, place and remedy.
        reason: String,
    },
    /// A tab-separated file that has neither a header line nor the columns that one without has.
    #[error("{path}:1: has {found} fields and no header line; a file without one has {wanted}: {columns}")]
    NoHeader {
        /// The file.
        path: String,
        /// The fields of its first line.
        found: usize,
        /// The columns that are known.
        wanted: usize,
        /// Their names.
        columns: String,
    },
    /// A record whose keys say nothing that we know.
    #[error(
        "{place}: no known record in the keys {found}; wanted are instruction and output (input if any), question \
         and answer, prompt and completion, messages, or text"
    )]
    UnknownKeys {
        /// The place of the record.
        place: String,
        /// The keys that are there.
        found: String,
    },
    /// A value of the wrong type.
    #[error("{place}: the key {key:?} holds {found}; it must hold {wanted}")]
    WrongType {
        /// The place of the record.
        place: String,
        /// The key.
        key: String,
        /// The type that is there.
        found: &'static str,
        /// The type that is needed.
        wanted: &'static str,
    },
    /// A field that a text source needs is not there.
    #[error("{place}: no field {field:?} among {found}; name one of them with {option}{hint}")]
    MissingField {
        /// The place of the row.
        place: String,
        /// The field that was looked for.
        field: String,
        /// The fields that are there.
        found: String,
        /// The option that names the field.
        option: &'static str,
        /// A further remedy, or nothing.
        hint: &'static str,
    },
    /// A field or group was asked of a plain text file.
    #[error("{path}: a .txt file has no fields; leave {option} out, or give a .csv or .jsonl file")]
    NoFields {
        /// The file.
        path: String,
        /// The option that names a field.
        option: &'static str,
    },
    /// A template that is neither a known name nor a whole file.
    #[error(
        "template {name:?}: {reason}; give alpaca, released, short, or a text file with {{instruction}}, \
             {{input}} if inputs occur, and {{output}} once, at the end"
    )]
    Template {
        /// The template's name or file.
        name: String,
        /// What is wrong.
        reason: String,
    },
    /// A record has an input and the template no place for it.
    #[error("the record has an input, but template {name:?} has no {{input}}; add it, or use --template alpaca")]
    NoPlaceForInput {
        /// The template's file.
        name: String,
    },
    /// Chat messages without a chat template.
    #[error(
        "messages need the tokenizer's chat template and it has none; add a chat_template to \
         tokenizer_config.json, or give records with instruction and output"
    )]
    NoChatTemplate,
    /// The chat template cannot be parsed or refuses the messages.
    #[error(
        "the tokenizer's chat template: {reason}; correct the messages or the chat_template in tokenizer_config.json"
    )]
    ChatTemplate {
        /// What the template engine said.
        reason: String,
    },
    /// The loss or span on answers is wanted and there is no answer.
    #[error("there is no {what}; {remedy}")]
    NoAnswer {
        /// What is missing.
        what: &'static str,
        /// What to do.
        remedy: &'static str,
    },
    /// The tokenizer refuses a text.
    #[error("the tokenizer cannot encode the text: {reason}; check that tokenizer.json belongs to the model")]
    Tokenizer {
        /// What the tokenizer said.
        reason: String,
    },
    /// A cutoff that leaves nothing to predict.
    #[error("--cutoff {cutoff}: nothing is left to predict; give at least 2 tokens")]
    Cutoff {
        /// The cutoff in tokens.
        cutoff: usize,
    },
    /// No example is left after encoding.
    #[error("{path}: none of {records} records has a token to learn within {cutoff} tokens; raise --cutoff")]
    NothingToLearn {
        /// The file.
        path: String,
        /// How many records there were.
        records: usize,
        /// The cutoff in tokens.
        cutoff: usize,
    },
    /// The validation split would take everything.
    #[error(
        "--val-size {val_size}: the data hold {examples} examples and none is left to train on; give a smaller one"
    )]
    ValidationSize {
        /// The wanted size.
        val_size: usize,
        /// The examples there are.
        examples: usize,
    },
    /// An error in a record, with the record's place.
    #[error("{place}: {source}")]
    At {
        /// The file and the record.
        place: String,
        /// What is wrong there.
        source: Box<DataError>,
    },
}

impl DataError {
    /// The same error with the place where it happened.
    #[must_use]
    pub fn at(self, place: impl Into<String>) -> Self {
        Self::At { place: place.into(), source: Box::new(self) }
    }
}
