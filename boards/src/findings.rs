//! What a user should know about this machine: one small rule a function, each a sentence that says what to do.

use serde::Serialize;

use crate::{FoundBy, Report};

/// Something the user should know.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// How much it matters.
    pub level: Level,
    /// The sentence.
    pub text: String,
}

/// How much a finding matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Level {
    /// Something does not work, or works much worse than it could.
    Warning,
    /// Good to know.
    Note,
}

impl Level {
    /// The word for the beginning of a line.
    pub fn word(self) -> &'static str {
        match self {
            Self::Warning => "warning",
            Self::Note => "note",
        }
    }
}

/// What a rule says: nothing, or a sentence and how much it matters.
type Said = Option<(Level, String)>;

/// All rules. A new one is a function and a line here.
const RULES: [fn(&Report) -> Said; 15] = [
    unknown_module,
    guessed_board,
    memory_differs,
    no_cuda_driver,
    super_table_missing,
    super_clock_missing,
    slower_power_mode,
    over_current,
    hot,
    cores_offline,
    clock_not_locked,
    swap,
    desktop,
    no_encoder,
    no_camera,
];

/// What the rules say of this report, warnings first.
pub(crate) fn findings(report: &Report) -> Vec<Finding> {
    let said = RULES.iter().filter_map(|rule| rule(report)).chain(cameras(report));
    let mut findings: Vec<Finding> = said.map(|(level, text)| Finding { level, text }).collect();
    findings.sort_by_key(|finding| finding.level);
    findings
}

fn warn(text: String) -> Said {
    Some((Level::Warning, text))
}

fn note(text: String) -> Said {
    Some((Level::Note, text))
}

fn unknown_module(report: &Report) -> Said {
    if report.variant_source != FoundBy::Nothing || !report.is_jetson() {
        return None;
    }
    let module = report.sku.as_deref().unwrap_or("of unknown number");
    warn(format!(
        "this Jetson's module {module} has no profile: copy the nearest file in boards/ and add its number"
    ))
}

fn guessed_board(report: &Report) -> Said {
    let what = match report.variant_source {
        FoundBy::ModelText => "the model text and the memory",
        FoundBy::SocAndMemory => "the chip and the memory",
        FoundBy::BootControl | FoundBy::ModuleId | FoundBy::Nothing => return None,
    };
    note(format!("the board was guessed from {what}, so its facts may be those of a sister board"))
}

fn memory_differs(report: &Report) -> Said {
    let (told, sold) = (report.memory.total_mib, report.board.memory_mib.value);
    // The kernel manages somewhat less than what is sold, never more and never half.
    let fits = told <= sold && told >= sold / 4 * 3;
    let text = format!(
        "the profile says {sold} MiB of memory and this machine has {told}: another module fits better"
    );
    (!fits).then_some((Level::Warning, text))
}

fn no_cuda_driver(report: &Report) -> Said {
    if !report.is_jetson() || report.cuda_driver.is_some() {
        return None;
    }
    warn("the CUDA driver (libcuda.so.1) is not here: install nvidia-l4t-cuda, or start the container with --runtime nvidia".into())
}

/// The super modes of the profile that this system's table has, as (has, lacks).
fn super_modes(report: &Report) -> Option<(Vec<&str>, Vec<&str>)> {
    let table = report.power.mode.as_ref()?;
    let modes = report.board.super_power_modes.as_ref()?;
    Some(modes.value.iter().map(String::as_str).partition(|name| table.find(name).is_some()))
}

fn super_table_missing(report: &Report) -> Said {
    let (has, lacks) = super_modes(report)?;
    if !has.is_empty() {
        return None;
    }
    let modes = lacks.join(" and ");
    warn(format!(
        "this board can run in super modes ({modes}), but its system has the other table: \
         flash it with the -super configuration, or update to JetPack 7.2.1 where an upgrade left it out"
    ))
}

