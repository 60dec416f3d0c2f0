//! The test pattern: shapes that move, the same ones at every run and on every machine.

use std::time::{Duration, Instant};

use super::Frame;
use super::decode::elapsed_ns;
use super::error::SourceError;
use super::recorded::{DEFAULT_RATE_HZ, Next, Playback, Recorded, Recording};
use super::uri::{Query, SourceOptions};

/// Size where the URI and the options say nothing, in pixels.
const DEFAULT_SIZE: (u32, u32) = (640, 480);
/// Frames after which the picture is the first one again.
const CYCLE: u64 = 240;

/// The test pattern as a recording.
#[derive(Debug)]
pub(super) struct Pattern {
    width: u32,
    height: u32,
    /// How many frames there are; none means no end.
    frames: Option<u64>,
    index: u64,
}

impl Pattern {
    /// Opens `test://pattern?width=&height=&rate=&frames=&pace=&loop=`.
    pub(super) fn open(query: &Query, options: &SourceOptions) -> Result<Recorded<Self>, SourceError> {
        query.allow(&["width", "height", "rate", "frames", "pace", "loop"])?;
        let width = query.width()?.or(options.width).unwrap_or(DEFAULT_SIZE.0);
        let height = query.height()?.or(options.height).unwrap_or(DEFAULT_SIZE.1);
        let playback = Playback::new(query, options)?;
        let pattern = Self { width, height, frames: query.frames()?, index: 0 };
        let kind = "test pattern".to_owned();
        Ok(Recorded::new(pattern, &query.uri, kind, (width, height), Some(DEFAULT_RATE_HZ), playback))
    }
}

impl Recording for Pattern {
    fn next(&mut self, frame: &mut Frame, _timeout: Duration) -> Result<Next, SourceError> {
        if self.frames.is_some_and(|frames| self.index >= frames) {
            return Ok(Next::End);
        }
        let start = Instant::now();
        frame.resize(self.width, self.height);
        draw(self.index % CYCLE, frame);
        self.index += 1;
        frame.decode_ns = elapsed_ns(start);
        Ok(Next::Frame)
    }

    fn rewind(&mut self) -> Result<(), SourceError> {
        self.index = 0;
        Ok(())
    }
}

/// Draws picture `t` of the cycle in whole numbers alone: a slope of grey, a red square that goes from side to side,
/// a green disc that goes up and down, and a blue bar that sweeps through.
fn draw(t: u64, frame: &mut Frame) {
    let (w, h) = (i64::from(frame.width), i64::from(frame.height));
    let t = i64::try_from(t).unwrap_or(0);
    let cycle = CYCLE.cast_signed();
    // 0 to 1 and back once a cycle, in 1/256.
    let swing = |phase: i64| {
        let x = (t * 2 + phase).rem_euclid(cycle) * 512 / cycle;
        if x < 256 { x } else { 511 - x }
    };
    let side = w.min(h) / 4;
    let (square_x, square_y) = ((w - side) * swing(0) / 255, h / 8);
    let (disc_x, disc_y, radius) = (w * 3 / 4, side / 2 + (h - side) * swing(60) / 255, side / 2);
    let (bar_x, bar_w) = (w * t / cycle, (w / 32).max(1));
    for (y, row) in (0..).zip(frame.rgb.chunks_exact_mut(frame.width as usize * 3)) {
        for (x, rgb) in (0..).zip(row.chunks_exact_mut(3)) {
            let in_square =
                (square_x..square_x + side).contains(&x) && (square_y..square_y + side).contains(&y);
            let (dx, dy) = (x - disc_x, y - disc_y);
            rgb.copy_from_slice(&if dx * dx + dy * dy <= radius * radius {
                [30, 200, 60]
            } else if in_square {
                [220, 40, 40]
            } else if (bar_x..bar_x + bar_w).contains(&x) {
                [50, 80, 230]
            } else {
                let grey = u8::try_from(60 + 100 * x / w + 60 * y / h).unwrap_or(u8::MAX);
                [grey; 3]
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn picture(t: u64, width: u32) -> Frame {
        let mut frame = Frame::default();
        frame.resize(width, width * 3 / 4);
        draw(t, &mut frame);
        frame
    }

    #[test]
    fn every_picture_differs_from_the_last_and_the_cycle_closes() {
        // From 240 pixels of width on, the bar moves at every picture.
        let all: Vec<_> = (0..=CYCLE).map(|t| picture(t % CYCLE, 240)).collect();
        assert!(all.windows(2).all(|pair| pair[0].rgb != pair[1].rgb));
        assert!(all[0].rgb == all[240].rgb);
    }

    #[test]
    fn the_pattern_is_the_same_on_every_machine() {
        let hash = |t| blake3::hash(&picture(t, 64).rgb).to_hex().to_string()[..16].to_owned();
        assert_eq!([hash(0), hash(77)], ["da70b7d350d4a5f6", "916e8a9f6e5c77ea"]);
    }

    #[test]
    fn the_shapes_stay_inside_small_and_large_pictures() {
        for (width, height) in [(16, 16), (16, 4096), (4096, 16), (17, 31)] {
            let mut frame = Frame::default();
            frame.resize(width, height);
            for t in [0, 59, 119, 239] {
                draw(t, &mut frame);
                assert!(frame.rgb.chunks_exact(3).any(|rgb| rgb == [220, 40, 40]), "{width} {height} {t}");
                assert!(frame.rgb.chunks_exact(3).any(|rgb| rgb == [30, 200, 60]), "{width} {height} {t}");
            }
        }
    }
}
