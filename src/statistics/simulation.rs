//! Coverage and error rates under simulation: what an interval or a test promises, counted. Where the rate
//! can be summed up exactly (Wilson, McNemar) it is. Else the band around the expected rate is 3.5 standard
//! errors of the count; seeds are fixed.

use super::*;
use crate::random;
use rand::Rng;
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution, Exp1, StandardNormal};
use statrs::distribution::{Binomial, Discrete};

fn normal(rng: &mut ChaCha8Rng, mean: f64, deviation: f64) -> f64 {
    let z: f64 = StandardNormal.sample(rng);
    mean + deviation * z
}

fn normals(rng: &mut ChaCha8Rng, n: usize, mean: f64, deviation: f64) -> Vec<f64> {
    (0..n).map(|_| normal(rng, mean, deviation)).collect()
}

/// How often `trial` is true.
fn rate(trials: usize, mut trial: impl FnMut() -> bool) -> f64 {
    (0..trials).filter(|_| trial()).count() as f64 / trials as f64
}

#[track_caller]
fn near(what: &str, rate: f64, expected: f64, trials: usize) {
    let band = 3.5 * (expected * (1.0 - expected) / trials as f64).sqrt();
    assert!((rate - expected).abs() <= band, "{what}: {rate}, not {expected} ± {band}");
}

/// The share of bootstrap intervals of `samples` that cover `truth`.
fn bootstrap_coverage(samples: &[Vec<f64>], truth: f64) -> f64 {
    let series: Vec<&[f64]> = samples.iter().map(Vec::as_slice).collect();
    let intervals = Bootstrap::new(series[0].len(), 2000, 5).unwrap().intervals(&series, 0.95).unwrap();
    intervals.iter().filter(|interval| interval.contains(truth)).count() as f64 / series.len() as f64
}

#[test]
fn the_bootstrap_over_texts_covers_and_over_seeds_does_not() {
    let mut rng = random::stream(1, &["simulation", "bootstrap"]);
    let mut coverage = |n: usize| {
        let samples: Vec<Vec<f64>> = (0..2000).map(|_| normals(&mut rng, n, 1.0, 2.0)).collect();
        bootstrap_coverage(&samples, 1.0)
    };
    // Over 200 texts the percentile interval is short of 95 % by about half a point at most.
    let texts = coverage(200);
    assert!((0.93..=0.965).contains(&texts), "{texts}");
    // Why seeds get Student's t instead: three cover about 75 %, ten about 90 %.
    let (three, ten) = (coverage(3), coverage(10));
    assert!((0.70..=0.80).contains(&three), "{three}");
    assert!((0.88..=0.925).contains(&ten), "{ten}");
}

#[test]
fn the_paired_bootstrap_covers_the_difference_of_skewed_texts() {
    let mut rng = random::stream(2, &["simulation", "paired"]);
    // A text's own level, shared by both systems, is ten times what differs between them.
    let differences: Vec<Vec<f64>> = (0..1000)
        .map(|_| {
            let pairs = (0..150).map(|_| {
                let text = 10.0 * normal(&mut rng, 0.0, 1.0);
                let (a, b): (f64, f64) = (Exp1.sample(&mut rng), Exp1.sample(&mut rng));
                (text + a + 0.3, text + b)
            });
            let (a, b): (Vec<f64>, Vec<f64>) = pairs.unzip();
            paired_differences(&a, &b).unwrap()
        })
        .collect();
    let covered = bootstrap_coverage(&differences, 0.3);
    assert!((0.925..=0.965).contains(&covered), "{covered}");
    // The shared level cancels: half-width 1.96·√2/√150 = 0.23, where unpaired texts would give 2.3.
    let (mean, interval) = paired_bootstrap_difference(&differences[0], &[0.0; 150], 0.95, 1).unwrap();
    assert!(interval.contains(mean) && interval.high - interval.low < 0.7, "{interval:?}");
}

#[test]
fn students_interval_covers_for_three_five_and_ten_seeds() {
    let mut rng = random::stream(3, &["simulation", "t"]);
    for n in [3, 5, 10] {
        let covered = rate(4000, || student_t_interval(&normals(&mut rng, n, 0.5, 3.0), 0.95).unwrap().contains(0.5));
        near(&format!("{n} seeds"), covered, 0.95, 4000);
        let rejected = rate(4000, || student_t_p_value(&normals(&mut rng, n, 0.0, 3.0)).unwrap() < 0.05);
        near(&format!("{n} seeds, p"), rejected, 0.05, 4000);
    }
}

