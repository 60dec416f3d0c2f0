//! Pictures on the emulated card against the CPU, bit for bit.

use std::sync::Arc;

use super::emulator;
use super::models::{both, nano};
use crate::engine::maps::{Canvas, Maps, Slot};
use crate::family::Model;
use crate::kernels::tests::compare::assert_same;
use crate::picture::tests::{formats, noise};
use crate::picture::{Area, Picture, Place, Plan, Way};
use crate::tokenize::pixels::tests::{FAMILIES, config};
use crate::tokenize::{Filter, Fit, PixelConfig, Pixels, ResizeRule};

/// Widths and heights: lines, odd ones, larger and smaller than results, and some whose rows are resized first.
const SIZES: [(usize, usize); 13] = [
    (1, 1),
    (1, 150),
    (150, 1),
    (3, 7),
    (5, 5),
    (64, 64),
    (37, 83),
    (41, 97),
    (90, 40),
    (33, 21),
    (199, 2),
    (320, 181),
    (640, 33),
];

/// The same two machines, each with its buffers, for one picture after the other.
struct Both([(Arc<Model>, Canvas); 2]);

impl Both {
    fn new() -> Self {
        Self(both(&nano()).map(|model| (model, Canvas::new("a test"))))
    }

    /// Whether both make the same of a picture.
    fn compare(&mut self, plan: &Plan, picture: Picture<'_>, what: &str) -> Vec<f32> {
        let [cpu, card] = self.0.each_mut().map(|(model, canvas)| {
            let show = |m: &mut dyn Maps| {
                m.load_picture(Slot::X, plan, picture)?;
                m.give(Slot::X)
            };
            canvas.run(model.machine(), &show).unwrap().to_vec()
        });
        assert_same(&card, &cpu, what);
        cpu
    }
}

/// A number of its own for every byte of a channel.
#[allow(clippy::cast_precision_loss)]
fn levels() -> [[f32; 256]; 3] {
    std::array::from_fn(|c| std::array::from_fn(|byte| (c * 256 + byte) as f32 / 7.0 - 50.0))
}

#[test]
fn pictures_are_resized_by_area_as_on_the_cpu() {
    super::each_block(by_area);
}

fn by_area() {
    let mut both = Both::new();
    for (columns, rows) in [(64, 64), (5, 3), (1, 7), (33, 50)] {
        let mut plan = Plan::new(Way::Area(Area::default()), [0; 3], levels());
        for (width, height) in SIZES {
            let places = (Place::on(columns, columns), Place::on(rows, rows));
            plan.make((width, height), places, 0).unwrap();
            let rgb = noise(width, height);
            let picture = Picture::rgb(&rgb, width, height);
            let what = format!("{width} × {height} to {columns} × {rows}");
            assert_eq!(both.compare(&plan, picture, &what).len(), columns * rows * 3);
        }
    }
    assert!(emulator::launches("area_to_map") > 0);
}

#[test]
fn pictures_are_resized_by_filters_as_on_the_cpu() {
    super::each_block(by_filters);
}

fn by_filters() {
    let mut both = Both::new();
    let crop = |width, height| PixelConfig {
        resize: ResizeRule::LongestEdge { px: 40, min_px: 3 },
        filter: Filter::Lanczos,
        fit: Fit::CentreCrop { width, height },
        ..config("janus")
    };
    let families = FAMILIES.map(|(family, _)| config(family));
    // Larger than the resized picture, smaller, and both.
    for config in families.into_iter().chain([crop(64, 51), crop(7, 2), crop(90, 9)]) {
        let mut pixels = Pixels::new(&config).unwrap();
        for (width, height) in SIZES {
            let rgb = noise(width, height);
            let picture = Picture::rgb(&rgb, width, height);
            let what = format!("{width} × {height}, {config:?}");
            let found = both.compare(pixels.plan(picture).unwrap(), picture, &what);
            assert_same(&found, pixels.run(picture).unwrap().values, &what);
        }
    }
    for kernel in ["resample", "resample_to_map"] {
        assert!(emulator::launches(kernel) > 0, "{kernel}");
    }
}

#[test]
fn pictures_of_every_format_are_as_on_the_cpu() {
    let mut both = Both::new();
    let mut area = Plan::new(Way::Area(Area::default()), [0; 3], levels());
    for (width, height) in SIZES {
        area.make((width, height), (Place::on(11, 11), Place::on(6, 6)), 0).unwrap();
        for (format, stride, bytes) in formats(width, height) {
            let picture = Picture { bytes: &bytes, format, width, height, stride };
            let what = format!("{format} {width} × {height} in rows of {stride}");
            both.compare(&area, picture, &what);
            for (family, _) in FAMILIES {
                let mut pixels = Pixels::new(&config(family)).unwrap();
                let found = both.compare(pixels.plan(picture).unwrap(), picture, &what);
                assert_same(&found, pixels.run(picture).unwrap().values, &what);
            }
        }
    }
}
