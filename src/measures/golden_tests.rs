//! Every measure against NumPy and SciPy (`tests/golden/measures.py`), and the properties that it must have.

use super::streaming::{States, TextRows, Wanted, centred_unit_sum, text_sums};
use super::*;
use safetensors::SafeTensors;
use serde_json::Value as Json;

const INPUTS: &[u8] = include_bytes!("../../tests/golden/measures/inputs.safetensors");
const EXPECTED: &str = include_str!("../../tests/golden/measures/expected.json");

struct Matrix {
    values: Vec<f64>,
    width: usize,
}

impl Matrix {
    fn read(key: &str) -> Self {
        let file = SafeTensors::deserialize(INPUTS).unwrap();
        let tensor = file.tensor(key).unwrap();
        let values = tensor.data().as_chunks().0.iter().map(|&b| f64::from_le_bytes(b)).collect();
        Self { values, width: *tensor.shape().last().unwrap() }
    }

    fn repeated(mut self, times: usize) -> Self {
        self.values = self.values.repeat(times);
        self
    }

    fn rows(&self) -> Rows<'_, f64> {
        Rows::new(&self.values, self.width)
    }

    fn singles(&self) -> Vec<f32> {
        let singles: Vec<f32> = self.values.iter().map(|&x| x as f32).collect();
        let exact = |(&s, &v): (&f32, &f64)| f64::from(s).total_cmp(&v).is_eq();
        assert!(singles.iter().zip(&self.values).all(exact), "not exact in f32");
        singles
    }
}

fn expected() -> Json {
    serde_json::from_str(EXPECTED).unwrap()
}

fn floats(list: &Json) -> Vec<f64> {
    serde_json::from_value(list.clone()).unwrap()
}

fn indices(list: &Json) -> Vec<usize> {
    serde_json::from_value(list.clone()).unwrap()
}

/// Within 1e-9 of the expected value, and undefined where it is.
fn assert_close(found: Option<f64>, expected: &Json, absolute: f64, what: &str) {
    match (found, expected.as_f64()) {
        (None, None) => {}
        (Some(found), Some(wanted)) => {
            let off = (found - wanted).abs();
            assert!(off <= 1e-9 * wanted.abs() + absolute, "{what}: {found} for {wanted}");
        }
        (found, wanted) => panic!("{what}: {found:?} for {wanted:?}"),
    }
}

/// Every measure of a text that states alone give, with what it is to be compared with.
fn text_measures<T: Real>(
    rows: Rows<'_, T>,
    mean: &[f64],
    deviation: &[f64],
    start: Rows<'_, f64>,
) -> Vec<(Measure, Option<f64>)> {
    let (plain, centred) = (Spectrum::uncentred(rows), Spectrum::centred(rows));
    let rank = |s: &Option<Spectrum>| s.as_ref().map(Spectrum::effective_rank);
    let stable = |s: &Option<Spectrum>| s.as_ref().map(Spectrum::stable_rank);
    let mut values = vec![
        (Measure::Cosine, cosine(rows)),
        (Measure::CosineCentred, cosine_centred(rows, mean)),
        (Measure::CosineStandardised, cosine_standardised(rows, mean, deviation)),
        (Measure::RankResidual, rank_residual(rows)),
        (Measure::FrequencyRatio, frequency_ratio(rows)),
        (Measure::Dirichlet, dirichlet(rows)),
        (Measure::NormMean, norm_mean(rows)),
        (Measure::NormStd, norm_std(rows)),
        (Measure::Retention, retention(rows, start)),
        (Measure::OutlierShare1, outlier_share(rows, 1)),
        (Measure::OutlierShare3, outlier_share(rows, 3)),
        (Measure::OutlierShare10, outlier_share(rows, 10)),
        (Measure::EffectiveRank, rank(&plain)),
        (Measure::EffectiveRankCentred, rank(&centred)),
        (Measure::StableRank, stable(&plain)),
        (Measure::StableRankCentred, stable(&centred)),
        (Measure::ParticipationRatio, centred.as_ref().map(Spectrum::participation_ratio)),
    ];
    for derived in Measure::ALL {
        let parent = derived.parent().and_then(|p| values.iter().find(|(m, _)| *m == p).copied());
        if let Some((_, parent)) = parent {
            values.push((derived, parent.and_then(|p| derived.derive(p))));
        }
    }
    values
}

