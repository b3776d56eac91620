//! Bad options, data and adapters: one clear line with key, file and remedy, and nothing half-written.

use crate::program::{assert_one_line, assert_untouched, command, run, succeed};
use crate::small_model::{instructions, tiny_model};
use std::fs;
use std::path::{Path, PathBuf};

/// A model, data and texts that are all right, for one thing to be wrong at a time.
struct Place {
    dir: tempfile::TempDir,
}

impl Place {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        tiny_model(&dir.path().join("model"));
        instructions(&dir.path().join("data.jsonl"), 12);
        fs::write(dir.path().join("texts.txt"), "the cat sees two dog\nthe dog runs here\n").unwrap();
        Self { dir }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn write(&self, name: &str, bytes: &[u8]) -> PathBuf {
        fs::write(self.path(name), bytes).unwrap();
        self.path(name)
    }

    /// A command line in which `MODEL`, `DATA`, `TEXTS`, `OUT` and `DIR` stand for the place's own paths.
    fn line(&self, text: &str) -> String {
        let shown = |name: &str| self.path(name).display().to_string();
        let line = text.replace("TRAIN", "train --model MODEL --data DATA --out OUT --steps 1");
        let line = line.replace("MEASURE", "similarity --model MODEL --texts TEXTS --out OUT");
        [("MODEL", "model"), ("DATA", "data.jsonl"), ("TEXTS", "texts.txt"), ("OUT", "out"), ("DIR", "")]
            .iter()
            .fold(line, |line, (word, name)| line.replace(word, shown(name).trim_end_matches('/')))
    }

    fn refused(&self, text: &str, words: &[&str]) {
        let line = self.line(text);
        assert_one_line(&run(&line), words, text);
        assert_untouched(&self.path("out"), text);
    }
}