/// The exact coverage of Wilson's interval at a true proportion, summed over all outcomes.
fn wilson_coverage(trials: u64, p: f64) -> f64 {
    let law = Binomial::new(p, trials).unwrap();
    let covers = |&k: &u64| wilson_interval(k, trials, 0.95).unwrap().contains(p);
    (0..=trials).filter(covers).map(|k| law.pmf(k)).sum()
}

#[test]
fn wilsons_interval_covers_on_average_and_nowhere_badly() {
    for (trials, lowest) in [(20, 0.91), (100, 0.92), (2000, 0.94)] {
        let grid: Vec<f64> = (5..=95).map(|p| wilson_coverage(trials, f64::from(p) / 100.0)).collect();
        let mean = grid.iter().sum::<f64>() / grid.len() as f64;
        assert!((0.945..=0.96).contains(&mean), "{trials} trials: {mean} on average");
        let least = grid.iter().copied().fold(1.0, f64::min);
        assert!(least >= lowest, "{trials} trials: {least} at the worst proportion");
    }
}

/// The chance that McNemar's `test` at 5 % tells two equally good systems apart, of which `share` of `items`
/// differ; summed over all outcomes.
fn mcnemar_size(test: fn(u64, u64) -> f64, items: u64, share: f64) -> f64 {
    let differing = Binomial::new(share, items).unwrap();
    (0..=items)
        .map(|m| {
            let split = Binomial::new(0.5, m).unwrap();
            let rejected: f64 = (0..=m).filter(|&b| test(b, m - b) <= 0.05).map(|b| split.pmf(b)).sum();
            differing.pmf(m) * rejected
        })
        .sum()
}

#[test]
fn mcnemars_size_is_at_most_its_level_and_mid_p_is_close_to_it() {
    for items in [30, 200] {
        for share in [0.1, 0.3, 0.6] {
            let (exact, mid) = (mcnemar_size(mcnemar_exact, items, share), mcnemar_size(mcnemar_mid_p, items, share));
            assert!(exact <= 0.05, "{items} items, {share} differ: {exact}");
            assert!(mid > exact && mid <= 0.0525, "{items} items, {share} differ: {mid} against {exact}");
        }
    }
    // With many differing items both come close to the level.
    assert!(mcnemar_size(mcnemar_exact, 200, 0.6) > 0.035);
    assert!(mcnemar_size(mcnemar_mid_p, 200, 0.6) > 0.045);
}

#[test]
fn equivalence_is_wrongly_claimed_in_five_percent_at_the_margin() {
    let mut rng = random::stream(4, &["simulation", "tost"]);
    for n in [3, 5, 10] {
        // Little noise: only the near margin counts, and the error is 5 % exactly.
        let claimed = rate(6000, || tost_equivalence(&normals(&mut rng, n, 2.0, 0.3), 2.0, 0.05).unwrap().equivalent);
        near(&format!("{n} seeds at the margin"), claimed, 0.05, 6000);
        // Much noise: the far margin counts too, and the test errs less.
        let claimed = rate(2000, || tost_equivalence(&normals(&mut rng, n, -2.0, 4.0), 2.0, 0.05).unwrap().equivalent);
        assert!(claimed < 0.05, "{n} noisy seeds: {claimed}");
    }
}

#[test]
fn a_verdict_errs_in_five_percent() {
    let mut rng = random::stream(5, &["simulation", "verdicts"]);
    let mut verdicts = |mean: f64, deviation: f64, wrong: &dyn Fn(Verdict) -> bool| {
        rate(4000, || {
            let differences = normals(&mut rng, 5, mean, deviation);
            wrong(compare_seeds(&differences, 2.0, Direction::Higher).unwrap().verdict.unwrap())
        })
    };
    // No difference at all, too noisy to show equivalence: "helps" or "hurts" is the error.
    let claims = verdicts(0.0, 20.0, &|v| matches!(v, Verdict::Helps | Verdict::Hurts));
    near("no difference", claims, 0.05, 4000);
    // A difference that matters: "equivalent" and "hurts" are.
    let claims = verdicts(2.0, 1.0, &|v| matches!(v, Verdict::Equivalent | Verdict::Hurts));
    near("a difference of the margin", claims, 0.05, 4000);
    // One far beyond the margin is found.
    assert!(verdicts(8.0, 1.0, &|v| v == Verdict::Helps) > 0.99);
    assert!(verdicts(-8.0, 1.0, &|v| v == Verdict::Hurts) > 0.99);
}

