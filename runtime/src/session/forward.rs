//! Rows through the network: embedding, every block, logits of a range of ids.

use super::choose::Wanted;
use super::grammar::Next;
use super::{Segment, Session, SessionError};
use crate::Result;
use crate::config::Modality;
#[cfg(feature = "cuda")]
use crate::engine::card::{self, CardBuffers};
use crate::engine::{CpuPass, CpuScratch, Net, Own, Sequence, Visible};
use crate::family::Model;
use crate::kernels::KV_BLOCK;
use crate::rope::Rope;
use crate::vit;

/// One input row: a token of the vocabulary, or a learned vector.
#[derive(Clone, Copy)]
pub(super) enum Row {
    Token(u32),
    /// A code at a place of the grid.
    Code(u16, usize),
    Prefix(usize),
    Slot(usize),
    /// A feature of the question's pictures.
    Feature(usize),
    /// A code that was drawn.
    Drawn(u32),
}

/// Called with the index of a row and the logits that follow it.
pub(super) type OnLogits<'a> = &'a mut dyn FnMut(usize, &[f32]);

/// Called with the logits after the last row.
pub(super) type OnLast<'a> = &'a mut dyn FnMut(&[f32]);

/// Whose logits are wanted.
pub(super) struct Score<'a, 'b> {
    /// What the logits are of.
    pub(super) next: Next,
    /// The first row whose logits are wanted; `wanted` counts from it.
    pub(super) first: usize,
    /// Who wants them.
    pub(super) wanted: Wanted<'a, 'b>,
}

/// What a step works in.
#[derive(Default)]
pub(super) struct Buffers {
    /// `[max_rows, d_model]`; a card has its own, and its own scratch.
    pub(super) x: Vec<f32>,
    /// Of as many rows at a time as there is room for.
    pub(super) logits: Vec<f32>,
    pub(super) scratch: CpuScratch,
    pub(super) rope: Rope,
    /// `[features, d_model]`, of the question's pictures; a card has its own.
    pub(super) features: Vec<f32>,
    /// What drawing works in on the CPU.
    pub(super) drawing: [Vec<f32>; 2],
    /// The logits of a row, where text and codes of pictures are told apart.
    pub(super) row: Vec<f32>,
    /// What a step on a card works in.
    #[cfg(feature = "cuda")]
    pub(super) card: Option<CardBuffers>,
}

impl Buffers {
    /// Writes the input vector of a row into `x[n]`.
    pub(super) fn embed(&mut self, model: &Model, n: usize, row: Row, modality: Modality) {
        #[cfg(feature = "cuda")]
        if self.card.is_some() {
            return self.embed_on_card(model, n, row, modality);
        }
        let (w, decoder) = (model.weights(), model.decoder());
        let d = decoder.config.d_model;
        let x = &mut self.x[n * d..][..d];
        match row {
            Row::Token(id) => decoder.embed.read_row(w, id as usize, x),
            Row::Feature(at) => x.copy_from_slice(&self.features[at * d..][..d]),
            Row::Drawn(code) => {
                let (c, net) = model.janus().expect("only sessions of such models draw");
                let [code_x, spare] = &mut self.drawing;
                code_x.resize(c.drawing.vq.code_dim, 0.0);
                net.drawing.embed.read_row(w, code as usize, code_x);
                let a = &mut self.scratch.activations;
                vit::through(&net.drawing.aligner, (model.engine(), w), code_x, spare, a);
                x.copy_from_slice(code_x);
            }
            Row::Code(..) | Row::Prefix(_) | Row::Slot(_) => {}
        }
        let Ok((c, own)) = model.unimodal_net() else { return };
        match row {
            Row::Token(_) | Row::Feature(_) | Row::Drawn(_) => {}
            Row::Code(code, place) => {
                decoder.embed.read_row(w, c.tokens.image[0] as usize + usize::from(code), x);
                own.image_grid.add_row(w, place, x);
            }
            Row::Prefix(at) => own.task_prefix.read_row(w, at, x),
            Row::Slot(at) => own.action_slots.read_row(w, at, x),
        }
        own.modality_embed.add_row(w, modality.index(), x);
    }

    /// Says on the card what row `n` begins with.
    #[cfg(feature = "cuda")]
    fn embed_on_card(&mut self, model: &Model, n: usize, row: Row, modality: Modality) {
        let Some(card) = &mut self.card else { return };
        let own = model.unimodal().ok();
        let modality = own.map(|_| modality);
        let first_code = own.map_or(0, |c| c.tokens.image[0] as usize);
        match row {
            Row::Token(id) => card.input(n, card::EMBED, id as usize, None, modality),
            Row::Code(code, place) => {
                card.input(n, card::EMBED, first_code + usize::from(code), Some(place), modality);
            }
            Row::Prefix(at) => card.input(n, card::PREFIX, at, None, modality),
            Row::Slot(at) => card.input(n, card::SLOTS, at, None, modality),
            Row::Drawn(code) => card.input(n, card::DRAWN, code as usize, None, None),
            Row::Feature(at) => card.input(n, card::SEEN, at, None, None),
        }
    }