/// Seen after upgrades: the mode says MAXN_SUPER and the clock stays at the old maximum.
fn super_clock_missing(report: &Report) -> Said {
    let mode = report.power.mode.as_ref()?.current.as_ref()?;
    let expected = report.board.gpu.as_ref()?.max_super_mhz.as_ref()?.value;
    let found = report.sensors.gpu.as_ref()?.max_mhz?;
    if mode.name != "MAXN_SUPER" || found >= expected * 9 / 10 {
        return None;
    }
    warn(format!(
        "the power mode is MAXN_SUPER but the GPU is held at {found} of {expected} MHz: \
         update to JetPack 7.2.1 or flash with the -super configuration"
    ))
}

fn slower_power_mode(report: &Report) -> Said {
    let table = report.power.mode.as_ref()?;
    let mode = table.current.as_ref()?;
    if table.modes.len() < 2 || mode.name.starts_with("MAXN") {
        return None;
    }
    let list: Vec<String> = table.modes.iter().map(|mode| format!("{} {}", mode.id, mode.name)).collect();
    note(format!(
        "the power mode is {}; `sudo nvpmodel -m NUMBER` changes it (here: {}), if the cooling allows",
        mode.name,
        list.join(", ")
    ))
}

fn over_current(report: &Report) -> Said {
    let events: u64 =
        report.sensors.over_current.iter().fold(0, |sum, alarm| sum.saturating_add(alarm.events));
    if events == 0 {
        return None;
    }
    warn(format!(
        "the board was slowed {events} times for too much current since it started: use a stronger supply or a lower power mode"
    ))
}

fn hot(report: &Report) -> Said {
    let zone = report.sensors.hottest().filter(|zone| zone.celsius >= 85.0)?;
    warn(format!(
        "{} is at {:.0} °C, where boards slow down: improve the cooling or lower the power mode",
        zone.zone, zone.celsius
    ))
}

fn cores_offline(report: &Report) -> Said {
    let online = u32::try_from(report.cpu.online.len()).ok()?;
    if online >= report.cpu.cores {
        return None;
    }
    note(format!(
        "{online} of {} processor cores are online; a larger power mode switches the others on",
        report.cpu.cores
    ))
}

fn clock_not_locked(report: &Report) -> Said {
    if report.sensors.gpu.as_ref()?.is_locked()? {
        return None;
    }
    note("the GPU's clock is not locked: measure only after `sudo jetson_clocks`, or results vary by up to 45 %".into())
}

fn swap(report: &Report) -> Said {
    if !report.is_jetson() || report.board.memory_mib.value > 8192 || report.memory.disk_swap_mib > 0 {
        return None;
    }
    let now = if report.memory.swap_mib > 0 { "all swap is compressed memory" } else { "there is no swap" };
    note(format!("{now}: a swap file on the NVMe disk keeps a board of this size from freezing"))
}

fn desktop(report: &Report) -> Said {
    if !report.is_jetson() || !report.desktop || report.board.memory_mib.value > 8192 {
        return None;
    }
    note(
        "a desktop is started; `sudo systemctl set-default multi-user.target` and a reboot free up to 865 MB"
            .into(),
    )
}

fn no_encoder(report: &Report) -> Said {
    let encoders = report.board.video_encoders.as_ref()?.value;
    (encoders == 0).then(|| {
        (Level::Note, "this board has no hardware video encoder: recording video costs processor time".into())
    })
}

fn no_camera(report: &Report) -> Said {
    if !report.cameras.is_empty() {
        return None;
    }
    note("no camera is connected: files, and test://pattern, work without one".into())
}

/// What is wrong with each camera.
fn cameras(report: &Report) -> impl Iterator<Item = (Level, String)> {
    report.cameras.iter().filter_map(|camera| {
        let (device, name) = (&camera.device, &camera.name);
        if !camera.present {
            return warn(format!(
                "camera {device} ({name}) is not passed into this container: start it with --device {device}"
            ));
        }
        if !camera.permitted {
            return warn(format!(
                "this user may not open {device} ({name}): `sudo usermod -aG video $USER`, then log in again"
            ));
        }
        if camera.raw_bayer {
            return note(format!(
                "{device} ({name}) is a raw Bayer sensor on the camera port, whose pictures come through csi://, \
                 which this version does not open yet: use a USB camera"
            ));
        }
        None
    })
}