#[test]
fn settings_out_of_range() {
    let place = Place::new();
    let cases: &[(&str, &[&str])] = &[
        ("TRAIN --sibo-lambda 1.5", &["sibo-lambda", "1.5", "in [0, 1]"]),
        ("TRAIN --sibo-lambda=-0.1", &["sibo-lambda", "-0.1", "in [0, 1]"]),
        ("TRAIN --sibo-lambda NaN", &["sibo-lambda", "NaN", "in [0, 1]"]),
        ("TRAIN --rank 0", &["rank", "at least 1"]),
        ("TRAIN --rank 18446744073709551615", &["rank", "must be below"]),
        ("TRAIN --rank 1000000000000000", &["rank", "at most 65536"]),
        ("TRAIN --method adapter --bottleneck 1000000000000000", &["bottleneck", "at most 65536"]),
        ("inspect --model MODEL --method lora --rank 1000000000000000", &["rank", "at most 65536"]),
        ("TRAIN --alpha 0", &["alpha", "above 0"]),
        ("TRAIN --alpha NaN", &["alpha", "above 0"]),
        ("TRAIN --dropout 1", &["dropout", "in [0, 1)"]),
        ("TRAIN --method adapter --bottleneck 0", &["bottleneck", "at least 1"]),
        ("TRAIN --method adapter --adapter-scale NaN", &["scale", "above 0"]),
        ("TRAIN --method full --sibo-lambda 0.2", &["sibo-lambda", "full fine-tuning"]),
        ("TRAIN --targets query", &["query", "matches no linear", "q_proj"]),
        ("TRAIN --lr NaN", &["lr", "at least 0"]),
        ("TRAIN --lr inf", &["lr", "at least 0"]),
        ("TRAIN --max-grad-norm=-1", &["max-grad-norm", "0 = off"]),
        ("TRAIN --batch-size 0", &["batch-size", "at least 1"]),
        ("TRAIN --batch-size 9223372036854775807", &["batch-size", "must be"]),
        ("TRAIN --accumulate 0", &["accumulate", "at least 1"]),
        ("TRAIN --cutoff 1", &["cutoff", "at least 2"]),
        ("TRAIN --save-every 0", &["save-every", "at least 1"]),
        ("TRAIN --val-size 12", &["--val-size 12", "12 examples", "smaller"]),
        ("TRAIN --threads 0", &["--threads", "1 to 1024"]),
        ("TRAIN --device tpu", &["--device tpu", "auto, cpu, cuda, cuda:N or metal"]),
        ("TRAIN --template missing.txt", &["missing.txt", "alpaca"]),
        ("TRAIN --probe-texts DIR/absent.txt", &["absent.txt", "check"]),
        ("TRAIN --revision v2", &["revision", "leave --revision out"]),
        ("TRAIN --config DIR/absent.toml", &["absent.toml", "check"]),
        ("TRAIN --init-adapter DIR/absent", &["absent", "adapter_config.json"]),
        ("train --data DATA --out OUT", &["--model is missing", "give it"]),
        ("train --model MODEL --data DIR/absent.jsonl --out OUT", &["absent.jsonl", "check"]),
        ("train --model DIR/nowhere --data DATA --out OUT", &["nowhere", "--model"]),
        ("inspect --model MODEL --method lora --sibo-lambda NaN", &["sibo-lambda", "NaN", "in [0, 1]"]),
        ("inspect --model MODEL --method lora --rank 0", &["rank", "at least 1"]),
        ("inspect --model MODEL --method lora --targets nothing", &["nothing", "matches no linear", "up_proj"]),
        ("MEASURE --layers 99", &["--layers 99", "0 (embedding) to 3", "choose"]),
        ("MEASURE --batch-size 0", &["--batch-size", "at least 1"]),
        ("MEASURE --tokens 0", &["--tokens is 0", "at least 1"]),
        ("MEASURE --max-tokens 0", &["--max-tokens is 0", "at least 1"]),
        ("MEASURE --limit 0", &["--limit is 0", "at least 1"]),
        ("MEASURE --audit 0", &["--audit is 0", "at least 1"]),
        ("MEASURE --measures lookup --lookup-texts 0", &["--lookup-texts is 0", "taken of them alone", "at least 1"]),
        ("MEASURE --baselines texts,shuffled,texts", &["--baselines", "texts twice", "once"]),
        ("MEASURE --sites head_99", &["--sites head_99", "6 heads", "choose"]),
        ("MEASURE --sites final_norm --layers 1", &["--sites final_norm", "--layers", "choose"]),
        (
            "dose --model MODEL --adapter DIR --texts TEXTS --out OUT --max-tokens 0",
            &["--max-tokens is 0", "at least 1"],
        ),
        ("dose --model MODEL --adapter DIR --texts TEXTS --out OUT --limit 0", &["--limit is 0", "at least 1"]),
        ("MEASURE --tokens 90", &["texts.txt", "90 tokens", "lower --tokens"]),
        ("MEASURE --reference other", &["--reference other", "base"]),
        ("MEASURE --run MODEL", &["--run", "NAME=MODEL"]),
        ("MEASURE --run base=MODEL", &["base", "its own name"]),
        ("MEASURE --adapter DIR/run", &["--adapter", "NAME=DIR"]),
        ("MEASURE --adapter a=DIR/absent", &["absent", "adapter_config.json"]),
        ("MEASURE --field text", &["--field", "texts.txt", "leave"]),
        ("MEASURE --group-by kind", &["--group-by", "texts.txt", "leave"]),
        (
            "similarity --adapter a=DIR --texts TEXTS --out OUT",
            &["--adapter a=", "adapter_config.json", "cannot be read"],
        ),
        ("similarity --texts TEXTS --out OUT", &["--model", "--run"]),
        ("similarity --model MODEL --texts DIR/absent.txt --out OUT", &["absent.txt", "check"]),
    ];
    // All rows are tried before one fails the test: a change of wording shows whole.
    let failed = cases.iter().filter(|(line, words)| {
        std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| place.refused(line, words))).is_err()
    });
    assert_eq!(failed.map(|(line, _)| *line).collect::<Vec<_>>(), Vec::<&str>::new());
}

#[test]
fn a_run_is_not_named_as_a_baseline_is() {
    let place = Place::new();
    let names =
        [("--adapter", "base (shuffled)=DIR"), ("--run", "x (untrained)=MODEL"), ("--states", "y (other texts)=DIR")];
    for (option, value) in names {
        let (line, value) = (place.line("MEASURE"), place.line(value));
        let mut arguments: Vec<&str> = line.split_whitespace().collect();
        arguments.extend([option, &value]);
        let ended = command(&arguments).output().unwrap().into();
        let name = value.split('=').next().unwrap();
        assert_one_line(&ended, &[name, "as the names of baselines do", "choose another"], &value);
        assert_untouched(&place.path("out"), name);
    }
}

#[test]
fn an_adapter_whose_reading_of_h0_has_no_texts() {
    let place = Place::new();
    adapter(&place, "run", "--sibo-lambda 0.2");
    let words = &["--lookup-texts is 0", "tuned reads of h0", "at least 1"];
    place.refused("MEASURE --lookup-texts 0 --adapter tuned=DIR/run/adapter", words);
    succeed(&place.line("MEASURE --lookup-texts 0"));
}

