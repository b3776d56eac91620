//! Against the formula written out, by finite differences, and for what does not fit.

use super::super::check::{self, Untracked};
use super::*;
use candle_core::DType;

/// Distances beyond two share the outermost rows, of five.
fn shape(heads: usize, head_dim: usize, span: usize) -> DisentangledShape {
    let distances = 1 - span as i64..span as i64;
    let places = distances.map(|distance| (distance.clamp(-2, 2) + 2) as u32).collect();
    DisentangledShape { heads, head_dim, scale: 0.6 / (head_dim as f64).sqrt(), places }
}

/// q, k, v, q_pos and k_pos.
fn inputs(n: usize, shape: &DisentangledShape) -> [Tensor; 5] {
    let width = shape.heads * shape.head_dim;
    [(n, 1), (n, 2), (n, 3), (5, 4), (5, 5)].map(|(rows, seed)| check::normal(&[rows, width], seed))
}

/// Which tables there are.
const TABLES: [[bool; 2]; 4] = [[true, true], [true, false], [false, true], [false, false]];

/// The kernel over `[q, k, v]` and those of the tables that are there.
fn run(t: &[Tensor], tables: [bool; 2], shape: &DisentangledShape, offsets: &Arc<[usize]>) -> Result<Tensor> {
    let mut rest = t[3..].iter();
    let tables = tables.map(|there| if there { rest.next() } else { None });
    disentangled_attention([&t[0], &t[1], &t[2]], tables, shape, offsets)
}

fn chosen([q, k, v, q_pos, k_pos]: &[Tensor; 5], tables: [bool; 2]) -> Vec<&Tensor> {
    let tables = [q_pos, k_pos].into_iter().zip(tables).filter(|(_, there)| *there).map(|(table, _)| table);
    [q, k, v].into_iter().chain(tables).collect()
}

fn naive(all: &[Tensor; 5], tables: [bool; 2], shape: &DisentangledShape, offsets: &[usize]) -> Vec<f64> {
    let [q, k, v, q_pos, k_pos] = all.each_ref().map(|t| t.to_vec2::<f64>().unwrap());
    let (dim, mut out) = (shape.head_dim, Vec::new());
    for pair in offsets.windows(2) {
        for (i, query) in q.iter().enumerate().take(pair[1]).skip(pair[0]) {
            for head in 0..shape.heads {
                let dot = |a: &[f64], b: &[f64]| (0..dim).map(|e| a[head * dim + e] * b[head * dim + e]).sum::<f64>();
                let weight = |j: usize| {
                    let place = (i as i64 - j as i64).clamp(-2, 2) + 2;
                    let mut score = dot(query, &k[j]);
                    if tables[0] {
                        score += dot(&k[j], &q_pos[place as usize]);
                    }
                    if tables[1] {
                        score += dot(query, &k_pos[place as usize]);
                    }
                    (score * shape.scale).exp()
                };
                let weights: Vec<f64> = (pair[0]..pair[1]).map(weight).collect();
                let total: f64 = weights.iter().sum();
                let mean =
                    |e: usize| weights.iter().enumerate().map(|(j, w)| w * v[pair[0] + j][head * dim + e]).sum::<f64>();
                out.extend((0..dim).map(|e| mean(e) / total));
            }
        }
    }
    out
}

#[test]
fn the_attention_and_its_gradients() {
    let cases: [(usize, usize, &[usize]); 4] =
        [(1, 1, &[0, 1]), (2, 4, &[0, 5]), (3, 2, &[0, 1, 8, 8, 12]), (1, 2, &[0, 70])];
    for (heads, head_dim, offsets) in cases {
        let n = *offsets.last().unwrap();
        let shape = shape(heads, head_dim, n + 3);
        let all = inputs(n, &shape);
        let offsets: Arc<[usize]> = offsets.into();
        for tables in TABLES {
            let arguments = chosen(&all, tables);
            let want = naive(&all, tables, &shape, &offsets);
            let any = |t: &[Tensor]| run(t, tables, &shape, &offsets);
            let moved: Vec<Tensor> = arguments.iter().map(|t| check::strided(t)).collect();
            check::close(&any(&moved).unwrap(), &want, 1e-12);
            check::gradients(&arguments, any);
            check::f32_agrees(&arguments, 1e-5, any);
        }
    }
}

#[test]
fn several_blocks_agree_with_the_formula_on_any_number_of_threads() {
    let shape = shape(4, 16, 200);
    let offsets: Arc<[usize]> = [0, 130, 131, 195, 323].into();
    let all = inputs(323, &shape);
    for tables in TABLES {
        let arguments = chosen(&all, tables);
        let any = |t: &[Tensor]| run(t, tables, &shape, &offsets);
        let exact: Vec<Tensor> = arguments.iter().map(|t| (*t).clone()).collect();
        check::close(&any(&exact).unwrap(), &naive(&all, tables, &shape, &offsets), 1e-12);
        check::f32_agrees(&arguments, 1e-4, any);
        check::threads_agree(&arguments, any);
    }
}

#[test]
fn untracked_arguments_get_no_gradient() {
    let shape = shape(2, 3, 7);
    let offsets: Arc<[usize]> = [0, 3, 10].into();
    let all = inputs(10, &shape);
    for which in 0..5 {
        check::untracked(&chosen(&all, [true; 2]), Untracked(which), |t| run(t, [true; 2], &shape, &offsets));
    }
}

#[test]
fn a_packed_batch_has_the_bits_of_each_sequence_alone() {
    let shape = shape(2, 16, 180);
    let all = inputs(180, &shape).map(|t| t.to_dtype(DType::F32).unwrap());
    let bits = |t: &[Tensor], offsets: &[usize]| check::flat(&run(t, [true; 2], &shape, &offsets.into()).unwrap());
    let whole = bits(&all, &[0, 7, 8, 180]);
    for (start, length) in [(0, 7), (7, 1), (8, 172)] {
        let [q, k, v, q_pos, k_pos] = &all;
        let [q, k, v] = [q, k, v].map(|t| t.narrow(0, start, length).unwrap());
        let alone = bits(&[q, k, v, q_pos.clone(), k_pos.clone()], &[0, length]);
        assert_eq!(whole[start * 32..(start + length) * 32], alone);
    }
}

#[test]
fn what_does_not_fit_is_refused() {
    let fits = shape(2, 3, 10);
    let all = inputs(10, &fits);
    let refused = |shape: &DisentangledShape, offsets: &[usize]| run(&all, [true; 2], shape, &offsets.into()).is_err();
    assert!(!refused(&fits, &[0, 10]));
    for offsets in [&[0, 9][..], &[1, 10], &[0, 7, 5, 10], &[], &[0, 11]] {
        assert!(refused(&fits, offsets), "{offsets:?}");
    }
    assert!(refused(&shape(2, 3, 9), &[0, 10]));
    assert!(refused(&shape(3, 3, 10), &[0, 10]));
    assert!(refused(&shape(2, 0, 10), &[0, 10]));
    assert!(refused(&DisentangledShape { places: [2; 18].into(), ..fits.clone() }, &[0, 10]));
    assert!(refused(&DisentangledShape { places: [5; 19].into(), ..fits }, &[0, 10]));
}