    /// Every block over `x`, whose rows are those of the sequences. A card has it done when logits are read, or in [`Self::settle`].
    ///
    /// # Errors
    /// If a result is not a number.
    pub(super) fn decode(&mut self, model: &Model, sequences: &mut [Sequence<'_>]) -> Result<()> {
        let end = |s: &Sequence<'_>| s.own.base + s.offset + s.rows;
        self.rope.reach(sequences.iter().map(end).max().unwrap_or(0));
        let config = &model.decoder().config;
        let net = Net { engine: model.engine(), weights: model.weights(), config, rope: &self.rope };
        #[cfg(feature = "cuda")]
        if let (Some(card), Some(buffers)) = (model.card(), &mut self.card) {
            return buffers.decode(card, model.decoder(), &self.rope, sequences);
        }
        let rows: usize = sequences.iter().map(|sequence| sequence.rows).sum();
        let x = &mut self.x[..rows * config.d_model];
        let mut pass = CpuPass::new(net, sequences, x, &mut self.scratch);
        for (layer, block) in model.decoder().blocks.iter().enumerate() {
            block.forward(&mut pass, layer)?;
        }
        // A row sees its own key and value, so whatever of them is not finite has reached its output.
        check_finite(x)
    }

    /// Waits for what [`Self::decode`] began where no logits are read.
    ///
    /// # Errors
    /// If a result is not a number.
    #[cfg_attr(
        not(feature = "cuda"),
        expect(clippy::unused_self, clippy::unnecessary_wraps, reason = "a card's")
    )]
    pub(super) fn settle(&mut self) -> Result<()> {
        #[cfg(feature = "cuda")]
        if let Some(card) = &mut self.card {
            let (_, finite) = card.read_logits(0)?;
            return numbers(finite);
        }
        Ok(())
    }
}

impl Session {
    /// Computes `rows` at the end of `segment`, which sees every live segment, in passes of about as many rows each.
    ///
    /// # Errors
    /// If a result is not a number; the segment is empty then, and nothing of it is left in the arena.
    pub(super) fn extend(
        &mut self,
        segment: &mut Segment,
        rows: impl Iterator<Item = Row>,
        own_rule: Own,
        mut score: Option<Score<'_, '_>>,
    ) -> Result<()> {
        let computed = self.compute(segment, rows, own_rule, &mut score);
        if computed.is_err() {
            self.kv.clear(&segment.chain);
            self.kv.release(&mut segment.chain);
        }
        computed
    }

    fn compute(
        &mut self,
        segment: &mut Segment,
        rows: impl Iterator<Item = Row>,
        own_rule: Own,
        score: &mut Option<Score<'_, '_>>,
    ) -> Result<()> {
        self.look();
        let Self { model, kv, visible, buffers, most, .. } = self;
        let mut rows = rows.peekable();
        let mut done = 0;
        while rows.peek().is_some() {
            // An iterator of the session's own says exactly how many are left.
            let left = rows.size_hint().0.max(1);
            let pass = left.div_ceil(left.div_ceil(most.rows)).next_multiple_of(KV_BLOCK).min(most.rows);
            let mut n = 0;
            for row in rows.by_ref().take(pass) {
                buffers.embed(model, n, row, segment.modality);
                n += 1;
            }
            let offset = segment.chain.len;
            debug_assert!(kv.fits(&segment.chain, n), "capacity covers every window and one branch");
            kv.extend(&mut segment.chain, n);
            let own = Visible { chain: segment.chain, base: self.base, modality: segment.modality };
            let sequence = Sequence { kv: &mut *kv, rows: n, offset, own, own_rule, context: &*visible };
            buffers.decode(model, &mut [sequence])?;
            if let Some(Score { next, first, wanted }) = score {
                let rows = first.saturating_sub(done).min(n)..n;
                match wanted {
                    Wanted::Logits(on_logits) => {
                        let mut counted = |row: usize, logits: &[f32]| on_logits(done + row - *first, logits);
                        buffers.score(model, rows, next, &mut counted)?;
                    }
                    Wanted::Choices(choices) => buffers.choose(model, rows, next, choices)?,
                    Wanted::Likeliest(found) => buffers.likeliest(model, rows, next, found)?,
                }
            }
            done += n;
        }
        // A card goes from pass to pass, and says at the end whether one had what is not a number.
        if score.is_none() { buffers.settle() } else { Ok(()) }
    }

    /// Lays out what is live, and the position after it.
    pub(super) fn look(&mut self) {
        self.base = 0;
        self.visible.clear();
        for segment in &self.segments {
            self.visible.push(Visible { chain: segment.chain, base: self.base, modality: segment.modality });
            self.base += segment.chain.len;
        }
    }
}

pub(super) fn check_finite(x: &[f32]) -> Result<()> {
    numbers(x.iter().all(|x| x.is_finite()))
}

pub(super) fn numbers(finite: bool) -> Result<()> {
    if finite { Ok(()) } else { Err(SessionError::NumericFault.into()) }
}
