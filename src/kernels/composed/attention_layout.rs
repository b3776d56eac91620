//! How packed sequences become padded ones for batched products, and what may meet what there.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;

use candle_core::{DType, Device, DeviceLocation, Result, Tensor};

use crate::kernels::attention::AttentionShape;

/// Scores in memory at a time, unless one head of one sequence has more: 256 MiB of `f32`, of which a backward pass
/// holds about four tables. Few in tests, which are to walk over several groups.
const SCORES: usize = if cfg!(test) { 1 << 9 } else { 1 << 26 };

/// Consecutive sequences that are padded to one length and run together.
pub(super) struct Group {
    /// First row and number of rows of the packed batch.
    rows: (usize, usize),
    /// Sequences, without the empty ones.
    pub(super) sequences: usize,
    /// Tokens of the longest.
    pub(super) length: usize,
    padding: Option<Padding>,
    /// What is added to the scores, to be broadcast over `[sequences, heads, length, length]`; `None` where every token
    /// sees every other.
    pub(super) mask: Option<Tensor>,
}

/// Where lengths differ.
struct Padding {
    /// For each padded row its row among the group's; padding repeats the first token of its own sequence, so that a
    /// value that is not finite stays where it belongs.
    from: Tensor,
    /// For each of the group's rows its padded row.
    to: Tensor,
    /// One for tokens and zero for padding, `[sequences, length, 1, 1]`.
    is_token: Tensor,
}

/// What a layout depends on.
#[derive(Clone)]
struct Key {
    offsets: Arc<[usize]>,
    shape: AttentionShape,
    wide: DType,
    place: DeviceLocation,
}

impl Key {
    fn is(&self, other: &Self) -> bool {
        // The memo holds the offsets, so that no others can lie at their address.
        Arc::ptr_eq(&self.offsets, &other.offsets)
            && (self.shape, self.wide) == (other.shape, other.wide)
            && self.place == other.place
    }
}

thread_local! {
    /// The layout of the last batch, which every layer has in common.
    static LAST: RefCell<Option<(Key, Rc<[Group]>)>> = const { RefCell::new(None) };
}

/// The groups of a batch with masks of the type `wide`.
pub(super) fn groups(
    offsets: &Arc<[usize]>,
    shape: AttentionShape,
    wide: DType,
    device: &Device,
) -> Result<Rc<[Group]>> {
    let key = Key { offsets: Arc::clone(offsets), shape, wide, place: device.location() };
    let last = LAST.take().filter(|(known, _)| known.is(&key));
    let groups = match last {
        Some((_, groups)) => groups,
        None => {
            let spans = cut(offsets, shape.heads, SCORES);
            let made = spans.iter().map(|spans| Group::new(spans, shape, wide, device));
            made.collect::<Result<Vec<Group>>>()?.into()
        }
    };
    LAST.set(Some((key, Rc::clone(&groups))));
    Ok(groups)
}

/// Start and length of the sequences of every group; empty ones are in none.
fn cut(offsets: &[usize], heads: usize, scores: usize) -> Vec<Vec<(usize, usize)>> {
    let mut groups: Vec<Vec<(usize, usize)>> = Vec::new();
    let mut longest = 0;
    for span in offsets.array_windows::<2>().map(|&[start, end]| (start, end - start)).filter(|span| span.1 > 0) {
        let length = span.1.max(longest);
        match groups.last_mut() {
            Some(group) if (group.len() + 1).saturating_mul(heads * length).saturating_mul(length) <= scores => {
                group.push(span);
                longest = length;
            }
            _ => {
                groups.push(vec![span]);
                longest = span.1;
            }
        }
    }
    groups
}

impl Group {
    fn new(spans: &[(usize, usize)], shape: AttentionShape, wide: DType, device: &Device) -> Result<Self> {
        let first = spans.first().map_or(0, |span| span.0);
        let count: usize = spans.iter().map(|span| span.1).sum();
        let length = spans.iter().map(|span| span.1).max().unwrap_or(0);
        let sequences = spans.len();
        let hidden = |hides: bool| if hides { f32::NEG_INFINITY } else { 0.0 };
        let place = |values: Vec<f32>, shape: (usize, usize, usize, usize)| {
            Tensor::from_vec(values, shape, &Device::Cpu)?.to_dtype(wide)?.to_device(device)
        };
        let padding = match count == sequences * length {
            true => None,
            false => {
                let row =
                    |start: usize, length: usize, i: usize| (start - first + if i < length { i } else { 0 }) as u32;
                let from = spans.iter().flat_map(|&(start, own)| (0..length).map(move |i| row(start, own, i)));
                let to = spans.iter().enumerate();
                let to = to.flat_map(|(index, &(_, own))| (0..own).map(move |i| (index * length + i) as u32));
                let is_token =
                    spans.iter().flat_map(|&(_, own)| (0..length).map(move |i| f32::from(u8::from(i < own))));
                Some(Padding {
                    from: Tensor::new(from.collect::<Vec<u32>>(), device)?,
                    to: Tensor::new(to.collect::<Vec<u32>>(), device)?,
                    is_token: place(is_token.collect(), (sequences, length, 1, 1))?,
                })
            }
        };
        // Under a causal mask padding, which comes last, is seen by padding alone.
        let table = |own: usize| {
            // Padding, which nothing reads, sees all tokens, so that each row has something to see.
            let seen = move |i| if i < own { shape.seen(i, own) } else { 0..own };
            (0..length).flat_map(move |i| (0..length).map(move |j| hidden(!seen(i).contains(&j))))
        };
        let mask = match (shape.causal, &padding, shape.reach) {
            (true, _, _) | (false, None, Some(_)) => Some(place(table(length).collect(), (1, 1, length, length))?),
            (false, Some(_), Some(_)) => {
                let tables = spans.iter().flat_map(|&(_, own)| table(own));
                Some(place(tables.collect(), (sequences, 1, length, length))?)
            }
            (false, Some(_), None) => {
                let seen = spans.iter().flat_map(|&(_, own)| (0..length).map(move |j| hidden(j >= own)));
                Some(place(seen.collect(), (sequences, 1, 1, length))?)
            }
            (false, None, None) => None,
        };
        Ok(Self { rows: (first, count), sequences, length, padding, mask })
    }

