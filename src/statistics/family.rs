//! Comparisons over several layers or tasks, judged together.

use super::student::{check_margin, verdict};
use super::{
    Comparison, Direction, MIN_SEEDS, StatisticsError, compare_seeds, holm, student_t_p_value, tost_equivalence,
};
use serde::{Deserialize, Serialize};

/// The chance, over the whole family, of one wrong "helps" or "hurts" or of one wrong "equivalent".
const LEVEL: f64 = 0.05;

/// One comparison of a family.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct FamilyMember {
    /// The comparison; its interval is that of the member alone, its verdict that of the family.
    pub comparison: Comparison,
    /// Holm-adjusted p-value that the difference is 0; `None` below [`MIN_SEEDS`] seeds.
    pub p_differs: Option<f64>,
    /// Holm-adjusted p-value that the difference is as large as the margin; `None` below [`MIN_SEEDS`] seeds.
    pub p_equivalent: Option<f64>,
}

/// Compares the paired per-seed differences of several layers or tasks as [`compare_seeds`] does one, with
/// Holm's correction over the family: among members without a difference, a single "helps" or "hurts" has a
/// chance of at most 5 %, however many there are; likewise for a wrong "equivalent".
///
/// A member with fewer than [`MIN_SEEDS`] seeds gets no verdict, so it makes no claim to correct for and does
/// not count towards the size of the family.
///
/// # Errors
/// A member without a difference, one that is not finite, or a margin that is not positive.
pub fn compare_family(
    members: &[&[f64]],
    margin: f64,
    better: Direction,
) -> Result<Vec<FamilyMember>, StatisticsError> {
    check_margin("family of comparisons", margin)?;
    let alone = members.iter().map(|differences| compare_seeds(differences, margin, better));
    let mut family: Vec<FamilyMember> = alone
        .map(|comparison| Ok(FamilyMember { comparison: comparison?, p_differs: None, p_equivalent: None }))
        .collect::<Result<_, StatisticsError>>()?;
    let judged: Vec<&[f64]> = members.iter().copied().filter(|differences| differences.len() >= MIN_SEEDS).collect();
    let differs: Vec<f64> = judged.iter().map(|d| student_t_p_value(d)).collect::<Result<_, _>>()?;
    let equivalent: Vec<f64> =
        judged.iter().map(|d| Ok(tost_equivalence(d, margin, LEVEL)?.p)).collect::<Result<_, StatisticsError>>()?;
    let adjusted = holm(&differs)?.into_iter().zip(holm(&equivalent)?);
    let waiting = family.iter_mut().filter(|member| member.comparison.seeds >= MIN_SEEDS);
    for (member, (p_differs, p_equivalent)) in waiting.zip(adjusted) {
        let (mean, differs) = (member.comparison.mean, p_differs < LEVEL);
        member.comparison.verdict = Some(verdict(p_equivalent < LEVEL, differs, mean, better));
        (member.p_differs, member.p_equivalent) = (Some(p_differs), Some(p_equivalent));
    }
    Ok(family)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::statistics::Verdict;

    // Mean 2.16; p = 0.026 alone.
    const WEAK: [f64; 5] = [0.4, 3.5, 1.2, 3.6, 2.1];
    const STRONG: [f64; 5] = [8.0, 8.1, 7.9, 8.2, 8.0];
    const WIDE: [f64; 5] = [-6.0, 9.0, 1.0, -4.0, 5.0];

    #[test]
    fn a_family_of_one_is_a_comparison_alone() {
        for differences in [WEAK, STRONG, WIDE, [0.1, -0.1, 0.2, 0.0, 0.1]] {
            let alone = compare_seeds(&differences, 1.0, Direction::Higher).unwrap();
            let family = compare_family(&[&differences], 1.0, Direction::Higher).unwrap();
            assert_eq!(family[0].comparison, alone);
        }
    }

    #[test]
    fn what_one_test_would_call_help_many_do_not() {
        let verdicts = |members: &[&[f64]]| -> Vec<Option<Verdict>> {
            let family = compare_family(members, 1.0, Direction::Higher).unwrap();
            family.into_iter().map(|member| member.comparison.verdict).collect()
        };
        assert_eq!(verdicts(&[&WEAK]), [Some(Verdict::Helps)]);
        assert_eq!(
            verdicts(&[&WEAK, &STRONG, &WIDE]),
            [Some(Verdict::Undecided), Some(Verdict::Helps), Some(Verdict::Undecided)]
        );
        // The strong one is rejected first; two remain, of which one is judged at 5 %/2.
        let family = compare_family(&[&WEAK, &STRONG, &WIDE], 1.0, Direction::Higher).unwrap();
        let alone = student_t_p_value(&WEAK).unwrap();
        assert!((family[0].p_differs.unwrap() - 2.0 * alone).abs() < 1e-15);
    }

    #[test]
    fn too_few_seeds_make_no_claim_and_cost_none() {
        let family = compare_family(&[&WEAK, &STRONG[..3], &[1.0]], 1.0, Direction::Higher).unwrap();
        assert_eq!(family[0].comparison.verdict, Some(Verdict::Helps));
        assert_eq!(family[1].comparison.to_string(), "too few seeds for a conclusion");
        assert_eq!((family[1].p_differs, family[2].p_equivalent), (None, None));
        assert!(compare_family(&[], 1.0, Direction::Higher).unwrap().is_empty());
        assert!(compare_family(&[&WEAK, &[]], 1.0, Direction::Higher).is_err());
        assert!(compare_family(&[], 0.0, Direction::Higher).is_err());
    }
}
