//! What the board feels: heat, power, the GPU's clock and load, and how often it was slowed down.

mod gpu;
mod power;
mod thermal;
mod throttle;

use serde::Serialize;

use crate::{Board, Root};

pub use gpu::GpuClock;
pub use power::PowerRail;
pub use thermal::Temperature;
pub use throttle::OverCurrent;

/// One reading of everything that can be read without root rights. What a board lacks is empty.
///
/// Nodes appear late at boot and vanish with power modes, so every reading looks for them anew.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Sensors {
    /// The thermal zones that are switched on.
    pub temperatures: Vec<Temperature>,
    /// The power rails that are measured.
    pub power_rails: Vec<PowerRail>,
    /// The GPU's clock and load.
    pub gpu: Option<GpuClock>,
    /// Events of too much current, counted since the start of the system.
    pub over_current: Vec<OverCurrent>,
    /// The cap that the power mode puts on the memory's clock.
    pub memory_cap_mhz: Option<u32>,
}

impl Sensors {
    /// Reads all sensors below `root`.
    pub fn read(root: &Root) -> Self {
        let cap: Option<u64> = root.number("/sys/kernel/nvpmodel_emc_cap/emc_iso_cap");
        Self {
            temperatures: thermal::read(root),
            power_rails: power::read(root),
            gpu: gpu::read(root),
            over_current: throttle::read(root),
            memory_cap_mhz: cap.and_then(|hz| u32::try_from(hz / 1_000_000).ok()).filter(|&mhz| mhz > 0),
        }
    }

    /// What the whole board draws: its total rail where it has one, else the sum of all rails; `None` without rails.
    pub fn total_mw(&self, board: &Board) -> Option<u32> {
        let total = board.total_power_rail.as_ref().map(|rail| rail.value.as_str());
        let total = self.power_rails.iter().find(|rail| Some(rail.label.as_str()) == total);
        if let Some(rail) = total {
            return Some(rail.power_mw);
        }
        let sum = self.power_rails.iter().map(|rail| rail.power_mw).reduce(u32::saturating_add);
        sum.filter(|_| !self.power_rails.is_empty())
    }

    /// The hottest zone.
    pub fn hottest(&self) -> Option<&Temperature> {
        self.temperatures.iter().max_by(|a, b| a.celsius.total_cmp(&b.celsius))
    }
}
