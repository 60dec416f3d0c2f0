//! Which board this is. Needs no root rights and works in a container.

use serde::Serialize;

use crate::machine::Memory;
use crate::profiles::{host, profiles};
use crate::{Board, Result, Root};

/// `/var/lib/dpkg/status` of a full desktop is a few MiB.
const DPKG_STATUS_BYTES: u64 = 32 * 1024 * 1024;

/// Which board this is, and how we know.
#[derive(Debug, Clone, PartialEq)]
pub struct Detection {
    /// The board; the measured `host` profile where none fits.
    pub board: Board,
    /// How it was found.
    pub found_by: FoundBy,
    /// The module's part number, whether or not there is a profile for it.
    pub module: Option<String>,
    /// Whether the system was flashed with the super configuration.
    pub super_flashed: bool,
    /// What the device tree calls itself compatible with, most specific first.
    pub compatible: Vec<String>,
    /// The model text of the device tree, or of the firmware where there is none.
    pub product_model: Option<String>,
    /// The release of Linux for Tegra, e.g. `36.4.3`.
    pub l4t_version: Option<String>,
}

/// What told the board, the surest first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum FoundBy {
    /// The name in the boot control file.
    BootControl,
    /// The module's part number in the device tree.
    ModuleId,
    /// The model text, and the memory where several boards share it.
    ModelText,
    /// The chip and the memory: a guess.
    SocAndMemory,
    /// Nothing: this is no board that we know.
    Nothing,
}

/// Finds out which board this is.
///
/// # Errors
/// If not even the number of cores and the size of the memory can be read below `root`.
pub fn detect(root: &Root) -> Result<Detection> {
    let compatible: Vec<String> = root
        .text("/proc/device-tree/compatible")
        .map(|text| text.split('\0').map(str::to_owned).collect())
        .unwrap_or_default();
    let device_tree_model = root.text("/proc/device-tree/model");
    let boards = profiles(root)?;
    let evidence = Evidence {
        compatible: &compatible,
        model: device_tree_model.as_deref().unwrap_or_default(),
        boot_control: root.text("/etc/nv_boot_control.conf").unwrap_or_default(),
        memory_mib: Memory::read(root).total_mib,
    };
    let (board, found_by) = match evidence.find(&boards) {
        Some((board, found_by)) => (board.clone(), found_by),
        None => (host(root)?, FoundBy::Nothing),
    };
    Ok(Detection {
        board,
        found_by,
        module: compatible.iter().find_map(|entry| module_id(entry)),
        super_flashed: compatible.iter().any(|entry| entry.contains("-super")),
        product_model: device_tree_model.or_else(|| root.text("/sys/class/dmi/id/product_name")),
        compatible,
        l4t_version: l4t_version(root),
    })
}

/// What a machine tells of itself.
struct Evidence<'a> {
    compatible: &'a [String],
    model: &'a str,
    boot_control: String,
    memory_mib: u64,
}

impl Evidence<'_> {
    fn find<'b>(&self, boards: &'b [Board]) -> Option<(&'b Board, FoundBy)> {
        let of_this_soc = |board: &&Board| {
            board
                .soc
                .as_ref()
                .is_some_and(|soc| self.compatible.iter().any(|entry| entry.contains(soc.as_str())))
        };
        let same_soc: Vec<&Board> = boards.iter().filter(of_this_soc).collect();
        let booted = same_soc.iter().copied().filter(|board| self.boots_as(board)).collect();
        if let Some(board) = self.nearest(booted) {
            return Some((board, FoundBy::BootControl));
        }
        let by_module = boards.iter().filter(|board| self.has_module_of(board)).collect();
        if let Some(board) = self.nearest(by_module) {
            return Some((board, FoundBy::ModuleId));
        }
        if let Some(board) = self.nearest(self.named_in_model(boards)) {
            return Some((board, FoundBy::ModelText));
        }
        // The chip alone is evidence only where all its boards are of one line.
        let one_line = same_soc.windows(2).all(|pair| pair[0].product_line == pair[1].product_line);
        let board = self.nearest(same_soc).filter(|_| one_line)?;
        Some((board, FoundBy::SocAndMemory))
    }

    fn boots_as(&self, board: &Board) -> bool {
        board.boot_specs.iter().any(|spec| self.boot_control.contains(spec.as_str()))
    }

    /// Substrings, not equality: flashing with the super configuration adds a suffix, and carriers differ.
    fn has_module_of(&self, board: &Board) -> bool {
        board.modules.iter().any(|module| self.compatible.iter().any(|entry| entry.contains(module.as_str())))
    }

    /// The boards whose name in the model text is the longest: "Jetson TX2 NX" is no "Jetson TX2".
    fn named_in_model<'b>(&self, boards: &'b [Board]) -> Vec<&'b Board> {
        let model = self.model.to_lowercase();
        let matched = |board: &Board| {
            let names = board.model_names.iter().filter(|name| model.contains(&name.to_lowercase()));
            names.map(String::len).max().unwrap_or(0)
        };
        let longest = boards.iter().map(matched).max().unwrap_or(0);
        boards.iter().filter(|board| longest > 0 && matched(board) == longest).collect()
    }

    /// Of several boards the one whose memory is nearest to what the kernel manages.
    fn nearest<'b>(&self, boards: Vec<&'b Board>) -> Option<&'b Board> {
        boards.into_iter().min_by_key(|board| board.memory_mib.value.abs_diff(self.memory_mib))
    }
}