/// The same measures but the spectral ones, by the sums that the command line makes.
fn streamed<T: Real>(rows: &[T], mean: &[f64], deviation: &[f64], start: &[T]) -> Vec<(Measure, Option<f64>)> {
    let (width, n) = (mean.len(), rows.len() / mean.len());
    let text = TextRows { special: vec![], span: 0..n };
    let states = States { values: rows, width, layer0: Some(start), h0: Some(start) };
    let sums = text_sums(states, &text, Wanted { sum: true, squares: true, residual: true });
    assert_eq!(sums.finite, rows.iter().all(|&x| Into::<f64>::into(x).is_finite()));
    let positions: Vec<usize> = (0..n).collect();
    let scale: Vec<f64> = deviation.iter().map(|&d| if d > 0.0 { 1.0 / d } else { 0.0 }).collect();
    let moved = |scale| {
        let (sum, n) = centred_unit_sum(rows, width, &positions, mean, scale);
        streaming::pairwise(&sum, n)
    };
    let value = |measure: Measure| match measure.need() {
        Some(Need::CorpusMean) => moved(None),
        Some(Need::CorpusDeviation) => moved(Some(&scale)),
        _ => sums.set(TokenSet::All).measure(measure),
    };
    let streaming = |m: &Measure| m.class() == Class::Streaming && m.scope() == Scope::Text;
    Measure::ALL.into_iter().filter(streaming).map(|measure| (measure, value(measure))).collect()
}

#[test]
fn texts_agree_with_numpy() {
    let expected = expected();
    for (i, case) in expected["texts"].as_array().unwrap().iter().enumerate() {
        let repeated = case["repeated"].as_u64().unwrap() as usize;
        let read = |part: &str| Matrix::read(&format!("text.{i}.{part}"));
        let (rows, start) = (read("rows").repeated(repeated), read("start").repeated(repeated));
        let (mean, deviation) = (read("mean").values, read("deviation").values);
        let check = |values: Vec<(Measure, Option<f64>)>, form: &str| {
            for (measure, found) in values {
                let name = if measure == Measure::RetentionH0 { Measure::Retention } else { measure }.name();
                let norm = case["values"]["norm_mean"].as_f64().unwrap_or(0.0);
                let absolute = match measure {
                    Measure::NormMean | Measure::Dirichlet => 0.0,
                    Measure::NormStd => 1e-14 * norm,
                    _ => 1e-13,
                };
                let wanted = case["values"].get(name).unwrap();
                assert_close(found, wanted, absolute, &format!("{measure} of {} in {form}", case["name"]));
            }
        };
        let pure = text_measures(rows.rows(), &mean, &deviation, start.rows());
        assert_eq!(pure.len(), case["values"].as_object().unwrap().len());
        check(pure, "f64");
        let sums = streamed(&rows.values, &mean, &deviation, &start.values);
        assert_eq!(sums.len(), 15);
        check(sums, "sums of f64");
        if case["f32"].as_bool().unwrap() {
            // Sums are in f64 whatever the rows are in, so the bound is the same.
            let singles = rows.singles();
            check(text_measures(Rows::new(&singles, rows.width), &mean, &deviation, start.rows()), "f32");
            let start = start.singles();
            check(streamed(&singles, &mean, &deviation, &start), "sums of f32");
        }
    }
}

#[test]
fn attention_agrees_with_scipy() {
    for (i, case) in expected()["attention"].as_array().unwrap().iter().enumerate() {
        let maps = Matrix::read(&format!("attention.{i}.maps"));
        let rows = Matrix::read(&format!("attention.{i}.rows"));
        let [heads, tokens] = ["heads", "tokens"].map(|key| case[key].as_u64().unwrap() as usize);
        let positions = indices(&case["positions"]);
        let causal = case["causal"].as_bool().unwrap();
        let maps = AttentionMaps::new(&maps.values, heads, tokens).unwrap();
        let found = [
            (Measure::AttentionEntropy, attention_entropy(maps, &positions)),
            (Measure::AttentionEntropyNormalised, attention_entropy_normalised(maps, &positions, causal)),
            (Measure::DirichletAttention, dirichlet_attention(rows.rows(), &positions, maps)),
        ];
        for (measure, value) in found {
            let wanted = case.get(measure.name()).unwrap();
            assert_close(value, wanted, 0.0, &format!("{measure} of {}, causal {causal}", case["name"]));
        }
    }
}

