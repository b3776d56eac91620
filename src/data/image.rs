//! Images as a vision model reads them: cut into patches, which are its tokens.

use std::sync::Arc;

/// How images of one size are cut into patches of one size, row by row; sizes are height and width in pixels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PatchGrid {
    /// An image.
    pub image: [usize; 2],
    /// A patch; divides the image.
    pub patch: [usize; 2],
    /// Colours of a pixel.
    pub channels: usize,
}

impl PatchGrid {
    /// Patches in a row of the image.
    #[must_use]
    pub fn columns(&self) -> usize {
        self.image[1] / self.patch[1].max(1)
    }

    /// Patches of an image.
    #[must_use]
    pub fn patches(&self) -> usize {
        self.image[0] / self.patch[0].max(1) * self.columns()
    }

    /// Numbers of a patch.
    #[must_use]
    pub fn features(&self) -> usize {
        self.channels * self.patch[0] * self.patch[1]
    }

    /// What a token is called: `cls` in front, then each patch by row and column from 0.
    #[must_use]
    pub fn label(&self, token: u32) -> String {
        match (token as usize).checked_sub(1) {
            None => "cls".to_owned(),
            Some(patch) => format!("{},{}", patch / self.columns().max(1), patch % self.columns().max(1)),
        }
    }
}

/// A normalised image, patch after patch.
#[derive(Debug, Clone, PartialEq)]
pub struct Image {
    /// `[patches, channels · height · width]`: a patch's numbers in the order of a convolution's weight.
    values: Arc<[f32]>,
    features: usize,
}

impl Image {
    /// Cuts pixels `[channels, height, width]` into the patches of `grid`; missing pixels are 0.
    #[must_use]
    pub fn from_pixels(pixels: &[f32], grid: &PatchGrid) -> Self {
        let ([height, width], [tall, wide]) = (grid.image, grid.patch);
        let mut values = Vec::with_capacity(grid.patches() * grid.features());
        for patch in 0..grid.patches() {
            let (top, left) = (patch / grid.columns() * tall, patch % grid.columns() * wide);
            for line in (0..grid.channels).flat_map(|c| (0..tall).map(move |y| (c * height + top + y) * width + left)) {
                match pixels.get(line..line + wide) {
                    Some(line) => values.extend_from_slice(line),
                    None => values.resize(values.len() + wide, 0.0),
                }
            }
        }
        Self { values: values.into(), features: grid.features() }
    }

    /// The numbers of a patch, from 0; empty where there is none.
    #[must_use]
    pub fn patch(&self, index: usize) -> &[f32] {
        let start = index.saturating_mul(self.features);
        self.values.get(start..start.saturating_add(self.features)).unwrap_or_default()
    }

    /// The numbers of all patches.
    #[must_use]
    pub fn values(&self) -> &[f32] {
        &self.values
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patches_go_row_by_row_and_hold_colour_after_colour() {
        let grid = PatchGrid { image: [2, 6], patch: [2, 3], channels: 2 };
        let pixels: Vec<f32> = (0..24).map(|i| i as f32).collect();
        let image = Image::from_pixels(&pixels, &grid);
        assert_eq!((grid.patches(), grid.columns(), grid.features()), (2, 2, 12));
        assert_eq!(image.patch(0), [0., 1., 2., 6., 7., 8., 12., 13., 14., 18., 19., 20.]);
        assert_eq!(image.patch(1)[..3], [3., 4., 5.]);
        assert!(image.patch(2).is_empty());
        let square = PatchGrid { image: [4, 4], patch: [2, 2], channels: 3 };
        let labels: Vec<String> = (0..5).map(|token| square.label(token)).collect();
        assert_eq!(labels, ["cls", "0,0", "0,1", "1,0", "1,1"]);
    }
}
