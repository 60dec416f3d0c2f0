//! What the doctor says.

use saccade_boards::{Level, Report};
use serde_json::Value;

use crate::fixtures::{Tree, orin_nano_super};

fn report(tree: &Tree) -> Report {
    Report::collect(&tree.root()).unwrap()
}

/// Whether some finding holds all these words.
fn finds(report: &Report, words: &[&str]) -> bool {
    report.findings.iter().any(|finding| words.iter().all(|word| finding.text.contains(word)))
}

#[test]
fn speaks_with_the_field_names_of_the_vendor() {
    let report = report(&orin_nano_super());
    let json: Value = serde_json::to_value(&report).unwrap();
    for (key, expected) in [
        ("sku", "p3767-0005"),
        ("generation", "orin"),
        ("product_line", "orin-nano"),
        ("variant", "Orin Nano 8GB"),
        ("variant_source", "module-id"),
        ("l4t_version", "36.4.3"),
        ("product_model", "NVIDIA Jetson Orin Nano Engineering Reference Developer Kit Super"),
    ] {
        assert_eq!(json[key], expected, "{key}");
    }
    assert_eq!(json["mem_total_gb"], 7.4);
    assert_eq!(json["memory"]["gpu_mib"], 50);
    assert_eq!(json["power"]["mode"]["current"]["name"], "25W");
    assert_eq!(json["power"]["total_mw"], 5473);
    assert_eq!(json["board"]["gpu"]["compute_capability"]["value"]["major"], 8);
}

#[test]
fn names_the_power_mode_and_how_to_change_it() {
    let report = report(&orin_nano_super());
    assert!(
        finds(&report, &["power mode is 25W", "0 15W, 1 25W, 2 MAXN_SUPER, 3 7W"]),
        "{:#?}",
        report.findings
    );
    assert!(finds(&report, &["no hardware video encoder"]));
    assert!(finds(&report, &["slowed 7 times for too much current"]));
    assert!(finds(&report, &["not locked", "jetson_clocks"]));
    assert!(finds(&report, &["no swap"]));
    assert!(!finds(&report, &["super modes"]), "its table has them");
    assert!(report.findings.is_sorted_by_key(|finding| finding.level), "warnings come first");
}

#[test]
fn misses_the_super_table() {
    let conf = "< POWER_MODEL ID=0 NAME=15W >\n< POWER_MODEL ID=1 NAME=7W >\n< PM_CONFIG DEFAULT=0 >\n";
    let report = report(&orin_nano_super().file("etc/nvpmodel.conf", conf));
    let finding = report.findings.iter().find(|finding| finding.text.contains("super modes")).unwrap();
    assert_eq!(finding.level, Level::Warning);
    assert!(finding.text.contains("(25W and MAXN_SUPER)"), "{}", finding.text);
}

#[test]
fn misses_the_super_clock() {
    let tree = orin_nano_super().file("var/lib/nvpmodel/status", "pmode:0002\n");
    let stuck = report(&tree.file("sys/class/devfreq/17000000.gpu/max_freq", "624750000\n"));
    assert!(finds(&stuck, &["MAXN_SUPER", "624 of 1020 MHz"]), "{:#?}", stuck.findings);
    let tree = orin_nano_super().file("var/lib/nvpmodel/status", "pmode:0002\n");
    let free = report(&tree.file("sys/class/devfreq/17000000.gpu/max_freq", "1020000000\n"));
    assert!(!finds(&free, &["MHz"]), "{:#?}", free.findings);
}

#[test]
fn says_what_is_wrong_with_each_camera() {
    let tree = orin_nano_super()
        .camera(2, 0, "vi-output, imx219 10-0010")
        .camera(4, 0, "USB Camera")
        .file("dev/video2", "");
    let report = report(&tree);
    let devices: Vec<&str> = report.cameras.iter().map(|camera| camera.device.as_str()).collect();
    assert_eq!(devices, ["/dev/video0", "/dev/video2", "/dev/video4"], "metadata nodes are no cameras");
    assert!(finds(&report, &["/dev/video2", "raw Bayer", "csi://"]));
    assert!(finds(&report, &["/dev/video4", "--device /dev/video4"]));
    assert!(!finds(&report, &["/dev/video0"]), "nothing is wrong with the first");
    assert!(!finds(&report, &["no camera is connected"]));
}

#[test]
fn an_unknown_jetson_says_how_to_add_it() {
    let tree = Tree::new()
        .device_tree(&["nvidia,p3740-0002+p3701-0002", "nvidia,tegra234"], "NVIDIA IGX Development Kit")
        .memory_kib(64_000_000)
        .cores("0-11", "0-3");
    let report = report(&tree);
    assert!(finds(&report, &["p3701-0002 has no profile", "boards/"]));
    assert!(finds(&report, &["libcuda.so.1", "nvidia-l4t-cuda"]));
    assert!(finds(&report, &["4 of 12 processor cores"]));
}

#[test]
fn memory_that_does_not_fit_the_profile_is_told() {
    let report = report(&orin_nano_super().memory_kib(3_600_000));
    assert!(finds(&report, &["8192 MiB", "3515"]), "{:#?}", report.findings);
}

#[test]
fn a_desktop_on_a_small_board_is_told() {
    let link = |target| report(&orin_nano_super().link("etc/systemd/system/default.target", target));
    assert!(finds(&link("/lib/systemd/system/graphical.target"), &["desktop", "865 MB"]));
    assert!(!finds(&link("/lib/systemd/system/multi-user.target"), &["desktop"]));
}

#[test]
fn heat_is_a_warning() {
    let report = report(&orin_nano_super().zone(4, "soc0-thermal", "91000"));
    assert!(finds(&report, &["soc0-thermal is at 91 °C"]));
}

#[test]
fn prints_what_a_person_needs() {
    let text = report(&orin_nano_super()).to_string();
    for line in [
        "board        Jetson Orin Nano 8GB (NVIDIA Jetson Orin Nano Engineering Reference Developer Kit Super)",
        "gpu          8 multiprocessors, compute capability 8.7",
        "power mode   25W",
        "processor    Cortex-A78AE, 6 of 6 cores online",
        "features     asimd asimdhp asimddp",
        "memory       7619 MiB, 2048 MiB available, 0 MiB swap",
        "power        5.5 W",
        "hottest      49.1 °C (gpu-thermal)",
        "camera       /dev/video0 (HD Pro Webcam C920)",
    ] {
        assert!(text.lines().any(|found| found == line), "{line} is not in\n{text}");
    }
}

#[test]
fn this_machine_gets_a_report() {
    let report = Report::collect(&saccade_boards::Root::system()).unwrap();
    assert!(report.memory.total_mib > 0 && report.cpu.cores > 0);
    assert!(!report.to_string().is_empty());
}
