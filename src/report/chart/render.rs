//! From a drawing to bytes, through plotters' bitmap and SVG backends.

use super::drawing::{Anchor, Drawing, Ink, Mark, Spot};
use plotters::prelude::{BitMapBackend, DrawingBackend, SVGBackend};
use plotters::style::text_anchor::{HPos, Pos, VPos};
use plotters::style::{
    Color, FontDesc, FontFamily, FontStyle, FontTransform, RGBColor, ShapeStyle, register_font as register,
};
use std::sync::OnceLock;

/// The name that SVG viewers look up, and under which the compiled-in font is registered for PNG.
pub(super) const FONT: &str = "DejaVu Sans, sans-serif";
/// Ascent plus descent of the font, in em.
pub(super) const LINE_HEIGHT: f64 = 2384.0 / 2048.0;

/// PNG pixels in a point.
const PIXELS: f64 = 300.0 / 72.0;
/// The bitmap is drawn this many times larger and averaged, since plotters smooths only thin lines.
const OVERSAMPLING: u32 = 3;
/// SVG units in a point: plotters' coordinates are whole numbers.
const SVG_UNITS: f64 = 20.0;

/// A figure that could not be written.
#[derive(Debug, thiserror::Error)]
pub enum RenderError {
    /// The compiled-in font is not readable.
    #[error("the compiled-in font cannot be read; build the program again from a clean checkout")]
    Font,
    /// plotters failed.
    #[error("the figure cannot be drawn: {0}; write the table alone, or report this")]
    Backend(String),
    /// The encoder's temporary file failed.
    #[error("the figure cannot be encoded: {0}; check that the temporary folder has room")]
    Temporary(#[from] std::io::Error),
}

/// Makes the compiled-in font known to plotters, once.
pub(super) fn register_font() -> Result<(), RenderError> {
    static REGISTERED: OnceLock<bool> = OnceLock::new();
    let bytes = include_bytes!("../../../assets/DejaVuSans-subset.ttf");
    let known = REGISTERED.get_or_init(|| register(FONT, FontStyle::Normal, bytes).is_ok());
    if *known { Ok(()) } else { Err(RenderError::Font) }
}

pub(super) fn svg(drawing: &Drawing) -> Result<String, RenderError> {
    register_font()?;
    let size = |length: f64| (length * SVG_UNITS).round() as u32;
    let mut text = String::new();
    let mut backend = SVGBackend::with_string(&mut text, (size(drawing.width), size(drawing.height)));
    // plotters writes size/1.24 as the font size and sets the text 0.76 em below the place given.
    Renderer { backend: &mut backend, scale: SVG_UNITS, size: 1.24, baseline: 0.76 }.draw(drawing)?;
    backend.present().map_err(|e| RenderError::Backend(e.to_string()))?;
    drop(backend);
    // plotters sizes the picture in its own units; on paper it has a width in points.
    let body = text.split_once('\n').map(|(_, body)| body).unwrap_or_default();
    let (width, height) = (drawing.width, drawing.height);
    Ok(format!(
        "<svg width=\"{width}pt\" height=\"{height}pt\" viewBox=\"0 0 {} {}\" role=\"img\" \
         xmlns=\"http://www.w3.org/2000/svg\">\n<title>{}</title>\n{body}",
        size(width),
        size(height),
        escape(&drawing.description)
    ))
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

pub(super) fn png(drawing: &Drawing) -> Result<Vec<u8>, RenderError> {
    register_font()?;
    let size = |length: f64| (length * PIXELS).round().max(1.0) as u32;
    let (width, height) = (size(drawing.width), size(drawing.height));
    let large = (width * OVERSAMPLING, height * OVERSAMPLING);
    let mut pixels = vec![255_u8; large.0 as usize * large.1 as usize * 3];
    let mut backend = BitMapBackend::with_buffer(&mut pixels, large);
    let scale = PIXELS * f64::from(OVERSAMPLING);
    // plotters' size is the font's height, and half of it is above the baseline of the place given.
    Renderer { backend: &mut backend, scale, size: LINE_HEIGHT, baseline: LINE_HEIGHT / 2.0 }.draw(drawing)?;
    drop(backend);
    encode(&averaged(&pixels, width as usize), width, height)
}

/// The mean of each block of OVERSAMPLING × OVERSAMPLING pixels; `width` is that of the result.
fn averaged(pixels: &[u8], width: usize) -> Vec<u8> {
    let factor = OVERSAMPLING as usize;
    let row = width * factor * 3;
    let mut result = Vec::with_capacity(pixels.len() / (factor * factor));
    for band in pixels.chunks_exact(row * factor) {
        let mut sums = vec![0_u32; width * 3];
        for line in band.chunks_exact(row) {
            for (block, sums) in line.chunks_exact(factor * 3).zip(sums.chunks_exact_mut(3)) {
                for pixel in block.chunks_exact(3) {
                    for (sum, channel) in sums.iter_mut().zip(pixel) {
                        *sum += u32::from(*channel);
                    }
                }
            }
        }
        let count = OVERSAMPLING * OVERSAMPLING;
        result.extend(sums.into_iter().map(|sum| ((sum + count / 2) / count) as u8));
    }
    result
}

/// plotters encodes only into a file of its own.
fn encode(pixels: &[u8], width: u32, height: u32) -> Result<Vec<u8>, RenderError> {
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("figure.png");
    let failed = |e: &dyn std::fmt::Display| RenderError::Backend(e.to_string());
    let mut backend = BitMapBackend::new(&path, (width, height));
    backend.blit_bitmap((0, 0), (width, height), pixels).map_err(|e| failed(&e))?;
    backend.present().map_err(|e| failed(&e))?;
    drop(backend);
    Ok(with_resolution(std::fs::read(&path)?))
}

/// Inserts the `pHYs` chunk behind the header, so that a page places the figure at its printed size.
fn with_resolution(mut png: Vec<u8>) -> Vec<u8> {
    /// Signature, then length, name, 13 bytes of content and checksum of `IHDR`.
    const HEADER: usize = 8 + 4 + 4 + 13 + 4;
    let per_metre = (300.0_f64 / 0.0254).round() as u32;
    let mut chunk = b"pHYs".to_vec();
    chunk.extend(per_metre.to_be_bytes());
    chunk.extend(per_metre.to_be_bytes());
    chunk.push(1);
    let checksum = crc32(&chunk);
    let mut whole = 9_u32.to_be_bytes().to_vec();
    whole.extend(chunk);
    whole.extend(checksum.to_be_bytes());
    if png.len() >= HEADER {
        png.splice(HEADER..HEADER, whole);
    }
    png
}

/// The checksum of PNG chunks (ISO 3309).
fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(u32::MAX, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| (crc >> 1) ^ (0xEDB8_8320 & (crc & 1).wrapping_neg()))
    })
}

