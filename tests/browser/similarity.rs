//! The page of a similarity run.

use crate::devtools::{Browser, LOOKS};
use crate::runs::{Runs, TUNED, csv_rows, interval, number};
use serde_json::{Value, json};
use std::fs;

const STREAM: [&str; 3] = ["embedding", "block", "final_norm"];

/// Whether two numbers as they are shown are alike, but for the last digit: a page holds seven digits, which may round the
/// other way at the fourth.
fn alike(found: &str, wanted: &str) -> bool {
    let parts = |text: &str| -> Vec<f64> {
        let plain = text.replace('−', "-").replace(['[', ']', ',', '+'], " ");
        plain.split_whitespace().map(|word| word.replace("e ", "e").parse().unwrap_or(f64::NAN)).collect()
    };
    let (a, b) = (parts(found), parts(wanted));
    found == wanted
        || (a.len() == b.len() && a.iter().zip(&b).all(|(a, b)| (a - b).abs() <= 1.01e-4 * b.abs().max(1.0)))
}

#[test]
fn every_number_of_the_page_is_that_of_the_table() {
    let Some(mut browser) = Browser::start() else { return };
    let runs = Runs::make();
    let page = runs.similarity.join("report.html");
    assert!(fs::metadata(&page).unwrap().len() < 2_000_000);
    browser.open(&page, LOOKS[0]);
    let rows = csv_rows(&runs.similarity.join("similarity.csv"));
    // Baselines are shown beside the runs where there are few runs.
    let names: Vec<String> = serde_json::from_value(browser.evaluate(
        "[...document.querySelectorAll('input[name=run]:checked')].map((box) => box.parentElement.textContent)",
    ))
    .unwrap();
    assert_eq!(names.len(), 6, "{names:?}");
    assert_eq!(names[3], TUNED);
    let mut compared = 0;
    for (measure, short) in [
        ("cosine", "cosine"),
        ("cosine_centred", "cosine, corpus-centred"),
        ("effective_rank", "effective rank"),
        ("anisotropy", "anisotropy"),
    ] {
        browser.choose("measure", short);
        for (tokens, words) in
            [("all", "all tokens"), ("no_first", "without the first token"), ("no_special", "without special tokens")]
        {
            browser.choose("tokens", words);
            let shown = browser.table("#explorer details table");
            assert_eq!(shown.len(), 18, "17 layers and the final norm");
            for line in &shown {
                let site = line[1].replace(' ', "_");
                for (name, cell) in names.iter().zip(&line[2..]) {
                    let row = rows.iter().find(|row| {
                        row["run"] == *name
                            && row["group"].is_empty()
                            && row["layer"] == line[0]
                            && row["site"] == site
                            && row["measure"] == measure
                            && row["tokens"] == tokens
                    });
                    let row = row.unwrap();
                    let wanted = if row["mean"].is_empty() {
                        String::new()
                    } else {
                        format!("{} {}", number(&row["mean"], false), interval(&row["ci_low"], &row["ci_high"], false))
                    };
                    assert!(alike(cell.trim(), wanted.trim()), "{name} {line:?}: {cell} is not {wanted}");
                    compared += 1;
                }
            }
        }
    }
    assert_eq!(compared, 4 * 3 * 18 * 6);

    // Two runs: the paired difference, and turned round.
    browser.choose("measure", "cosine");
    browser.choose("tokens", "all tokens");
    for (a, b, sign) in [(TUNED, "base", 1.0), ("base", TUNED, -1.0)] {
        browser.choose("run-a", a);
        browser.choose("run-b", b);
        for line in browser.table("#explorer > details:last-of-type table") {
            let site = line[1].replace(' ', "_");
            let row = rows.iter().find(|row| {
                row["run"] == TUNED
                    && row["group"].is_empty()
                    && row["layer"] == line[0]
                    && row["site"] == site
                    && row["measure"] == "cosine"
                    && row["tokens"] == "all"
            });
            let row = row.unwrap();
            let turned = |column: &str| (sign * row[column].parse::<f64>().unwrap()).to_string();
            let (low, high) =
                if sign > 0.0 { ("diff_ci_low", "diff_ci_high") } else { ("diff_ci_high", "diff_ci_low") };
            assert!(alike(&line[2], &number(&turned("diff"), true)), "{line:?}");
            assert!(alike(&line[3], &interval(&turned(low), &turned(high), true)), "{line:?}");
            assert_eq!(line[5], row["texts"]);
        }
    }
    let said = browser.text("#difference-says");
    assert!(
        said.starts_with("Layer 16, block: base is ") && said.contains(TUNED) && said.contains("n = 20 texts"),
        "{said}"
    );
    browser.assert_alone_and_sound(&page);
}

