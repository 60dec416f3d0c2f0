//! What is behind the last block: logits of the head, the tokens that are picked from them, and what comes back to the host.

use std::ops::Range;

use super::Card;
use super::buffers::{CardBuffers, narrow};
use crate::Result;
use crate::cuda::launch::{At, Draws, Layer as LayerAt, Layers, Parts};
use crate::decoder::Decoder;
use crate::sample::Draw;
use crate::weights::{LinearPlace, LinearRef};

impl CardBuffers {
    /// The logits of the rows from `first` to below `end` over outputs `range` of the head, in the stream; [`Self::read_logits`]
    /// waits for them.
    pub(crate) fn score(
        &mut self,
        card: &Card,
        decoder: &Decoder,
        rows: Range<usize>,
        range: Range<usize>,
        offset: usize,
    ) -> Result<()> {
        let out = self.at(self.logits) + 4 * offset as u64;
        let from = self.given(card, decoder, rows.start);
        self.layer(card, (&decoder.head, 0), from, rows.len(), range, out)
    }

    /// What the decoder gives of the rows from `first` on, and the norm that it goes through.
    pub(super) fn given(&self, card: &Card, decoder: &Decoder, first: usize) -> (At, (At, f32)) {
        let c = &decoder.config;
        let x = self.at(self.x) + (4 * first * c.d_model) as u64;
        (x, (card.at(decoder.norm.place()), c.norm_eps))
    }

    /// Outputs `range` of a layer with its bias over `n` rows, which go through a norm first if there is one.
    pub(super) fn layer(
        &self,
        card: &Card,
        (layer, bias): (&LinearRef, At),
        (x, norm): (At, (At, f32)),
        n: usize,
        range: Range<usize>,
        out: At,
    ) -> Result<()> {
        let (device, k) = (&card.device, layer.k);
        let (at, place) = layer.place();
        match place {
            LinearPlace::Tiles { scale, parts } => {
                let (q, x_scale) = (self.at(self.quantised), self.at(self.scale));
                let layer = LayerAt {
                    tiles: card.at(at),
                    scale: card.at(scale),
                    bias,
                    out,
                    first: narrow(range.start),
                    end: narrow(range.end),
                };
                let layers = Layers::alone(layer, narrow(k), narrow(parts));
                device.quantise_rows(x, norm, [n, k, parts], q, x_scale)?;
                device.linear_i8(&layers, q, x_scale, n * parts)?;
            }
            LinearPlace::Rows { half } => {
                let normed = self.at(self.normed);
                if norm.0 != 0 {
                    device.rms_norm_rows(x, norm, [n, k], normed, false)?;
                }
                let x = if norm.0 == 0 { x } else { normed };
                let w = (card.at(at), half);
                device.linear_float(x, w, bias, out, [n, k], [range.start, range.end], false)?;
            }
        }
        Ok(())
    }

    /// Picks the token behind each of the rows over two parts of the head's outputs, and says whether everything was a number. An index
    /// counts from the first part on, what stands between the parts included.
    pub(crate) fn pick(
        &mut self,
        card: &Card,
        decoder: &Decoder,
        rows: Range<usize>,
        parts: &[Range<usize>; 2],
        draws: impl Iterator<Item = Draw>,
        picked: &mut [usize],
    ) -> Result<bool> {
        let n = rows.len();
        let mut logits = Parts { width: parts.each_ref().map(|part| narrow(part.len())), ..Parts::default() };
        let mut offset = 0;
        for (part, at) in parts.iter().zip(&mut logits.at).filter(|(part, _)| !part.is_empty()) {
            *at = self.at(self.logits) + 4 * offset as u64;
            self.score(card, decoder, rows.clone(), part.clone(), offset)?;
            offset += n * part.len();
        }
        logits.gap = narrow(parts[1].start.saturating_sub(parts[0].end));
        let mut of_rows = Draws::default();
        of_rows.0.iter_mut().zip(draws).for_each(|(of_row, draw)| *of_row = draw);
        let flag = self.at(self.flag);
        card.device.pick(&logits, &of_rows, n, flag, flag + 4)?;
        let Self { memory, results, flag, .. } = self;
        memory.read_into(*flag, results, 0, 4 * (n + 1))?;
        memory.fill(*flag, 4)?;
        let words: &[u32] = bytemuck::cast_slice(&results.get()?[..4 * (n + 1)]);
        picked.iter_mut().zip(&words[1..]).for_each(|(to, &token)| *to = token as usize);
        Ok(words[0] == 0)
    }

    /// Waits for `n` logits, and says whether everything since the last time was a number.
    pub(crate) fn read_logits(&mut self, n: usize) -> Result<(&[f32], bool)> {
        let Self { memory, results, flag, logits, .. } = self;
        memory.read_into(*flag, results, 0, 4)?;
        memory.fill(*flag, 4)?;
        memory.read_into(*logits, results, 4, 4 * n)?;
        let words: &[u32] = bytemuck::cast_slice(&results.get()?[..4 * (n + 1)]);
        Ok((bytemuck::cast_slice(&words[1..]), words[0] == 0))
    }
}
