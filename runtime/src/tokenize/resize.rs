//! Pictures to the model's size: by area when they shrink, bilinearly when they grow, the centre of another shape.
//!
//! Filter weights depend on the sizes alone, so they are made when the size of the pictures changes and kept: the frame
//! loop allocates nothing. (fast_image_resize 6.1 makes them for every picture, 134 allocations for one of 192 × 192.)

use super::Picture;

/// Which inputs make one output, along one axis.
#[derive(Clone, Copy, Debug)]
struct Span {
    /// First input.
    first: usize,
    /// Its weights, in [`Axis::weights`].
    weights: (usize, usize),
}

/// One axis: `spans [out]`, each with its weights, which add up to 1.
#[derive(Debug, Default)]
struct Axis {
    spans: Vec<Span>,
    weights: Vec<f32>,
}

impl Axis {
    /// `out` values from inputs `start..start + len` (in fractions of an input) out of `inputs`.
    // Sizes are at most 2³², exact in f64; indices come from products that lie between 0 and `inputs`.
    #[allow(clippy::cast_precision_loss, clippy::cast_possible_truncation, clippy::cast_sign_loss)]
    fn set(&mut self, inputs: usize, start: f64, len: f64, out: usize) {
        self.spans.clear();
        self.weights.clear();
        let scale = len / out as f64;
        for i in 0..out {
            let (low, high) = (start + i as f64 * scale, start + (i + 1) as f64 * scale);
            let at = self.weights.len();
            let first = if scale >= 1.0 {
                // By area: each input counts as much as it lies inside the output.
                let (first, last) = (low.floor() as usize, (high.ceil() as usize).min(inputs));
                let inside = |j: usize| (high.min((j + 1) as f64) - low.max(j as f64)).max(0.0);
                self.weights.extend((first..last).map(|j| (inside(j) / scale) as f32));
                first
            } else {
                // Bilinear: between the two input centres around the output's centre.
                let centre = ((low + high) / 2.0 - 0.5).clamp(0.0, (inputs - 1) as f64);
                let first = (centre.floor() as usize).min(inputs.saturating_sub(2));
                let part = (centre - first as f64) as f32;
                let both = [1.0 - part, part];
                self.weights.extend(&both[..inputs.min(2)]);
                first
            };
            self.spans.push(Span { first, weights: (at, self.weights.len()) });
        }
    }

    fn weights(&self, span: Span) -> &[f32] {
        &self.weights[span.weights.0..span.weights.1]
    }
}

/// Resizes pictures to one size.
#[derive(Debug)]
pub(super) struct Resize {
    width: usize,
    height: usize,
    /// Columns and rows of the pictures that the axes were made for.
    from: (usize, usize),
    columns: Axis,
    rows: Axis,
    /// One output row before the rows are added up: `[width, 3]`.
    line: Vec<f32>,
    /// `[height, width, 3] u8`
    out: Vec<u8>,
}

impl Resize {
    /// For pictures of `width` × `height`.
    pub(super) fn new(width: usize, height: usize) -> Self {
        Self {
            width,
            height,
            from: (0, 0),
            columns: Axis::default(),
            rows: Axis::default(),
            line: vec![0.0; width * 3],
            out: vec![0; width * height * 3],
        }
    }

    /// The last result, `[height, width, 3] u8`.
    pub(super) fn out(&self) -> &[u8] {
        &self.out
    }

