//! The sums of a batch, made by products, against those of the slices.

use super::super::Real;
use super::super::streaming::{States, centred_unit_sum, text_sums};
use super::*;
use candle_core::WithDType;
use rand::Rng;

const WIDTH: usize = 41;

/// Texts of 9, 1, 600, 2, 3 and 4 rows: special tokens in the first, more than two blocks, a zero row, a text that is
/// not measured, one of identical rows.
fn texts() -> Vec<(Range<usize>, TextRows)> {
    let mut first = vec![false; 9];
    (first[0], first[4]) = (true, true);
    let all = [
        (9, first, 0..8),
        (1, vec![true], 0..1),
        (600, vec![true], 0..600),
        (2, vec![], 0..2),
        (3, vec![false, true], 0..0),
        (4, vec![false], 0..4),
    ];
    let mut start = 0;
    all.map(|(rows, special, span)| {
        start += rows;
        (start - rows..start, TextRows { special, span })
    })
    .to_vec()
}

/// States with an offset that all rows share, and a dimension that is a thousand times as large.
fn rows(seed: u64) -> Vec<f64> {
    let mut rng = crate::random::stream(seed, &["device sums"]);
    let count = texts().last().unwrap().0.end;
    let mut values: Vec<f64> = (0..count * WIDTH)
        .map(|i| {
            let size = if i % WIDTH == 7 { 1000.0 } else { 1.0 };
            f64::from((size * (0.5 + rng.random_range(-1.0..1.0))) as f32)
        })
        .collect();
    let [zero, same] = [3, 5].map(|text: usize| texts()[text].0.start * WIDTH);
    values[zero..zero + WIDTH].fill(0.0);
    let row = values[same..same + WIDTH].to_vec();
    values[same..same + 4 * WIDTH].copy_from_slice(&row.repeat(4));
    values
}

fn cast<T: WithDType>(values: &[f64]) -> Vec<T> {
    values.iter().map(|&x| T::from_f64(x)).collect()
}

fn tensor<T: WithDType>(values: &[f64]) -> Tensor {
    Tensor::from_vec(cast::<T>(values), (values.len() / WIDTH, WIDTH), &Device::Cpu).unwrap()
}

fn batch(dtype: DType) -> BatchRows {
    let texts = texts();
    let parts: Vec<_> = texts.iter().map(|(range, text)| (range.clone(), text)).collect();
    BatchRows::new(&parts, dtype, &Device::Cpu).unwrap()
}

const EVERYTHING: Wanted = Wanted { sum: true, squares: true, residual: true };

/// The sums of every text by products, and by slices.
fn both<T: WithDType + Real>(values: &[f64], others: [&[f64]; 2], wanted: Wanted) -> Vec<(TextSums, TextSums)> {
    let [layer0, h0] = others.map(tensor::<T>);
    let references = References { layer0: Some(&layer0), h0: Some(&h0) };
    let found = batch(T::DTYPE).text_sums(&tensor::<T>(values), references, wanted).unwrap();
    let (values, others) = (cast::<T>(values), others.map(cast::<T>));
    let part = |all: &'_ [T], range: &Range<usize>| all[range.start * WIDTH..range.end * WIDTH].to_vec();
    let slices = texts().into_iter().map(|(range, text)| {
        let (own, layer0, h0) = (part(&values, &range), part(&others[0], &range), part(&others[1], &range));
        let states = States { values: &own, width: WIDTH, layer0: Some(&layer0), h0: Some(&h0) };
        text_sums(states, &text, wanted)
    });
    found.into_iter().zip(slices).collect()
}

/// The largest difference of two lists in proportion to the largest of their numbers.
fn apart(found: &[f64], wanted: &[f64]) -> f64 {
    assert_eq!(found.len(), wanted.len());
    let size = wanted.iter().fold(0.0_f64, |size, x| size.max(x.abs()));
    let away = found.iter().zip(wanted).fold(0.0_f64, |away, (a, b)| away.max((a - b).abs()));
    assert!(found.iter().chain(wanted).all(|x| x.is_finite()));
    if away == 0.0 { 0.0 } else { away / size }
}

