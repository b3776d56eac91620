//! The fused sums against the definitions, written out.

use super::*;
use crate::measures::{self, Class, Rows, Scope};

const WIDTH: usize = 37;

fn rows(n: usize, width: usize) -> Vec<f32> {
    (0..n * width).map(|i| ((i * 37 % 101) as f32 - 40.0) / 7.0 + ((i * i) % 13) as f32).collect()
}

/// 9 rows: first special, fourth special, the span leaves the last out.
fn text() -> TextRows {
    TextRows { special: [true, false, false, true, false, false, false, false, false].to_vec(), span: 0..8 }
}

fn everything() -> Wanted {
    Wanted { sum: true, squares: true, residual: true }
}

fn close(what: &str, found: f64, wanted: f64) {
    assert!((found - wanted).abs() <= 1e-12 * (1.0 + wanted.abs()), "{what}: {found} for {wanted}");
}

#[test]
fn every_sum_is_that_of_its_definition() {
    let values = rows(9, WIDTH);
    let layer0: Vec<f32> = values.iter().rev().copied().collect();
    let states = States { values: &values, width: WIDTH, layer0: Some(&layer0), h0: Some(&values) };
    let sums = text_sums(states, &text(), everything());
    assert!(sums.finite);
    for (set, positions) in [
        (TokenSet::All, vec![0, 1, 2, 3, 4, 5, 6, 7]),
        (TokenSet::NoFirst, vec![1, 2, 3, 4, 5, 6, 7]),
        (TokenSet::NoSpecial, vec![1, 2, 4, 5, 6, 7]),
    ] {
        assert_eq!(text().of(set, 9), positions);
        let found = sums.set(set);
        let row = |i: usize, j: usize| f64::from(values[i * WIDTH + j]);
        let n = positions.len() as f64;
        assert_eq!((found.rows, found.directed), (positions.len(), positions.len()));
        let norm = |i: usize| (0..WIDTH).map(|j| row(i, j).powi(2)).sum::<f64>().sqrt();
        let mean: Vec<f64> = (0..WIDTH).map(|j| positions.iter().map(|&i| row(i, j)).sum::<f64>() / n).collect();
        for (j, mean) in mean.iter().enumerate() {
            close("sum", found.sum[j], mean * n);
            close("squares", found.squares[j], positions.iter().map(|&i| row(i, j).powi(2)).sum());
            close("unit sum", found.unit_sum[j], positions.iter().map(|&i| row(i, j) / norm(i)).sum());
        }
        let mut norms = found.norms.clone();
        let mut wanted: Vec<f64> = positions.iter().map(|&i| norm(i)).collect();
        norms.sort_by(f64::total_cmp);
        wanted.sort_by(f64::total_cmp);
        norms.iter().zip(&wanted).for_each(|(a, b)| close("norm", *a, *b));
        let largest = |values: Vec<f64>| values.into_iter().fold(0.0, f64::max);
        let column = |f: &dyn Fn(usize, usize) -> f64| {
            largest((0..WIDTH).map(|j| positions.iter().map(|&i| f(i, j).abs()).sum()).collect())
        };
        let line = |f: &dyn Fn(usize, usize) -> f64| {
            largest(positions.iter().map(|&i| (0..WIDTH).map(|j| f(i, j).abs()).sum()).collect())
        };
        let away = |i: usize, j: usize| row(i, j) - mean[j];
        let residual = found.residual.unwrap();
        close("column", residual.column, column(&row));
        close("row", residual.row, line(&row));
        close("residual column", residual.residual_column, column(&away));
        close("residual row", residual.residual_row, line(&away));
        let square = positions.iter().flat_map(|&i| (0..WIDTH).map(move |j| (i, j))).map(|(i, j)| away(i, j).powi(2));
        close("residual square", residual.residual_square, square.sum());
        close("mean square", residual.mean_square, mean.iter().map(|m| m * m).sum());
        let cosine = |i: usize| {
            let other = |j: usize| f64::from(layer0[i * WIDTH + j]);
            let (dot, norm0): (f64, f64) =
                (0..WIDTH).fold((0.0, 0.0), |(d, s), j| (d + row(i, j) * other(j), s + other(j).powi(2)));
            dot / (norm(i) * norm0.sqrt())
        };
        close("retention", found.retention.0, positions.iter().map(|&i| cosine(i)).sum());
        close("retention of itself", found.retention_h0.0, n);
        assert_eq!((found.retention.1, found.retention_h0.1), (positions.len(), positions.len()));
        let mut pairs = 0.0;
        for &a in &positions {
            for &b in positions.iter().filter(|&&b| b != a) {
                pairs += (0..WIDTH).map(|j| row(a, j) * row(b, j)).sum::<f64>() / (norm(a) * norm(b));
            }
        }
        close("cosine", found.cosine().unwrap(), pairs / (n * (n - 1.0)));
    }
    assert_eq!(sums.same_as(TokenSet::NoFirst), None);
}

