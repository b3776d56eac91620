//! Methods × variants: the arms and comparisons that a study file need not write out one by one.

use super::schema::{ArmEntry, ComparisonEntry, Contrast, MethodEntry, StudyFile, Variant};

/// What a grid adds to a study file.
#[derive(Debug, Default)]
pub(super) struct Grid {
    /// `METHOD-VARIANT`, method by method.
    pub(super) arms: Vec<ArmEntry>,
    /// Those that a method cannot have.
    pub(super) refused: Vec<ArmEntry>,
    /// Every contrast within every method that has both variants.
    pub(super) comparisons: Vec<ComparisonEntry>,
}

/// Writes the grid of a study file out.
///
/// # Errors
/// A name that stands for nothing, as the place and what is wrong there.
pub(super) fn expand(file: &StudyFile) -> Result<Grid, (String, String)> {
    let mut grid = Grid::default();
    for Contrast { treatment, control, .. } in &file.contrasts {
        variant(file, "contrasts", treatment)?;
        variant(file, "contrasts", control)?;
    }
    for method in &file.methods {
        let place = format!("method {}", method.name);
        for name in method.lr.keys().chain(&method.refused) {
            variant(file, &place, name)?;
        }
        if let Some(name) = method.lr.keys().find(|name| method.refused.contains(name)) {
            return Err((place, format!("the variant {name} has an lr and is refused; leave one of them out")));
        }
        for variant in &file.variants {
            let refused = method.refused.contains(&variant.name);
            let arms = if refused { &mut grid.refused } else { &mut grid.arms };
            arms.push(arm(method, variant));
        }
        for contrast in &file.contrasts {
            if !method.refused.contains(&contrast.treatment) && !method.refused.contains(&contrast.control) {
                grid.comparisons.push(ComparisonEntry {
                    treatment: format!("{}-{}", method.name, contrast.treatment),
                    control: format!("{}-{}", method.name, contrast.control),
                    family: contrast.family.clone(),
                    answer: contrast.answer,
                });
            }
        }
    }
    Ok(grid)
}

fn variant<'f>(file: &'f StudyFile, place: &str, name: &str) -> Result<&'f Variant, (String, String)> {
    let found = file.variants.iter().find(|variant| variant.name == name);
    found.ok_or_else(|| (place.to_owned(), format!("there is no variant {name}; name one of [[variants]]")))
}

fn arm(method: &MethodEntry, variant: &Variant) -> ArmEntry {
    let mut training = method.training.clone();
    training.extend(variant.training.clone());
    ArmEntry {
        name: format!("{}-{}", method.name, variant.name),
        label: variant.label.clone(),
        group: method.group.clone(),
        task: method.task.clone(),
        tuned: true,
        seeds: None,
        lr: method.lr.get(&variant.name).copied(),
        lr_candidates: method.lr_candidates.clone(),
        training,
    }
}
