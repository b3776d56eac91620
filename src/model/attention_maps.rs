//! Attention probabilities, computed plainly where a probe asks for them; the fused kernel keeps none.

use crate::data::Packed;
use crate::kernels::{self, AttentionShape, DisentangledShape, RelativeBias};
use candle_core::{D, Device, Result, Tensor};

/// What scores gain by the places of key and query.
#[derive(Debug, Clone, Copy)]
pub(super) enum Added<'a> {
    Nothing,
    Bias(&'a RelativeBias),
    /// Products with tables that keys, and that queries, meet.
    Distances(&'a DisentangledShape, [Option<&'a Tensor>; 2]),
}

/// For every sequence of `batch` its probabilities `[heads, n, n]`, from queries `[tokens, heads · head_dim]` and
/// keys `[tokens, kv_heads · head_dim]` (after rotary embedding, where there is one); in [`kernels::wide`] types.
pub(super) fn attention_maps(
    q: &Tensor,
    k: &Tensor,
    shape: AttentionShape,
    added: Added<'_>,
    batch: &Packed,
) -> Result<Vec<Tensor>> {
    let wide = |t: &Tensor| t.detach().to_dtype(kernels::wide(t.dtype()));
    let (q, k) = (wide(q)?, wide(k)?);
    let tables = match added {
        Added::Distances(_, tables) => tables.map(|table| table.map(wide).transpose()),
        _ => [Ok(None), Ok(None)],
    };
    let [q_pos, k_pos] = tables;
    let tables = [q_pos?, k_pos?];
    let added = match added {
        Added::Distances(shape, _) => Added::Distances(shape, tables.each_ref().map(Option::as_ref)),
        other => other,
    };
    (0..batch.sequences()).map(|index| map(&q, &k, shape, added, batch.rows(index))).collect()
}

fn map(
    q: &Tensor,
    k: &Tensor,
    shape: AttentionShape,
    added: Added<'_>,
    rows: std::ops::Range<usize>,
) -> Result<Tensor> {
    let AttentionShape { heads, kv_heads, head_dim, causal, scale, reach, soft_cap } = shape;
    let n = rows.len();
    if n == 0 {
        return Tensor::zeros((heads, 0, 0), q.dtype(), q.device());
    }
    let by_head = |t: &Tensor, heads: usize| {
        t.narrow(0, rows.start, n)?.reshape((n, heads, head_dim))?.transpose(0, 1)?.contiguous()
    };
    let queries = by_head(q, heads)?;
    // Consecutive query heads share a key head.
    let group = heads / kv_heads.max(1);
    let keys = by_head(k, kv_heads)?.unsqueeze(1)?.broadcast_as((kv_heads, group, n, head_dim))?;
    let keys = keys.contiguous()?.reshape((heads, n, head_dim))?;
    let mut scores = match added {
        Added::Distances(distances, tables) => distances.scores([&queries, &keys], tables)?,
        _ => (queries.matmul(&keys.transpose(1, 2)?.contiguous()?)? * scale)?,
    };
    if let Some(cap) = soft_cap {
        scores = ((scores / cap)?.tanh()? * cap)?;
    }
    if let Added::Bias(bias) = added {
        scores = (scores + bias.pairs(n)?.to_dtype(q.dtype())?)?;
    }
    if causal || reach.is_some() {
        scores = scores.broadcast_add(&mask(n, shape)?.to_dtype(q.dtype())?.to_device(q.device())?)?;
    }
    let weights = scores.broadcast_sub(&scores.max_keepdim(D::Minus1)?)?.exp()?;
    weights.broadcast_div(&weights.sum_keepdim(D::Minus1)?)
}

