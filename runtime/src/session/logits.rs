//! Rows behind the last block into logits of what may come next.

use std::ops::Range;

#[cfg(feature = "cuda")]
use super::forward::numbers;
use super::forward::{Buffers, OnLogits, check_finite};
use super::grammar::Next;
use crate::Result;
use crate::family::Model;
use crate::kernels::Epilogue;
use crate::vit;

impl Buffers {
    /// Gives the logits of some rows of `x` over what may come next to `on_logits`, in order.
    ///
    /// # Errors
    /// If one is not a number.
    pub(super) fn score(
        &mut self,
        model: &Model,
        rows: Range<usize>,
        next: &Next,
        on_logits: OnLogits<'_>,
    ) -> Result<()> {
        let (span, ids) = (model.code_span(), model.config().code_ids());
        match next {
            Next::Only(_) => self.settle(),
            Next::Code if ids.is_empty() => self.score_own_codes(model, rows, on_logits),
            Next::Code => {
                let mut row = std::mem::take(&mut self.row);
                let scored = self.score_parts(model, rows, [span.clone(), 0..0], &mut |at, [logits, _]| {
                    for (logit, id) in row.iter_mut().zip(ids) {
                        *logit = logits[(id - span.start) as usize];
                    }
                    on_logits(at, &row[..ids.len()]);
                });
                self.row = row;
                scored
            }
            Next::Token(range) | Next::Any(range) if ids.is_empty() || matches!(next, Next::Any(_)) => {
                let parts = [range.clone(), 0..0];
                self.score_parts(model, rows, parts, &mut |at, [logits, _]| on_logits(at, logits))
            }
            Next::Token(range) | Next::Any(range) => self.score_text(model, rows, range, on_logits),
        }
    }

    /// The same of text in a vocabulary that has the codes of pictures too: these are minus infinity, and where they stand together not
    /// computed.
    fn score_text(
        &mut self,
        model: &Model,
        rows: Range<usize>,
        range: &Range<u32>,
        on_logits: OnLogits<'_>,
    ) -> Result<()> {
        let ids = model.config().code_ids();
        let (parts, alone) = said(model, range);
        let mut row = std::mem::take(&mut self.row);
        let scored = self.score_parts(model, rows, parts, &mut |at, [before, behind]| {
            let row = &mut row[..range.len()];
            row[..before.len()].copy_from_slice(before);
            if alone {
                row[before.len()..][..ids.len()].fill(f32::NEG_INFINITY);
                row[before.len() + ids.len()..].copy_from_slice(behind);
            } else {
                ids.iter().for_each(|id| row[(id - range.start) as usize] = f32::NEG_INFINITY);
            }
            on_logits(at, row);
        });
        self.row = row;
        scored
    }

    /// The same over codes that are no tokens, by the head that the model has for them.
    fn score_own_codes(&mut self, model: &Model, rows: Range<usize>, on_logits: OnLogits<'_>) -> Result<()> {
        let (e, w, decoder) = (model.engine(), model.weights(), model.decoder());
        let (c, (_, net)) = (&decoder.config, model.janus()?);
        #[cfg(feature = "cuda")]
        if let (Some(card), Some(buffers)) = (model.card(), &mut self.card) {
            let codes = net.drawing.head[1].weight.n;
            let together = (self.logits.len() / codes).max(1);
            for first in rows.clone().step_by(together) {
                let rows = first..rows.end.min(first + together);
                buffers.score_codes(card, decoder, rows.clone())?;
                let (found, finite) = buffers.read_logits(rows.len() * codes)?;
                numbers(finite)?;
                check_finite(found)?;
                rows.zip(found.chunks_exact(codes)).for_each(|(row, logits)| on_logits(row, logits));
            }
            return Ok(());
        }
        let [x, spare] = &mut self.drawing;
        x.clear();
        x.extend_from_slice(&self.x[rows.start * c.d_model..rows.end * c.d_model]);
        e.rms_norm_inplace(x, decoder.norm.get(w), c.norm_eps);
        vit::through(&net.drawing.head, (e, w), x, spare, &mut self.scratch.activations);
        check_finite(x)?;
        let width = x.len() / rows.len().max(1);
        rows.zip(x.chunks_exact(width.max(1))).for_each(|(row, logits)| on_logits(row, logits));
        Ok(())
    }

    /// Gives the logits of some rows of `x` over two ranges of token ids to `on_logits`, in order.
    ///
    /// # Errors
    /// If one is not a number.
    fn score_parts(
        &mut self,
        model: &Model,
        rows: Range<usize>,
        parts: [Range<u32>; 2],
        on_logits: &mut dyn FnMut(usize, [&[f32]; 2]),
    ) -> Result<()> {
        let (e, w, decoder) = (model.engine(), model.weights(), model.decoder());
        let c = &decoder.config;
        let (head, a) = (decoder.head.get(w), &mut self.scratch.activations);
        let widths = [parts[0].len(), parts[1].len()];
        let together = (self.logits.len() / (widths[0] + widths[1])).max(1);
        for first in rows.clone().step_by(together) {
            let rows = first..rows.end.min(first + together);
            let out = &mut self.logits[..rows.len() * (widths[0] + widths[1])];
            #[cfg(feature = "cuda")]
            let on_card = match (model.card(), &mut self.card) {
                (Some(card), Some(buffers)) => {
                    let mut offset = 0;
                    for part in parts.iter().filter(|part| !part.is_empty()) {
                        let outputs = part.start as usize..part.end as usize;
                        buffers.score(card, decoder, rows.clone(), outputs, offset)?;
                        offset += rows.len() * part.len();
                    }
                    let (found, finite) = buffers.read_logits(out.len())?;
                    numbers(finite)?;
                    check_finite(found)?;
                    out.copy_from_slice(found);
                    true
                }
                _ => false,
            };
            #[cfg(not(feature = "cuda"))]
            let on_card = false;
            if !on_card {
                let x = &self.x[rows.start * c.d_model..rows.end * c.d_model];
                e.load_normed(x, decoder.norm.get(w), c.norm_eps, head, a);
            }
            let (before, behind) = out.split_at_mut(rows.len() * widths[0]);
            for (part, out) in parts
                .iter()
                .zip([&mut *before, &mut *behind])
                .filter(|(part, _)| !on_card && !part.is_empty())
            {
                e.product(a, head, part.start as usize..part.end as usize, Epilogue::default(), out);
                check_finite(out)?;
            }
            for (i, row) in rows.enumerate() {
                on_logits(
                    row,
                    [&before[i * widths[0]..][..widths[0]], &behind[i * widths[1]..][..widths[1]]],
                );
            }
        }
        Ok(())
    }
}

/// The tokens of a range that can be said, in two parts, and whether that is all that is in them: codes of pictures, where the vocabulary has
/// them, lie between the parts or, if they do not stand together, in the first.
pub(super) fn said(model: &Model, range: &Range<u32>) -> ([Range<u32>; 2], bool) {
    let (span, ids) = (model.code_span(), model.config().code_ids());
    if !ids.is_empty() && span.len() == ids.len() {
        return ([range.start..span.start, span.end..range.end], true);
    }
    ([range.clone(), 0..0], ids.is_empty())
}
