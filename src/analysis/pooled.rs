//! What is kept of all texts together at one point for one token set: the states of the corpus measures.

use crate::measures::streaming::SetSums;
use crate::measures::{Anisotropy, Cka, FileFormError, MAX_TOKENS, Measure, Moments, TokenSample};

/// What a pass keeps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Kept {
    /// Corpus means and deviations.
    pub moments: bool,
    /// Σx² by dimension; without it the deviations stay 0.
    pub squares: bool,
    /// Pooled unit vectors.
    pub anisotropy: bool,
    /// A sample of tokens.
    pub sample: bool,
}

/// The accumulators of one point and token set. State: what the measures' pages say, none of it per text.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Pooled {
    /// Texts of which at least one row entered.
    pub texts: u64,
    /// For means and deviations.
    pub moments: Option<Moments>,
    /// For [`Measure::Anisotropy`].
    pub anisotropy: Option<Anisotropy>,
    /// For [`Measure::IntrinsicDimension`].
    pub sample: Option<TokenSample>,
    /// For [`Measure::CkaLayer0`].
    pub cka_layer0: Option<Cka>,
    /// For [`Measure::CkaBase`].
    pub cka_base: Option<Cka>,
}

impl Pooled {
    /// Empty accumulators of the first pass for states of this width.
    #[must_use]
    pub fn new(kept: Kept, width: usize, seed: u64) -> Self {
        Self {
            texts: 0,
            moments: kept.moments.then(|| Moments::new(width)),
            anisotropy: kept.anisotropy.then(|| Anisotropy::new(width)),
            sample: kept.sample.then(|| TokenSample::new(seed, MAX_TOKENS, width)),
            cka_layer0: None,
            cka_base: None,
        }
    }

    /// Adds the sums of a text.
    pub fn add(&mut self, sums: &SetSums) {
        self.texts += u64::from(sums.rows > 0);
        if let Some(moments) = &mut self.moments {
            let none = if sums.squares.is_empty() { vec![0.0; sums.sum.len()] } else { Vec::new() };
            moments.add_sums(sums.rows as u64, &sums.sum, if none.is_empty() { &sums.squares } else { &none });
        }
        if let Some(anisotropy) = &mut self.anisotropy {
            anisotropy.add_text(sums.directed as u64, &sums.unit_sum);
        }
    }

    /// Adds what another chunk gave; chunks are folded in the order of their numbers, which fixes the bits.
    pub fn merge(&mut self, other: &Self) {
        self.texts += other.texts;
        fold(&mut self.moments, &other.moments, Moments::merge);
        fold(&mut self.anisotropy, &other.anisotropy, Anisotropy::merge);
        fold(&mut self.sample, &other.sample, TokenSample::merge);
        fold(&mut self.cka_layer0, &other.cka_layer0, Cka::merge);
        fold(&mut self.cka_base, &other.cka_base, Cka::merge);
    }

    /// A corpus measure; `None` where it is undefined or was not kept.
    #[must_use]
    pub fn measure(&self, measure: Measure) -> Option<f64> {
        match measure {
            Measure::Anisotropy => self.anisotropy.as_ref()?.finish(),
            Measure::IntrinsicDimension => self.sample.as_ref()?.finish(),
            Measure::CkaLayer0 => self.cka_layer0.as_ref()?.finish(),
            Measure::CkaBase => self.cka_base.as_ref()?.finish(),
            _ => None,
        }
    }

    /// How many tokens entered a corpus measure: N of CKA, the size of the sample of the intrinsic dimension, the
    /// tokens with a direction of the anisotropy. `None` for what was not kept.
    #[must_use]
    pub fn tokens(&self, measure: Measure) -> Option<u64> {
        match measure {
            Measure::Anisotropy => Some(self.anisotropy.as_ref()?.tokens()),
            Measure::IntrinsicDimension => Some(self.sample.as_ref()?.len() as u64),
            Measure::CkaLayer0 => Some(self.cka_layer0.as_ref()?.count()),
            Measure::CkaBase => Some(self.cka_base.as_ref()?.count()),
            _ => None,
        }
    }

