//! Hidden states of a first pass in a file without a name, so that a second pass need not run the model again.
//!
//! Reading a state costs far less than computing it, in any model. The file vanishes with the process, however that
//! ends. What does not fit is computed again: the values are the same bit for bit.

use crate::data::Packed;
use crate::disk::free_space;
use crate::kernels;
use crate::model::ModelError;
use crate::persist::{self, PersistError};
use crate::probe::{Probe, Site};
use candle_core::{CpuStorage, DType, Device, Storage, Tensor};
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

/// Bytes of disk that a scratch file takes at most, unless asked otherwise.
pub const SCRATCH_BYTES: u64 = 4 << 30;

/// A scratch file.
#[derive(Debug)]
pub struct Scratch {
    folder: PathBuf,
    end: Mutex<End>,
}

/// The file, and what is in it.
#[derive(Debug)]
struct End {
    file: File,
    used: u64,
    limit: u64,
}

/// Where one state of a batch is.
#[derive(Debug, Clone, Copy)]
struct Kept {
    site: Site,
    layer: usize,
    dtype: DType,
    width: usize,
    start: u64,
}

/// The states of one batch, in the order of its forward pass.
#[derive(Debug, Default)]
pub(super) struct KeptBatch(Vec<Kept>);

impl Scratch {
    /// A scratch file in `folder`, which is made if it is not there, of at most `limit` bytes and half of the free
    /// space.
    ///
    /// # Errors
    /// The file cannot be made.
    pub fn new(folder: &Path, limit: u64) -> Result<Self, PersistError> {
        persist::create_folder(folder)?;
        let file = tempfile::tempfile_in(folder).map_err(|e| PersistError::new(folder, "write", e))?;
        let limit = free_space(folder).map_or(limit, |free| limit.min(free / 2));
        Ok(Self { folder: folder.to_owned(), end: Mutex::new(End { file, used: 0, limit }) })
    }

    /// Appends bytes; where they begin, or `None` if they do not fit.
    fn append(&self, bytes: &[u8]) -> Option<u64> {
        let mut end = self.end.lock().unwrap_or_else(PoisonError::into_inner);
        let start = end.used;
        let after = start.checked_add(bytes.len() as u64).filter(|after| *after <= end.limit)?;
        let written = end.file.seek(SeekFrom::Start(start)).and_then(|_| end.file.write_all(bytes));
        if written.is_err() {
            // The disk is full after all: no more is kept.
            end.limit = 0;
            return None;
        }
        end.used = after;
        Some(start)
    }

    fn read(&self, start: u64, bytes: &mut [u8]) -> io::Result<()> {
        let mut end = self.end.lock().unwrap_or_else(PoisonError::into_inner);
        end.file.seek(SeekFrom::Start(start))?;
        end.file.read_exact(bytes)
    }

    /// Plays a kept batch to a probe as the model would.
    pub(super) fn replay(&self, kept: &KeptBatch, batch: &Packed, probe: &mut dyn Probe) -> Result<(), ModelError> {
        let mut bytes = Vec::new();
        for &Kept { site, layer, dtype, width, start } in &kept.0 {
            if !probe.wants(site, layer) {
                continue;
            }
            let shape = (batch.ids.len(), width);
            bytes.resize(shape.0 * shape.1 * dtype.size_in_bytes(), 0);
            self.read(start, &mut bytes).map_err(|source| {
                let folder = self.folder.display();
                candle_core::Error::Msg(format!(
                    "{folder}: states of the first pass cannot be read back: {source}; start again with --scratch-gib 0"
                ))
            })?;
            let states = match dtype {
                DType::F64 => Tensor::from_vec(values(&bytes, f64::from_ne_bytes), shape, &Device::Cpu)?,
                _ => Tensor::from_vec(values(&bytes, f32::from_ne_bytes), shape, &Device::Cpu)?,
            };
            probe.record(site, layer, &states, batch)?;
        }
        Ok(())
    }
}

fn values<T, const N: usize>(bytes: &[u8], value: fn([u8; N]) -> T) -> Vec<T> {
    bytes.as_chunks::<N>().0.iter().map(|chunk| value(*chunk)).collect()
}

/// The values of a tensor as bytes; `None` if it is neither f32 nor f64.
fn bytes(states: &Tensor) -> Result<Option<Vec<u8>>, ModelError> {
    fn all<T: Copy, const N: usize>(values: Option<&[T]>, bytes: fn(T) -> [u8; N]) -> Option<Vec<u8>> {
        let values = values?;
        let mut out = vec![0; values.len() * N];
        out.as_chunks_mut::<N>().0.iter_mut().zip(values).for_each(|(out, &value)| *out = bytes(value));
        Some(out)
    }
    let states = states.to_device(&Device::Cpu)?.to_dtype(kernels::wide(states.dtype()))?.contiguous()?;
    let (storage, layout) = states.storage_and_layout();
    let Some((start, end)) = layout.contiguous_offsets() else { return Ok(None) };
    Ok(match &*storage {
        Storage::Cpu(CpuStorage::F32(values)) => all(values.get(start..end), f32::to_ne_bytes),
        Storage::Cpu(CpuStorage::F64(values)) => all(values.get(start..end), f64::to_ne_bytes),
        _ => None,
    })
}