/// The largest of [`apart`] over everything that a set holds.
fn set_apart(found: &SetSums, wanted: &SetSums) -> f64 {
    let counts = |s: &SetSums| (s.rows, s.directed, s.retention.1, s.retention_h0.1, s.residual.is_some());
    assert_eq!(counts(found), counts(wanted));
    let sorted = |norms: &[f64]| {
        let mut norms = norms.to_vec();
        norms.sort_by(f64::total_cmp);
        norms
    };
    let residual = |s: &SetSums| s.residual.unwrap_or_default();
    let (a, b) = (residual(found), residual(wanted));
    [
        apart(&found.unit_sum, &wanted.unit_sum),
        apart(&found.sum, &wanted.sum),
        apart(&found.squares, &wanted.squares),
        apart(&sorted(&found.norms), &sorted(&wanted.norms)),
        // Σ of cosines, each at most 1.
        (found.retention.0 - wanted.retention.0).abs() / wanted.rows.max(1) as f64,
        (found.retention_h0.0 - wanted.retention_h0.0).abs() / wanted.rows.max(1) as f64,
        apart(&[a.column, a.row], &[b.column, b.row]),
        apart(&[a.residual_column, a.residual_row], &[b.residual_column, b.residual_row]),
        apart(&[a.residual_square], &[b.residual_square]),
        apart(&[a.mean_square], &[b.mean_square]),
    ]
    .into_iter()
    .fold(0.0, f64::max)
}

fn largest_apart<T: WithDType + Real>(wanted: Wanted) -> f64 {
    let all = both::<T>(&rows(1), [&rows(2), &rows(3)], wanted);
    let mut largest = 0.0_f64;
    for (found, wanted) in &all {
        assert!(found.finite && found.sets.len() == wanted.sets.len());
        for set in TokenSet::ALL {
            assert_eq!(found.same_as(set), wanted.same_as(set));
            largest = largest.max(set_apart(found.set(set), wanted.set(set)));
        }
    }
    largest
}

#[test]
fn products_give_what_slices_give() {
    let plain = Wanted { sum: true, ..Wanted::default() };
    for wanted in [EVERYTHING, plain, Wanted::default()] {
        let (double, single) = (largest_apart::<f64>(wanted), largest_apart::<f32>(wanted));
        println!("{wanted:?}: f64 {double:.1e}, f32 {single:.1e}");
        assert!(double < 1e-12, "{double:e}");
        // A sum of 256 numbers in f32 is off by some units of 6e-8 of its largest part.
        assert!(single < 2e-6, "{single:e}");
    }
}

#[test]
fn the_cosine_in_single_precision_is_right_to_six_digits() {
    let mut largest = 0.0_f64;
    for (found, wanted) in both::<f32>(&rows(1), [&rows(2), &rows(3)], Wanted::default()) {
        for set in TokenSet::ALL {
            let (found, wanted) = (found.set(set).cosine(), wanted.set(set).cosine());
            assert_eq!(found.is_some(), wanted.is_some());
            largest = largest.max((found.unwrap_or_default() - wanted.unwrap_or_default()).abs());
        }
    }
    println!("cosine: {largest:.1e}");
    // A unit row's length is off by half of its square sum's rounding and by that of its inverse, some 1.2e-7 in all,
    // and a cosine by twice that; sums over rows and the elements' own roundings come on top.
    assert!(largest < 5e-7, "{largest:e}");
}

#[test]
fn identical_rows_leave_no_residual() {
    let (found, _) = both::<f32>(&rows(1), [&rows(2), &rows(3)], EVERYTHING).remove(5);
    let residual = found.set(TokenSet::All).residual.unwrap();
    assert_eq!((residual.residual_square, residual.residual_row, residual.residual_column), (0.0, 0.0, 0.0));
    assert!(residual.mean_square > 0.0);
}

