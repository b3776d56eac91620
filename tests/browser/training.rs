//! The page of a training run.

use crate::devtools::{Browser, LOOKS};
use crate::runs::{Runs, csv_rows, number};
use serde_json::Value;
use std::fs;

#[test]
fn the_map_and_the_curves_say_what_the_log_says() {
    let Some(mut browser) = Browser::start() else { return };
    let runs = Runs::make();
    let page = runs.training.join("report.html");
    browser.open(&page, LOOKS[0]);
    let log = fs::read_to_string(runs.training.join("events.jsonl")).unwrap();
    let events: Vec<Value> = log.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let before = &events[0]["similarity_before"];
    // The first cell is the deepest layer before training; one down is the last block, two to the right is step 4.
    for key in ["ArrowDown", "ArrowDown", "ArrowRight", "ArrowRight"] {
        browser.press("#layers-by-step canvas", key);
    }
    let said = browser.text("#layers-by-step .says");
    let (from, to) = (before[16].as_f64().unwrap(), events[3]["similarity"][16].as_f64().unwrap());
    assert!(said.starts_with("layer 16, after step 4: "), "{said}");
    assert!(said.contains(&number(&to.to_string(), false)), "{said} {to}");
    let change: f64 = said.rsplit(", ").next().unwrap().split(' ').next().unwrap().replace('−', "-").parse().unwrap();
    assert!((change - (to - from)).abs() < 1e-4, "{said}");

    browser.choose("colour", "similarity");
    browser.choose("curve", "loss");
    for key in ["Home", "ArrowRight", "ArrowRight"] {
        browser.press("#course svg", key);
    }
    let read = browser.text("#course .readout");
    assert!(read.starts_with("Step 3") && read.contains(&number(&events[2]["loss"].to_string(), false)), "{read}");
    assert!(read.contains(&number(&events[2]["val_loss"].to_string(), false)), "{read}");

    let table = csv_rows(&runs.training.join("similarity_by_step.csv"));
    assert_eq!(table.len(), 4 * 18, "before, and after steps 2, 4 and 6");
    let row = table.iter().find(|row| row["step"] == "4" && row["layer"] == "16" && row["site"] == "block").unwrap();
    assert_eq!(row["similarity"].parse::<f64>().unwrap(), to);
    for look in LOOKS {
        browser.open(&page, look);
        browser.assert_readable(look);
        browser.shoot("training", look);
        browser.assert_alone_and_sound(&page);
    }
}
