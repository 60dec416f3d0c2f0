//! What networks are run on: buffers that grow to what the first picture needs.

use super::cpu::{CpuBuffers, CpuMaps};
use super::{Maps, Needs, Sizes};
use crate::engine::Engine;
#[cfg(feature = "cuda")]
use crate::engine::card::{Card, CardFeatures, MapBuffers};
use crate::weights::Weights;
use crate::{Result, memory};

/// What does the work: the engine, the weights, and a card where there is one.
#[derive(Clone, Copy)]
pub(crate) struct Machine<'a> {
    pub(crate) e: &'a Engine,
    pub(crate) w: &'a Weights,
    #[cfg(feature = "cuda")]
    pub(crate) card: Option<&'a Card>,
}

/// Buffers of a machine for networks, on the card where there is one.
pub(crate) struct Canvas {
    /// What they are for, in words.
    what: &'static str,
    sizes: Sizes,
    buffers: Buffers,
}

enum Buffers {
    None,
    Cpu(Box<CpuBuffers>),
    #[cfg(feature = "cuda")]
    Card(Box<MapBuffers>),
}

impl Canvas {
    /// Without any memory yet; `what` needs it.
    pub(crate) fn new(what: &'static str) -> Self {
        Self { what, sizes: Sizes::default(), buffers: Buffers::None }
    }

    /// Sees to it that `net` can run and allocates nothing then; returns what it needs.
    ///
    /// # Errors
    /// If there is not enough memory, of the machine or of the card.
    pub(crate) fn reserve(
        &mut self,
        on: Machine<'_>,
        net: &dyn Fn(&mut dyn Maps) -> Result<()>,
    ) -> Result<Needs> {
        let mut needs = Needs::default();
        net(&mut needs)?;
        #[cfg(feature = "cuda")]
        let sizes = if on.card.is_some() { needs.sizes.of_card() } else { needs.sizes.of_cpu() };
        #[cfg(not(feature = "cuda"))]
        let sizes = needs.sizes.of_cpu();
        let sizes = self.sizes.max(sizes);
        if sizes == self.sizes && !matches!(self.buffers, Buffers::None) {
            return Ok(needs);
        }
        // What there was goes before what is larger comes. A picture far larger than the next ones keeps its memory.
        (self.buffers, self.sizes) = (Buffers::None, Sizes::default());
        #[cfg(feature = "cuda")]
        if let Some(card) = on.card {
            self.buffers = Buffers::Card(Box::new(MapBuffers::new(card, self.what, &sizes)?));
            self.sizes = sizes;
            return Ok(needs);
        }
        memory::check(self.what, CpuBuffers::bytes(&sizes))?;
        self.buffers = Buffers::Cpu(Box::new(CpuBuffers::new(on.e, &sizes)));
        self.sizes = sizes;
        Ok(needs)
    }

    /// Appends what the last network kept on the card; nothing where there is none.
    ///
    /// # Errors
    /// If the card fails.
    #[cfg(feature = "cuda")]
    pub(crate) fn append_kept(&self, to: &mut CardFeatures) -> Result<()> {
        match &self.buffers {
            Buffers::Card(buffers) => buffers.append_kept(to),
            _ => Ok(()),
        }
    }

    /// Runs a network; returns what it gives.
    ///
    /// # Errors
    /// As [`Self::reserve`], or if the card fails.
    pub(crate) fn run(
        &mut self,
        on: Machine<'_>,
        net: &dyn Fn(&mut dyn Maps) -> Result<()>,
    ) -> Result<&mut [f32]> {
        #[cfg_attr(not(feature = "cuda"), expect(unused_variables, reason = "a card's"))]
        let needs = self.reserve(on, net)?;
        match &mut self.buffers {
            Buffers::None => unreachable!("`reserve` makes buffers"),
            Buffers::Cpu(buffers) => {
                net(&mut CpuMaps::new(on, buffers))?;
                Ok(buffers.given())
            }
            #[cfg(feature = "cuda")]
            Buffers::Card(buffers) => {
                let card = on.card.expect("the machine that the buffers were made on");
                buffers.run(card, &needs, net)?;
                buffers.given()
            }
        }
    }
}
