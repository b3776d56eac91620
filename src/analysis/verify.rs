//! Whether what a run shows is what its values give: tables are hashed and computed again, views are drawn again and
//! compared.

use super::results;
use super::run_values::RunValues;
use super::split::{SplitRow, split_rows};
use super::tables::similarity_table;
use crate::hash;
use crate::measures::{Measure, Scope};
use crate::persist::PersistError;
use crate::report::{SimilarityRow, baseline};
use crate::statistics::StatisticsError;
use serde_json::Value;
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

/// How far a number computed again may be from the one that is stored, as a share of it: another machine's products may
/// round their last digits otherwise.
const TOLERANCE: f64 = 1e-9;

/// What was looked at, and what was found.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Verification {
    /// Numbers that were computed again.
    pub numbers: u64,
    /// Files that were hashed again.
    pub hashed: u64,
    /// Views that were drawn again.
    pub redrawn: u64,
    /// Differences, a line each.
    pub differences: Vec<String>,
    /// What could not be looked at, a line each.
    pub unchecked: Vec<String>,
}

impl Verification {
    /// Hashes every table that the manifest lists, and finds those that it does not.
    ///
    /// # Errors
    /// The folder cannot be read.
    pub fn hash_tables(&mut self, folder: &Path, manifest: &Value) -> Result<(), PersistError> {
        let Some(listed) = manifest[results::TABLE_HASHES].as_object() else {
            self.unchecked.push("manifest.json holds no hashes of the tables: an older version wrote it".to_owned());
            return Ok(());
        };
        let found = results::table_hashes(folder)?;
        for (name, wanted) in listed {
            self.hashed += 1;
            match found.get(name) {
                None => self.differences.push(format!("{name}: is missing, and manifest.json lists it")),
                Some(hash) if hash != wanted => {
                    self.differences.push(format!("{name}: its SHA-256 is not the one in manifest.json"));
                }
                Some(_) => {}
            }
        }
        Ok(())
    }

    /// Hashes an input again, if it still lies where it lay.
    pub fn hash_input(&mut self, what: &str, path: &Path, wanted: &Value) {
        let Some(wanted) = wanted.as_str() else { return };
        if !path.is_file() {
            self.unchecked.push(format!("{what}: {} is no file here", path.display()));
            return;
        }
        match hash::sha256_file(path) {
            Err(e) => self.unchecked.push(format!("{what}: {}: {e}", path.display())),
            Ok(hash) => {
                self.hashed += 1;
                if hash != wanted {
                    self.differences.push(format!("{what}: {} is not the file that was measured", path.display()));
                }
            }
        }
    }

    /// Computes every mean, interval, difference and p-value of `rows` again from the texts' values.
    ///
    /// # Errors
    /// An interval cannot be computed.
    pub fn recompute(
        &mut self,
        file: &str,
        (rows, p_holm): (&[SimilarityRow], &[Option<f64>]),
        values: &[RunValues],
        seed: u64,
    ) -> Result<(), StatisticsError> {
        let reference = |run: &RunValues| {
            let named = rows.iter().find(|row| row.run == run.run)?.reference.as_deref()?;
            values.iter().position(|other| other.run == named)
        };
        let references: Vec<Option<usize>> = values.iter().map(reference).collect();
        let table = similarity_table(values, &references, seed)?;
        let again: BTreeMap<Key<'_>, (&SimilarityRow, Option<f64>)> =
            table.rows.iter().zip(&table.diff_p_holm).map(|(row, p)| (key(row), (row, *p))).collect();
        let with_p = p_holm.iter().any(Option::is_some);
        let (mut seen, mut corpus) = (0_usize, BTreeMap::<&str, u64>::new());
        for (row, p) in rows.iter().zip(p_holm) {
            if Measure::from_name(&row.measure).is_some_and(|measure| measure.scope() == Scope::Corpus) {
                *corpus.entry(&row.measure).or_default() += 1;
                continue;
            }
            let place = described(row);
            let Some((own, own_p)) = again.get(&key(row)) else {
                self.differences.push(format!("{file}: {place}: per_text.parquet has no such number"));
                continue;
            };
            seen += 1;
            let mut numbers = vec![
                ("mean", row.mean, own.mean),
                ("std", row.std, own.std),
                ("ci_low", row.ci_low, own.ci_low),
                ("ci_high", row.ci_high, own.ci_high),
                ("texts", Some(row.texts as f64), Some(own.texts as f64)),
                ("diff", row.diff, own.diff),
                ("diff_ci_low", row.diff_ci_low, own.diff_ci_low),
                ("diff_ci_high", row.diff_ci_high, own.diff_ci_high),
            ];
            if with_p {
                numbers.push(("diff_p_holm", *p, *own_p));
            }
            self.compare(file, &place, &numbers);
        }
        if seen < again.len() {
            let missing = again.len() - seen;
            self.differences.push(format!("{file}: {missing} rows are missing that per_text.parquet gives"));
        }
        for (measure, count) in corpus {
            self.unchecked.push(format!(
                "{file}: {measure}: {count} rows: one number for all texts, which texts' values do not give"
            ));
        }
        Ok(())
    }