    /// The file form: the count of texts, then each accumulator's own form behind its length, 0 for none.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let parts = [
            self.moments.as_ref().map(Moments::to_bytes),
            self.anisotropy.as_ref().map(Anisotropy::to_bytes),
            self.sample.as_ref().map(TokenSample::to_bytes),
            self.cka_layer0.as_ref().map(Cka::to_bytes),
            self.cka_base.as_ref().map(Cka::to_bytes),
        ];
        let mut out = self.texts.to_le_bytes().to_vec();
        for part in parts {
            let part = part.unwrap_or_default();
            out.extend((part.len() as u64).to_le_bytes());
            out.extend(part);
        }
        out
    }

    /// Reads the file form; `None` if it is cut off or too long.
    ///
    /// # Errors
    /// An accumulator's part is not in its form.
    pub fn from_bytes(bytes: &[u8]) -> Result<Option<Self>, FileFormError> {
        let mut left = bytes;
        let Some(texts) = integer(&mut left) else { return Ok(None) };
        let mut parts = [&[] as &[u8]; 5];
        for part in &mut parts {
            let taken = integer(&mut left).and_then(|n| left.split_at_checked(usize::try_from(n).ok()?));
            let Some((own, rest)) = taken else { return Ok(None) };
            (*part, left) = (own, rest);
        }
        if !left.is_empty() {
            return Ok(None);
        }
        let [moments, anisotropy, sample, cka_layer0, cka_base] = parts;
        Ok(Some(Self {
            texts,
            moments: read(moments, Moments::from_bytes)?,
            anisotropy: read(anisotropy, Anisotropy::from_bytes)?,
            sample: read(sample, TokenSample::from_bytes)?,
            cka_layer0: read(cka_layer0, Cka::from_bytes)?,
            cka_base: read(cka_base, Cka::from_bytes)?,
        }))
    }
}

fn fold<T: Clone>(own: &mut Option<T>, other: &Option<T>, merge: impl Fn(&mut T, &T)) {
    match (own.as_mut(), other) {
        (Some(own), Some(other)) => merge(own, other),
        (None, Some(other)) => *own = Some(other.clone()),
        (_, None) => {}
    }
}

fn integer(left: &mut &[u8]) -> Option<u64> {
    let (first, rest) = left.split_first_chunk::<8>()?;
    *left = rest;
    Some(u64::from_le_bytes(*first))
}

fn read<T>(bytes: &[u8], from_bytes: impl Fn(&[u8]) -> Result<T, FileFormError>) -> Result<Option<T>, FileFormError> {
    if bytes.is_empty() { Ok(None) } else { from_bytes(bytes).map(Some) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::measures::streaming::{States, TextRows, Wanted, text_sums};
    use crate::measures::{Rows, TokenSet};

    fn filled(seed: usize) -> Pooled {
        let values: Vec<f32> = (0..60).map(|i| ((i * 7 + seed * 13) % 11) as f32 - 4.0).collect();
        let text = TextRows { special: vec![], span: 0..15 };
        let states = States { values: &values, width: 4, layer0: None, h0: None };
        let sums = text_sums(states, &text, Wanted { sum: true, squares: true, residual: false });
        let kept = Kept { moments: true, squares: true, anisotropy: true, sample: true };
        let mut pooled = Pooled::new(kept, 4, 9);
        pooled.add(sums.set(TokenSet::All));
        let positions: Vec<usize> = (0..15).collect();
        pooled.sample.as_mut().unwrap().add(seed as u64, &positions, Rows::new(&values, 4));
        pooled.cka_layer0 = Some(Cka::new(vec![0.5; 4], vec![0.5; 4]));
        pooled.cka_layer0.as_mut().unwrap().add(Rows::new(&values, 4), Rows::new(&values[..], 4));
        pooled
    }

    #[test]
    fn the_file_form_reads_back_and_refuses_what_is_cut() {
        let pooled = filled(1);
        let bytes = pooled.to_bytes();
        assert_eq!(Pooled::from_bytes(&bytes).unwrap().unwrap(), pooled);
        for cut in [0, 7, 8, 15, 40, bytes.len() - 1] {
            assert!(!matches!(Pooled::from_bytes(&bytes[..cut]), Ok(Some(_))), "{cut}");
        }
        let mut long = bytes.clone();
        long.push(0);
        assert_eq!(Pooled::from_bytes(&long), Ok(None));
        let mut wild = bytes;
        wild[8..16].copy_from_slice(&u64::MAX.to_le_bytes());
        assert_eq!(Pooled::from_bytes(&wild), Ok(None));
    }

    #[test]
    fn a_merge_into_nothing_is_the_other() {
        let (a, b) = (filled(1), filled(2));
        let mut all = Pooled::default();
        all.merge(&a);
        assert_eq!(all, a);
        all.merge(&b);
        assert_eq!(all.texts, 2);
        let mean = all.moments.as_ref().unwrap().mean().unwrap();
        let half = |p: &Pooled, j: usize| p.moments.as_ref().unwrap().mean().unwrap()[j] / 2.0;
        (0..4).for_each(|j| assert!((mean[j] - half(&a, j) - half(&b, j)).abs() < 1e-12));
        let tokens =
            [Measure::Anisotropy, Measure::IntrinsicDimension, Measure::CkaLayer0, Measure::CkaBase, Measure::Cosine];
        assert_eq!(tokens.map(|m| all.tokens(m)), [Some(30), Some(30), Some(30), None, None]);
        assert!(all.measure(Measure::Anisotropy).is_some() && a.measure(Measure::Anisotropy).is_none());
        assert!((all.measure(Measure::CkaLayer0).unwrap() - 1.0).abs() < 1e-9, "a layer with itself");
    }
}