/// The last part number (`p` and two groups of four digits) in an entry such as `nvidia,p3768-0000+p3767-0005-super`.
fn module_id(entry: &str) -> Option<String> {
    let is_id = |id: &[u8]| {
        let digits = |range: &[u8]| range.iter().all(u8::is_ascii_digit);
        id[0] == b'p' && digits(&id[1..5]) && id[5] == b'-' && digits(&id[6..10])
    };
    let id = entry.as_bytes().windows(10).rfind(|window| is_id(window))?;
    Some(String::from_utf8_lossy(id).into_owned())
}

/// From the release file, or from the version of the core package.
fn l4t_version(root: &Root) -> Option<String> {
    let release = root.text("/etc/nv_tegra_release").and_then(|text| parse_release(&text));
    release.or_else(|| parse_dpkg(&root.text_up_to("/var/lib/dpkg/status", DPKG_STATUS_BYTES)?))
}

/// `# R36 (release), REVISION: 4.3, GCID: …` is 36.4.3. The BOARD and SOC fields there are not reliable.
fn parse_release(text: &str) -> Option<String> {
    let line = text.lines().find(|line| line.contains("REVISION"))?;
    let release = line.trim_start_matches(['#', ' ']).strip_prefix('R')?.split_whitespace().next()?;
    let revision = line.split("REVISION:").nth(1)?.split(',').next()?.trim();
    Some(format!("{release}.{revision}"))
}

/// `Version: 36.4.3-20250107174145` of the package nvidia-l4t-core is 36.4.3.
fn parse_dpkg(status: &str) -> Option<String> {
    let package = status.split("\n\n").find(|package| package.starts_with("Package: nvidia-l4t-core\n"))?;
    let version = package.lines().find_map(|line| line.strip_prefix("Version: "))?;
    version.split('-').next().map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_the_part_number_of_the_module() {
        assert_eq!(module_id("nvidia,p3768-0000+p3767-0005-super").as_deref(), Some("p3767-0005"));
        assert_eq!(module_id("nvidia,p3449-0000-b00+p3448-0000-b00").as_deref(), Some("p3448-0000"));
        assert_eq!(module_id("nvidia,tegra234"), None);
        assert_eq!(module_id("p123"), None);
    }

    #[test]
    fn reads_the_release_from_either_place() {
        let release = "# R36 (release), REVISION: 4.3, GCID: 38968081, BOARD: generic, EABI: aarch64\n#\n";
        assert_eq!(parse_release(release).as_deref(), Some("36.4.3"));
        assert_eq!(parse_release("# nonsense"), None);
        let dpkg = "Package: a\nVersion: 1\n\nPackage: nvidia-l4t-core\nStatus: x\nVersion: 39.2.0-20260601\n\nPackage: b\n";
        assert_eq!(parse_dpkg(dpkg).as_deref(), Some("39.2.0"));
        assert_eq!(parse_dpkg("Package: nvidia-l4t-core-x\nVersion: 9\n"), None);
    }
}
