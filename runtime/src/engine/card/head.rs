//! What is behind the last block: logits of the head, the tokens that are picked from them, and what comes back to the host.

use std::ops::Range;

use super::Card;
use super::buffers::{CardBuffers, narrow};
use crate::Result;
use crate::cuda::launch::{At, Draws, Layer as LayerAt, Layers, MAX_PICKED, Parts};
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
        let (tokens, finite) = self.read_picked(n)?;
        picked.iter_mut().zip(tokens).for_each(|(to, &token)| *to = token as usize);
        Ok(finite)
    }

    /// The likeliest of some outputs of the head behind each of the rows, whose logits are computed of `together` rows at a time; and
    /// whether everything was a number.
    pub(crate) fn likeliest(
        &mut self,
        card: &Card,
        decoder: &Decoder,
        rows: Range<usize>,
        outputs: &Range<usize>,
        together: usize,
    ) -> Result<(&[u32], bool)> {
        let together = together.min(MAX_PICKED);
        for first in rows.clone().step_by(together) {
            let some = first..rows.end.min(first + together);
            let n = some.len();
            self.score(card, decoder, some, outputs.clone(), 0)?;
            let logits = Parts::alone(self.at(self.logits), narrow(outputs.len()));
            let (flag, at) = (self.at(self.flag), 4 * (1 + first - rows.start) as u64);
            card.device.pick(&logits, &Draws::default(), n, flag, flag + at)?;
        }
        self.read_picked(rows.len())
    }

    /// Picks a code by the logits of two rows of `width` that were scored, the free one and the guided one; and says whether everything
    /// was a number.
    pub(crate) fn pick_guided(
        &mut self,
        card: &Card,
        width: usize,
        guidance: f32,
        draw: Draw,
    ) -> Result<(usize, bool)> {
        let [logits, codes, mixed, flag] =
            [self.logits, self.codes, self.mixed, self.flag].map(|offset| self.at(offset));
        card.device.guide_logits((logits, width), (codes, self.n_codes), guidance, mixed)?;
        let mut draws = Draws::default();
        draws.0[0] = draw;
        card.device.pick(&Parts::alone(mixed, narrow(self.n_codes)), &draws, 1, flag, flag + 4)?;
        let (codes, finite) = self.read_picked(1)?;
        Ok((codes[0] as usize, finite))
    }

    /// Waits for `n` tokens that were picked, and says whether everything since the last time was a number.
    fn read_picked(&mut self, n: usize) -> Result<(&[u32], bool)> {
        let Self { memory, results, flag, .. } = self;
        memory.read_into(*flag, results, 0, 4 * (n + 1))?;
        memory.fill(*flag, 4)?;
        let words: &[u32] = bytemuck::cast_slice(&results.get()?[..4 * (n + 1)]);
        Ok((&words[1..], words[0] == 0))
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
