//! Temperatures, by the names of the thermal zones.

use serde::Serialize;

use crate::Root;

/// A thermal zone.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Temperature {
    /// The zone's type, e.g. `gpu-thermal`.
    pub zone: String,
    /// In °C.
    pub celsius: f64,
}

/// The zones that are switched on. Those that are not give an error or −256 °C.
pub(super) fn read(root: &Root) -> Vec<Temperature> {
    let zone = |name: &String| {
        let folder = format!("/sys/class/thermal/{name}");
        let zone = root.text(&format!("{folder}/type"))?;
        let millidegrees: i32 = root.number(&format!("{folder}/temp"))?;
        (millidegrees > -100_000).then(|| Temperature { zone, celsius: f64::from(millidegrees) / 1000.0 })
    };
    let mut names = root.names("/sys/class/thermal");
    names.retain(|name| name.starts_with("thermal_zone"));
    names.iter().filter_map(zone).collect()
}
