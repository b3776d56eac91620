//! Which layers a run measures: `all`, `0,4,8` or `2..10`.

use crate::measures::Point;
use std::str::FromStr;

/// A choice of layers: 0 is the embedding, 1 to L the blocks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Layers {
    /// Every layer.
    All,
    /// These.
    Some(Vec<usize>),
}

impl Layers {
    /// Whether a point belongs to the choice; the final norm belongs to the last layer L.
    #[must_use]
    pub fn contains(&self, point: Point) -> bool {
        match self {
            Self::All => true,
            Self::Some(list) => list.contains(&point.layer),
        }
    }

    /// Refuses a layer that a model of `depth` blocks does not have.
    ///
    /// # Errors
    /// Names the layer and what the model has.
    pub fn check(&self, depth: usize, model: &str) -> Result<(), String> {
        match self {
            Self::Some(list) => match list.iter().find(|&&layer| layer > depth) {
                Some(layer) => {
                    Err(format!("--layers {layer}: {model} has layers 0 (embedding) to {depth}; choose among those"))
                }
                None => Ok(()),
            },
            Self::All => Ok(()),
        }
    }
}

impl FromStr for Layers {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("\"{text}\" is not a choice of layers; write all, 0,4,8 or 2..10 (both ends included)");
        if text == "all" {
            return Ok(Self::All);
        }
        let mut list = Vec::new();
        for part in text.split(',') {
            let number = |s: &str| s.trim().parse::<usize>().map_err(|_| wrong());
            match part.split_once("..") {
                None => list.push(number(part)?),
                Some((low, high)) => {
                    let (low, high) = (number(low)?, number(high)?);
                    if low > high || high > 4096 {
                        return Err(wrong());
                    }
                    list.extend(low..=high);
                }
            }
        }
        list.sort_unstable();
        list.dedup();
        Ok(Self::Some(list))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_form() {
        assert_eq!("all".parse(), Ok(Layers::All));
        assert_eq!("8,0,4,4".parse(), Ok(Layers::Some(vec![0, 4, 8])));
        assert_eq!("2..4,9".parse(), Ok(Layers::Some(vec![2, 3, 4, 9])));
        for wrong in ["", "a", "4..2", "1..", "-1", "1..99999999"] {
            assert!(wrong.parse::<Layers>().is_err(), "{wrong}");
        }
        let error = Layers::Some(vec![99]).check(6, "stories15M").unwrap_err();
        assert!(error.starts_with("--layers 99: stories15M has layers 0 (embedding) to 6"), "{error}");
    }
}
