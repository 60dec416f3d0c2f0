//! Which cameras there are, as the system's own folders tell.

use std::fs;
use std::path::{Path, PathBuf};

/// A video node that can be named in a URI.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CameraNode {
    /// Its node now, `/dev/video0`; another one after it was plugged in again.
    pub node: PathBuf,
    /// Its name for ever, `/dev/v4l/by-id/…` or `…/by-path/…`, where the system gives it one.
    pub stable: Option<PathBuf>,
    /// What its driver calls it.
    pub name: String,
    /// Why it delivers no pictures; nothing for a camera.
    pub no_camera: Option<&'static str>,
}

impl CameraNode {
    /// The name by which it is opened again: the stable one if there is one.
    pub fn identity(&self) -> &Path {
        self.stable.as_deref().unwrap_or(&self.node)
    }

    /// The URI to open it by.
    pub fn uri(&self) -> String {
        format!("v4l2://{}", self.identity().display())
    }
}

/// The cameras that are plugged in, by number.
pub fn list_cameras() -> Vec<CameraNode> {
    list_video_nodes().into_iter().filter(|node| node.no_camera.is_none()).collect()
}

/// Every video node, by number: cameras, and what else calls itself one.
pub fn list_video_nodes() -> Vec<CameraNode> {
    list_in(Path::new("/"))
}

/// As [`list_video_nodes`], in a system whose root is elsewhere.
fn list_in(root: &Path) -> Vec<CameraNode> {
    let mut found: Vec<(u32, CameraNode)> = entries(&root.join("sys/class/video4linux"))
        .filter_map(|entry| {
            let node_name = entry.file_name()?.to_str()?.to_owned();
            let number = node_name.strip_prefix("video")?.parse().ok()?;
            let fact = |file: &str| fs::read_to_string(entry.join(file)).map(|text| text.trim().to_owned());
            let is_first = fact("index").map_or(true, |index| index == "0");
            let node = root.join("dev").join(&node_name);
            let name = fact("name").unwrap_or_else(|_| node_name.clone());
            let no_camera = why_no_camera(&node, is_first);
            Some((number, CameraNode { stable: stable_name(root, &node), node, name, no_camera }))
        })
        .collect();
    found.sort_by_key(|(number, _)| *number);
    found.into_iter().map(|(_, camera)| camera).collect()
}

/// Its capabilities decide; a node that cannot be asked is judged by its place among the nodes of its device.
fn why_no_camera(node: &Path, is_first: bool) -> Option<&'static str> {
    #[cfg(feature = "v4l2")]
    if let Some(caps) = super::device::capabilities_of(node) {
        return super::device::not_for_pictures(caps);
    }
    #[cfg(not(feature = "v4l2"))]
    let _ = node;
    (!is_first).then_some("it is a further node of its device, which carries metadata")
}

/// The name that outlives unplugging: by what it is, else by where it is plugged in.
pub(super) fn stable_name(root: &Path, node: &Path) -> Option<PathBuf> {
    let target = fs::canonicalize(node).ok()?;
    ["dev/v4l/by-id", "dev/v4l/by-path"].iter().find_map(|folder| {
        let mut links: Vec<_> = entries(&root.join(folder)).collect();
        links.sort();
        links.into_iter().find(|link| fs::canonicalize(link).is_ok_and(|to| to == target))
    })
}

fn entries(folder: &Path) -> impl Iterator<Item = PathBuf> {
    fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn system(nodes: &[(&str, &str, &str)]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir_all(root.path().join("dev/v4l/by-id")).unwrap();
        fs::create_dir_all(root.path().join("dev/v4l/by-path")).unwrap();
        for (node, name, index) in nodes {
            let sys = root.path().join("sys/class/video4linux").join(node);
            fs::create_dir_all(&sys).unwrap();
            fs::write(sys.join("name"), format!("{name}\n")).unwrap();
            fs::write(sys.join("index"), format!("{index}\n")).unwrap();
            fs::write(root.path().join("dev").join(node), "").unwrap();
        }
        root
    }

    #[test]
    fn metadata_nodes_are_no_cameras_and_numbers_sort_as_numbers() {
        let root = system(&[
            ("video10", "Late", "0"),
            ("video2", "HD Webcam", "0"),
            ("video3", "HD Webcam", "1"),
            ("v4l-subdev0", "sensor", "0"),
        ]);
        symlink("../../video2", root.path().join("dev/v4l/by-id/usb-HD_Webcam-video-index0")).unwrap();
        symlink("../../video3", root.path().join("dev/v4l/by-id/usb-HD_Webcam-video-index1")).unwrap();
        symlink("../../video10", root.path().join("dev/v4l/by-path/pci-0-video-index0")).unwrap();
        let (cameras, others): (Vec<_>, Vec<_>) =
            list_in(root.path()).into_iter().partition(|node| node.no_camera.is_none());
        let names: Vec<_> = cameras.iter().map(|camera| camera.name.as_str()).collect();
        assert_eq!(names, ["HD Webcam", "Late"]);
        assert!(others.len() == 1 && others[0].node.ends_with("dev/video3"), "{others:?}");
        assert!(cameras[0].identity().ends_with("by-id/usb-HD_Webcam-video-index0"));
        assert!(cameras[1].uri().ends_with("by-path/pci-0-video-index0"));
        assert!(cameras[0].uri().starts_with("v4l2:///"));
    }

    #[test]
    fn a_camera_without_a_stable_name_is_named_by_its_node() {
        let root = system(&[("video0", "virtual", "0")]);
        assert!(list_in(root.path())[0].identity().ends_with("dev/video0"));
    }

    #[test]
    fn a_system_without_cameras_has_none() {
        assert_eq!(list_in(tempfile::tempdir().unwrap().path()), []);
    }
}
