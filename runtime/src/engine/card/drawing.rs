//! Drawing on a card: codes that were drawn into input vectors, and what the decoder gives into logits of codes.

use std::ops::Range;

use super::buffers::{Beside, CardBuffers};
use super::{Card, DRAWN, narrow};
use crate::Result;
use crate::cuda::launch::{At, InputAt, Tables};
use crate::decoder::Decoder;
use crate::engine::maps::Biased;
use crate::family::janus::Drawing;

/// The layers around the decoder of a model that draws, and what they work in.
pub(super) struct CardDrawing {
    /// With the vectors of codes alone, `[codebook_size, code_dim]`.
    codes: Tables,
    aligner: Vec<Biased>,
    head: [Biased; 2],
    /// `[rows, widest]` each.
    rooms: [usize; 2],
}

impl CardDrawing {
    /// Values of the longest row between the layers, and of what goes into them.
    pub(super) fn widest(beside: Beside<'_>) -> usize {
        let Beside::Drawing(net) = beside else { return 0 };
        let aligned = net.aligner.iter().map(|layer| layer.weight.k.max(layer.weight.n));
        aligned.chain([net.head[0].weight.n]).max().unwrap_or(0)
    }

    pub(super) fn new(card: &Card, net: &Drawing, rooms: [usize; 2]) -> Self {
        let mut codes = Tables { d: narrow(net.embed.k), ..Tables::default() };
        codes.table[DRAWN as usize] = card.rows_of(&net.embed);
        Self { codes, aligner: net.aligner.clone(), head: net.head.clone(), rooms }
    }
}

impl CardBuffers {
    /// Puts the input vectors of the codes that are among the `rows` of a step into `x [rows, d_model]`.
    pub(super) fn align(&self, card: &Card, [rows, d_model]: [usize; 2]) -> Result<()> {
        let Some(drawing) = &self.drawing else { return Ok(()) };
        let codes = self.at(drawing.rooms[1]);
        let mut first = 0;
        for inputs in self.inputs[..rows].chunk_by(|a, b| a.table == b.table) {
            if inputs[0].table == DRAWN {
                let list = self.lists_at + self.lists.inputs + first * size_of::<InputAt>();
                card.device.embed(&drawing.codes, self.at(list), inputs.len(), codes)?;
                let x = self.at(self.x + 4 * first * d_model);
                self.through(card, &drawing.aligner, (codes, (0, 0.0)), inputs.len(), x)?;
            }
            first += inputs.len();
        }
        Ok(())
    }

    /// The logits of some rows over codes, in the stream; [`Self::read_logits`] waits for them.
    pub(crate) fn score_codes(&mut self, card: &Card, decoder: &Decoder, rows: Range<usize>) -> Result<()> {
        let drawing = self.drawing.as_ref().expect("a session of a model that draws");
        let from = self.given(card, decoder, rows.start);
        self.through(card, &drawing.head, from, rows.len(), self.at(self.logits))
    }

    /// Linear layers over rows with GELU between them; before the first a norm, if there is one.
    fn through(
        &self,
        card: &Card,
        layers: &[Biased],
        from: (At, (At, f32)),
        rows: usize,
        out: At,
    ) -> Result<()> {
        let drawing = self.drawing.as_ref().expect("a session of a model that draws");
        let mut from = from;
        for (i, Biased { weight, bias }) in layers.iter().enumerate() {
            if i > 0 {
                card.device.gelu_map(from.0, rows * weight.k)?;
            }
            let to = if i + 1 == layers.len() { out } else { self.at(drawing.rooms[i % 2]) };
            self.layer(card, (weight, card.at(bias.place())), from, rows, 0..weight.n, to)?;
            from = (to, (0, 0.0));
        }
        Ok(())
    }
}
