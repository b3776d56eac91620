//! Images of another size, to the bit as Pillow 13 makes them: what image processors are made with.
//!
//! Source: Pillow, `src/libImaging/Resample.c` (8 bits a colour). The weights of a filter are rounded to 22 bits; lines and
//! columns are resized one after the other, each to bytes.

use std::f64::consts::PI;

/// Pillow's filters, by its numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Filter {
    Nearest,
    Lanczos,
    Bilinear,
    Bicubic,
    Box,
    Hamming,
}

impl Filter {
    /// The filter of this number, 0 to 5.
    pub(super) fn numbered(number: u8) -> Option<Self> {
        let all = [Self::Nearest, Self::Lanczos, Self::Bilinear, Self::Bicubic, Self::Box, Self::Hamming];
        all.get(usize::from(number)).copied()
    }

    /// How far it reaches, in pixels of the smaller image.
    fn support(self) -> f64 {
        match self {
            Self::Nearest | Self::Box => 0.5,
            Self::Bilinear | Self::Hamming => 1.0,
            Self::Bicubic => 2.0,
            Self::Lanczos => 3.0,
        }
    }

    fn weight(self, x: f64) -> f64 {
        let sinc = |x: f64| if x == 0.0 { 1.0 } else { (PI * x).sin() / (PI * x) };
        let near = x.abs();
        match self {
            Self::Nearest | Self::Box => f64::from(u8::from(x > -0.5 && x <= 0.5)),
            Self::Bilinear => (1.0 - near).max(0.0),
            Self::Hamming if near >= 1.0 => 0.0,
            Self::Hamming => sinc(near) * (0.54 + 0.46 * (PI * near).cos()),
            Self::Bicubic if near < 1.0 => (1.5 * near - 2.5) * near * near + 1.0,
            Self::Bicubic if near < 2.0 => -0.5 * (((near - 5.0) * near + 8.0) * near - 4.0),
            Self::Lanczos if (-3.0..3.0).contains(&x) => sinc(x) * sinc(x / 3.0),
            Self::Bicubic | Self::Lanczos => 0.0,
        }
    }
}

/// Bits behind the point of a weight: 32, less those of a byte and two for sums beyond it.
const BITS: u32 = 22;

/// Where an output pixel begins to read along one side, and its weights.
struct Reads {
    first: usize,
    weights: Vec<i32>,
}

/// What every pixel of a side of `to` pixels reads of one of `from`.
fn reads(from: usize, to: usize, filter: Filter) -> Vec<Reads> {
    let scale = from as f64 / to as f64;
    if filter == Filter::Nearest {
        let nearest = |i: usize| (((i as f64 + 0.5) * scale) as usize).min(from.saturating_sub(1));
        return (0..to).map(|i| Reads { first: nearest(i), weights: vec![1 << BITS] }).collect();
    }
    let wide = scale.max(1.0);
    let support = filter.support() * wide;
    let of_pixel = |i: usize| {
        let centre = (i as f64 + 0.5) * scale;
        let first = (centre - support + 0.5).max(0.0) as usize;
        let end = ((centre + support + 0.5) as usize).min(from);
        let weights: Vec<f64> = (first..end).map(|x| filter.weight((x as f64 - centre + 0.5) * (1.0 / wide))).collect();
        let sum: f64 = weights.iter().sum();
        let whole = |weight: f64| {
            let weight = if sum == 0.0 { weight } else { weight / sum } * f64::from(1 << BITS);
            (weight + 0.5_f64.copysign(weight)) as i32
        };
        Reads { first, weights: weights.into_iter().map(whole).collect() }
    };
    (0..to).map(of_pixel).collect()
}

/// An image of RGB bytes in another size; sizes are height and width.
pub(super) fn resized(bytes: &[u8], from: [usize; 2], to: [usize; 2], filter: Filter) -> Vec<u8> {
    let lines = |bytes: &[u8], height: usize| match from[1] == to[1] {
        true => bytes.to_vec(),
        false => pass(bytes, (height, from[1], to[1]), filter, |line, place| (line, place), from[1], to[1]),
    };
    let columns = |bytes: &[u8], width: usize| match from[0] == to[0] {
        true => bytes.to_vec(),
        false => pass(bytes, (width, from[0], to[0]), filter, |column, place| (place, column), width, width),
    };
    // Since Pillow 13 the side that shrinks far more goes first; before, lines always did, which may move a byte by one.
    let (shorter, narrower) = (from[0].saturating_sub(to[0]), from[1] as i64 - to[1] as i64);
    if shorter > 0 && shorter as i64 > 2 * narrower {
        lines(&columns(bytes, from[1]), to[0])
    } else {
        columns(&lines(bytes, from[0]), to[1])
    }
}

/// Resizes `count` lines, or columns, from `from` pixels to `to`. `at(line, place)` is the row and column of a pixel; images
/// are `read_width` and `written_width` pixels wide.
fn pass(
    bytes: &[u8],
    (count, from, to): (usize, usize, usize),
    filter: Filter,
    at: impl Fn(usize, usize) -> (usize, usize),
    read_width: usize,
    written_width: usize,
) -> Vec<u8> {
    let mut out = vec![0; count * to * 3];
    for (place, Reads { first, weights }) in reads(from, to, filter).iter().enumerate() {
        for line in 0..count {
            let (row, column) = at(line, place);
            for colour in 0..3 {
                let mut sum = 1 << (BITS - 1);
                for (x, weight) in (*first..).zip(weights) {
                    let (row, column) = at(line, x);
                    let byte = bytes.get((row * read_width + column) * 3 + colour).copied().unwrap_or(0);
                    sum += i32::from(byte) * weight;
                }
                if let Some(out) = out.get_mut((row * written_width + column) * 3 + colour) {
                    *out = (sum >> BITS).clamp(0, 255) as u8;
                }
            }
        }
    }
    out
}
