//! File trees of boards as their kernels show them.

use std::fs;
use std::path::Path;

use saccade_boards::Root;
use tempfile::TempDir;

/// A file tree in a temporary folder.
pub(crate) struct Tree(TempDir);

impl Tree {
    pub(crate) fn new() -> Self {
        Self(TempDir::new().unwrap())
    }

    pub(crate) fn root(&self) -> Root {
        Root::at(self.0.path())
    }

    /// Adds a file, or replaces it.
    pub(crate) fn file(self, path: &str, content: impl AsRef<[u8]>) -> Self {
        let path = self.0.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
        self
    }

    pub(crate) fn link(self, path: &str, target: &str) -> Self {
        let path = self.0.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::os::unix::fs::symlink(Path::new(target), path).unwrap();
        self
    }

    /// The device tree's two texts, NUL-terminated as the kernel has them.
    pub(crate) fn device_tree(self, compatible: &[&str], model: &str) -> Self {
        self.file("proc/device-tree/compatible", compatible.join("\0") + "\0")
            .file("proc/device-tree/model", model.to_owned() + "\0")
    }

    pub(crate) fn memory_kib(self, total: u64) -> Self {
        let info = format!(
            "MemTotal:       {total} kB\nMemFree:          100000 kB\nMemAvailable:    2097152 kB\n\
             SwapTotal:             0 kB\nNvMapMemUsed:      51200 kB\n"
        );
        self.file("proc/meminfo", info)
    }

    pub(crate) fn cores(self, present: &str, online: &str) -> Self {
        self.file("sys/devices/system/cpu/present", present).file("sys/devices/system/cpu/online", online).file(
            "proc/cpuinfo",
            "processor\t: 0\nFeatures\t: fp asimd asimdhp asimddp paca\nCPU implementer\t: 0x41\nCPU part\t: 0xd42\n",
        )
    }

    pub(crate) fn ina3221(self, device: &str, rails: &[(u32, &str, u32, u32)]) -> Self {
        let folder = format!("sys/bus/i2c/devices/{device}");
        let tree = self.file(&format!("{folder}/name"), "ina3221\n");
        rails.iter().fold(tree, |tree, (channel, label, millivolt, milliampere)| {
            let file = |what: &str| format!("{folder}/hwmon/hwmon3/{what}");
            tree.file(&file(&format!("in{channel}_label")), format!("{label}\n"))
                .file(&file(&format!("in{channel}_input")), format!("{millivolt}\n"))
                .file(&file(&format!("curr{channel}_input")), format!("{milliampere}\n"))
        })
    }

    pub(crate) fn zone(self, number: u32, kind: &str, millidegrees: &str) -> Self {
        let folder = format!("sys/class/thermal/thermal_zone{number}");
        self.file(&format!("{folder}/type"), format!("{kind}\n"))
            .file(&format!("{folder}/temp"), format!("{millidegrees}\n"))
    }

    pub(crate) fn camera(self, number: u32, index: u32, name: &str) -> Self {
        let folder = format!("sys/class/video4linux/video{number}");
        self.file(&format!("{folder}/name"), format!("{name}\n"))
            .file(&format!("{folder}/index"), format!("{index}\n"))
    }
}

/// An Orin Nano 8GB developer kit, flashed with the super configuration, JetPack 6.2, in its 25W mode.
pub(crate) fn orin_nano_super() -> Tree {
    Tree::new()
        .device_tree(
            &["nvidia,p3768-0000+p3767-0005-super", "nvidia,p3767-0005", "nvidia,tegra234"],
            "NVIDIA Jetson Orin Nano Engineering Reference Developer Kit Super",
        )
        .file(
            "etc/nv_tegra_release",
            "# R36 (release), REVISION: 4.3, GCID: 38968081, BOARD: generic, EABI: aarch64, DATE: Wed Jan  8 01:49:37 UTC 2025\n",
        )
        .memory_kib(7_802_080)
        .cores("0-5", "0-5")
        .file("usr/lib/aarch64-linux-gnu/nvidia/libcuda.so.1", "")
        .file("var/lib/nvpmodel/status", "pmode:0001 fmode:quiet\n")
        .file(
            "etc/nvpmodel.conf",
            "< POWER_MODEL ID=0 NAME=15W >\n< POWER_MODEL ID=1 NAME=25W >\n< POWER_MODEL ID=2 NAME=MAXN_SUPER >\n\
             < POWER_MODEL ID=3 NAME=7W >\n< PM_CONFIG DEFAULT=1 >\n",
        )
        .file("sys/class/devfreq/17000000.gpu/cur_freq", "306000000\n")
        .file("sys/class/devfreq/17000000.gpu/min_freq", "306000000\n")
        .file("sys/class/devfreq/17000000.gpu/max_freq", "918000000\n")
        .file("sys/class/devfreq/17000000.gpu/governor", "nvhost_podgov\n")
        .file("sys/class/devfreq/17000000.gpu/device/load", "437\n")
        .file("sys/class/devfreq/17000000.gpu/device/of_node/name", "gpu\0")
        .file("sys/class/devfreq/a_dla.dla/device/of_node/name", "nvdla0\0")
        .ina3221("1-0040", &[(1, "VDD_IN", 4976, 1100), (2, "VDD_CPU_GPU_CV", 4976, 300), (3, "VDD_SOC", 4976, 200)])
        .file("sys/bus/i2c/devices/1-0040/hwmon/hwmon3/in7_label", "sum of shunt voltages\n")
        .zone(0, "cpu-thermal", "48500")
        .zone(1, "gpu-thermal", "49125")
        .zone(2, "cv0-thermal", "-256000")
        .zone(3, "tj-thermal", "N/A")
        .file("sys/class/hwmon/hwmon1/name", "soctherm_oc\n")
        .file("sys/class/hwmon/hwmon1/oc1_event_cnt", "0\n")
        .file("sys/class/hwmon/hwmon1/oc3_event_cnt", "7\n")
        .file("sys/class/hwmon/hwmon1/oc3_throt_en", "1\n")
        .file("sys/kernel/nvpmodel_emc_cap/emc_iso_cap", "3199000000\n")
        .camera(0, 0, "HD Pro Webcam C920")
        .camera(1, 1, "HD Pro Webcam C920")
        .file("dev/video0", "")
}
