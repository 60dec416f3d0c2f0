//! Everything `saccaded doctor` says, as one value: facts, readings, and findings in sentences.
//!
//! Serialised, its first fields have the names that NVIDIA's own diagnostic uses.

use std::fmt;

use serde::Serialize;

use crate::findings::findings;
use crate::machine::{Cpu, Memory};
use crate::{Board, Camera, Detection, Finding, FoundBy, PowerMode, Result, Root, Sensors, detect};

/// Where L4T (36 and later, up to 35) and other systems keep the CUDA driver.
const CUDA_DRIVERS: [&str; 6] = [
    "/usr/lib/aarch64-linux-gnu/nvidia/libcuda.so.1",
    "/usr/lib/aarch64-linux-gnu/tegra/libcuda.so.1",
    "/usr/lib/aarch64-linux-gnu/libcuda.so.1",
    "/usr/lib/x86_64-linux-gnu/libcuda.so.1",
    "/usr/lib64/libcuda.so.1",
    "/usr/lib/libcuda.so.1",
];

/// What this machine is, what it feels, and what its user should know.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Report {
    /// The part number of the module, e.g. `p3767-0005`.
    pub sku: Option<String>,
    /// See [`Board::generation`].
    pub generation: String,
    /// See [`Board::product_line`].
    pub product_line: String,
    /// See [`Board::variant`].
    pub variant: String,
    /// What told the variant.
    pub variant_source: FoundBy,
    /// The memory that the kernel manages, in GiB with one decimal.
    pub mem_total_gb: f64,
    /// The release of Linux for Tegra.
    pub l4t_version: Option<String>,
    /// The model text of the device tree or of the firmware.
    pub product_model: Option<String>,
    /// The device tree's compatible list.
    pub compatible: Vec<String>,
    /// Whether the system was flashed with the super configuration.
    pub super_flashed: bool,
    /// The profile that applies.
    pub board: Board,
    /// The processor.
    pub cpu: Cpu,
    /// The memory.
    pub memory: Memory,
    /// Power mode and draw.
    pub power: Power,
    /// Heat, rails, clocks.
    pub sensors: Sensors,
    /// The library of the CUDA driver, where there is one.
    pub cuda_driver: Option<String>,
    /// The cameras that the kernel knows.
    pub cameras: Vec<Camera>,
    /// Whether the socket of the camera daemon (argus) is there.
    pub argus: bool,
    /// Whether the system starts a graphical desktop.
    pub desktop: bool,
    /// What the user should know, the most important first.
    pub findings: Vec<Finding>,
}

/// Power mode and draw.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Power {
    /// The power modes, on a board that has them.
    pub mode: Option<PowerMode>,
    /// What the whole board draws now.
    pub total_mw: Option<u32>,
}

impl Report {
    /// Looks at the machine below `root`; takes milliseconds and changes nothing.
    ///
    /// # Errors
    /// As [`detect`].
    pub fn collect(root: &Root) -> Result<Self> {
        let Detection { board, found_by, module, super_flashed, compatible, product_model, l4t_version } =
            detect(root)?;
        let memory = Memory::read(root);
        let sensors = Sensors::read(root);
        let mut report = Self {
            sku: module,
            generation: board.generation.clone(),
            product_line: board.product_line.clone(),
            variant: board.variant.clone(),
            variant_source: found_by,
            mem_total_gb: gib(memory.total_mib),
            l4t_version,
            product_model,
            compatible,
            super_flashed,
            power: Power { mode: PowerMode::read(root), total_mw: sensors.total_mw(&board) },
            board,
            cpu: Cpu::read(root),
            memory,
            sensors,
            cuda_driver: CUDA_DRIVERS.iter().find(|path| root.exists(path)).map(|&path| path.to_owned()),
            cameras: Camera::list(root),
            argus: root.exists("/tmp/argus_socket"),
            desktop: starts_desktop(root),
            findings: Vec::new(),
        };
        report.findings = findings(&report);
        Ok(report)
    }

    /// Whether this is a Jetson, known or not.
    pub fn is_jetson(&self) -> bool {
        self.l4t_version.is_some() || self.compatible.iter().any(|entry| entry.contains("nvidia,tegra"))
    }
}

/// GiB with one decimal, as people speak of memory.
#[allow(clippy::cast_precision_loss, reason = "no machine has 2^53 MiB")]
fn gib(mib: u64) -> f64 {
    (mib as f64 / 1024.0 * 10.0).round() / 10.0
}

/// The link that names what the system starts into; the administrator's goes before the distribution's.
fn starts_desktop(root: &Root) -> bool {
    let folders = ["/etc/systemd/system", "/usr/lib/systemd/system", "/lib/systemd/system"];
    let links =
        folders.iter().map(|folder| std::fs::read_link(root.path(&format!("{folder}/default.target"))));
    links.flatten().next().is_some_and(|target| target.ends_with("graphical.target"))
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut row = |key: &str, value: String| writeln!(f, "{key:<12} {value}");
        let or_unknown = |text: &Option<String>| text.clone().unwrap_or_else(|| "not told".into());
        row("board", format!("{} ({})", self.board.name, or_unknown(&self.product_model)))?;
        if let Some(gpu) = &self.board.gpu {
            let (sms, capability) = (gpu.sm_count.value, gpu.compute_capability.value);
            row("gpu", format!("{sms} multiprocessors, compute capability {capability}"))?;
        }
        if self.board.gpu.is_some() || self.cuda_driver.is_some() {
            row("cuda driver", or_unknown(&self.cuda_driver))?;
        }
        if self.is_jetson() {
            row("module", or_unknown(&self.sku))?;
            row("l4t", or_unknown(&self.l4t_version))?;
            let mode = self.power.mode.as_ref().and_then(|table| table.current.clone());
            row("power mode", mode.map_or_else(|| "not told".into(), |mode| mode.name))?;
        }
        let (online, cores) = (self.cpu.online.len(), self.cpu.cores);
        row("processor", format!("{}, {online} of {cores} cores online", or_unknown(&self.cpu.core)))?;
        row("features", self.cpu.features.join(" "))?;
        let memory = &self.memory;
        let (available, swap) = (memory.available_mib, memory.swap_mib);
        row("memory", format!("{} MiB, {available} MiB available, {swap} MiB swap", memory.total_mib))?;
        if let Some(milliwatts) = self.power.total_mw {
            row("power", format!("{:.1} W", f64::from(milliwatts) / 1000.0))?;
        }
        if let Some(zone) = self.sensors.hottest() {
            row("hottest", format!("{:.1} °C ({})", zone.celsius, zone.zone))?;
        }
        for camera in &self.cameras {
            row("camera", format!("{} ({})", camera.device, camera.name))?;
        }
        for finding in &self.findings {
            row(finding.level.word(), finding.text.clone())?;
        }
        Ok(())
    }
}