    /// Key heads whose scores fit in memory together, of `kv_heads` that `group` query heads share each.
    pub(super) fn heads_at_once(&self, kv_heads: usize, group: usize) -> usize {
        let one = (self.sequences * group * self.length).saturating_mul(self.length);
        (SCORES / one.max(1)).clamp(1, kv_heads.max(1))
    }

    /// The group's rows of `packed`, `[tokens, heads · head_dim]`, as `[sequences, heads, length, head_dim]`.
    pub(super) fn pad(&self, packed: &Tensor, heads: usize) -> Result<Tensor> {
        self.by_head(&self.padded(packed, heads)?)
    }

    /// As [`Self::pad`], with zeros for padding.
    pub(super) fn pad_with_zeros(&self, packed: &Tensor, heads: usize) -> Result<Tensor> {
        let padded = self.padded(packed, heads)?;
        match &self.padding {
            None => self.by_head(&padded),
            Some(Padding { is_token, .. }) => self.by_head(&padded.broadcast_mul(&is_token.to_dtype(padded.dtype())?)?),
        }
    }

    fn padded(&self, packed: &Tensor, heads: usize) -> Result<Tensor> {
        let (first, count) = self.rows;
        let head_dim = packed.dim(1)? / heads.max(1);
        let rows = packed.narrow(0, first, count)?;
        let rows = match &self.padding {
            None => rows,
            Some(padding) => rows.index_select(&padding.from, 0)?,
        };
        rows.reshape((self.sequences, self.length, heads, head_dim))
    }

    fn by_head(&self, padded: &Tensor) -> Result<Tensor> {
        padded.transpose(1, 2)?.contiguous()
    }

    /// The reverse of [`Self::pad`].
    pub(super) fn pack(&self, padded: &Tensor) -> Result<Tensor> {
        let (sequences, heads, length, head_dim) = padded.dims4()?;
        let rows = padded.transpose(1, 2)?.contiguous()?.reshape((sequences * length, heads * head_dim))?;
        match &self.padding {
            None => Ok(rows),
            Some(padding) => rows.index_select(&padding.to, 0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn two_heads(causal: bool) -> AttentionShape {
        AttentionShape { heads: 2, kv_heads: 2, head_dim: 2, causal, scale: 1.0, reach: None, soft_cap: None }
    }

    #[test]
    fn groups_hold_as_many_sequences_as_their_scores_allow() {
        let offsets = [0, 4, 4, 6, 11, 12];
        assert_eq!(cut(&offsets, 2, usize::MAX), [vec![(0, 4), (4, 2), (6, 5), (11, 1)]]);
        // Two of 4 by 4 with two heads are 64 scores, three of 5 by 5 are 150.
        assert_eq!(cut(&offsets, 2, 64), [vec![(0, 4), (4, 2)], vec![(6, 5)], vec![(11, 1)]]);
        assert_eq!(cut(&offsets, 2, 100), [vec![(0, 4), (4, 2)], vec![(6, 5), (11, 1)]]);
        assert_eq!(cut(&offsets, 2, 1).len(), 4);
        assert!(cut(&[0, 0], 2, 1).is_empty());
    }

    #[test]
    fn a_layout_is_made_once_a_batch() {
        let device = Device::Cpu;
        let offsets: Arc<[usize]> = [0, 2, 5].into();
        let first = groups(&offsets, two_heads(true), DType::F32, &device).unwrap();
        assert!(Rc::ptr_eq(&first, &groups(&offsets, two_heads(true), DType::F32, &device).unwrap()));
        assert!(!Rc::ptr_eq(&first, &groups(&offsets, two_heads(false), DType::F32, &device).unwrap()));
        let equal: Arc<[usize]> = [0, 2, 5].into();
        assert!(!Rc::ptr_eq(&first, &groups(&equal, two_heads(true), DType::F32, &device).unwrap()));
    }

    #[test]
    fn packing_undoes_padding() {
        let packed = Tensor::arange(0.0, 24.0, &Device::Cpu).unwrap().reshape((6, 4)).unwrap();
        let groups = groups(&[0, 2, 2, 5, 6].into(), two_heads(false), DType::F64, &Device::Cpu).unwrap();
        let padded = groups[0].pad(&packed, 2).unwrap();
        assert_eq!(padded.dims(), [3, 2, 3, 2]);
        // The padding of the first sequence is its own first token.
        assert_eq!(padded.to_vec3_of(0, 0), [[0.0, 1.0], [4.0, 5.0], [0.0, 1.0]]);
        let again = groups[0].pack(&padded).unwrap();
        assert_eq!(again.to_vec2::<f64>().unwrap(), packed.to_vec2::<f64>().unwrap());
        let zeros = groups[0].pad_with_zeros(&packed, 2).unwrap();
        assert_eq!(zeros.to_vec3_of(0, 1), [[2.0, 3.0], [6.0, 7.0], [0.0, 0.0]]);
    }

    trait Head {
        fn to_vec3_of(&self, sequence: usize, head: usize) -> Vec<Vec<f64>>;
    }

    impl Head for Tensor {
        fn to_vec3_of(&self, sequence: usize, head: usize) -> Vec<Vec<f64>> {
            self.get(sequence).unwrap().get(head).unwrap().to_vec2().unwrap()
        }
    }
}