/// A probe that keeps what another one records.
pub(super) struct Keeper<'a> {
    scratch: &'a Scratch,
    probe: &'a mut dyn Probe,
    /// `None` as soon as a state does not fit.
    kept: Option<KeptBatch>,
}

impl<'a> Keeper<'a> {
    /// Keeps what `probe` records.
    pub(super) fn new(scratch: &'a Scratch, probe: &'a mut dyn Probe) -> Self {
        Self { scratch, probe, kept: Some(KeptBatch::default()) }
    }

    /// The batch, if all of it fitted.
    pub(super) fn finish(self) -> Option<KeptBatch> {
        self.kept
    }
}

impl Probe for Keeper<'_> {
    fn record(&mut self, site: Site, layer: usize, states: &Tensor, batch: &Packed) -> Result<(), ModelError> {
        if let Some(kept) = &mut self.kept {
            let start = bytes(states)?.and_then(|bytes| self.scratch.append(&bytes));
            match start {
                Some(start) => {
                    kept.0.push(Kept {
                        site,
                        layer,
                        dtype: kernels::wide(states.dtype()),
                        width: states.dim(1)?,
                        start,
                    });
                }
                None => self.kept = None,
            }
        }
        self.probe.record(site, layer, states, batch)
    }

    fn wants(&self, site: Site, layer: usize) -> bool {
        self.probe.wants(site, layer)
    }

    fn wants_attention(&self, layer: usize) -> bool {
        self.probe.wants_attention(layer)
    }

    fn record_attention(&mut self, layer: usize, maps: &[Tensor], batch: &Packed) -> Result<(), ModelError> {
        self.probe.record_attention(layer, maps, batch)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What came, and from where.
    #[derive(Default)]
    struct Seen(Vec<(Site, usize, Vec<f64>)>);

    impl Probe for Seen {
        fn record(&mut self, site: Site, layer: usize, states: &Tensor, _: &Packed) -> Result<(), ModelError> {
            let values = states.to_dtype(DType::F64)?.flatten_all()?.to_vec1()?;
            self.0.push((site, layer, values));
            Ok(())
        }

        fn wants(&self, _: Site, layer: usize) -> bool {
            layer != 2
        }
    }

    fn pass(probe: &mut dyn Probe, batch: &Packed, dtype: DType) {
        for (site, layer) in [(Site::Embedding, 0), (Site::Block, 1), (Site::Block, 3)] {
            let rows = Tensor::randn(0.0, 1.0 + layer as f64, (7, 3), &Device::Cpu).unwrap().to_dtype(dtype).unwrap();
            // Not contiguous, as a view may be.
            let view = rows.narrow(0, 1, batch.ids.len()).unwrap().t().unwrap().contiguous().unwrap().t().unwrap();
            probe.record(site, layer, &view, batch).unwrap();
        }
    }

    #[test]
    fn what_is_kept_comes_back_bit_for_bit() {
        let folder = tempfile::tempdir().unwrap();
        let scratch = Scratch::new(&folder.path().join("new"), SCRATCH_BYTES).unwrap();
        let batches = [Packed::from_sequences(&[[1, 2, 3]]), Packed::from_sequences(&[[4, 5], [6, 7]])];
        for dtype in [DType::F32, DType::F64] {
            let mut first = Seen::default();
            let mut kept = Vec::new();
            for batch in &batches {
                let mut keeper = Keeper::new(&scratch, &mut first);
                pass(&mut keeper, batch, dtype);
                kept.push(keeper.finish().unwrap());
            }
            let mut second = Seen::default();
            for (batch, kept) in batches.iter().zip(&kept) {
                scratch.replay(kept, batch, &mut second).unwrap();
            }
            assert_eq!(first.0, second.0);
        }
        // The file has no name that could be left behind.
        assert_eq!(std::fs::read_dir(folder.path().join("new")).unwrap().count(), 0);
    }

    #[test]
    fn what_does_not_fit_is_not_kept_and_still_recorded() {
        let folder = tempfile::tempdir().unwrap();
        let batch = Packed::from_sequences(&[[1, 2, 3]]);
        let one_pass = 3 * 3 * 3 * 4;
        for (limit, fits) in [(one_pass - 1, false), (one_pass, true), (0, false)] {
            let scratch = Scratch::new(folder.path(), limit).unwrap();
            let mut seen = Seen::default();
            let mut keeper = Keeper::new(&scratch, &mut seen);
            pass(&mut keeper, &batch, DType::F32);
            assert_eq!(keeper.finish().is_some(), fits, "{limit}");
            assert_eq!(seen.0.len(), 3);
        }
    }
}
