//! What boards feel.

use saccade_boards::{Sensors, detect};

use crate::fixtures::{Tree, orin_nano_super};

#[test]
fn reads_an_orin_nano() {
    let tree = orin_nano_super();
    let sensors = Sensors::read(&tree.root());
    let zones: Vec<(&str, f64)> = sensors.temperatures.iter().map(|t| (t.zone.as_str(), t.celsius)).collect();
    assert_eq!(zones, [("cpu-thermal", 48.5), ("gpu-thermal", 49.125)], "zones that are off are left out");
    assert_eq!(sensors.hottest().unwrap().zone, "gpu-thermal");

    let rails: Vec<(&str, u32)> =
        sensors.power_rails.iter().map(|r| (r.label.as_str(), r.power_mw)).collect();
    assert_eq!(rails, [("VDD_IN", 5473), ("VDD_CPU_GPU_CV", 1492), ("VDD_SOC", 995)]);
    let board = detect(&tree.root()).unwrap().board;
    assert_eq!(sensors.total_mw(&board), Some(5473), "VDD_IN carries the others: they are not added to it");

    let gpu = sensors.gpu.unwrap();
    assert_eq!((gpu.node.as_str(), gpu.load_percent, gpu.mhz), ("17000000.gpu", Some(43.7), Some(306)));
    assert_eq!((gpu.is_locked(), gpu.governor.as_deref()), (Some(false), Some("nvhost_podgov")));
    let alarms: Vec<(&str, u64)> =
        sensors.over_current.iter().map(|a| (a.alarm.as_str(), a.events)).collect();
    assert_eq!(alarms, [("oc1", 0), ("oc3", 7)]);
    assert_eq!(sensors.memory_cap_mhz, Some(3199));
}

#[test]
fn adds_the_rails_of_a_board_that_has_no_total_one() {
    let tree = Tree::new()
        .device_tree(
            &["nvidia,p3737-0000+p3701-0005", "nvidia,tegra234"],
            "NVIDIA Jetson AGX Orin Developer Kit",
        )
        .memory_kib(64_000_000)
        .cores("0-11", "0-11")
        .ina3221(
            "1-0040",
            &[(1, "VDD_GPU_SOC", 19_000, 200), (2, "VDD_CPU_CV", 19_000, 100), (3, "NC", 19_000, 900)],
        )
        .ina3221("1-0041", &[(2, "VIN_SYS_5V0", 5_000, 1_000)]);
    let sensors = Sensors::read(&tree.root());
    assert_eq!(sensors.power_rails.len(), 3, "a channel that leads nowhere is no rail");
    let board = detect(&tree.root()).unwrap().board;
    assert_eq!(sensors.total_mw(&board), Some(3_800 + 1_900 + 5_000));
}

#[test]
fn reads_the_older_and_the_newer_monitors() {
    let tree = Tree::new()
        .file("sys/bus/i2c/devices/6-0040/name", "ina3221x\n")
        .file("sys/bus/i2c/devices/6-0040/iio:device0/rail_name_0", "POM_5V_IN\n")
        .file("sys/bus/i2c/devices/6-0040/iio:device0/in_power0_input", "2470\n")
        .file("sys/bus/i2c/devices/2-0044/name", "ina238\n")
        .file("sys/bus/i2c/devices/2-0044/hwmon/hwmon5/power1_input", "19780000\n")
        .file("sys/bus/i2c/devices/2-0044/hwmon/hwmon5/label", "VIN\n")
        .file("sys/bus/i2c/devices/2-0050/name", "24c02\n");
    let sensors = Sensors::read(&tree.root());
    let rails: Vec<(&str, u32)> =
        sensors.power_rails.iter().map(|r| (r.label.as_str(), r.power_mw)).collect();
    assert_eq!(rails, [("VIN", 19_780), ("POM_5V_IN", 2_470)]);
}

#[test]
fn finds_the_gpu_of_thor_and_of_older_systems() {
    let thor = Tree::new()
        .file("sys/class/devfreq/gpu-gpc-0/cur_freq", "1575000000\n")
        .file("sys/class/devfreq/gpu-gpc-0/min_freq", "1575000000\n")
        .file("sys/class/devfreq/gpu-gpc-0/max_freq", "1575000000\n")
        .file("sys/class/devfreq/gpu-nvd-0/cur_freq", "900000000\n");
    let gpu = Sensors::read(&thor.root()).gpu.unwrap();
    assert_eq!((gpu.mhz, gpu.load_percent, gpu.is_locked()), (Some(1575), None, Some(true)));

    let older = Tree::new().file("sys/devices/17000000.ga10b/load", "1000\n");
    let gpu = Sensors::read(&older.root()).gpu.unwrap();
    assert_eq!((gpu.load_percent, gpu.mhz, gpu.is_locked()), (Some(100.0), None, None));
}

#[test]
fn a_machine_without_sensors_has_none() {
    let sensors = Sensors::read(&Tree::new().root());
    assert!(
        sensors.temperatures.is_empty() && sensors.power_rails.is_empty() && sensors.over_current.is_empty()
    );
    assert_eq!((sensors.gpu, sensors.memory_cap_mhz), (None, None));
}

#[test]
fn readings_that_overflow_are_left_out() {
    let tree =
        Tree::new().ina3221("1-0040", &[(1, "VDD_IN", u32::MAX, u32::MAX), (2, "VDD_SOC", 5_000, 100)]);
    let rails = Sensors::read(&tree.root()).power_rails;
    assert_eq!(rails.len(), 1, "{rails:?}");
}
