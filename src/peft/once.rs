//! What frozen modules compute of the base model once, and not in every pass.

use candle_core::{Result, Tensor, TensorId};
use std::sync::{Arc, Mutex, PoisonError};

/// A tensor that is made of modules and one tensor of the base model. Kept by frozen modules, whose copies share it; made
/// anew every time by those that are trained.
#[derive(Debug, Clone, Default)]
pub(super) struct Once(Option<Arc<Kept>>);

/// The tensor of the base model that it was made of, and what was made.
type Kept = Mutex<Option<(TensorId, Tensor)>>;

impl Once {
    /// One that keeps what was made.
    pub(super) fn kept() -> Self {
        Self(Some(Arc::default()))
    }

    /// What `make` makes of the tensor `of`; made anew where that is another one, or has no name.
    pub(super) fn get(&self, of: Option<TensorId>, make: impl FnOnce() -> Result<Tensor>) -> Result<Tensor> {
        let (Some(kept), Some(of)) = (&self.0, of) else { return make() };
        let mut kept = kept.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, made)) = kept.as_ref().filter(|(id, _)| *id == of) {
            return Ok(made.clone());
        }
        let made = make()?;
        *kept = Some((of, made.clone()));
        Ok(made)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::{DType, Device};
    use std::cell::Cell;

    #[test]
    fn a_frozen_one_is_made_once_for_each_base() {
        let tensor = || Tensor::zeros(1, DType::F32, &Device::Cpu).unwrap();
        let (base, other) = (tensor(), tensor());
        let made = Cell::new(0);
        let get = |once: &Once, of| {
            let make = || {
                made.set(made.get() + 1);
                Ok(tensor())
            };
            once.get(of, make).unwrap();
            made.get()
        };
        let kept = Once::kept();
        assert_eq!((get(&kept, Some(base.id())), get(&kept.clone(), Some(base.id()))), (1, 1));
        assert_eq!((get(&kept, Some(other.id())), get(&kept, None)), (2, 3));
        let trained = Once::default();
        assert_eq!((get(&trained, Some(base.id())), get(&trained, Some(base.id()))), (4, 5));
    }
}
