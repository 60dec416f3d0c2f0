//! Rows of one segment through the network: embedding, every block, logits of a range of ids.

use std::ops::Range;

use super::{Segment, Session, SessionError};
use crate::Result;
use crate::block::{Net, Own, Step, Visible};
use crate::config::Modality;
use crate::kernels::Epilogue;

/// One input row: a token of the vocabulary, or a learned vector.
#[derive(Clone, Copy)]
pub(super) enum Row {
    Token(u32),
    /// A code at a place of the grid.
    Code(u16, usize),
    Prefix(usize),
    Slot(usize),
}

/// Called with the index of a row and the logits that follow it.
pub(super) type OnLogits<'a> = &'a mut dyn FnMut(usize, &[f32]);

/// A range of token ids, and who wants its logits after each row.
pub(super) type Score<'a> = (Range<u32>, OnLogits<'a>);

impl Session {
    /// Computes `rows` at the end of `segment`, which sees every live segment, in steps of at most `max_rows`.
    ///
    /// # Errors
    /// If a result is not a number; the segment is empty then, and nothing of it is left in the arena.
    pub(super) fn extend(
        &mut self,
        segment: &mut Segment,
        rows: impl IntoIterator<Item = Row>,
        own_rule: Own,
        score: &mut Option<Score<'_>>,
    ) -> Result<()> {
        let computed = self.compute(segment, rows, own_rule, score);
        if computed.is_err() {
            self.kv.clear(self.model.engine(), &segment.chain);
            self.kv.release(&mut segment.chain);
        }
        computed
    }

    fn compute(
        &mut self,
        segment: &mut Segment,
        rows: impl IntoIterator<Item = Row>,
        own_rule: Own,
        score: &mut Option<Score<'_>>,
    ) -> Result<()> {
        let base = self.look();
        let mut rows = rows.into_iter().peekable();
        let mut done = 0;
        while rows.peek().is_some() {
            let mut n = 0;
            for row in rows.by_ref().take(self.max_rows) {
                self.embed(n, row, segment.modality);
                n += 1;
            }
            let offset = segment.chain.len;
            debug_assert!(self.kv.fits(&segment.chain, n), "capacity covers every window and one branch");
            self.kv.extend(&mut segment.chain, n);
            let own = Visible { chain: segment.chain, base, modality: segment.modality };
            self.decoder(&Step { rows: n, offset, own, own_rule, context: &[] });
            // A row sees its own key and value, so whatever of them is not finite has reached its output.
            check_finite(&self.x[..n * self.model.config().d_model])?;
            if let Some((range, on_logits)) = score {
                for row in 0..n {
                    self.head(row, range);
                    check_finite(&self.logits[..range.len()])?;
                    on_logits(done + row, &self.logits[..range.len()]);
                }
            }
            done += n;
        }
        Ok(())
    }

    /// Lays out what is live and returns the position after it.
    fn look(&mut self) -> usize {
        let mut base = 0;
        self.visible.clear();
        for segment in &self.segments {
            self.visible.push(Visible { chain: segment.chain, base, modality: segment.modality });
            base += segment.chain.len;
        }
        base
    }

    /// Writes the input vector of a row into `x[n]`.
    fn embed(&mut self, n: usize, row: Row, modality: Modality) {
        let (w, net, c) = (self.model.weights(), self.model.net(), self.model.config());
        let x = &mut self.x[n * c.d_model..][..c.d_model];
        match row {
            Row::Token(id) => net.embed.read_row(w, id as usize, x),
            Row::Code(code, place) => {
                net.embed.read_row(w, c.tokens.image[0] as usize + usize::from(code), x);
                net.image_grid.add_row(w, place, x);
            }
            Row::Prefix(at) => net.task_prefix.read_row(w, at, x),
            Row::Slot(at) => net.action_slots.read_row(w, at, x),
        }
        net.modality_embed.add_row(w, modality.index(), x);
    }

    /// Every block over `x`, in the context of what is live.
    fn decoder(&mut self, step: &Step<'_>) {
        let model = &*self.model;
        let net = Net {
            engine: model.engine(),
            weights: model.weights(),
            config: model.config(),
            rope: &self.rope,
        };
        let step = Step { context: &self.visible, ..*step };
        let x = &mut self.x[..step.rows * net.config.d_model];
        for (layer, block) in model.net().blocks.iter().enumerate() {
            block.forward(net, layer, &step, x, &mut self.kv, &mut self.scratch);
        }
    }

    /// Logits of row `row` over the token ids in `range`, into `logits`.
    fn head(&mut self, row: usize, range: &Range<u32>) {
        let (e, w, net, c) =
            (self.model.engine(), self.model.weights(), self.model.net(), self.model.config());
        let x = &self.x[row * c.d_model..][..c.d_model];
        let (embed, a) = (net.embed.get(w), &mut self.scratch.activations);
        e.load_normed(x, net.norm.get(w), c.norm_eps, embed, a);
        let rows = range.start as usize..range.end as usize;
        let out = &mut self.logits[..rows.len()];
        e.product(a, embed, rows, Epilogue::default(), out);
    }
}

fn check_finite(x: &[f32]) -> Result<()> {
    if x.iter().all(|x| x.is_finite()) { Ok(()) } else { Err(SessionError::NumericFault.into()) }
}