#[test]
fn keys_and_pointer_read_the_chart_and_controls_change_it() {
    let Some(mut browser) = Browser::start() else { return };
    let runs = Runs::make();
    let page = runs.similarity.join("report.html");
    browser.open(&page, LOOKS[0]);
    let rows = csv_rows(&runs.similarity.join("similarity.csv"));
    let mean = |run: &str, layer: &str, group: &str| {
        let row = rows.iter().find(|row| {
            row["run"] == run
                && row["group"] == group
                && row["layer"] == layer
                && row["measure"] == "cosine"
                && row["tokens"] == "all"
                && STREAM[..2].contains(&row["site"].as_str())
        });
        row.unwrap()["mean"].clone()
    };
    // Home, then two to the right: layer 2.
    for key in ["Home", "ArrowRight", "ArrowRight"] {
        browser.press("#curves svg", key);
    }
    let read = browser.text("#curves .readout");
    assert!(read.starts_with("Layer 2, block, n = 20 texts"), "{read}");
    assert!(
        read.contains(&number(&mean("base", "2", ""), false)) && read.contains(&number(&mean(TUNED, "2", ""), false)),
        "{read}"
    );
    assert!(browser.text("#curves [aria-live]").starts_with("Layer 2, block"));
    browser.press("#curves svg", "Escape");
    assert_eq!(browser.evaluate("document.querySelector('#curves .readout').hidden"), json!(true));
    browser.point("#curves svg", (0.4, 0.5));
    let read = browser.text("#curves .readout");
    let layer = read.strip_prefix("Layer ").and_then(|rest| rest.split(',').next()).unwrap().to_owned();
    assert!((4..12).contains(&layer.parse::<u32>().unwrap()), "{read}");
    assert!(read.contains(&number(&mean(TUNED, &layer, ""), false)), "{read}");

    // A group for all texts.
    browser.evaluate("document.querySelectorAll('input[name=group]')[1].click(); document.querySelectorAll('input[name=group]')[0].click()");
    for key in ["Home", "ArrowRight"] {
        browser.press("#curves svg", key);
    }
    let read = browser.text("#curves .readout");
    assert!(read.contains("n = 10 texts") && read.contains(&number(&mean("base", "1", "now"), false)), "{read}");

    // Fewer runs, fewer layers, relative depth, another site.
    browser.evaluate("[...document.querySelectorAll('input[name=run]')].slice(1).filter((box) => box.checked).forEach((box) => box.click())");
    browser.evaluate(
        "(() => { const to = document.getElementById('to'); to.value = 3; to.dispatchEvent(new Event('change')); })()",
    );
    assert_eq!(browser.table("#explorer details table").len(), 4);
    browser.choose("depth", "relative");
    browser.press("#curves svg", "End");
    let read = browser.text("#curves .readout");
    assert!(read.contains("Layer 3, block, depth 0.1875"), "{read}");
    browser.choose("site", "attention");
    assert_eq!(browser.table("#explorer details table")[0][..2], ["1".to_owned(), "attention".to_owned()]);
    browser.assert_alone_and_sound(&page);
}

#[test]
fn heat_maps_name_their_tokens_and_tables_sort() {
    let Some(mut browser) = Browser::start() else { return };
    let runs = Runs::make();
    let page = runs.similarity.join("report.html");
    browser.open(&page, LOOKS[0]);
    browser.choose("heat-run", TUNED);
    browser.choose("heat-text", "1");
    browser.choose("heat-layer", "4 (block)");
    // The first key stands on the first cell; then down two rows and one to the right.
    for key in ["ArrowDown", "ArrowDown", "ArrowDown", "ArrowRight"] {
        browser.press("#cells canvas", key);
    }
    let said = browser.text("#cells .says");
    let maps = fs::read_dir(runs.similarity.join("heatmap")).unwrap().map(|entry| entry.unwrap().path());
    let table = maps
        .filter(|path| path.display().to_string().ends_with("_text1_layer4.csv"))
        .find(|path| path.file_name().unwrap().to_string_lossy().starts_with("SIBO"))
        .unwrap();
    let cells = csv_rows(&table);
    let cell = cells.iter().find(|cell| cell["row"] == "2" && cell["column"] == "1").unwrap();
    let wanted = format!("“{}” (2) × “{}” (1): cosine ", cell["token_row"], cell["token_column"]);
    let shown = said.strip_prefix(&wanted).unwrap_or_else(|| panic!("{said} is not {wanted}"));
    assert!(alike(shown, &number(&cell["cosine"], false)), "{shown} {cell:?}");
    browser.evaluate("document.querySelectorAll('#sentence button')[3].click()");
    assert_eq!(
        browser.evaluate("document.querySelectorAll('#sentence button')[3].getAttribute('aria-pressed')"),
        json!("true")
    );
    assert!(browser.text("#likeness").starts_with("Most like “"));

    let summary = "main > section:has(> .scroll table.sortable) table.sortable";
    let column = |rows: &[Vec<String>]| -> Vec<f64> {
        rows.iter().map(|row| row[4].replace('−', "-").parse().unwrap_or(f64::NAN)).collect()
    };
    let before = column(&browser.table(summary));
    let click =
        format!("document.querySelector({}).tHead.rows[0].cells[4].querySelector('button').click()", json!(summary));
    browser.evaluate(&click);
    let up = column(&browser.table(summary));
    assert!(up.windows(2).all(|pair| pair[0] <= pair[1]) && up != before, "{up:?}");
    browser.evaluate(&click);
    let down = column(&browser.table(summary));
    assert!(down.windows(2).all(|pair| pair[0] >= pair[1]), "{down:?}");
    assert_eq!(
        browser.evaluate(&format!(
            "document.querySelector({}).tHead.rows[0].cells[4].getAttribute('aria-sort')",
            json!(summary)
        )),
        json!("descending")
    );
    browser.assert_alone_and_sound(&page);
}

#[test]
fn the_page_is_readable_at_every_width_and_in_the_dark_and_names_are_words() {
    let Some(mut browser) = Browser::start() else { return };
    let runs = Runs::make();
    let page = runs.similarity.join("report.html");
    for look in LOOKS {
        browser.open(&page, look);
        browser.assert_readable(look);
        browser.shoot("similarity", look);
        assert!(browser.text("h1").contains(TUNED));
        assert_eq!(browser.evaluate("document.querySelectorAll('h1 b, main li > b, label > b').length"), json!(0));
        browser.assert_alone_and_sound(&page);
    }
    let command: Value = browser.evaluate("document.querySelector('#provenance dl').textContent");
    for wanted in ["similarity --model embedded", "tokenizer_sha256", "bootstrap: seed", "wall_seconds", "device"] {
        assert!(command.as_str().unwrap().contains(wanted), "{wanted}");
    }
}