#[test]
fn holm_keeps_a_whole_family_at_five_percent() {
    let mut rng = random::stream(6, &["simulation", "Holm"]);
    // Twelve layers, of which `true_effects` move; a wrong claim is one of a layer that does not.
    let mut family = |true_effects: usize, corrected: bool| {
        rate(3000, || {
            let p: Vec<f64> = (0..12)
                .map(|layer| {
                    let effect = if layer < true_effects { 50.0 } else { 0.0 };
                    student_t_p_value(&normals(&mut rng, 5, effect, 1.0)).unwrap()
                })
                .collect();
            let p = if corrected { holm(&p).unwrap() } else { p };
            p.iter().skip(true_effects).any(|&p| p < 0.05)
        })
    };
    // Independent layers: 1 − (1 − 0.05/m)^m for the m that do not move.
    near("twelve layers", family(0, true), 1.0 - (1.0 - 0.05 / 12.0_f64).powi(12), 3000);
    near("five of twelve", family(7, true), 1.0 - (1.0 - 0.05 / 5.0_f64).powi(5), 3000);
    near("without correction", family(0, false), 1.0 - 0.95_f64.powi(12), 3000);
}

#[test]
fn a_family_of_comparisons_makes_a_wrong_claim_in_five_percent() {
    let mut rng = random::stream(7, &["simulation", "family"]);
    let wrong = rate(3000, || {
        let layers: Vec<Vec<f64>> = (0..8).map(|_| normals(&mut rng, 5, 0.0, 20.0)).collect();
        let views: Vec<&[f64]> = layers.iter().map(Vec::as_slice).collect();
        let family = compare_family(&views, 2.0, Direction::Lower).unwrap();
        family.iter().any(|m| matches!(m.comparison.verdict, Some(Verdict::Helps | Verdict::Hurts)))
    });
    near("eight layers", wrong, 1.0 - (1.0 - 0.05 / 8.0_f64).powi(8), 3000);
}

#[test]
fn a_permutation_p_value_errs_at_its_level_and_never_more() {
    let mut rng = random::stream(8, &["simulation", "permutation"]);
    let mut draws = |count: usize| -> Vec<f64> { (0..count).map(|_| rng.random()).collect() };
    // 19 draws: p is uniform on 1/20 … 20/20. Without the 1+ it would be 0 in one case of twenty.
    let p_values: Vec<f64> = (0..4000)
        .map(|_| {
            let (observed, null) = (draws(1)[0], draws(19));
            permutation_p_value(observed, &null).unwrap()
        })
        .collect();
    for level in [0.05, 0.25, 0.5] {
        let rejected = p_values.iter().filter(|&&p| p <= level + 1e-12).count() as f64 / 4000.0;
        near(&format!("level {level}"), rejected, level, 4000);
    }
    assert!(p_values.iter().all(|&p| p >= 0.05));
}

#[test]
fn sign_flips_err_at_their_level() {
    let mut rng = random::stream(9, &["simulation", "sign flips"]);
    // Ten differences have 1024 patterns, twins by symmetry: the largest p below 5 % is 25/512.
    let rejected = rate(2000, || sign_flip_p_value(&normals(&mut rng, 10, 0.0, 1.0), 1024, 1).unwrap() <= 0.05);
    near("all patterns", rejected, 25.0 / 512.0, 2000);
    // Drawn patterns: p = (1+#)/(1+199) is at most 5 % in ten of two hundred cases.
    let mut seed = 0;
    let rejected = rate(2000, || {
        seed += 1;
        sign_flip_p_value(&normals(&mut rng, 30, 0.0, 1.0), 199, seed).unwrap() <= 0.05
    });
    near("drawn patterns", rejected, 0.05, 2000);
}