#[test]
fn uniform_attention_over_4000_tokens_agrees_with_the_factorial() {
    let case = &expected()["uniform"];
    let n = case["tokens"].as_u64().unwrap() as usize;
    let mut maps = vec![0.0; n * n];
    for (i, row) in maps.chunks_mut(n).enumerate() {
        row[..=i].fill(1.0 / (i + 1) as f64);
    }
    let (maps, positions) = (AttentionMaps::new(&maps, 1, n).unwrap(), (0..n).collect::<Vec<_>>());
    assert_close(attention_entropy(maps, &positions), &case["attention_entropy"], 0.0, "entropy");
    let normalised = attention_entropy_normalised(maps, &positions, true).unwrap();
    assert!((normalised - 1.0).abs() < 1e-12, "{normalised}");
}

/// The rows of the golden corpus, a slice a text.
fn corpus<'a>(matrix: &'a Matrix, lengths: &[usize]) -> Vec<Rows<'a, f64>> {
    let mut left = matrix.values.as_slice();
    lengths
        .iter()
        .map(|n| {
            let (text, rest) = left.split_at(n * matrix.width);
            left = rest;
            Rows::new(text, matrix.width)
        })
        .collect()
}

/// A corpus and its means as the command line makes them: from the sums of each text.
fn summed<T: Real>(texts: &[Rows<'_, T>]) -> (Moments, Anisotropy) {
    let width = texts[0].width();
    let (mut moments, mut anisotropy) = (Moments::new(width), Anisotropy::new(width));
    for text in texts {
        let states = States { values: text.values(), width, layer0: None, h0: None };
        let rows = TextRows { special: vec![], span: 0..text.n() };
        let sums = text_sums(states, &rows, Wanted { sum: true, squares: true, residual: true });
        let all = sums.set(TokenSet::All);
        moments.add_sums(all.rows as u64, &all.sum, &all.squares);
        anisotropy.add_text(all.directed as u64, &all.unit_sum);
    }
    (moments, anisotropy)
}

fn moments<T: Real>(texts: &[Rows<'_, T>]) -> Moments {
    let mut sums = Moments::new(texts[0].width());
    texts.iter().for_each(|&text| sums.add(text));
    sums
}

fn assert_corpus<T: Real>(case: &Json, texts: &[Rows<'_, T>], others: &[Rows<'_, T>], form: &str) {
    let what = |measure: &str| format!("{measure} of {} in {form}", case["name"]);
    let mut direct = Anisotropy::new(texts[0].width());
    texts.iter().for_each(|&text| direct.add(text));
    for (moments, other, anisotropy, by) in [
        (moments(texts), moments(others), direct, "rows"),
        (summed(texts).0, summed(others).0, summed(texts).1, "sums"),
    ] {
        let what = |measure: &str| what(&format!("{measure} by {by}"));
        assert_close(anisotropy.finish(), case.get("anisotropy").unwrap(), 1e-15, &what("anisotropy"));
        assert_eq!(moments.mean().is_some(), case["mean"].is_array(), "{}", what("mean"));
        let (Some(first), Some(second)) = (moments.mean(), other.mean()) else { continue };
        let close = |a: &[f64], b: Vec<f64>| a.iter().zip(&b).all(|(a, b)| (a - b).abs() < 1e-12);
        assert!(close(&first, floats(&case["mean"])), "{}", what("mean"));
        assert!(close(&moments.deviation().unwrap(), floats(&case["deviation"])), "{}", what("deviation"));
        let mut cka = Cka::new(first, second);
        texts.iter().zip(others).for_each(|(&a, &b)| cka.add(a, b));
        assert_close(cka.finish(), case.get("cka").unwrap(), 1e-15, &what("cka"));
        assert_close(cka.biased(), case.get("cka_biased").unwrap(), 1e-15, &what("biased cka"));
        assert_eq!(cka.count(), texts.iter().map(|text| text.n() as u64).sum::<u64>());
        // Tokens that are all their own mean have no direction left.
        let (mean, deviation) = (moments.mean().unwrap(), moments.deviation().unwrap());
        if deviation.iter().all(|&d| d == 0.0) {
            for text in texts {
                assert_eq!(cosine_centred(*text, &mean), None, "{}", what("cosine_centred"));
                assert_eq!(cosine_standardised(*text, &mean, &deviation), None);
                let positions: Vec<usize> = (0..text.n()).collect();
                let (sum, count) = centred_unit_sum(text.values(), text.width(), &positions, &mean, None);
                assert_eq!(streaming::pairwise(&sum, count), None, "{}", what("sums of cosine_centred"));
            }
        }
    }
}

#[test]
fn corpora_agree_with_numpy() {
    for (i, case) in expected()["corpora"].as_array().unwrap().iter().enumerate() {
        let repeated = case["repeated"].as_u64().unwrap() as usize;
        let [rows, others] = ["rows", "others"].map(|part| Matrix::read(&format!("corpus.{i}.{part}")));
        let lengths = indices(&case["lengths"]);
        let repeat = |matrix: &Matrix| -> Vec<Matrix> {
            let own = |text: &Rows<'_, f64>| Matrix { values: text.values().repeat(repeated), width: matrix.width };
            corpus(matrix, &lengths).iter().map(own).collect()
        };
        let (texts, other_texts) = (repeat(&rows), repeat(&others));
        fn views(texts: &[Matrix]) -> Vec<Rows<'_, f64>> {
            texts.iter().map(Matrix::rows).collect()
        }
        assert_corpus(case, &views(&texts), &views(&other_texts), "f64");
        if case["f32"].as_bool().unwrap() {
            let singles = |texts: &[Matrix]| -> Vec<Vec<f32>> { texts.iter().map(Matrix::singles).collect() };
            let (a, b) = (singles(&texts), singles(&other_texts));
            let first: Vec<_> = a.iter().map(|values| Rows::new(values, rows.width)).collect();
            let second: Vec<_> = b.iter().map(|values| Rows::new(values, others.width)).collect();
            assert_corpus(case, &first, &second, "f32");
        }
    }
}

#[test]
fn parts_that_were_saved_read_and_merged_are_all_at_once() {
    let case = &expected()["corpora"][0];
    let lengths = indices(&case["lengths"]);
    let (rows, others) = (Matrix::read("corpus.0.rows"), Matrix::read("corpus.0.others"));
    let (texts, other_texts) = (corpus(&rows, &lengths), corpus(&others, &lengths));
    let whole = moments(&texts);
    let (first, second) = (whole.mean().unwrap(), moments(&other_texts).mean().unwrap());
    let anisotropy = |range: std::ops::Range<usize>| {
        let mut sums = Anisotropy::new(rows.width);
        texts[range].iter().for_each(|&text| sums.add(text));
        sums
    };
    let cka = |range: std::ops::Range<usize>| {
        let mut sums = Cka::new(first.clone(), second.clone());
        range.for_each(|i| sums.add(texts[i], other_texts[i]));
        sums
    };
    let mut merged = Anisotropy::from_bytes(&anisotropy(0..2).to_bytes()).unwrap();
    merged.merge(&Anisotropy::from_bytes(&anisotropy(2..6).to_bytes()).unwrap());
    assert_close(merged.finish(), &case["anisotropy"], 1e-15, "merged anisotropy");
    assert_eq!(merged.texts(), 6);
    let mut merged = Cka::from_bytes(&cka(0..3).to_bytes()).unwrap();
    merged.merge(&Cka::from_bytes(&cka(3..6).to_bytes()).unwrap());
    assert_close(merged.finish(), &case["cka"], 1e-15, "merged cka");
    let mut merged = Moments::from_bytes(&moments(&texts[..3]).to_bytes()).unwrap();
    merged.merge(&moments(&texts[3..]));
    let close = |a: Vec<f64>, b: Vec<f64>| a.iter().zip(&b).all(|(a, b)| (a - b).abs() < 1e-12);
    assert!(close(merged.mean().unwrap(), whole.mean().unwrap()) && merged.count() == whole.count());
}

#[test]
fn intrinsic_dimension_agrees_with_all_distances() {
    for (i, case) in expected()["two_nn"].as_array().unwrap().iter().enumerate() {
        let repeated = case["repeated"].as_u64().unwrap() as usize;
        let points = Matrix::read(&format!("two_nn.{i}")).repeated(repeated);
        let name = case["name"].as_str().unwrap();
        assert_close(two_nn(points.rows()), case.get("value").unwrap(), 0.0, name);
        if points.values.iter().all(|&x| f64::from(x as f32).total_cmp(&x).is_eq()) {
            // As the command line does it: a sample of all tokens, kept in f32.
            let mut sample = TokenSample::new(5, MAX_TOKENS, points.width);
            sample.add(0, &(0..points.rows().n()).collect::<Vec<_>>(), points.rows());
            assert_close(sample.finish(), case.get("value").unwrap(), 0.0, &format!("{name}, sampled"));
        }
    }
}

#[test]
fn nearest_embeddings_agree_with_all_cosines() {
    for (i, case) in expected()["nearest"].as_array().unwrap().iter().enumerate() {
        let [table, rows] = ["table", "rows"].map(|part| Matrix::read(&format!("nearest.{i}.{part}")));
        let rows = rows.repeated(case["repeated"].as_u64().unwrap() as usize);
        let values = table.singles();
        let table = EmbeddingTable::new(&values, table.width).unwrap();
        let wanted: Option<Vec<Option<u32>>> = serde_json::from_value(case["ids"].clone()).unwrap();
        let wanted = wanted.map(|ids| ids.into_iter().cycle().take(rows.rows().n()).collect());
        assert_eq!(table.nearest(rows.rows()), wanted, "{}", case["name"]);
    }
    let (table, rows) = (Matrix::read("nearest.0.table"), Matrix::read("nearest.0.rows"));
    let values = table.singles();
    let table = EmbeddingTable::new(&values, table.width).unwrap();
    let expected: Vec<Option<u32>> = serde_json::from_value(expected()["nearest"][0]["ids"].clone()).unwrap();
    // Its own id where it is the lowest of equals; the last row is zero and does not count.
    let mut ids: Vec<u32> = expected.iter().map(|id| id.unwrap_or(0)).collect();
    assert_eq!(nearest_embedding(rows.rows(), &ids, &table), Some(1.0));
    ids[1] = 17;
    assert_eq!(nearest_embedding(rows.rows(), &ids, &table), Some(24.0 / 25.0), "an equal row of a higher id");
    ids[0] = 40;
    assert_eq!(nearest_embedding(rows.rows(), &ids, &table), None, "an id outside the table");
    assert_eq!(nearest_embedding(rows.rows(), &ids[1..], &table), None);
    assert!(EmbeddingTable::new(&[1.0, f32::NAN], 2).is_none() && EmbeddingTable::new(&[], 2).is_none());
}

fn noise(n: usize, width: usize, seed: u64) -> Vec<f64> {
    use rand_distr::{Distribution, StandardNormal};
    let mut rng = crate::random::stream(seed, &["measures"]);
    (0..n * width).map(|_| StandardNormal.sample(&mut rng)).collect()
}

#[test]
fn plain_cka_of_independent_data_is_biased_and_ours_is_not() {
    let (x, y) = (noise(50, 576, 1), noise(50, 576, 2));
    let (x, y) = (Rows::new(&x, 576), Rows::new(&y, 576));
    let mut sums = Cka::new(x.mean(), y.mean());
    sums.add(x, y);
    assert!((sums.biased().unwrap() - 0.92).abs() < 0.01, "{:?}", sums.biased());
    // Its deviation here is about √2/50.
    assert!(sums.finish().unwrap().abs() < 0.1, "{:?}", sums.finish());
    let mut same = Cka::new(x.mean(), x.mean());
    same.add(x, x);
    assert!((same.finish().unwrap() - 1.0).abs() < 1e-12);
}

#[test]
fn two_nn_finds_the_dimension_of_a_flat_set() {
    let plane = noise(2000, 2, 3);
    // Turned into 20 dimensions, the distances stay.
    let lifted: Vec<f64> = plane
        .chunks(2)
        .flat_map(|p| (0..20).map(|k| [p[0], p[1]][k % 2] * if k < 10 { 0.6 } else { 0.8 } / 5f64.sqrt()))
        .collect();
    let (flat, bent) = (two_nn(Rows::new(&plane, 2)).unwrap(), two_nn(Rows::new(&lifted, 20)).unwrap());
    assert!((flat - 2.0).abs() < 0.15, "{flat}");
    assert!((flat - bent).abs() < 1e-6, "{flat} {bent}");
}

/// Which measures a permutation of the rows, or a common factor, leaves as they are.
#[test]
fn order_and_scale() {
    let (n, width) = (23, 9);
    let values = noise(n, width, 4);
    let start = noise(n, width, 5);
    let order = crate::random::permutation(n, &mut crate::random::stream(6, &["order"]));
    let permuted = |v: &[f64]| -> Vec<f64> { order.iter().flat_map(|&i| v[i * width..][..width].to_vec()).collect() };
    let scaled = |v: &[f64], by: f64| -> Vec<f64> { v.iter().map(|x| x * by).collect() };
    let (mean, deviation) = (noise(1, width, 7), vec![0.7; width]);
    let measure = |v: &[f64], start: &[f64], by: f64| {
        let (mean, deviation) = (scaled(&mean, by), scaled(&deviation, by));
        text_measures(Rows::new(v, width), &mean, &deviation, Rows::new(start, width))
    };
    let plain = measure(&values, &start, 1.0);
    let shuffled = measure(&permuted(&values), &permuted(&start), 1.0);
    let large = measure(&scaled(&values, 1024.0), &start, 1024.0);
    for (((measure, a), (_, b)), (_, c)) in plain.into_iter().zip(shuffled).zip(large) {
        let (a, b, c) = (a.unwrap(), b.unwrap(), c.unwrap());
        assert!((a - b).abs() < 1e-11 * a.abs().max(1.0), "{measure} depends on the order: {a} {b}");
        let factor = match measure {
            Measure::NormMean | Measure::NormStd => 1024.0,
            Measure::Dirichlet => 1024.0 * 1024.0,
            _ => 1.0,
        };
        assert!((a * factor - c).abs() < 1e-11 * c.abs().max(1.0), "{measure} scales otherwise: {a} {c}");
    }
}

#[test]
fn a_value_that_is_not_finite_is_never_skipped() {
    for bad in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
        let mut values = noise(6, 4, 8);
        let start = noise(6, 4, 9);
        values[9] = bad;
        let rows = Rows::new(&values, 4);
        for (measure, value) in text_measures(rows, &[0.0; 4], &[1.0; 4], Rows::new(&start, 4)) {
            assert_eq!(value, None, "{measure} of {bad}");
        }
        let mut moments = Moments::new(4);
        moments.add(rows);
        assert_eq!((moments.mean(), moments.deviation()), (None, None));
        assert!(Moments::from_bytes(&moments.to_bytes()).is_err());
        let mut anisotropy = Anisotropy::new(4);
        anisotropy.add(Rows::new(&start, 4));
        anisotropy.add(rows);
        assert_eq!(anisotropy.finish(), None, "{bad}");
        let mut cka = Cka::new(vec![0.0; 4], vec![0.0; 4]);
        cka.add(rows, Rows::new(&start, 4));
        assert_eq!(cka.finish(), None);
        let table: Vec<f32> = start.iter().map(|&x| x as f32).collect();
        assert_eq!(EmbeddingTable::new(&table, 4).unwrap().nearest(rows), None);
    }
}

