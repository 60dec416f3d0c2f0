//! The GPU's clock and load, from devfreq. On Thor the load is in NVML alone, so it is `None` here.

use serde::Serialize;

use crate::Root;

/// The GPU's clock and load.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct GpuClock {
    /// The name of the node.
    pub node: String,
    /// Busy time, in percent.
    pub load_percent: Option<f64>,
    /// The clock now.
    pub mhz: Option<u32>,
    /// The bounds that the governor keeps; equal bounds are what `jetson_clocks` sets.
    pub min_mhz: Option<u32>,
    /// See `min_mhz`.
    pub max_mhz: Option<u32>,
    /// What sets the clock, e.g. `nvhost_podgov`.
    pub governor: Option<String>,
}

impl GpuClock {
    /// Whether the clock is held: a benchmark under a governor is up to 45 % slower and varies.
    pub fn is_locked(&self) -> Option<bool> {
        Some(self.min_mhz? == self.max_mhz?)
    }
}

/// What the device tree calls the GPUs of these boards.
const NAMES: [&str; 4] = ["gp10b", "gv11b", "ga10b", "gb10b"];
/// Where the load was found when devfreq has no such device: JetPack 6 and later, 5, 4.
const LOAD: [&str; 4] = [
    "/sys/devices/platform/gpu.0/load",
    "/sys/devices/platform/bus@0/17000000.gpu/load",
    "/sys/devices/17000000.ga10b/load",
    "/sys/devices/gpu.0/load",
];

/// The GPU below `root`, if it can be seen.
pub(super) fn read(root: &Root) -> Option<GpuClock> {
    let node = root.names("/sys/class/devfreq").into_iter().find(|node| is_gpu(root, node));
    let Some(node) = node else {
        let load = LOAD.iter().find_map(|path| permille(root, path))?;
        let (mhz, min_mhz, max_mhz) = (None, None, None);
        return Some(GpuClock {
            node: "gpu".into(),
            load_percent: Some(load),
            mhz,
            min_mhz,
            max_mhz,
            governor: None,
        });
    };
    let folder = format!("/sys/class/devfreq/{node}");
    let mhz = |name: &str| {
        let hz: u64 = root.number(&format!("{folder}/{name}"))?;
        u32::try_from(hz / 1_000_000).ok()
    };
    Some(GpuClock {
        load_percent: permille(root, &format!("{folder}/device/load"))
            .or_else(|| LOAD.iter().find_map(|path| permille(root, path))),
        mhz: mhz("cur_freq"),
        min_mhz: mhz("min_freq"),
        max_mhz: mhz("max_freq"),
        governor: root.text(&format!("{folder}/governor")),
        node,
    })
}

fn is_gpu(root: &Root, node: &str) -> bool {
    // Thor has a node for each clock domain; the first, of the graphics clusters, is the one that matters.
    if node.starts_with("gpu-gpc") {
        return true;
    }
    let name = root.text(&format!("/sys/class/devfreq/{node}/device/of_node/name")).unwrap_or_default();
    NAMES.contains(&name.as_str()) || name.contains("gpu")
}

fn permille(root: &Root, path: &str) -> Option<f64> {
    let load: u32 = root.number(path)?;
    Some(f64::from(load.min(1000)) / 10.0)
}
