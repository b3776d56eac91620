//! Random numbers as pure functions of a seed and a purpose.
//!
//! Every consumer names its stream (`["dropout", "model.layers.3.mlp.up_proj", "17"]`), so no draw depends
//! on how many draws something else made before it, and a resumed run continues the same numbers.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;
use sha2::{Digest, Sha256};

/// The generator of the stream named by `seed` and the parts of `purpose`.
///
/// The key is the SHA-256 of the seed and the length-prefixed parts, so `["a", "bc"]` and `["ab", "c"]`
/// are different streams.
#[must_use]
pub fn stream(seed: u64, purpose: &[&str]) -> ChaCha8Rng {
    let mut hasher = Sha256::new();
    hasher.update(seed.to_le_bytes());
    for part in purpose {
        hasher.update((part.len() as u64).to_le_bytes());
        hasher.update(part.as_bytes());
    }
    ChaCha8Rng::from_seed(hasher.finalize().into())
}

/// A seeded uniform permutation of `0..n` (Fisher–Yates).
#[must_use]
pub fn permutation(n: usize, rng: &mut ChaCha8Rng) -> Vec<usize> {
    use rand::seq::SliceRandom;
    let mut order: Vec<usize> = (0..n).collect();
    order.shuffle(rng);
    order
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::Rng;

    #[test]
    fn streams_are_reproducible_and_distinct() {
        let draw = |seed, purpose: &[&str]| stream(seed, purpose).random::<u64>();
        assert_eq!(draw(1, &["a", "bc"]), draw(1, &["a", "bc"]));
        assert_ne!(draw(1, &["a", "bc"]), draw(1, &["ab", "c"]));
        assert_ne!(draw(1, &["a"]), draw(2, &["a"]));
    }

    #[test]
    fn a_permutation_holds_every_index_once() {
        let mut order = permutation(100, &mut stream(7, &["order"]));
        assert_ne!(order, (0..100).collect::<Vec<_>>());
        order.sort_unstable();
        assert_eq!(order, (0..100).collect::<Vec<_>>());
    }
}