fn sample(texts: impl IntoIterator<Item = u64>, capacity: usize) -> TokenSample {
    seeded_sample(17, texts, capacity)
}

fn seeded_sample(seed: u64, texts: impl IntoIterator<Item = u64>, capacity: usize) -> TokenSample {
    let mut sample = TokenSample::new(seed, capacity, 3);
    for text in texts {
        let values = noise(10, 3, text);
        sample.add(text, &(0..10).collect::<Vec<_>>(), Rows::new(&values, 3));
    }
    sample
}

#[test]
fn a_sample_does_not_know_in_which_order_texts_came() {
    let whole = sample(0..30, 100);
    assert_eq!((whole.len(), whole.offered()), (100, 300));
    assert_eq!(sample((0..30).rev(), 100), whole);
    let [mut a, b, mut c] = [sample(0..7, 100), sample(7..19, 100), sample(19..30, 100)];
    c.merge(&a);
    c.merge(&b);
    assert_eq!(c, whole);
    a.merge(&TokenSample::from_bytes(&b.to_bytes()).unwrap());
    a.merge(&sample(19..30, 100));
    assert_eq!(a, whole);
    assert!(whole.finish().unwrap() > 1.0);
    assert_ne!(seeded_sample(18, 0..30, 100).values(), whole.values(), "another seed, another sample");
}