#[test]
fn a_row_that_is_not_finite_spoils_its_text_alone() {
    let clean = both::<f32>(&rows(1), [&rows(2), &rows(3)], EVERYTHING);
    for bad in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
        let mut values = rows(1);
        // The third row of the third text, and the ninth of the first, which is outside its span.
        values[(texts()[2].0.start + 2) * WIDTH + 5] = bad;
        values[8 * WIDTH] = bad;
        let all = both::<f32>(&values, [&rows(2), &rows(3)], EVERYTHING);
        for (index, (found, wanted)) in all.iter().enumerate() {
            assert_eq!((found.finite, wanted.finite), (index != 2, index != 2), "{bad} in text {index}");
            if index == 2 {
                let set = found.set(TokenSet::All);
                assert_eq!((set.rows, set.directed, set.cosine(), set.residual), (600, 600, None, None));
                assert!(set.retention.0.is_nan() && set.sum.iter().all(|x| x.is_nan()));
            } else {
                assert_eq!(found, &clean[index].0);
            }
        }
    }
}

#[test]
fn no_scale_overflows() {
    for scale in [1e30, 1e-30] {
        let scaled: Vec<f64> = rows(1).iter().map(|x| f64::from((x * scale) as f32)).collect();
        let (found, wanted) = both::<f32>(&scaled, [&scaled, &rows(3)], EVERYTHING).remove(2);
        let away = set_apart(found.set(TokenSet::All), wanted.set(TokenSet::All));
        assert!(away < 2e-6, "{scale:e}: {away:e}");
    }
}

fn centred<T: WithDType + Real>(scale: Option<&[f64]>) -> f64 {
    let values = rows(1);
    let same = texts()[5].0.start * WIDTH;
    // The mean is the row of the text of identical rows, which leaves it no direction; but not in its last digits.
    let mean: Vec<f64> = values[same..same + WIDTH].iter().map(|x| x * (1.0 + 1e-15)).collect();
    let mut largest = 0.0_f64;
    for set in TokenSet::ALL {
        let found = batch(T::DTYPE).centred_unit_sums(&tensor::<T>(&values), set, &mean, scale).unwrap();
        let slice = cast::<T>(&values);
        for (index, ((range, text), (sum, count))) in texts().into_iter().zip(found).enumerate() {
            let own = &slice[range.start * WIDTH..range.end * WIDTH];
            let positions = text.of(set, range.len());
            let (wanted, directed) = centred_unit_sum(own, WIDTH, &positions, &mean, scale);
            if index == 5 && scale.is_none() {
                assert_eq!((count, directed), (0, 0));
            }
            if index != 5 {
                assert_eq!(count, directed);
                // In proportion to the rows: unit vectors that cancel leave a sum that is small beside its parts.
                let away = sum.iter().zip(&wanted).fold(0.0_f64, |away, (a, b)| away.max((a - b).abs()));
                largest = largest.max(away / count.max(1) as f64);
            }
        }
    }
    largest
}

#[test]
fn centred_rows_give_what_slices_give() {
    let scale: Vec<f64> = (0..WIDTH).map(|j| if j == 3 { 0.0 } else { 1.0 / (1.0 + j as f64) }).collect();
    for scale in [None, Some(scale.as_slice())] {
        let (double, single) = (centred::<f64>(scale), centred::<f32>(scale));
        println!("centred: f64 {double:.1e}, f32 {single:.1e}");
        assert!(double < 1e-12 && single < 2e-6, "{double:e} {single:e}");
    }
}

#[test]
fn nothing_gives_nothing() {
    let empty = BatchRows::new(&[], DType::F32, &Device::Cpu).unwrap();
    let states = Tensor::zeros((0, 3), DType::F32, &Device::Cpu).unwrap();
    assert!(empty.text_sums(&states, References::default(), EVERYTHING).unwrap().is_empty());
    let nothing = TextRows { special: vec![], span: 0..0 };
    let one = BatchRows::new(&[(0..0, &nothing)], DType::F32, &Device::Cpu).unwrap();
    let sums = one.text_sums(&states, References::default(), EVERYTHING).unwrap();
    assert!(sums.len() == 1 && sums[0].finite && sums[0].set(TokenSet::All).rows == 0);
    assert_eq!(one.centred_unit_sums(&states, TokenSet::All, &[0.0; 3], None).unwrap(), [(vec![0.0; 3], 0)]);
}
