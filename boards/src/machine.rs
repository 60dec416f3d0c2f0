//! What every Linux machine tells of itself: processor and memory.

use serde::Serialize;

use crate::Root;

/// The features that decide which INT8 kernels a processor can run, by the names of `/proc/cpuinfo`.
const FEATURES: [&str; 13] = [
    "asimd",
    "asimdhp",
    "asimddp",
    "i8mm",
    "bf16",
    "sve2", // Arm
    "avx2",
    "f16c",
    "avx512f",
    "avx512_vnni",
    "avx_vnni",
    "avx512_bf16",
    "amx_int8", // x86
];

/// No machine of ours has more; a longer list is nonsense.
const MAX_CORES: u32 = 4096;

/// The processor.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Cpu {
    /// The name of the core or of the processor, where it is known.
    pub core: Option<String>,
    /// Cores that are there.
    pub cores: u32,
    /// The numbers of those that are switched on: a power mode takes cores away, from anywhere in the list.
    pub online: Vec<u32>,
    /// The features that the kernels ask for.
    pub features: Vec<String>,
    /// The highest clock of the first core.
    pub max_mhz: Option<u32>,
    /// What sets the clock of the first core, e.g. `schedutil`.
    pub governor: Option<String>,
}

impl Cpu {
    /// Reads the processor below `root`.
    pub fn read(root: &Root) -> Self {
        let list = |name: &str| {
            root.text(&format!("/sys/devices/system/cpu/{name}"))
                .map(|text| parse_list(&text))
                .unwrap_or_default()
        };
        let info = root.text("/proc/cpuinfo").unwrap_or_default();
        let present = list("present");
        let mut online = list("online");
        if online.is_empty() {
            let processors = info.lines().filter(|line| line.starts_with("processor")).count();
            online = (0..u32::try_from(processors).unwrap_or(MAX_CORES)).collect();
        }
        let cores = u32::try_from(present.len().max(online.len())).unwrap_or(MAX_CORES);
        let khz: Option<u32> = root.number("/sys/devices/system/cpu/cpu0/cpufreq/cpuinfo_max_freq");
        Self {
            core: core_name(&info),
            cores,
            online,
            features: features(&info),
            max_mhz: khz.map(|khz| khz / 1000),
            governor: root.text("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"),
        }
    }
}

/// The kernel's list of numbers: `0-3,6` is 0, 1, 2, 3, 6. What makes no sense is left out.
fn parse_list(text: &str) -> Vec<u32> {
    let range = |part: &str| {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        Some(first.trim().parse().ok()?..=last.trim().parse::<u32>().ok()?.min(MAX_CORES))
    };
    text.split(',').filter_map(range).flatten().collect()
}

/// The first value of `key` in `/proc/cpuinfo`.
fn field<'a>(info: &'a str, key: &str) -> Option<&'a str> {
    let value =
        |line: &'a str| line.split_once(':').filter(|(name, _)| name.trim() == key).map(|(_, v)| v.trim());
    info.lines().find_map(value)
}

fn core_name(info: &str) -> Option<String> {
    if let Some(name) = field(info, "model name") {
        return Some(name.to_owned());
    }
    let name = match (field(info, "CPU implementer")?, field(info, "CPU part")?) {
        ("0x41", "0xd07") => "Cortex-A57",
        ("0x41", "0xd42") => "Cortex-A78AE",
        ("0x41", "0xd83") => "Neoverse V3AE",
        ("0x4e", "0x003") => "Denver 2",
        ("0x4e", "0x004") => "Carmel",
        (implementer, part) => return Some(format!("implementer {implementer} part {part}")),
    };
    Some(name.to_owned())
}

fn features(info: &str) -> Vec<String> {
    let told = field(info, "Features").or_else(|| field(info, "flags")).unwrap_or_default();
    let has = |wanted: &&&str| told.split_whitespace().any(|feature| feature == **wanted);
    FEATURES.iter().filter(has).map(|&feature| feature.to_owned()).collect()
}

/// The memory, in MiB.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Memory {
    /// What the kernel manages: a little less than what is soldered on.
    pub total_mib: u64,
    /// What programs can still get, the page cache included.
    pub available_mib: u64,
    /// What the GPU's driver holds, on boards whose kernel tells it.
    pub gpu_mib: Option<u64>,
    /// Swap of every kind.
    pub swap_mib: u64,
    /// Swap on a disk or in a file; the rest is compressed memory (zram).
    pub disk_swap_mib: u64,
}

impl Memory {
    /// Reads the memory below `root`; 0 where it is not told.
    pub fn read(root: &Root) -> Self {
        let info = root.text("/proc/meminfo").unwrap_or_default();
        let mib = |key: &str| Some(field(&info, key)?.split_whitespace().next()?.parse::<u64>().ok()? / 1024);
        Self {
            total_mib: mib("MemTotal").unwrap_or(0),
            available_mib: mib("MemAvailable").unwrap_or(0),
            gpu_mib: mib("NvMapMemUsed"),
            swap_mib: mib("SwapTotal").unwrap_or(0),
            disk_swap_mib: disk_swap_mib(&root.text("/proc/swaps").unwrap_or_default()),
        }
    }
}

/// The third column of `/proc/swaps` is the size in KiB; the first line is a heading.
fn disk_swap_mib(swaps: &str) -> u64 {
    let disk = swaps.lines().skip(1).filter(|line| !line.contains("zram"));
    disk.filter_map(|line| line.split_whitespace().nth(2)?.parse::<u64>().ok()).map(|kib| kib / 1024).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_lists_with_holes_and_nonsense() {
        assert_eq!(parse_list("0-3,6"), [0, 1, 2, 3, 6]);
        assert_eq!(parse_list("0"), [0]);
        assert_eq!(parse_list(""), [0; 0]);
        assert_eq!(parse_list("x,2,5-"), [2]);
        assert_eq!(parse_list("0-4294967295").len(), 4097, "a nonsense range is cut");
    }

    #[test]
    fn zram_is_not_disk_swap() {
        let swaps = "Filename Type Size Used Priority\n/dev/zram0 partition 500000 0 5\n/swapfile file 4194304 0 -2\n";
        assert_eq!(disk_swap_mib(swaps), 4096);
        assert_eq!(disk_swap_mib(""), 0);
    }

    #[test]
    fn knows_an_orin_core_by_its_part_number() {
        let info = "processor\t: 0\nFeatures\t: fp asimd asimdhp asimddp flagm\nCPU implementer\t: 0x41\nCPU part\t: 0xd42\n";
        assert_eq!(core_name(info).as_deref(), Some("Cortex-A78AE"));
        assert_eq!(features(info), ["asimd", "asimdhp", "asimddp"]);
    }
}