#[test]
fn a_sample_is_fair() {
    let mut sample = TokenSample::new(3, 500, 1);
    (0..2000u16).for_each(|i| sample.add(u64::from(i), &[0], Rows::new(&[f32::from(i)], 1)));
    let chosen = sample.values();
    let mean = chosen.iter().sum::<f32>() / 500.0;
    // The deviation of the mean of 500 of 2,000 is 577·√(0.75/500) = 22.
    assert!((mean - 999.5).abs() < 66.0, "{mean}");
}

/// What every file form must do: give the same state back, and refuse each truncation and the other forms.
fn round_trip<S: PartialEq + std::fmt::Debug>(
    state: &S,
    bytes: &[u8],
    read: impl Fn(&[u8]) -> Result<S, FileFormError>,
) {
    assert_eq!(&read(bytes).unwrap(), state);
    for cut in 0..bytes.len() {
        assert!(read(&bytes[..cut]).is_err(), "cut to {cut} of {}", bytes.len());
    }
    let mut longer = bytes.to_vec();
    longer.push(0);
    assert!(read(&longer).unwrap_err().to_string().contains("1 bytes follow"));
    for at in [0, 8] {
        let mut foreign = bytes.to_vec();
        foreign[at] ^= 0x40;
        assert!(matches!(read(&foreign), Err(FileFormError::Foreign { .. })), "byte {at}");
    }
    // Any eight bytes may claim a huge length or hold a NaN: no panic, no allocation, and never another state
    // than its own bytes.
    for at in (16..bytes.len() - 7).step_by(8) {
        for hostile in [u64::MAX, u64::MAX / 8 + 2, 1 << 61, f64::NAN.to_bits(), f64::INFINITY.to_bits()] {
            let mut broken = bytes.to_vec();
            broken[at..at + 8].copy_from_slice(&hostile.to_le_bytes());
            if let Ok(read) = read(&broken) {
                assert_ne!(&read, state);
            }
        }
    }
}

