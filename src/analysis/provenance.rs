//! A manifest as a list of names and values, for the reader of a page.

use serde_json::Value;

/// Entries that say nothing of how a result was made, or too much: the names of its files, the plan's modules.
const LEFT_OUT: [&str; 3] = ["files", "modules", "profile"];

/// Every entry of a manifest by its path, in its order: lists of plain values in one line, what has a name under it.
#[must_use]
pub fn provenance(manifest: &Value) -> Vec<(String, String)> {
    let mut found = Vec::new();
    for (key, value) in manifest.as_object().into_iter().flatten() {
        if LEFT_OUT.contains(&key.as_str()) {
            continue;
        }
        match (key.as_str(), value) {
            ("command", Value::Array(words)) => found.push((key.clone(), command_line(words))),
            _ => flatten(key, value, &mut found),
        }
    }
    found
}

fn flatten(path: &str, value: &Value, found: &mut Vec<(String, String)>) {
    match value {
        Value::Null => {}
        Value::Object(entries) => {
            entries.iter().for_each(|(key, value)| flatten(&format!("{path}: {key}"), value, found));
        }
        Value::Array(items) if items.iter().any(|item| item.is_object() || item.is_array()) => {
            for (place, item) in items.iter().enumerate() {
                let name = item["name"].as_str().map_or_else(|| (place + 1).to_string(), str::to_owned);
                flatten(&format!("{path}: {name}"), item, found);
            }
        }
        Value::Array(items) if items.is_empty() => {}
        Value::Array(items) => {
            found.push((path.to_owned(), items.iter().map(plain).collect::<Vec<_>>().join(", ")));
        }
        other => found.push((path.to_owned(), plain(other))),
    }
}

fn plain(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        // Nine digits: the last ones may be read from JSON as others than were written.
        Value::Number(number) if number.is_f64() => {
            let rounded = number.as_f64().and_then(|value| format!("{value:.8e}").parse::<f64>().ok());
            rounded.map_or_else(|| number.to_string(), |value| Value::from(value).to_string())
        }
        other => other.to_string(),
    }
}

/// The command as one would type it.
fn command_line(words: &[Value]) -> String {
    let harmless = |c: char| c.is_ascii_alphanumeric() || "-_./=:,@+%".contains(c);
    let quoted = |word: &Value| {
        let word = plain(word);
        if !word.is_empty() && word.chars().all(harmless) { word } else { format!("'{}'", word.replace('\'', "'\\''")) }
    };
    words.iter().map(quoted).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn every_entry_is_named_by_its_path() {
        let manifest = json!({
            "program": "smooth-probe", "command": ["smooth-probe", "similarity", "--adapter", "it's <a>=b", ""],
            "runs": [{"name": "base", "model_sha256": {"model.safetensors": "ab"}, "adapter": null}],
            "measures": ["cosine", "mad"], "bootstrap": {"seed": 42}, "files": ["a.csv"], "means": [], "relative": false,
            "error": 3.839_473_866_618_093_4e-8, "lr": 0.001,
        });
        let wanted = [
            ("program", "smooth-probe"),
            ("command", "smooth-probe similarity --adapter 'it'\\''s <a>=b' ''"),
            ("runs: base: name", "base"),
            ("runs: base: model_sha256: model.safetensors", "ab"),
            ("measures", "cosine, mad"),
            ("bootstrap: seed", "42"),
            ("relative", "false"),
            ("error", "3.83947387e-8"),
            ("lr", "0.001"),
        ];
        let wanted: Vec<(String, String)> = wanted.map(|(a, b)| (a.to_owned(), b.to_owned())).to_vec();
        assert_eq!(provenance(&manifest), wanted);
        assert_eq!(provenance(&json!(3)), []);
    }
}
