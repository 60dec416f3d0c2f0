//! A sequence: segments in, logits out, keys and values in a fixed arena.
//!
//! A session holds *segments*. The first one (task prefix and instruction) stays; images, states and executed actions
//! have a window each, counted in segments, and the oldest goes when a new one is pushed. Questions and action slots
//! hang on the live segments as *branches* and leave nothing behind. A position is the index in the concatenation of
//! what is live, so gaps close and nothing drifts, however long the session runs.
//!
//! Everything is allocated by [`Session::new`]; no other call allocates, but [`Session::show`] for more features than ever before.

mod act;
mod answer;
mod capacity;
mod choose;
mod draw;
mod error;
mod features;
mod forward;
mod grammar;
mod logits;
mod score;

use std::sync::Arc;

#[cfg(feature = "cuda")]
use crate::Error;
use crate::Result;
use crate::config::{Modality, ModelConfig, WeightDtype};
#[cfg(feature = "cuda")]
use crate::engine::card::{Beside, CardBuffers};
use crate::engine::{ActivationKinds, CpuScratch, Most, Own, PassRows, Visible};
use crate::family::Model;
use crate::kernels::KV_BLOCK;
use crate::kv::{ArenaShape, Chain, KvArena, KvDtype};
use crate::rope::Rope;
use crate::tokenize::{Bins, Tokenizer as _, check_codes};

pub use act::ActionChunk;
use answer::Open;
pub use answer::{Finish, step, step_sampled};
use capacity::Capacity;
pub use capacity::SessionOptions;
use choose::Wanted;
pub use draw::draw;
pub use error::SessionError;
use forward::{Buffers, OnLast, OnLogits, Row, Score};
use grammar::Grammar;

struct Segment {
    modality: Modality,
    chain: Chain,
}

/// One sequence on one model.
pub struct Session {
    model: Arc<Model>,
    kv: KvArena,
    /// Live segments, oldest first; the first is text and stays.
    segments: Vec<Segment>,
    /// An answer in the making: a branch on the live segments.
    open: Option<Open>,
    /// The live segments with their positions, as a step sees them.
    visible: Vec<Visible>,
    /// The position after them.
    base: usize,
    /// Tokens of the open answer, or of what the last one left: the question, and what of the answer went in.
    branch: Vec<u32>,
    /// What the last answer left, for a question that begins alike.
    kept: Chain,
    /// Whether answers leave anything.
    reuses: bool,
    /// Tokens of the last question that were there.
    reused: usize,
    /// Of states and of actions, where the model has them.
    bins: Option<[Bins; 2]>,
    codes: Vec<u16>,
    buffers: Buffers,
    most: Most,
    max_text_tokens: usize,
}

impl std::fmt::Debug for Session {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Session")
            .field("segments", &self.segments.len())
            .field("tokens", &self.live_tokens())
            .finish_non_exhaustive()
    }
}

impl Session {
    /// Allocates a session.
    ///
    /// # Errors
    /// If there is not enough memory.
    pub fn new(model: &Arc<Model>, options: &SessionOptions) -> Result<Self> {
        let c = &model.decoder().config;
        let quantisation = &model.bundle().quantisation;
        let (dtype, kinds) = match model.bundle().dtype {
            WeightDtype::Int8 if quantisation.kept_float.is_empty() => (KvDtype::I8, ActivationKinds::Int8),
            WeightDtype::Int8 => (KvDtype::I8, ActivationKinds::Both),
            WeightDtype::F16 | WeightDtype::F32 => (KvDtype::F32, ActivationKinds::Float),
        };
        let parts = if quantisation.two_part_activations.is_empty() { 1 } else { 2 };
        #[cfg(feature = "cuda")]
        let beside = match (model.unimodal_net(), model.janus()) {
            (Ok((_, own)), _) => Beside::Own(own),
            (_, Ok((_, net))) => Beside::Drawing(&net.drawing),
            _ => Beside::Nothing,
        };
        let passes = |most: &Most| {
            #[cfg(feature = "cuda")]
            if let Some(card) = model.card() {
                return card.pass_rows(c, beside, most, dtype);
            }
            PassRows::on_cpu(c, most, kinds, model.engine().threads())
        };
        let capacity = Capacity::new(model.config(), options, parts, passes);
        let shape = ArenaShape {
            n_layers: c.n_layers,
            n_kv_heads: c.n_kv_heads,
            head_dim: c.head_dim,
            n_blocks: capacity.most.blocks,
            dtype,
        };
        model.check_room("a session on this model", capacity.bytes(c, &shape))?;
        #[cfg(feature = "cuda")]
        let (kv, card) = match model.card() {
            None => (KvArena::new(shape), None),
            Some(card) => {
                let codes = choose::code_places(model);
                let Capacity { most, logits, .. } = capacity;
                let buffers = CardBuffers::new(card, model.decoder(), beside, most, logits, &codes, dtype)?;
                (KvArena::on_card(shape, &card.device).map_err(Error::from)?, Some(buffers))
            }
        };
        #[cfg(not(feature = "cuda"))]
        let kv = KvArena::new(shape);
        let (x, scratch) = if model.device().is_card() {
            (Vec::new(), CpuScratch::default())
        } else {
            let x = vec![0.0; capacity.most.rows * c.d_model];
            (x, CpuScratch::new(c, capacity.most, kinds, model.engine()))
        };
        let own = model.unimodal().ok();
        let factors = model.decoder().rope_factors.as_ref().map(|factors| factors.get(model.weights()));
        log::debug!("session kv_bytes={} blocks={}", kv.bytes(), capacity.most.blocks);
        Ok(Self {
            kv,
            segments: Vec::with_capacity(capacity.segments),
            visible: Vec::with_capacity(capacity.segments),
            base: 0,
            bins: own.map(|c| {
                [
                    Bins::new("state", &c.state.low, &c.state.high, c.n_bins()),
                    Bins::new("action", &c.action.low, &c.action.high, c.n_bins()),
                ]
            }),
            codes: Vec::with_capacity(own.map_or(0, |c| c.chunk_len().max(c.state.names.len()))),
            buffers: Buffers {
                x,
                logits: vec![0.0; capacity.logits],
                scratch,
                rope: Rope::new(c, factors, capacity.most.blocks * KV_BLOCK + 1),
                features: Vec::new(),
                drawing: [Vec::new(), Vec::new()],
                row: vec![0.0; capacity.row],
                #[cfg(feature = "cuda")]
                card,
            },
            open: None,
            branch: Vec::with_capacity(options.max_text_tokens),
            kept: Chain::EMPTY,
            reuses: false,
            reused: 0,
            most: capacity.most,
            max_text_tokens: options.max_text_tokens,
            model: Arc::clone(model),
        })
    }