    /// Computes a split again.
    ///
    /// # Errors
    /// An interval cannot be computed.
    pub fn recompute_split(
        &mut self,
        rows: &[SplitRow],
        values: &[RunValues],
        seed: u64,
    ) -> Result<(), StatisticsError> {
        let plain: Vec<RunValues> = values.iter().filter(|run| baseline(&run.run).is_none()).cloned().collect();
        let again = split_rows(&plain, seed)?;
        let key = |row: &SplitRow| (row.run.clone(), row.layer, row.measure, row.tokens, row.part);
        let known: BTreeMap<_, &SplitRow> = again.iter().map(|row| (key(row), row)).collect();
        for row in rows {
            let place = format!("{}, layer {}, {}, {}, {}", row.run, row.layer, row.measure, row.tokens, row.part);
            let Some(own) = known.get(&key(row)) else {
                self.differences.push(format!("split.csv: {place}: per_text.parquet has no such number"));
                continue;
            };
            let numbers = [
                ("change", row.change, own.change),
                ("ci_low", row.ci_low, own.ci_low),
                ("ci_high", row.ci_high, own.ci_high),
                ("texts", Some(row.texts as f64), Some(own.texts as f64)),
            ];
            self.compare("split.csv", &place, &numbers);
        }
        if rows.len() < again.len() {
            let missing = again.len() - rows.len();
            self.differences.push(format!("split.csv: {missing} rows are missing that per_text.parquet gives"));
        }
        Ok(())
    }

    /// Compares two tables of the same numbers, such as the two files that a table is written as.
    pub fn compare_tables(
        &mut self,
        (file, rows): (&str, &[SimilarityRow]),
        (other, others): (&str, &[SimilarityRow]),
    ) {
        if rows.len() != others.len() {
            let (own, theirs) = (rows.len(), others.len());
            self.differences.push(format!("{file}: {own} rows, and {other} has {theirs}"));
            return;
        }
        for (row, wanted) in rows.iter().zip(others) {
            self.numbers += 1;
            if row != wanted {
                self.differences.push(format!("{file}: {}: not as in {other}", described(row)));
            }
        }
    }

    /// Compares one number with what it should be.
    pub fn compare(&mut self, file: &str, place: &str, numbers: &[(&str, Option<f64>, Option<f64>)]) {
        for &(name, stored, again) in numbers {
            self.numbers += 1;
            let alike = match (stored, again) {
                (None, None) => true,
                (Some(a), Some(b)) => (a - b).abs() <= TOLERANCE * a.abs().max(b.abs()),
                _ => false,
            };
            if !alike {
                let said = |value: Option<f64>| value.map_or_else(|| "empty".to_owned(), |value| value.to_string());
                self.differences.push(format!(
                    "{file}: {place}: {name} is {}, and should be {}",
                    said(stored),
                    said(again)
                ));
            }
        }
    }

    /// Compares every file that was drawn again into `drawn` with the one in `folder`; one that the folder lacks is named.
    ///
    /// # Errors
    /// A folder cannot be read.
    pub fn compare_views(&mut self, folder: &Path, drawn: &Path) -> Result<(), PersistError> {
        for name in results::file_names(drawn)? {
            self.redrawn += 1;
            let read = |folder: &Path| {
                let path = folder.join(&name);
                fs::read(&path).map_err(|e| PersistError::new(&path, "read", e))
            };
            let again = read(drawn)?;
            let Ok(stored) = read(folder) else {
                self.differences.push(format!("{name}: is missing; `report` draws it"));
                continue;
            };
            if stored != again {
                let (stored, again) = (String::from_utf8_lossy(&stored), String::from_utf8_lossy(&again));
                self.differences.push(format!("{name}: {}", first_difference(&stored, &again)));
            }
        }
        Ok(())
    }
}

type Key<'r> = (&'r str, Option<&'r str>, u32, &'r str, &'r str, &'r str);