#[test]
fn what_the_command_line_itself_refuses_is_exit_code_two() {
    let place = Place::new();
    for (text, word) in [
        ("TRAIN --method loora", "--method"),
        ("TRAIN --residual h1", "h0-normed"),
        ("TRAIN --sibo-policy some", "official"),
        ("TRAIN --rank -1", "-1"),
        ("MEASURE --layers 4..2", "2..10"),
        ("MEASURE --layers x", "2..10"),
        ("MEASURE --span middle", "response"),
        ("similarity --model MODEL", "--texts"),
        ("unknown", "unknown"),
    ] {
        let ended = run(&place.line(text));
        assert_eq!(ended.code, Some(2), "{text}: {}", ended.stderr);
        assert!(ended.stderr.contains(word) && !ended.stderr.contains("panicked"), "{text}: {}", ended.stderr);
        assert_untouched(&place.path("out"), text);
    }
}

#[test]
fn a_config_file_with_unknown_keys_or_no_toml() {
    let place = Place::new();
    place.write("run.toml", b"sibo_lamda = 0.2\n");
    place.refused("TRAIN --config DIR/run.toml", &["run.toml", "sibo_lamda", "expected one of"]);
    place.write("run.toml", b"rank = \"four\"\n");
    place.refused("TRAIN --config DIR/run.toml", &["run.toml", "rank", "expected"]);
    place.write("run.toml", b"rank = \n= 3");
    place.refused("TRAIN --config DIR/run.toml", &["run.toml", "correct the TOML"]);
    place.write("run.toml", &[0xff, 0xfe, 0x00]);
    place.refused("TRAIN --config DIR/run.toml", &["run.toml", "UTF-8"]);
}

#[test]
fn data_that_are_none() {
    let place = Place::new();
    let good = r#"{"instruction": "add one", "output": "two"}"#;
    let cases: Vec<(&str, Vec<u8>, &[&str])> = vec![
        ("empty.jsonl", Vec::new(), &["empty.jsonl", "holds no"]),
        ("blank.jsonl", b"\n\n".to_vec(), &["blank.jsonl", "holds no"]),
        ("empty.json", b"[]".to_vec(), &["empty.json", "holds no"]),
        (
            "broken.jsonl",
            format!("{good}\n{good}\n{{\"instruction\": \"a\", \n{good}\n").into(),
            &["broken.jsonl:3", "one whole JSON object"],
        ),
        (
            "latin.jsonl",
            [good.as_bytes(), b"\n{\"instruction\": \"caf\xe9\", \"output\": \"b\"}\n"].concat(),
            &["latin.jsonl:2", "not UTF-8", "convert"],
        ),
        ("keys.jsonl", format!("{good}\n{{\"prompt\": \"a\"}}\n").into(), &["keys.jsonl:2", "prompt", "instruction"]),
        (
            "type.jsonl",
            format!("{good}\n{{\"instruction\": 3, \"output\": \"a\"}}\n").into(),
            &["type.jsonl:2", "instruction", "must hold"],
        ),
        ("array.json", b"[{\"instruction\": \"a\", \"output\": \"b\"},".to_vec(), &["array.json", "JSON"]),
        ("data.xlsx", b"PK".to_vec(), &["data.xlsx", "end its name in"]),
        ("none.jsonl", b"{\"instruction\": \"a\", \"output\": \"\"}\n".to_vec(), &["none.jsonl"]),
    ];
    for (name, bytes, words) in cases {
        place.write(name, &bytes);
        let line = format!("train --model MODEL --data DIR/{name} --out OUT --steps 1 --loss-on answer");
        place.refused(&line, words);
    }
    fs::create_dir(place.path("folder.jsonl")).unwrap();
    place.refused("train --model MODEL --data DIR/folder.jsonl --out OUT", &["folder.jsonl"]);
}

#[test]
fn texts_that_are_none() {
    let place = Place::new();
    let cases: &[(&str, &[u8], &str, &[&str])] = &[
        ("empty.txt", b"", "", &["empty.txt", "holds no"]),
        ("latin.txt", b"the cat\ncaf\xe9\n", "", &["latin.txt:2", "not UTF-8", "convert"]),
        ("broken.jsonl", b"{\"text\": \"a\"}\n{\"text\": \n", "", &["broken.jsonl:2", "one whole JSON object"]),
        ("field.jsonl", b"{\"text\": \"the cat\"}\n", "--field body", &["field.jsonl:1", "body", "--field", "text"]),
        ("group.jsonl", b"{\"text\": \"the cat\"}\n", "--group-by kind", &["group.jsonl:1", "kind", "--group-by"]),
        ("ragged.csv", b"id,text\n1,the cat\n2,the dog,more\n", "--field text", &["ragged.csv", "number of fields"]),
        ("ragged.tsv", b"id\ttext\n1\tthe cat\n2\n", "--field text", &["ragged.tsv", "number of fields"]),
        ("field.csv", b"id,text\n1,the cat\n", "--field body", &["field.csv", "body", "text"]),
        ("span.txt", b"the cat sees\n", "--span response", &["span.txt", "response"]),
        ("texts.bin", b"\0\0", "", &["texts.bin", "end its name in"]),
    ];
    for (name, bytes, options, words) in cases {
        place.write(name, bytes);
        place.refused(&format!("similarity --model MODEL --texts DIR/{name} --out OUT {options}"), words);
    }
}