    /// Resizes the largest centred part of `picture` that has the right shape. The picture's sizes were checked.
    #[allow(clippy::cast_precision_loss)]
    pub(super) fn run(&mut self, picture: Picture<'_>) {
        if self.from != (picture.width, picture.height) {
            let (w, h) = (picture.width as f64, picture.height as f64);
            let scale = (w / self.width as f64).min(h / self.height as f64);
            let (used_w, used_h) = (scale * self.width as f64, scale * self.height as f64);
            self.columns.set(picture.width, (w - used_w) / 2.0, used_w, self.width);
            self.rows.set(picture.height, (h - used_h) / 2.0, used_h, self.height);
            self.from = (picture.width, picture.height);
        }
        let stride = picture.width * 3;
        for (out, &span) in self.out.chunks_exact_mut(self.width * 3).zip(&self.rows.spans) {
            self.line.fill(0.0);
            for (j, &weight) in self.rows.weights(span).iter().enumerate() {
                let row = &picture.rgb[(span.first + j) * stride..][..stride];
                for (line, &column) in self.line.chunks_exact_mut(3).zip(&self.columns.spans) {
                    let pixels = row[column.first * 3..].chunks_exact(3);
                    for (&w, pixel) in self.columns.weights(column).iter().zip(pixels) {
                        for (line, &value) in line.iter_mut().zip(pixel) {
                            *line += weight * w * f32::from(value);
                        }
                    }
                }
            }
            // Weighted means of bytes: between 0 and 255 but for rounding, and `as` saturates.
            #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
            out.iter_mut().zip(&self.line).for_each(|(out, v)| *out = v.round() as u8);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resize(rgb: &[u8], width: usize, height: usize, to: (usize, usize)) -> Vec<u8> {
        let mut resize = Resize::new(to.0, to.1);
        resize.run(Picture { rgb, width, height });
        resize.out().to_vec()
    }

    fn grey(values: &[u8]) -> Vec<u8> {
        values.iter().flat_map(|&v| [v, v, v]).collect()
    }

    #[test]
    fn hand_computed_sizes() {
        let four = grey(&[0, 10, 20, 30, 40, 50, 60, 70, 80, 90, 100, 110, 120, 130, 140, 150]);
        assert_eq!(resize(&four, 4, 4, (4, 4)), four, "the same size changes nothing");
        assert_eq!(resize(&four, 4, 4, (2, 2)), grey(&[25, 45, 105, 125]), "means of 2 × 2");
        assert_eq!(
            resize(&grey(&[0, 30, 60]), 3, 1, (2, 1)),
            grey(&[15, 45])[..],
            "the middle of 3 × 1 is 2 × 1 at 1.0"
        );
        assert_eq!(
            resize(&grey(&[0, 100]), 2, 1, (4, 2)),
            grey(&[0, 25, 75, 100, 0, 25, 75, 100]),
            "bilinear"
        );
        assert_eq!(resize(&grey(&[7]), 1, 1, (2, 2)), grey(&[7, 7, 7, 7]));
    }

    #[test]
    fn a_wide_picture_loses_its_sides() {
        let wide = grey(&[255, 1, 3, 255, 255, 5, 7, 255]);
        assert_eq!(resize(&wide, 4, 2, (2, 2)), grey(&[1, 3, 5, 7]));
    }

    #[test]
    fn a_flat_picture_stays_flat_at_every_size() {
        for (width, height) in
            [(1, 1), (2, 3), (63, 64), (64, 64), (65, 64), (100, 77), (640, 480), (1921, 1080)]
        {
            let flat = vec![201; width * height * 3];
            assert!(resize(&flat, width, height, (64, 64)).iter().all(|&v| v == 201), "{width} × {height}");
        }
    }

    #[test]
    fn weights_are_kept_until_the_size_changes() {
        let mut resize = Resize::new(2, 2);
        let four = grey(&[0, 10, 20, 30, 40, 50, 60, 70, 80, 90, 100, 110, 120, 130, 140, 150]);
        resize.run(Picture { rgb: &four, width: 4, height: 4 });
        resize.run(Picture { rgb: &four[..12], width: 2, height: 2 });
        assert_eq!(resize.out(), &four[..12]);
        resize.run(Picture { rgb: &four, width: 4, height: 4 });
        assert_eq!(resize.out(), grey(&[25, 45, 105, 125]));
    }
}
