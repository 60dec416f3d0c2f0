//! What is looked at: the source that was named, else a camera, else the bundled clip.

use std::path::{Path, PathBuf};

use anyhow::bail;
use saccade::family::Model;
use saccade::source::{self, CameraNode, Pace, Repeat, Source, SourceError, SourceOptions};

use crate::{Args, say};

/// The source that was asked for; else the first camera that opens; else the bundled clip. Says which it is and why.
pub(crate) fn source(args: &Args, model: &Model) -> anyhow::Result<Box<dyn Source>> {
    let options = SourceOptions {
        pace: if args.headless { Pace::All } else { Pace::Real },
        // Without a view and without a number of frames a file is read once; otherwise it is a demo and goes on.
        repeat: if args.headless && args.frames.is_none() { Repeat::Times(0) } else { Repeat::Forever },
        raw: model.device().is_card(),
        ..SourceOptions::default()
    };
    if let Some(uri) = &args.source {
        return Ok(source::open(uri, &options)?);
    }
    let nodes = source::list_video_nodes();
    if let Some(camera) = first_camera(&nodes, |uri| source::open(uri, &options), say) {
        return Ok(camera);
    }
    let why = if nodes.is_empty() { "there is no camera" } else { "no camera can be used" };
    let Some(clip) = shipped("clips").and_then(|dir| first_clip(&dir)) else {
        bail!("{why}, and there is no clip in examples/clips: name a SOURCE, for example test://pattern");
    };
    say(&format!("{why}: playing {}", clip.display()));
    Ok(source::open(&clip.to_string_lossy(), &options)?)
}

/// The first of these nodes that opens as a camera; says of it, and of those before it, what became of them.
fn first_camera(
    nodes: &[CameraNode],
    open: impl Fn(&str) -> Result<Box<dyn Source>, SourceError>,
    say: impl Fn(&str),
) -> Option<Box<dyn Source>> {
    for camera in nodes {
        let said = |what: &str| say(&format!("{} ({}): {what}", camera.node.display(), camera.name));
        match camera.no_camera {
            Some(what) => said(what),
            None => match open(&camera.uri()) {
                Ok(source) => {
                    said("opened");
                    return Some(source);
                }
                Err(error) => said(&format!("not opened: {error}")),
            },
        }
    }
    None
}

/// Something of `examples/`: here, in the package that this program lies in, or where it was built.
pub(crate) fn shipped(what: &str) -> Option<PathBuf> {
    let here = Path::new("examples").join(what);
    let program = std::env::current_exe().unwrap_or_default();
    let packaged = program.ancestors().nth(2).unwrap_or(&program).join(what);
    let built = Path::new(env!("CARGO_MANIFEST_DIR")).join(what);
    [here, packaged, built].into_iter().find(|path| path.exists())
}

fn first_clip(dir: &Path) -> Option<PathBuf> {
    let files = std::fs::read_dir(dir).ok()?.flatten().map(|entry| entry.path());
    files.filter(|path| path.extension().is_some_and(|kind| kind == "avi")).min()
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use super::*;

    fn node(number: u32, no_camera: Option<&'static str>) -> CameraNode {
        let node = format!("/dev/video{number}").into();
        CameraNode { node, stable: None, name: format!("cam {number}"), no_camera }
    }

    #[test]
    fn every_camera_is_tried_until_one_opens_and_each_is_spoken_of() {
        let nodes = [
            node(0, None),
            node(1, Some("it delivers metadata")),
            node(2, None),
            node(3, None),
            node(4, None),
        ];
        let open = |uri: &str| match uri {
            "v4l2:///dev/video3" => source::open("test://pattern", &SourceOptions::default()),
            "v4l2:///dev/video4" => panic!("it is not needed any more"),
            _ => Err(SourceError::Vanished { origin: uri.to_owned() }),
        };
        let lines = RefCell::new(Vec::new());
        assert!(first_camera(&nodes, open, |line| lines.borrow_mut().push(line.to_owned())).is_some());
        let lines = lines.into_inner();
        assert_eq!(lines.len(), 4, "{lines:?}");
        assert!(lines[0].starts_with("/dev/video0 (cam 0): not opened: ") && lines[0].contains("unplugged"));
        assert_eq!(lines[1], "/dev/video1 (cam 1): it delivers metadata");
        assert_eq!(lines[3], "/dev/video3 (cam 3): opened");
        let none = first_camera(&nodes[..3], open, |_| ());
        assert!(none.is_none());
    }
}