/// An adapter trained on the tiny model.
fn adapter(place: &Place, name: &str, options: &str) -> PathBuf {
    let line =
        place.line(&format!("train --model MODEL --data DATA --steps 1 --rank 4 --val-size 0 --quiet {options}"));
    succeed(&format!("{line} --out {}", place.path(name).display()));
    place.path(name).join("adapter")
}

fn change(file: &Path, from: &str, to: &str) {
    let text = fs::read_to_string(file).unwrap();
    assert!(text.contains(from), "{from} is not in {text}");
    fs::write(file, text.replace(from, to)).unwrap();
}

#[test]
fn adapters_that_do_not_fit() {
    let place = Place::new();
    let folder = adapter(&place, "run", "--sibo-lambda 0.2");
    let (config, weights) = (folder.join("adapter_config.json"), folder.join("adapter_model.safetensors"));
    let whole = (fs::read_to_string(&config).unwrap(), fs::read(&weights).unwrap());
    let use_it = |words: &[&str]| {
        place.refused("MEASURE --adapter a=DIR/run/adapter", words);
        place.refused("TRAIN --init-adapter DIR/run/adapter", words);
        fs::write(&config, &whole.0).unwrap();
        fs::write(&weights, &whole.1).unwrap();
    };
    let other = place.line("similarity --model embedded --texts TEXTS --out OUT --adapter a=DIR/run/adapter");
    assert_one_line(&run(&other), &["adapter_model.safetensors", "made for", "model"], "another model's adapter");
    assert_untouched(&place.path("out"), "another model's adapter");

    change(&config, "SIBO_LORA", "LOHA");
    use_it(&["adapter_config.json", "LOHA", "SIBO_"]);
    change(&config, "\"r\": 4", "\"r\": 0");
    use_it(&["adapter_config.json", "at least 1"]);
    change(&config, "\"r\": 4", "\"r\": 5");
    use_it(&["adapter_model.safetensors", "shape", "made for"]);
    change(&config, "\"lambda\": 0.2", "\"lambda\": 7");
    use_it(&["adapter_config.json", "in [0, 1]"]);
    change(&config, "\"use_dora\": false", "\"use_dora\": true");
    use_it(&["adapter_model.safetensors", "missing", "lora_magnitude_vector"]);
    change(&config, "\"bias\": \"none\"", "\"bias\": \"some\"");
    use_it(&["adapter_config.json", "bias", "not supported"]);
    change(&config, "\"q_proj\",", "\"q_proj\", \"o_proj\",");
    use_it(&["adapter_model.safetensors", "missing", "o_proj"]);
    change(&config, "\"q_proj\",", "\"query\",");
    use_it(&["adapter_config.json", "query", "matches no linear"]);
    fs::write(&config, "{").unwrap();
    use_it(&["adapter_config.json", "correct it"]);
    fs::write(&weights, &whole.1[..whole.1.len() / 2]).unwrap();
    use_it(&["adapter_model.safetensors"]);
    let mut bytes = whole.1.clone();
    let end = bytes.len();
    bytes[end - 4..].copy_from_slice(&f32::NAN.to_le_bytes());
    fs::write(&weights, bytes).unwrap();
    use_it(&["adapter_model.safetensors", "NaN", "again"]);
    fs::remove_file(&weights).unwrap();
    use_it(&["adapter_model.safetensors", "check"]);
}

#[test]
fn folders_that_cannot_be_written_or_hold_a_run() {
    let place = Place::new();
    place.write("file", b"mine");
    // Root may write into a read-only folder, but nobody makes a folder below a file.
    for line in [
        "train --model MODEL --data DATA --steps 1 --out DIR/file/out",
        "train --model MODEL --data DATA --steps 1 --out DIR/file",
        "similarity --model MODEL --texts TEXTS --out DIR/file/out",
    ] {
        place.refused(line, &["file", "cannot create", "check that the folder"]);
    }
    assert_eq!(fs::read(place.path("file")).unwrap(), b"mine");

    let adapter = adapter(&place, "run", "");
    let before = fs::read(adapter.join("adapter_model.safetensors")).unwrap();
    place.refused(
        "train --model MODEL --data DATA --steps 2 --out DIR/run",
        &["run", "holds a run already", "--resume", "another --out"],
    );
    assert_eq!(fs::read(adapter.join("adapter_model.safetensors")).unwrap(), before);
}