struct Renderer<'a, B: DrawingBackend> {
    backend: &'a mut B,
    /// Backend units in a point.
    scale: f64,
    /// plotters' font size of one em.
    size: f64,
    /// Distance in em from the place that plotters takes down to the baseline.
    baseline: f64,
}

impl<B: DrawingBackend> Renderer<'_, B> {
    fn draw(&mut self, drawing: &Drawing) -> Result<(), RenderError> {
        let page = (0.0, 0.0, drawing.width, drawing.height);
        let corners = [(page.0, page.1), (page.2, page.1), (page.2, page.3), (page.0, page.3)];
        self.mark(&Mark::Polygon { spots: corners.to_vec(), ink: Ink::solid((255, 255, 255)) })?;
        drawing.marks.iter().try_for_each(|mark| self.mark(mark))
    }

    fn mark(&mut self, mark: &Mark) -> Result<(), RenderError> {
        match mark {
            Mark::Path { spots, thickness, ink } => {
                let style = ShapeStyle {
                    color: rgba(*ink),
                    filled: false,
                    stroke_width: (thickness * self.scale).round().max(1.0) as u32,
                };
                self.backend.draw_path(spots.iter().map(|spot| self.scaled(*spot)).collect::<Vec<_>>(), &style)
            }
            Mark::Polygon { spots, ink } => {
                let spots: Vec<_> = spots.iter().map(|spot| self.scaled(*spot)).collect();
                self.backend.fill_polygon(spots, &rgba(*ink).filled())
            }
            Mark::Text { text, at, em, anchor, upwards, ink } => {
                let shift = em * self.baseline;
                let (at, turn) = if *upwards {
                    ((at.0 - shift, at.1), FontTransform::Rotate270)
                } else {
                    ((at.0, at.1 - shift), FontTransform::None)
                };
                let side = match anchor {
                    Anchor::Start => HPos::Left,
                    Anchor::Middle => HPos::Center,
                    Anchor::End => HPos::Right,
                };
                let size = em * self.size * self.scale;
                let font = FontDesc::new(FontFamily::Name(FONT), size, FontStyle::Normal).transform(turn);
                let mut style = font.color(&rgba(*ink));
                style.pos = Pos::new(side, VPos::Top);
                let at = self.scaled(at);
                self.backend.draw_text(text, &style, at)
            }
        }
        .map_err(|e| RenderError::Backend(e.to_string()))
    }

    fn scaled(&self, (x, y): Spot) -> (i32, i32) {
        ((x * self.scale).round() as i32, (y * self.scale).round() as i32)
    }
}

fn rgba(ink: Ink) -> plotters::style::RGBAColor {
    RGBColor(ink.rgb.0, ink.rgb.1, ink.rgb.2).mix(ink.alpha)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_checksum_is_that_of_png() {
        assert_eq!(crc32(b"123456789"), 0xCBF4_3926);
        assert_eq!(crc32(b"IEND"), 0xAE42_6082);
    }

    #[test]
    fn a_png_has_its_size_its_resolution_and_its_ink() {
        let mut drawing = Drawing::new(72.0, "");
        drawing.height = 36.0;
        drawing.polygon(vec![(0.0, 0.0), (36.0, 0.0), (36.0, 36.0), (0.0, 36.0)], Ink::solid((10, 20, 30)));
        let png = drawing.png().unwrap();
        assert_eq!(&png[..8], b"\x89PNG\r\n\x1a\n");
        assert_eq!(&png[16..24], &[0, 0, 1, 44, 0, 0, 0, 150], "300 × 150 pixels");
        assert_eq!(&png[37..41], b"pHYs");
        let mut pixels = vec![255_u8; 900 * 450 * 3];
        pixels[..3].copy_from_slice(&[0, 255, 255]);
        assert_eq!(&averaged(&pixels, 300)[..6], &[227, 255, 255, 255, 255, 255]);
    }
}