#[test]
fn equal_sets_are_computed_once() {
    let values = rows(5, 8);
    let text = TextRows { special: vec![true, false, false, false, false], span: 0..5 };
    let sums = text_sums(States { values: &values, width: 8, layer0: None, h0: None }, &text, everything());
    assert_eq!(sums.same_as(TokenSet::NoSpecial), Some(TokenSet::NoFirst));
    assert_eq!(sums.set(TokenSet::NoSpecial), sums.set(TokenSet::NoFirst));
    assert_eq!(sums.sets.len(), 2);
}

#[test]
fn single_precision_states_give_what_doubles_give_to_the_bit() {
    let (single, width) = (rows(9, WIDTH), WIDTH);
    let double: Vec<f64> = single.iter().map(|&x| f64::from(x)).collect();
    let a = text_sums(States { values: &single, width, layer0: Some(&single), h0: None }, &text(), everything());
    let b = text_sums(States { values: &double, width, layer0: Some(&double), h0: None }, &text(), everything());
    assert_eq!(a, b);
}

#[test]
fn what_is_not_wanted_is_not_there() {
    let values = rows(4, 6);
    let text = TextRows { special: vec![], span: 0..4 };
    let sums = text_sums(States { values: &values, width: 6, layer0: None, h0: None }, &text, Wanted::default());
    let all = sums.set(TokenSet::All);
    assert!(all.sum.is_empty() && all.squares.is_empty() && all.residual.is_none() && all.retention.1 == 0);
    assert!(all.cosine().is_some());
}

#[test]
fn scales_beyond_single_precision_squares_keep_their_cosine() {
    let plain = rows(6, 16);
    let text = TextRows { special: vec![], span: 0..6 };
    let cosine = |values: &[f32]| {
        text_sums(States { values, width: 16, layer0: None, h0: None }, &text, Wanted::default())
            .set(TokenSet::All)
            .cosine()
            .unwrap()
    };
    for scale in [1e30, 1e-30] {
        let scaled: Vec<f32> = plain.iter().map(|x| x * scale).collect();
        assert!((cosine(&scaled) - cosine(&plain)).abs() < 1e-6, "{scale}");
    }
}

#[test]
fn nothing_gives_nothing() {
    let text = TextRows { special: vec![], span: 0..0 };
    let values: [f32; 6] = [1.0; 6];
    let sums = text_sums(States { values: &values, width: 3, layer0: None, h0: None }, &text, everything());
    for set in TokenSet::ALL {
        assert_eq!((sums.set(set).rows, sums.set(set).cosine(), sums.set(set).residual), (0, None, None));
    }
    assert_eq!(pairwise(&[], 1), None);
}

#[test]
fn centring_and_scaling() {
    let values = rows(5, 7);
    let mean: Vec<f64> = (0..7).map(|j| j as f64 / 3.0).collect();
    let scale: Vec<f64> = (0..7).map(|j| if j == 2 { 0.0 } else { 1.0 / (1.0 + j as f64) }).collect();
    for scale in [None, Some(scale.as_slice())] {
        let (sum, n) = centred_unit_sum(&values, 7, &[0, 2, 4], &mean, scale);
        let mut wanted = [0.0; 7];
        for i in [0usize, 2, 4] {
            let row: Vec<f64> =
                (0..7).map(|j| (f64::from(values[i * 7 + j]) - mean[j]) * scale.map_or(1.0, |s| s[j])).collect();
            let norm = row.iter().map(|x| x * x).sum::<f64>().sqrt();
            wanted.iter_mut().zip(&row).for_each(|(w, x)| *w += x / norm);
        }
        assert_eq!(n, 3);
        sum.iter().zip(&wanted).for_each(|(a, b)| close("unit", *a, *b));
    }
}

/// The pure functions over the same rows.
fn pure(rows: &[f32], layer0: &[f32], width: usize, measure: Measure) -> Option<f64> {
    let (own, other) = (Rows::new(rows, width), Rows::new(layer0, width));
    match measure {
        Measure::Cosine => measures::cosine(own),
        Measure::Mad => measures::cosine(own).and_then(|c| measure.derive(c)),
        Measure::RankResidual => measures::rank_residual(own),
        Measure::FrequencyRatio => measures::frequency_ratio(own),
        Measure::Dirichlet => measures::dirichlet(own),
        Measure::DirichletNormalised => measures::frequency_ratio(own).and_then(|r| measure.derive(r)),
        Measure::NormMean => measures::norm_mean(own),
        Measure::NormStd => measures::norm_std(own),
        Measure::Retention | Measure::RetentionH0 => measures::retention(own, other),
        Measure::OutlierShare1 => measures::outlier_share(own, 1),
        Measure::OutlierShare3 => measures::outlier_share(own, 3),
        Measure::OutlierShare10 => measures::outlier_share(own, 10),
        other => panic!("{other} is not measured by the sums"),
    }
}

