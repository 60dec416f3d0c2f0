//! The cameras that the kernel knows, without opening any.

use rustix::fs::Access;
use serde::Serialize;

use crate::Root;

/// A Video4Linux node that captures.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Camera {
    /// The node, e.g. `/dev/video0`.
    pub device: String,
    /// What its driver calls it.
    pub name: String,
    /// Whether the node is there; in a container it may not be passed on.
    pub present: bool,
    /// Whether this user may open it.
    pub permitted: bool,
    /// A sensor on a Tegra's camera port: it gives raw Bayer there, and pictures only through the image processor.
    pub raw_bayer: bool,
}

impl Camera {
    /// The cameras below `root`, in the order of their numbers.
    pub fn list(root: &Root) -> Vec<Self> {
        let mut numbers: Vec<u32> = root
            .names("/sys/class/video4linux")
            .iter()
            .filter_map(|name| name.strip_prefix("video")?.parse().ok())
            .collect();
        numbers.sort_unstable();
        numbers.into_iter().filter_map(|number| Self::read(root, number)).collect()
    }

    fn read(root: &Root, number: u32) -> Option<Self> {
        let folder = format!("/sys/class/video4linux/video{number}");
        // Node 0 of a device captures; the others carry metadata.
        if root.number::<u32>(&format!("{folder}/index")).unwrap_or(0) != 0 {
            return None;
        }
        let name = root.text(&format!("{folder}/name")).unwrap_or_default();
        let device = format!("/dev/video{number}");
        let node = root.path(&device);
        Some(Self {
            present: node.exists(),
            permitted: rustix::fs::access(&node, Access::READ_OK | Access::WRITE_OK).is_ok(),
            // The names that Tegra's capture drivers give to the nodes of camera ports.
            raw_bayer: name.starts_with("vi-output") || name.starts_with("NVIDIA Tegra Video Input"),
            device,
            name,
        })
    }
}