#[test]
fn file_forms() {
    let (x, y) = (noise(5, 3, 10), noise(5, 2, 11));
    let (x, y) = (Rows::new(&x, 3), Rows::new(&y, 2));
    let mut moments = Moments::new(3);
    moments.add(x);
    round_trip(&moments, &moments.to_bytes(), Moments::from_bytes);
    let mut anisotropy = Anisotropy::new(3);
    anisotropy.add(x);
    round_trip(&anisotropy, &anisotropy.to_bytes(), Anisotropy::from_bytes);
    let mut cka = Cka::new(x.mean(), y.mean());
    cka.add(x, y);
    round_trip(&cka, &cka.to_bytes(), Cka::from_bytes);
    let sample = sample(0..2, 7);
    round_trip(&sample, &sample.to_bytes(), TokenSample::from_bytes);
    let foreign = Cka::from_bytes(&moments.to_bytes()).unwrap_err();
    assert!(foreign.to_string().starts_with("this is not a saved state of `cka`"), "{foreign}");
}

#[test]
fn undefined_corpora() {
    assert_eq!((Moments::new(2).mean(), Moments::new(2).deviation()), (None, None));
    let mut anisotropy = Anisotropy::new(2);
    anisotropy.add(Rows::new(&[1.0f32, 0.0, 0.0, 1.0], 2));
    anisotropy.add(Rows::new(&[0.0f32, 0.0], 2));
    assert_eq!(anisotropy.finish(), None, "only one text has a direction");
    anisotropy.add(Rows::new(&[3.0f32, 0.0], 2));
    assert_eq!(anisotropy.finish(), Some(0.5));
    let mut cka = Cka::new(vec![1.0; 2], vec![0.0; 2]);
    let same = [1.0f32; 12];
    cka.add(Rows::new(&same, 2), Rows::new(&noise(6, 2, 12), 2));
    assert_eq!((cka.finish(), cka.biased()), (None, None), "one of the two does not vary");
}

#[test]
fn deviations_below_the_rounding_of_their_sums_are_zero() {
    let mut moments = Moments::new(2);
    (0..1000).for_each(|i| moments.add(Rows::new(&[0.1f32, if i % 2 == 0 { 1.0 } else { -1.0 }], 2)));
    assert_eq!(moments.deviation().unwrap(), [0.0, 1.0]);
}