/// Zero where a query sees the key, else minus infinity.
fn mask(n: usize, shape: AttentionShape) -> Result<Tensor> {
    let added = move |i, j| if shape.seen(i, n).contains(&j) { 0.0 } else { f64::NEG_INFINITY };
    let values = (0..n).flat_map(|i| (0..n).map(move |j| added(i, j))).collect();
    Tensor::from_vec(values, (n, n), &Device::Cpu)
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::DType;

    fn draws(rows: usize, columns: usize, seed: u64) -> Tensor {
        use rand::Rng;
        let mut rng = crate::random::stream(seed, &["attention-maps"]);
        let values: Vec<f64> = (0..rows * columns).map(|_| rng.random_range(-2.0..2.0)).collect();
        Tensor::from_vec(values, (rows, columns), &Device::Cpu).unwrap()
    }

    #[test]
    fn the_maps_times_the_values_are_what_the_fused_kernel_computes() {
        let batch = Packed::from_sequences(&[vec![0; 5], vec![0; 1], vec![0; 9]]);
        let plain = |causal| AttentionShape {
            heads: 4,
            kv_heads: 2,
            head_dim: 6,
            causal,
            scale: 0.4,
            reach: None,
            soft_cap: None,
        };
        let bent = |causal| AttentionShape { reach: Some(2), soft_cap: Some(0.9), ..plain(causal) };
        let table = RelativeBias::new(draws(4, 19, 4)).unwrap();
        let cases =
            [(plain(true), None), (plain(false), None), (bent(true), Some(&table)), (bent(false), Some(&table))];
        for (shape, bias) in cases {
            let causal = shape.causal;
            let (q, k, v) = (draws(15, 24, 1), draws(15, 12, 2), draws(15, 12, 3));
            let fused = kernels::attention(&q, &k, &v, shape, bias, &batch.offsets).unwrap().to_vec2::<f64>().unwrap();
            let values = v.to_vec2::<f64>().unwrap();
            let added = bias.map_or(Added::Nothing, Added::Bias);
            let maps = attention_maps(&q, &k, shape, added, &batch).unwrap();
            assert_eq!(maps.len(), 3);
            for (sequence, map) in maps.iter().enumerate() {
                let (map, rows) = (map.to_vec3::<f64>().unwrap(), batch.rows(sequence));
                for (head, map) in map.iter().enumerate() {
                    for (i, row) in map.iter().enumerate() {
                        assert!((row.iter().sum::<f64>() - 1.0).abs() < 1e-14);
                        assert!(!causal || row.iter().skip(i + 1).all(|&p| p == 0.0));
                        for column in 0..6 {
                            let at = |j: usize| values[rows.start + j][(head / 2) * 6 + column];
                            let mixed: f64 = row.iter().enumerate().map(|(j, p)| p * at(j)).sum();
                            let found = fused[rows.start + i][head * 6 + column];
                            assert!((mixed - found).abs() < 1e-13, "{sequence} {head} {i}: {mixed} for {found}");
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn maps_with_distances_are_those_of_the_fused_kernel() {
        let batch = Packed::from_sequences(&[vec![0; 5], vec![0; 9]]);
        let places = (-8i64..=8).map(|distance| (distance.clamp(-3, 2) + 3) as u32).collect();
        let shape = DisentangledShape { heads: 2, head_dim: 3, scale: 0.4, places };
        let plain = AttentionShape {
            heads: 2,
            kv_heads: 2,
            head_dim: 3,
            causal: false,
            scale: 0.4,
            reach: None,
            soft_cap: None,
        };
        let (q, k, v) = (draws(14, 6, 1), draws(14, 6, 2), draws(14, 6, 3));
        let (q_pos, k_pos) = (draws(6, 6, 4), draws(6, 6, 5));
        for tables in [[Some(&q_pos), Some(&k_pos)], [None, Some(&k_pos)], [Some(&q_pos), None]] {
            let fused = kernels::disentangled_attention([&q, &k, &v], tables, &shape, &batch.offsets).unwrap();
            let maps = attention_maps(&q, &k, plain, Added::Distances(&shape, tables), &batch).unwrap();
            for (sequence, map) in maps.iter().enumerate() {
                let rows = batch.rows(sequence);
                let part = |t: &Tensor| t.narrow(0, rows.start, rows.len()).unwrap();
                for head in 0..2 {
                    let of_head = |t: &Tensor| part(t).narrow(1, head * 3, 3).unwrap().contiguous().unwrap();
                    let mixed = map.get(head).unwrap().matmul(&of_head(&v)).unwrap();
                    let off = (mixed - of_head(&fused)).unwrap().abs().unwrap().max_all().unwrap();
                    assert!(off.to_scalar::<f64>().unwrap() < 1e-13, "{sequence} {head}: {off}");
                }
            }
        }
    }

    #[test]
    fn an_empty_sequence_has_an_empty_map() {
        let shape = AttentionShape {
            heads: 2,
            kv_heads: 2,
            head_dim: 3,
            causal: true,
            scale: 1.0,
            reach: None,
            soft_cap: None,
        };
        let batch = Packed::from_sequences(&[vec![], vec![0; 2]]);
        let maps = attention_maps(&draws(2, 6, 1), &draws(2, 6, 2), shape, Added::Nothing, &batch).unwrap();
        assert_eq!((maps[0].dims(), maps[1].dims()), (&[2, 0, 0][..], &[2, 2, 2][..]));
        assert_eq!(maps[1].dtype(), DType::F64);
    }
}
