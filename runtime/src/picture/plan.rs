//! How pictures of one size become the input of a network.

use super::{Area, Filter, Picture, PixelFormat, Resample, Window};

/// What every byte of a channel becomes: `[channel, byte]`.
pub(crate) type Levels = [[f32; 256]; 3];

/// By which weights pictures are resized.
#[derive(Debug)]
pub(crate) enum Way {
    /// By area when they shrink, bilinearly when they grow; the centre of another shape.
    Area(Area),
    /// By a filter, as Pillow does.
    Filter(Resample),
}

/// Where one axis of a resized picture goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Place {
    /// What is shown of it.
    pub(crate) window: Window,
    /// Pixels of the result before it.
    pub(crate) before: usize,
    /// Pixels of the result.
    pub(crate) canvas: usize,
}

impl Place {
    /// In the middle of `canvas` pixels, at least as many as the axis has; rounded to the start.
    pub(crate) const fn on(resized: usize, canvas: usize) -> Self {
        Self { window: Window::whole(resized), before: (canvas - resized) / 2, canvas }
    }

    /// The middle of it, rounded to its start; what it is too short for is shared out, rounded to its end.
    pub(crate) const fn cropped(resized: usize, canvas: usize) -> Self {
        if resized < canvas {
            return Self { window: Window::whole(resized), before: (canvas - resized).div_ceil(2), canvas };
        }
        let window = Window { out: resized, first: (resized - canvas) / 2, len: canvas };
        Self { window, before: 0, canvas }
    }
}

/// What is done with pictures of one size. Weights depend on the sizes alone, so they are made when the size changes and kept: the frame
/// loop allocates nothing. (`fast_image_resize` 6.1 makes them for every picture, 134 allocations for one of 192 × 192.)
#[derive(Debug)]
pub(crate) struct Plan {
    pub(crate) way: Way,
    /// The colour around the resized picture.
    pub(crate) background: [u8; 3],
    levels: Levels,
    /// Columns and rows of the pictures; nothing yet, or after a refusal.
    size: Option<(usize, usize)>,
    pub(crate) columns: Place,
    pub(crate) rows: Place,
}

impl Plan {
    /// For no pictures yet.
    pub(crate) fn new(way: Way, background: [u8; 3], levels: Levels) -> Self {
        let nothing = Place::on(0, 0);
        Self { way, background, levels, size: None, columns: nothing, rows: nothing }
    }

    /// Whether this is for pictures of `size`, columns and rows.
    pub(crate) fn is_for(&self, size: (usize, usize)) -> bool {
        self.size == Some(size)
    }

    /// Makes it for pictures of `size`, at most [`MAX_SIDE_PX`](super::MAX_SIDE_PX) a side. If the two passes of a filter had more than
    /// `most` pixels between them, it is for no pictures, and says how many.
    pub(crate) fn make(
        &mut self,
        size: (usize, usize),
        (columns, rows): (Place, Place),
        most: usize,
    ) -> Result<(), usize> {
        self.size = None;
        match &mut self.way {
            Way::Area(area) => area.set(size, (columns.window.out, rows.window.out)),
            Way::Filter(filter) => filter.set(size, (columns.window, rows.window)),
        }
        let (width, height) = self.between();
        let between = width.saturating_mul(height);
        if between > most {
            return Err(between);
        }
        (self.size, self.columns, self.rows) = (Some(size), columns, rows);
        Ok(())
    }

    /// The filter and whether it goes over rows first; nothing where pictures are resized by area.
    pub(crate) fn filter(&self) -> Option<(Filter, bool)> {
        match &self.way {
            Way::Area(_) => None,
            Way::Filter(resample) => Some((resample.filter(), resample.rows_first)),
        }
    }

    /// Rows and columns of the result.
    pub(crate) fn canvas(&self) -> (usize, usize) {
        (self.rows.canvas, self.columns.canvas)
    }