#[test]
fn the_sums_give_what_the_pure_functions_give() {
    let streaming: Vec<Measure> = Measure::ALL
        .into_iter()
        .filter(|m| m.class() == Class::Streaming && m.scope() == Scope::Text && !m.second_pass())
        .collect();
    assert_eq!(streaming.len(), 13);
    let identical: Vec<f32> = rows(1, 20).repeat(9);
    let mut zero_row = rows(9, 20);
    zero_row[40..60].fill(0.0);
    let single = rows(9, 1);
    let poisoned = |bad: f32, row: usize| {
        let mut values = rows(9, 20);
        values[row * 20 + 7] = bad;
        values
    };
    let cases: [(&str, Vec<f32>, usize); 13] = [
        ("plain", rows(9, 20), 20),
        ("identical", identical, 20),
        ("a zero row", zero_row, 20),
        ("all zero", vec![0.0; 180], 20),
        ("d = 1", single, 1),
        ("no rows", Vec::new(), 20),
        ("n = 1", rows(1, 20), 20),
        ("n = 2", rows(2, 20), 20),
        ("one token 4,000 times", rows(1, 20).repeat(4000), 20),
        ("NaN", poisoned(f32::NAN, 4), 20),
        ("NaN first", poisoned(f32::NAN, 0), 20),
        ("infinite", poisoned(f32::INFINITY, 4), 20),
        ("minus infinite, special", poisoned(f32::NEG_INFINITY, 3), 20),
    ];
    for (case, values, width) in cases {
        let layer0: Vec<f32> = values.iter().map(|x| x * 0.5 + 1.0).collect();
        let states = States { values: &values, width, layer0: Some(&layer0), h0: Some(&layer0) };
        let whole = TextRows { special: vec![true], span: 0..values.len() / width };
        let short = TextRows { special: vec![true], span: 0..2 };
        for text in [text(), whole, short, TextRows { special: vec![], span: 0..1 }] {
            let sums = text_sums(states, &text, everything());
            for set in TokenSet::ALL {
                let positions = text.of(set, values.len() / width);
                moved_forms_agree(&values, width, &positions, &format!("{case} {set}"));
                let gather = |from: &[f32]| -> Vec<f32> {
                    positions.iter().flat_map(|&p| from[p * width..(p + 1) * width].to_vec()).collect()
                };
                let (own, other) = (gather(&values), gather(&layer0));
                for &measure in &streaming {
                    let what = format!("{case} {measure} {set} {:?}", text.span);
                    match (sums.set(set).measure(measure), pure(&own, &other, width, measure)) {
                        (Some(a), Some(b)) => assert!((a - b).abs() <= 1e-11 * (1.0 + b.abs()), "{what}: {a} for {b}"),
                        (a, b) => assert_eq!(a, b, "{what}"),
                    }
                }
            }
        }
    }
}

/// Centred and standardised, by a mean that is no row's and by one that is the last row.
fn moved_forms_agree(values: &[f32], width: usize, positions: &[usize], what: &str) {
    let deviation: Vec<f64> = (0..width).map(|j| ((j + 1) % 4) as f64).collect();
    let scale: Vec<f64> = deviation.iter().map(|&d| if d > 0.0 { 1.0 / d } else { 0.0 }).collect();
    let own: Vec<f32> = positions.iter().flat_map(|&p| values[p * width..(p + 1) * width].to_vec()).collect();
    let own = Rows::new(&own, width);
    let other: Vec<f64> = (0..width).map(|j| j as f64 / 5.0 - 1.0).collect();
    let last = own.row(own.n().saturating_sub(1)).iter().map(|&x| f64::from(x)).collect();
    for mean in [other, last].into_iter().filter(|mean: &Vec<f64>| mean.iter().all(|m| m.is_finite())) {
        if mean.len() != width {
            continue;
        }
        let found = |scale| {
            let (sum, n) = centred_unit_sum(values, width, positions, &mean, scale);
            pairwise(&sum, n)
        };
        for (form, found, wanted) in [
            ("centred", found(None), measures::cosine_centred(own, &mean)),
            ("standardised", found(Some(&scale)), measures::cosine_standardised(own, &mean, &deviation)),
        ] {
            match (found, wanted) {
                (Some(a), Some(b)) => close(&format!("{form} {what}"), a, b),
                (a, b) => assert_eq!(a, b, "{form} {what}"),
            }
        }
    }
}
