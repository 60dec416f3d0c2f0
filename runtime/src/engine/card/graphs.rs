//! Image networks as graphs: what is run a second time is captured, and from then on put into the stream as one.
//!
//! Weights and buffers stay where they are and what differs between pictures goes through the staging, so a graph is a network's as long as
//! its operations are the same, which their fingerprint says.

use super::Card;
use super::maps::{CardMaps, MapBuffers};
use crate::Result;
use crate::cuda::Graph;
use crate::engine::maps::{Maps, Needs};

/// Networks that are remembered: pictures of a few sizes, there and back.
const REMEMBERED: usize = 8;

/// The networks that were run last, the latest at the end.
#[derive(Default)]
pub(super) struct Graphs {
    /// Their fingerprints, and graphs where they have run twice.
    known: Vec<(u64, Option<Graph>)>,
    /// Whether the card has failed to capture one or to launch it. It is not asked again.
    refused: bool,
}

impl Graphs {
    /// Takes a network out: nothing if it is new.
    fn take(&mut self, fingerprint: u64) -> Option<Option<Graph>> {
        let at = self.known.iter().position(|(known, _)| *known == fingerprint)?;
        Some(self.known.remove(at).1)
    }

    /// Puts a network to the end; the one that was not run for longest goes.
    fn keep(&mut self, fingerprint: u64, graph: Option<Graph>) {
        if self.known.len() == REMEMBERED {
            self.known.remove(0);
        }
        self.known.push((fingerprint, graph));
    }
}

impl MapBuffers {
    /// Runs a network that needs that; [`Self::given`] waits for what it gives.
    pub(crate) fn run(
        &mut self,
        card: &Card,
        needs: &Needs,
        net: &dyn Fn(&mut dyn Maps) -> Result<()>,
    ) -> Result<()> {
        // What does not lie in the staging as a whole cannot be copied by one graph.
        if self.graphs.refused || needs.sizes.staged > self.staging.len() {
            return net(&mut CardMaps::new(card, self));
        }
        let fingerprint = needs.fingerprint();
        let Some(known) = self.graphs.take(fingerprint) else {
            self.graphs.keep(fingerprint, None);
            return net(&mut CardMaps::new(card, self));
        };
        match self.run_graph(card, known, net) {
            Ok(graph) => {
                self.graphs.keep(fingerprint, Some(graph));
                Ok(())
            }
            Err(error) if error.is_card_lost() => Err(error),
            Err(error) => {
                log::warn!("image networks are launched kernel by kernel: as a graph they fail ({error})");
                self.graphs = Graphs { known: Vec::new(), refused: true };
                net(&mut CardMaps::new(card, self))
            }
        }
    }

    /// Runs a network as a graph, which is captured if there is none yet.
    fn run_graph(
        &mut self,
        card: &Card,
        graph: Option<Graph>,
        net: &dyn Fn(&mut dyn Maps) -> Result<()>,
    ) -> Result<Graph> {
        // Nothing may be waited for while a graph is captured.
        self.staging.get()?;
        self.results.get()?;
        let graph = match graph {
            Some(graph) => {
                card.device.replay(&graph, || net(&mut CardMaps::new(card, self)))?;
                graph
            }
            None => {
                let graph = card.device.capture(|| net(&mut CardMaps::new(card, self)))?;
                graph.launch()?;
                graph
            }
        };
        self.staging.follow()?;
        self.results.follow()?;
        Ok(graph)
    }
}