    /// Columns and rows of what lies between the two passes of a filter.
    pub(crate) fn between(&self) -> (usize, usize) {
        match &self.way {
            Way::Area(_) => (0, 0),
            Way::Filter(filter) => filter.between(),
        }
    }

    /// What a card reads: levels, then spans and weights of the columns and of the rows.
    pub(crate) fn tables(&self) -> [&[u8]; 5] {
        let [[a, b], [c, d]] = match &self.way {
            Way::Area(area) => area.axes().map(|axis| axis.tables()),
            Way::Filter(filter) => filter.axes().map(|axis| axis.tables()),
        };
        [bytemuck::cast_slice(&self.levels), a, b, c, d]
    }

    /// What the CPU needs room for: bytes of the picture as RGB where it is not, bytes between the passes, bytes of the resized picture,
    /// and sums of a row.
    pub(crate) fn rooms(&self, picture: Picture<'_>) -> [usize; 4] {
        let rgb = if picture.format == PixelFormat::Rgb { 0 } else { picture.width * picture.height };
        let (width, height) = self.between();
        let shown = self.columns.window.len * self.rows.window.len;
        let line = match &self.way {
            Way::Area(_) => self.columns.window.len,
            Way::Filter(_) => width,
        };
        [rgb, width * height, shown, line].map(|pixels| 3 * pixels)
    }

    /// A picture of the size that this is for, whose bytes were checked, as the numbers of `x [height, width, 3]`.
    pub(crate) fn run(&self, picture: Picture<'_>, scratch: &mut Scratch, x: &mut [f32]) {
        assert!(self.is_for((picture.width, picture.height)), "a plan is for pictures of one size");
        let Self { columns, rows, .. } = self;
        let ([rgb, between, out], line) = scratch.rooms(self.rooms(picture));
        let (rgb, stride): (&[u8], _) = if picture.format == PixelFormat::Rgb {
            (picture.bytes, picture.stride())
        } else {
            picture.write_rgb(rgb);
            (rgb, picture.width * 3)
        };
        match &self.way {
            Way::Area(area) => area.run(rgb, stride, line, out),
            Way::Filter(filter) => filter.run(rgb, stride, (between, bytemuck::cast_slice_mut(line)), out),
        }
        let x = x.as_chunks_mut::<3>().0;
        if columns.window.len < columns.canvas || rows.window.len < rows.canvas {
            x.fill(self.look_up(self.background));
        }
        let shown = out.as_chunks::<3>().0.chunks_exact(columns.window.len);
        for (x, shown) in x.chunks_exact_mut(columns.canvas).skip(rows.before).zip(shown) {
            for (x, pixel) in x[columns.before..].iter_mut().zip(shown) {
                *x = self.look_up(*pixel);
            }
        }
    }

    /// What the bytes of a pixel become.
    fn look_up(&self, pixel: [u8; 3]) -> [f32; 3] {
        std::array::from_fn(|c| self.levels[c][usize::from(pixel[c])])
    }
}

/// What the CPU works in: allocated for the largest plan that was followed.
#[derive(Debug, Default)]
pub(crate) struct Scratch {
    bytes: [Vec<u8>; 3],
    line: Vec<f32>,
}

impl Scratch {
    /// As large as [`Plan::rooms`] says.
    pub(crate) fn new([rgb, between, out, line]: [usize; 4]) -> Self {
        Self { bytes: [rgb, between, out].map(|n| vec![0; n]), line: vec![0.0; line] }
    }

    /// The first so many of each, which allocates where there are fewer.
    fn rooms(&mut self, [rgb, between, out, line]: [usize; 4]) -> ([&mut [u8]; 3], &mut [f32]) {
        let [a, b, c] = &mut self.bytes;
        ([room(a, rgb), room(b, between), room(c, out)], room(&mut self.line, line))
    }
}

fn room<T: Copy + Default>(of: &mut Vec<T>, len: usize) -> &mut [T] {
    if of.len() < len {
        of.resize(len, T::default());
    }
    &mut of[..len]
}
