//! How a similarity run was made, written from its manifest.

use super::read::SimilarityResult;
use crate::report::baseline;
use serde_json::Value;

pub(super) fn methods(result: &SimilarityResult) -> Vec<String> {
    [texts(result), measures(result), statistics(result), controls(result)].into_iter().flatten().collect()
}

fn texts(result: &SimilarityResult) -> Option<String> {
    let manifest = &result.manifest;
    let config = &manifest["config"];
    let runs = manifest["runs"].as_array()?;
    let count = |key: &str| runs.iter().filter_map(|run| run[key].as_u64()).max();
    let mut said = match manifest["texts"].as_str() {
        Some(path) => format!("Texts: {path}"),
        None => "Texts: those of stored states".to_owned(),
    };
    if let Some((texts, tokens)) = count("texts_measured").zip(count("tokens_measured")) {
        said.push_str(&format!(", {texts} texts with {tokens} measured tokens"));
    }
    said.push_str(". Each runs through the model alone in a packed batch, whole, with the special tokens that its tokenizer adds, without padding");
    let mut limits = Vec::new();
    let mut add = |key: &str, words: &str| {
        if let Some(value) = shown(&config[key]) {
            limits.push(words.replace("{}", &value));
        }
    };
    add("tokens", "only texts of at least {} tokens, cut to {}");
    add("max_tokens", "texts cut at {} tokens");
    add("limit", "the first {} texts of the file");
    add("field", "the field `{}`");
    add("template", "rendered with the template `{}`");
    add("group_by", "grouped by `{}`");
    if let Some(span) = config["span"].as_str().filter(|span| *span != "all") {
        limits.push(format!("measured on the {span} alone"));
    }
    if !limits.is_empty() {
        said.push_str(&format!(": {}", limits.join("; ")));
    }
    said.push('.');
    let (device, dtype) = (manifest["device"].as_str(), manifest["dtype"].as_str());
    if let Some((device, dtype)) = device.zip(dtype) {
        let base = manifest["base_dtype"].as_str().filter(|base| *base != dtype);
        let stored = base.map(|base| format!(", weights stored in {base}")).unwrap_or_default();
        said.push_str(&format!(" Computed in {dtype} on {device}{stored}; sums in f64."));
    }
    Some(said)
}

fn shown(value: &Value) -> Option<String> {
    match value {
        Value::Null => None,
        Value::String(text) => Some(text.clone()),
        other => Some(other.to_string()),
    }
}

fn measures(result: &SimilarityResult) -> Option<String> {
    let names: Vec<String> = result.measures().iter().map(|name| name.replace('_', " ")).collect();
    let counted = result.manifest["convention"]["counted"].as_str();
    let counted = counted.map(|counted| format!(" {counted}")).unwrap_or_default();
    let convention = result.manifest["layers_convention"].as_str().unwrap_or("0 embedding, 1..L blocks");
    (!names.is_empty()).then(|| {
        format!(
            "Measures: {}. Layers: {convention}. Token sets: all tokens; without the first position; without special tokens. \
             A text weighs 1 whatever its length; a row of zeros has no direction and does not count.{counted}",
            names.join(", ")
        )
    })
}

fn statistics(result: &SimilarityResult) -> Option<String> {
    let bootstrap = &result.manifest["bootstrap"];
    let (replicates, seed) = (bootstrap["replicates"].as_u64()?, bootstrap["seed"].as_u64()?);
    let level = 100.0 * bootstrap["level"].as_f64()?;
    Some(format!(
        "Intervals: {level:.0} % percentile bootstrap of the mean over texts, {replicates} resamples, seed {seed}; differences are \
         paired text by text. p-values are two-sided, from the same resamples, adjusted by Holm over the layers of a run, group, \
         measure and token set; intervals are not adjusted. All of it is about texts: another training seed may give something else."
    ))
}

fn controls(result: &SimilarityResult) -> Option<String> {
    let mut said = Vec::new();
    let mut kinds: Vec<usize> = result.rows.iter().filter_map(|row| Some(baseline(&row.run)?.1)).collect();
    kinds.sort_unstable();
    kinds.dedup();
    let words = [
        "(other texts) rows of a text replaced by rows of other texts",
        "(untrained) the same architecture with random weights",
        "(shuffled) ordinary tokens in random order",
    ];
    let named: Vec<&str> = kinds.iter().filter_map(|kind| words.get(*kind).copied()).collect();
    if !named.is_empty() {
        said.push(format!("Null baselines: {}.", named.join("; ")));
    }
    if let Some(audit) = &result.audit {
        said.push(format!(
            "Audit on {} texts: each alone against in a batch, f64 against the compute type, the cosine over all pairs against \
             one sweep.",
            audit.texts
        ));
    }
    (!said.is_empty()).then(|| said.join(" "))
}
