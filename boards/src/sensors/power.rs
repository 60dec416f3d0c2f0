//! Power by rail, from the INA3221 and INA238 monitors on the board's I²C buses.

use serde::Serialize;

use crate::Root;

/// One measured power rail.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PowerRail {
    /// The label on the schematic, e.g. `VDD_IN`.
    pub label: String,
    /// Power, in mW.
    pub power_mw: u32,
    /// Voltage, in mV, where the monitor tells it.
    pub voltage_mv: Option<u32>,
    /// Current, in mA, where the monitor tells it.
    pub current_ma: Option<u32>,
}

/// An INA3221 has three channels; its seventh input is their sum, which would count twice.
const CHANNELS: std::ops::RangeInclusive<u32> = 1..=6;

/// All rails of all monitors.
pub(super) fn read(root: &Root) -> Vec<PowerRail> {
    let mut rails = Vec::new();
    for device in root.names("/sys/bus/i2c/devices") {
        let folder = format!("/sys/bus/i2c/devices/{device}");
        let name = root.text(&format!("{folder}/name")).unwrap_or_default();
        if !name.starts_with("ina") {
            continue;
        }
        for hwmon in root.names(&format!("{folder}/hwmon")) {
            let folder = format!("{folder}/hwmon/{hwmon}");
            let before = rails.len();
            rails.extend(CHANNELS.filter_map(|channel| by_channel(root, &folder, channel)));
            if rails.len() == before {
                rails.extend(by_power(root, &folder, &name));
            }
        }
        for entry in root.names(&folder).iter().filter(|entry| entry.starts_with("iio:device")) {
            rails.extend((0..3).filter_map(|channel| by_iio(root, &format!("{folder}/{entry}"), channel)));
        }
    }
    rails
}

/// The usual form: label, millivolt and milliampere of a channel.
fn by_channel(root: &Root, folder: &str, channel: u32) -> Option<PowerRail> {
    let label = connected(root.text(&format!("{folder}/in{channel}_label"))?)?;
    let voltage_mv: u32 = root.number(&format!("{folder}/in{channel}_input"))?;
    let current_ma: u32 = root.number(&format!("{folder}/curr{channel}_input"))?;
    let microwatts = u64::from(voltage_mv) * u64::from(current_ma);
    let power_mw = u32::try_from(microwatts / 1000).ok()?;
    Some(PowerRail { label, power_mw, voltage_mv: Some(voltage_mv), current_ma: Some(current_ma) })
}

/// A monitor of one rail that multiplies itself: microwatts.
fn by_power(root: &Root, folder: &str, monitor: &str) -> Option<PowerRail> {
    let microwatts: u64 = root.number(&format!("{folder}/power1_input"))?;
    let label =
        root.text(&format!("{folder}/power1_label")).or_else(|| root.text(&format!("{folder}/label")));
    let label = connected(label.unwrap_or_else(|| monitor.to_owned()))?;
    let power_mw = u32::try_from(microwatts / 1000).ok()?;
    Some(PowerRail { label, power_mw, voltage_mv: None, current_ma: None })
}

/// The form of JetPack 4: milliwatts of a named channel.
fn by_iio(root: &Root, folder: &str, channel: u32) -> Option<PowerRail> {
    let label = connected(root.text(&format!("{folder}/rail_name_{channel}"))?)?;
    Some(PowerRail {
        label,
        power_mw: root.number(&format!("{folder}/in_power{channel}_input"))?,
        voltage_mv: root.number(&format!("{folder}/in_voltage{channel}_input")),
        current_ma: root.number(&format!("{folder}/in_current{channel}_input")),
    })
}

/// `NC` marks a channel that leads nowhere.
fn connected(label: String) -> Option<String> {
    (!label.is_empty() && !label.contains("NC")).then_some(label)
}
