//! Pictures on a card: their bytes go there as they are, and kernels do there what a plan says.

use super::CardMaps;
use crate::Result;
use crate::cuda::launch::vision::{AxisAt, CanvasAt, PassAt, RawAt};
use crate::engine::card::narrow;
use crate::engine::maps::{Shape, Slot};
use crate::picture::{Picture, PixelFormat, Plan, Way};

impl CardMaps<'_> {
    /// Puts what a plan makes of a picture into `to`.
    ///
    /// The tables of the plan go along with each picture: they are about a hundredth of it, and so nothing has to be remembered of what
    /// lies on the card.
    pub(super) fn show(&mut self, to: Slot, plan: &Plan, picture: Picture<'_>) -> Result<()> {
        let x = self.put(to, Shape::picture(plan.canvas(), 3));
        let (tables, loaded) = (plan.tables(), self.b.loaded);
        // As many bytes for all pictures of a size, whether or not their last row has its padding.
        let bytes = &picture.bytes[..picture.sizes().0];
        let parts = || tables.into_iter().chain([bytes]);
        self.stage(parts().map(<[u8]>::len).sum(), loaded, |mut room| {
            for part in parts() {
                let (to, rest) = room.split_at_mut(part.len());
                to.copy_from_slice(part);
                room = rest;
            }
        })?;
        let mut at = self.b.at(loaded);
        let [levels, column_spans, column_weights, row_spans, row_weights] = tables.map(|table| {
            let table_at = at;
            at += table.len() as u64;
            table_at
        });
        let columns = AxisAt { spans: column_spans, weights: column_weights };
        let rows = AxisAt { spans: row_spans, weights: row_weights };
        let raw = RawAt {
            bytes: at,
            stride: picture.stride() as u64,
            height: narrow(picture.height),
            format: picture.format as i32,
        };
        let (height, width) = plan.canvas();
        let device = &self.card.device;
        let Way::Filter(filter) = &plan.way else {
            return Ok(device.area_to_map(raw, [columns, rows], levels, x, [width, height])?);
        };
        let (between, first) = (plan.between(), narrow(filter.first()));
        let (rest, down) = (self.b.at(self.b.between), i32::from(filter.rows_first));
        let [axis, last] = if filter.rows_first { [rows, columns] } else { [columns, rows] };
        let pass = PassAt { raw, axis, down, first: 0, beside: first };
        device.resample(&pass, rest, [between.0, between.1])?;
        let raw = RawAt {
            bytes: rest,
            stride: 3 * between.0 as u64,
            height: narrow(between.1),
            format: PixelFormat::Rgb as i32,
        };
        let pass = PassAt { raw, axis: last, down: 1 - down, first, beside: 0 };
        let Plan { columns, rows, background, .. } = plan;
        let canvas = CanvasAt {
            width: narrow(width),
            left: narrow(columns.before),
            top: narrow(rows.before),
            shown_width: narrow(columns.window.len),
            shown_height: narrow(rows.window.len),
            background: *background,
        };
        Ok(device.resample_to_map(&pass, &canvas, levels, x, width * height)?)
    }
}
