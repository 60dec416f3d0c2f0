//! Events of too much current, after which the hardware slows the clocks down.

use serde::Serialize;

use crate::Root;

/// One alarm and how often it went off since the system started. A run compares two readings.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct OverCurrent {
    /// The alarm, e.g. `oc3`.
    pub alarm: String,
    /// Events.
    pub events: u64,
}

/// The alarms of the node `soctherm_oc`.
pub(super) fn read(root: &Root) -> Vec<OverCurrent> {
    let mut alarms = Vec::new();
    for hwmon in root.names("/sys/class/hwmon") {
        let folder = format!("/sys/class/hwmon/{hwmon}");
        if root.text(&format!("{folder}/name")).as_deref() != Some("soctherm_oc") {
            continue;
        }
        for file in root.names(&folder) {
            if let Some(alarm) = file.strip_suffix("_event_cnt")
                && let Some(events) = root.number(&format!("{folder}/{file}"))
            {
                alarms.push(OverCurrent { alarm: alarm.to_owned(), events });
            }
        }
    }
    alarms
}