    /// The model this session runs on.
    #[must_use]
    pub fn model(&self) -> &Arc<Model> {
        &self.model
    }

    /// Tokens that are live.
    #[must_use]
    pub fn live_tokens(&self) -> usize {
        self.segments.iter().map(|s| s.chain.len).sum()
    }

    /// Bytes of the KV arena.
    #[must_use]
    pub fn kv_bytes(&self) -> usize {
        self.kv.bytes()
    }

    /// Forgets everything.
    pub fn reset(&mut self) {
        self.close();
        self.kv.release(&mut self.kept);
        for segment in &mut self.segments {
            self.kv.release(&mut segment.chain);
        }
        self.segments.clear();
    }

    /// Starts over with a task's learned prefix and an instruction (which may be empty).
    ///
    /// # Errors
    /// If there is no such task, or the instruction is too long or not text; the session stays as it was. If the output
    /// is not a number; the session is empty then.
    pub fn begin(&mut self, task: &str, instruction: &[u32]) -> Result<()> {
        self.start(task, instruction, None)
    }

    /// As [`Self::begin`]; `on_logits` gets the logits over text tokens after the last token.
    ///
    /// # Errors
    /// As [`Self::begin`].
    pub fn score_begin(&mut self, task: &str, instruction: &[u32], on_logits: OnLast<'_>) -> Result<()> {
        self.start(task, instruction, Some(on_logits))
    }

    fn start(&mut self, task: &str, instruction: &[u32], on_logits: Option<OnLast<'_>>) -> Result<()> {
        let c = self.model.unimodal()?;
        let Some(at) = c.tasks.iter().position(|name| name == task) else {
            return Err(SessionError::Task { name: task.to_string(), known: c.tasks.join(", ") }.into());
        };
        let prefix = at * c.task_prefix_len..(at + 1) * c.task_prefix_len;
        self.check_text(instruction)?;
        self.reset();
        let first = prefix.len() + instruction.len() - 1;
        let rows = prefix.map(Row::Prefix).chain(instruction.iter().map(|&id| Row::Token(id)));
        let mut segment = Segment { modality: Modality::Text, chain: Chain::EMPTY };
        match on_logits {
            Some(on_logits) => {
                let mut once = |_: usize, logits: &[f32]| on_logits(logits);
                let next = Grammar::Text.next(self.model.config(), 0);
                let score = Score { next, first, wanted: Wanted::Logits(&mut once) };
                self.extend(&mut segment, rows, Own::Causal, Some(score))?;
            }
            None => self.extend(&mut segment, rows, Own::Causal, None)?,
        }
        self.segments.push(segment);
        Ok(())
    }

    /// Appends a picture; the oldest one beyond the window goes first.
    ///
    /// # Errors
    /// If `codes` is not one code book index per place of the grid, the session was not begun, or the output is not a
    /// number; then the picture is not kept, but the oldest one may be gone.
    pub fn push_image(&mut self, codes: &[u16]) -> Result<()> {
        self.image(codes, None)
    }

