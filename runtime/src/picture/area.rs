//! Pictures to another size: by area when they shrink, bilinearly when they grow, the centre of another shape.

use super::axis::Axis;

/// The weights of one size; those of an axis add up to 1.
#[derive(Debug, Default)]
pub(crate) struct Area {
    columns: Axis<f32>,
    rows: Axis<f32>,
}

/// `out` values from inputs `start..start + len` (in fractions of an input) out of `inputs`.
// Sizes are exact in f64; indices come from products that lie between 0 and `inputs`.
#[allow(clippy::cast_precision_loss, clippy::cast_possible_truncation, clippy::cast_sign_loss)]
fn set(axis: &mut Axis<f32>, inputs: usize, start: f64, len: f64, out: usize) {
    axis.clear();
    let scale = len / out as f64;
    for i in 0..out {
        let (low, high) = (start + i as f64 * scale, start + (i + 1) as f64 * scale);
        if scale >= 1.0 {
            // By area: each input counts as much as it lies inside the output.
            let (first, last) = (low.floor() as usize, (high.ceil() as usize).min(inputs));
            let inside = |j: usize| (high.min((j + 1) as f64) - low.max(j as f64)).max(0.0);
            axis.push(first, (first..last).map(|j| (inside(j) / scale) as f32));
        } else {
            // Bilinear: between the two input centres around the output's centre.
            let centre = ((low + high) / 2.0 - 0.5).clamp(0.0, (inputs - 1) as f64);
            let first = (centre.floor() as usize).min(inputs.saturating_sub(2));
            let part = (centre - first as f64) as f32;
            axis.push(first, [1.0 - part, part].into_iter().take(inputs));
        }
    }
}

impl Area {
    /// Makes the weights for the largest centred part of `width` × `height` that has the shape of the result.
    #[allow(clippy::cast_precision_loss)]
    pub(super) fn set(&mut self, (width, height): (usize, usize), (columns, rows): (usize, usize)) {
        let (w, h) = (width as f64, height as f64);
        let scale = (w / columns as f64).min(h / rows as f64);
        let (used_w, used_h) = (scale * columns as f64, scale * rows as f64);
        set(&mut self.columns, width, (w - used_w) / 2.0, used_w, columns);
        set(&mut self.rows, height, (h - used_h) / 2.0, used_h, rows);
    }

    /// Columns and rows.
    pub(crate) fn axes(&self) -> [&Axis<f32>; 2] {
        [&self.columns, &self.rows]
    }

    /// Resizes `rgb`, rows of `stride` bytes, to `out [rows, columns, 3] u8`; `line [columns, 3]` holds an output row before the rows
    /// are added up.
    pub(super) fn run(&self, rgb: &[u8], stride: usize, line: &mut [f32], out: &mut [u8]) {
        for (out, &span) in out.chunks_exact_mut(line.len()).zip(self.rows.spans()) {
            line.fill(0.0);
            for (j, &weight) in self.rows.weights(span).iter().enumerate() {
                let row = &rgb[(span.first() + j) * stride..];
                for (line, &column) in line.as_chunks_mut::<3>().0.iter_mut().zip(self.columns.spans()) {
                    let pixels = row[column.first() * 3..].as_chunks::<3>().0;
                    for (&w, pixel) in self.columns.weights(column).iter().zip(pixels) {
                        for (line, &value) in line.iter_mut().zip(pixel) {
                            *line += weight * w * f32::from(value);
                        }
                    }
                }
            }
            // Weighted means of bytes: between 0 and 255 but for rounding, and `as` saturates.
            #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
            out.iter_mut().zip(&*line).for_each(|(out, v)| *out = v.round() as u8);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resize(rgb: &[u8], width: usize, height: usize, to: (usize, usize)) -> Vec<u8> {
        let mut area = Area::default();
        area.set((width, height), to);
        let (mut line, mut out) = (vec![7.0; to.0 * 3], vec![7; to.0 * to.1 * 3]);
        area.run(rgb, width * 3, &mut line, &mut out);
        out
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
}