fn key(row: &SimilarityRow) -> Key<'_> {
    (&row.run, row.group.as_deref(), row.layer, &row.site, &row.measure, &row.tokens)
}

fn described(row: &SimilarityRow) -> String {
    let group = row.group.as_ref().map(|group| format!("{group}, ")).unwrap_or_default();
    format!("{}, {group}layer {} ({}), {}, {}", row.run, row.layer, row.site, row.measure, row.tokens)
}

/// Where two texts part, with a few words of both.
fn first_difference(stored: &str, again: &str) -> String {
    let same = stored.chars().zip(again.chars()).take_while(|(a, b)| a == b).count();
    let line = again.chars().take(same).filter(|c| *c == '\n').count() + 1;
    let around = |text: &str| -> String {
        let words: String = text.chars().skip(same.saturating_sub(24)).take(64).collect();
        words.split_whitespace().collect::<Vec<_>>().join(" ")
    };
    format!("line {line} is “{}”, and the tables give “{}”", around(stored), around(again))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::analysis::plan::MeasurePlan;
    use crate::analysis::run_values::MeasuredText;
    use crate::measures::Point;
    use crate::probe::Site;
    use serde_json::json;

    fn values() -> Vec<RunValues> {
        let run = |name: &str, shift: f64| {
            let texts = (0..12).map(|index| MeasuredText { index, group: None, tokens: 4 }).collect();
            let plan = MeasurePlan {
                measures: vec![Measure::Cosine],
                points: vec![Point { site: Site::Block, layer: 1 }, Point { site: Site::Block, layer: 2 }],
                seed: 0,
            };
            RunValues::new(name, &plan, texts, (0..72).map(|i| shift + f64::from(i).sin()).collect(), &[])
        };
        vec![run("base", 0.0), run("a", 0.25)]
    }

    #[test]
    fn a_number_that_was_changed_is_named() {
        let values = values();
        let table = similarity_table(&values, &[None, Some(0)], 5).unwrap();
        let mut sound = Verification::default();
        sound.recompute("t", (&table.rows, &table.diff_p_holm), &values, 5).unwrap();
        assert_eq!((sound.differences.len(), sound.numbers), (0, 12 * 9));
        let mut rows = table.rows.clone();
        rows[7].ci_high = rows[7].ci_high.map(|high| high + 1e-6);
        rows[3].diff = Some(0.0);
        rows.pop();
        let mut found = Verification::default();
        found.recompute("t", (&rows, &table.diff_p_holm), &values, 5).unwrap();
        assert_eq!(found.differences.len(), 3, "{:?}", found.differences);
        assert!(
            found.differences[0].starts_with("t: base, layer 2 (block), cosine, all: diff is 0, and should be empty")
        );
        assert!(found.differences[1].contains("a, layer 1 (block), cosine, no_first: ci_high is "));
        assert!(found.differences[2].contains("1 rows are missing"));
        let mut other_seed = Verification::default();
        other_seed.recompute("t", (&table.rows, &table.diff_p_holm), &values, 6).unwrap();
        assert!(other_seed.differences.iter().any(|line| line.contains("ci_low")));
    }

    #[test]
    fn files_are_hashed_and_views_compared() {
        let (dir, drawn) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        fs::write(dir.path().join("a.csv"), "x\n1\n").unwrap();
        fs::write(dir.path().join("b.csv"), "x\n1\n").unwrap();
        let hashes = results::table_hashes(dir.path()).unwrap();
        let manifest = json!({results::TABLE_HASHES: hashes});
        fs::write(dir.path().join("a.csv"), "x\n2\n").unwrap();
        fs::remove_file(dir.path().join("b.csv")).unwrap();
        fs::write(dir.path().join("report.md"), "one\ntwo 0.25 three\n").unwrap();
        fs::write(drawn.path().join("report.md"), "one\ntwo 0.26 three\n").unwrap();
        fs::write(drawn.path().join("new.svg"), "<svg/>").unwrap();
        let mut found = Verification::default();
        found.hash_tables(dir.path(), &manifest).unwrap();
        found.compare_views(dir.path(), drawn.path()).unwrap();
        let wanted = [
            "a.csv: its SHA-256 is not the one in manifest.json",
            "b.csv: is missing, and manifest.json lists it",
            "new.svg: is missing; `report` draws it",
            "report.md: line 2 is “one two 0.25 three”, and the tables give “one two 0.26 three”",
        ];
        assert_eq!(found.differences, wanted);
        assert_eq!((found.hashed, found.redrawn), (2, 2));
    }
}