    /// As [`Self::push_image`]; `on_logits` gets, for each code, its index and the logits over image codes before it.
    ///
    /// # Errors
    /// As [`Self::push_image`].
    pub fn score_image(&mut self, codes: &[u16], on_logits: OnLogits<'_>) -> Result<()> {
        let last = codes.len();
        let columns = self.model.unimodal()?.image.grid[1];
        let next = Grammar::Picture { columns }.next(self.model.config(), 0);
        let mut of_codes = |row: usize, logits: &[f32]| {
            if row < last {
                on_logits(row, logits);
            }
        };
        self.image(codes, Some(Score { next, first: 0, wanted: Wanted::Logits(&mut of_codes) }))
    }

    fn image(&mut self, codes: &[u16], score: Option<Score<'_, '_>>) -> Result<()> {
        self.check_begun()?;
        let c = self.model.unimodal()?;
        check_codes(codes, c)?;
        let special = c.special;
        let rows = std::iter::once(Row::Token(special.img))
            .chain(codes.iter().enumerate().map(|(i, &code)| Row::Code(code, i)))
            .chain([Row::Token(special.img_end)]);
        self.push(Modality::Image, rows, score)
    }

    /// Appends the robot's state; the oldest one beyond the window goes first.
    ///
    /// # Errors
    /// If there is not one finite value per dimension; otherwise as [`Self::push_image`].
    pub fn push_state(&mut self, values: &[f32]) -> Result<()> {
        self.check_begun()?;
        let expected = self.model.unimodal()?.state.names.len();
        if values.len() != expected {
            return Err(SessionError::Dimensions { what: "state", found: values.len(), expected }.into());
        }
        self.push_bins(Modality::State, values)
    }

    /// Appends the actions executed since the last frame, `[steps, dims]`; the oldest ones beyond the window go first.
    ///
    /// # Errors
    /// If the values are not whole steps of finite numbers, or more steps than the model was trained with; otherwise as
    /// [`Self::push_image`].
    pub fn push_action(&mut self, values: &[f32]) -> Result<()> {
        self.check_begun()?;
        let c = self.model.unimodal()?;
        let most = c.action.executed * c.action.names.len();
        if values.len() > most {
            return Err(
                SessionError::Dimensions { what: "action", found: values.len(), expected: most }.into()
            );
        }
        self.push_bins(Modality::Action, values)
    }

    fn push_bins(&mut self, modality: Modality, values: &[f32]) -> Result<()> {
        let c = self.model.unimodal()?;
        let open = if modality == Modality::State { c.special.state } else { c.special.act };
        let first = c.tokens.bins[0];
        let mut codes = std::mem::take(&mut self.codes);
        let [state, action] = self.bins.as_mut().expect("the family has them");
        let bins = if modality == Modality::State { state } else { action };
        let coded = bins.encode(values, &mut codes);
        let rows = std::iter::once(Row::Token(open))
            .chain(codes.iter().map(|&bin| Row::Token(first + u32::from(bin))));
        let pushed = coded.and_then(|()| self.push(modality, rows, None));
        self.codes = codes;
        pushed
    }

    fn text_range(&self) -> std::ops::Range<u32> {
        self.model.config().text_range()
    }

    /// Whether segments and branches may be added: a session of Saccade's own family begins with a task, others need none.
    fn check_begun(&self) -> Result<()> {
        let begun = !self.segments.is_empty() || !matches!(self.model.config(), ModelConfig::Unimodal(_));
        match (begun, &self.open) {
            (false, _) => Err(SessionError::NotBegun.into()),
            (true, Some(_)) => Err(SessionError::AnswerOpen.into()),
            (true, None) => Ok(()),
        }
    }

    fn check_text(&self, ids: &[u32]) -> Result<()> {
        if ids.len() > self.max_text_tokens {
            return Err(SessionError::TooLong { tokens: ids.len(), room: self.max_text_tokens }.into());
        }
        let range = self.text_range();
        match ids.iter().find(|id| !range.contains(id)) {
            Some(&id) => {
                Err(SessionError::Token { what: "text token", id, limit: range.end as usize }.into())
            }
            None => Ok(()),
        }
    }

    /// Appends a segment to the trunk, making room in its modality's window first.
    fn push(
        &mut self,
        modality: Modality,
        rows: impl Iterator<Item = Row>,
        score: Option<Score<'_, '_>>,
    ) -> Result<()> {
        if let Some(window) = self.model.unimodal()?.window(modality) {
            let live = self.segments.iter().filter(|s| s.modality == modality).count();
            if live >= window
                && let Some(oldest) = self.segments.iter().position(|s| s.modality == modality)
            {
                self.kv.release(&mut self.segments[oldest].chain);
                self.segments.remove(oldest);
            }
        }
        let mut segment = Segment { modality, chain: Chain::EMPTY };
        self.extend(&mut segment, rows, Own::Causal, score)?;
        self.segments.push(segment);
        Ok(())
    }
}
