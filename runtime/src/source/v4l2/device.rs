//! One camera node: what it is, and the picture format that is agreed with its driver.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::OFlags;
use rustix::io::Errno;
use rustix::process::{PidfdFlags, PidfdGetfdFlags, getpid, pidfd_getfd, pidfd_open};

use super::super::error::SourceError;
use super::abi;
use super::list::list_cameras;
use crate::picture::PixelFormat;

/// Cameras are asked for this where the user says nothing.
const DEFAULT_SIZE: (u32, u32) = (640, 480);
const DEFAULT_RATE_HZ: f64 = 30.0;
/// More formats than any camera has.
const MAX_FORMATS: u32 = 256;
/// Above this many pixels, USB carries compressed pictures faster.
const MANY_PIXELS: u32 = 640 * 480;

/// What the user wants of a camera.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(super) struct Request {
    pub(super) width: Option<u32>,
    pub(super) height: Option<u32>,
    pub(super) rate_hz: Option<f64>,
}

/// What cameras deliver and this runtime reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Delivered {
    /// One JPEG picture a frame.
    Mjpg,
    /// Pixels.
    Raw(PixelFormat),
}

/// What the driver has agreed to.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Agreed {
    pub(super) format: Delivered,
    pub(super) width: u32,
    pub(super) height: u32,
    /// Bytes from one row to the next.
    pub(super) stride: usize,
    /// Seconds a frame as a fraction; none when the driver does not say.
    pub(super) interval: Option<(u32, u32)>,
}

impl Agreed {
    /// Frames a second.
    pub(super) fn rate_hz(&self) -> Option<f64> {
        self.interval.map(|(num, den)| f64::from(den) / f64::from(num))
    }
}

/// An open camera node.
#[derive(Debug)]
pub(super) struct Device {
    file: File,
    /// `/dev/videoN`, also when it was named by its stable name.
    pub(super) node: PathBuf,
    pub(super) card: String,
}

impl AsFd for Device {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

impl Device {
    /// Opens a node that delivers pictures.
    ///
    /// # Errors
    /// No such node, no permission, busy, or a node for something else.
    pub(super) fn open(name: &Path) -> Result<Self, SourceError> {
        let shown = name.display().to_string();
        let missing = || SourceError::NoCamera { node: shown.clone(), present: present() };
        let not_a_camera = |what: &str| SourceError::NotACamera {
            node: shown.clone(),
            what: what.to_owned(),
            present: present(),
        };
        let node = fs::canonicalize(name).map_err(|_| missing())?;
        if !fs::metadata(&node).map_err(|_| missing())?.file_type().is_char_device() {
            return Err(not_a_camera("it is no device"));
        }
        let file = open_node(&node).map_err(|e| match Errno::from_io_error(&e) {
            Some(Errno::NODEV | Errno::NXIO | Errno::NOENT) => missing(),
            Some(Errno::ACCESS | Errno::PERM) => SourceError::Camera {
                node: shown.clone(),
                reason: "permission denied; add your user to the group `video` and log in again".to_owned(),
            },
            _ => refused(&shown, "cannot be opened", &e),
        })?;
        let (caps, card) = capabilities(&file).ok_or_else(|| not_a_camera("it does not speak V4L2"))?;
        if let Some(what) = not_for_pictures(caps) {
            return Err(not_a_camera(what));
        }
        Ok(Self { file, node, card })
    }

    /// The pixel formats that the driver offers.
    pub(super) fn formats(&self) -> Vec<[u8; 4]> {
        (0..MAX_FORMATS)
            .map_while(|index| {
                let mut description = abi::FormatDescription::new(index);
                abi::enumerate_format(self, &mut description).ok().map(|()| description.fourcc)
            })
            .collect()
    }

    /// Agrees with the driver on a format that can be read, as near to the request as it goes.
    ///
    /// # Errors
    /// No format that can be read, or another program is using the camera.
    pub(super) fn agree(&self, request: &Request) -> Result<Agreed, SourceError> {
        let node = self.node.display().to_string();
        let offered = self.formats();
        let size = (request.width.unwrap_or(DEFAULT_SIZE.0), request.height.unwrap_or(DEFAULT_SIZE.1));
        for format in choose(&offered, size) {
            let mut wanted = abi::Format::new(size, fourcc(format));
            match abi::set_format(self, &mut wanted) {
                Err(e) => return Err(refused(&node, "refuses its format", &e.into())),
                Ok(()) if wanted.fourcc != fourcc(format) => continue,
                Ok(()) => {}
            }
            let interval = self.set_rate(request.rate_hz.unwrap_or(DEFAULT_RATE_HZ));
            let (width, height, stride) = (wanted.width, wanted.height, wanted.bytes_per_line as usize);
            return Ok(Agreed { format, width, height, stride, interval });
        }
        let formats = offered.iter().map(|f| f.escape_ascii().to_string()).collect::<Vec<_>>().join(", ");
        if !offered.is_empty() && offered.iter().all(|f| is_bayer(*f)) {
            return Err(SourceError::RawBayer { node, formats });
        }
        Err(SourceError::NoFormat { node, formats })
    }

    /// Asks for a rate and returns the interval between frames that the driver has chosen, if it says.
    fn set_rate(&self, rate_hz: f64) -> Option<(u32, u32)> {
        let mut parameters = abi::StreamParameters::default();
        abi::get_parameters(self, &mut parameters).ok()?;
        if parameters.capability & abi::PARM_TIMEPERFRAME != 0 {
            let mut wanted = parameters;
            (wanted.numerator, wanted.denominator) = interval(rate_hz);
            if abi::set_parameters(self, &mut wanted).is_ok() {
                parameters = wanted;
            }
        }
        (parameters.numerator > 0 && parameters.denominator > 0)
            .then_some((parameters.numerator, parameters.denominator))
    }

    /// Stops the stream of this camera that another handle of this process has started, so that nobody waits for it.
    ///
    /// # Errors
    /// The system lends no handles (before Linux 5.6, or where that is forbidden).
    pub(super) fn stop_other_handles(&self) -> io::Result<()> {
        for handle in handles_of(&self.node)? {
            // Only the handle that streams is obeyed; the others are refused, which is right.
            let _ = abi::stream_off(&handle, &mut { abi::VIDEO_CAPTURE });
        }
        Ok(())
    }

    /// Whether the device has gone.
    pub(super) fn is_gone(&self) -> bool {
        abi::query_capability(self, &mut abi::Capability::default()) == Err(Errno::NODEV)
    }
}

/// What a node can do; nothing when it cannot be asked.
pub(super) fn capabilities_of(node: &Path) -> Option<u32> {
    open_node(node).ok().and_then(|file| capabilities(&file)).map(|(caps, _)| caps)
}

/// The handles of a file that this process has open, lent once more.
fn handles_of(path: &Path) -> io::Result<Vec<OwnedFd>> {
    let this = pidfd_open(getpid(), PidfdFlags::empty())?;
    let numbers = fs::read_dir("/proc/self/fd")?.filter_map(|entry| {
        let entry = entry.ok()?.path();
        let is_it = fs::read_link(&entry).is_ok_and(|target| target == path);
        is_it.then(|| entry.file_name()?.to_str()?.parse::<i32>().ok()).flatten()
    });
    numbers.map(|number| Ok(pidfd_getfd(&this, number, PidfdGetfdFlags::empty())?)).collect()
}

fn open_node(node: &Path) -> io::Result<File> {
    // A driver must never keep us waiting inside a request.
    let flags = OFlags::NONBLOCK.bits().cast_signed();
    OpenOptions::new().read(true).write(true).custom_flags(flags).open(node)
}

/// What a node can do, and its driver's name for it.
fn capabilities(file: &File) -> Option<(u32, String)> {
    let mut is = abi::Capability::default();
    abi::query_capability(file, &mut is).ok()?;
    let caps = if is.capabilities & abi::CAP_DEVICE_CAPS == 0 { is.capabilities } else { is.device_caps };
    let card = is.card.split(|&b| b == 0).next().unwrap_or_default();
    Some((caps, String::from_utf8_lossy(card).into_owned()))
}

/// Why a node with these capabilities delivers no pictures.
pub(super) fn not_for_pictures(caps: u32) -> Option<&'static str> {
    if caps & abi::CAP_M2M != 0 {
        Some("it is a codec")
    } else if caps & abi::CAP_VIDEO_CAPTURE != 0 {
        (caps & abi::CAP_STREAMING == 0).then_some("it cannot stream")
    } else if caps & abi::CAP_META_CAPTURE != 0 {
        Some("it delivers metadata")
    } else if caps & abi::CAP_VIDEO_CAPTURE_MPLANE != 0 {
        Some("its pictures have several planes, which is not supported yet")
    } else {
        Some("it is no camera")
    }
}

/// The cameras that are there, for error messages.
fn present() -> String {
    let nodes: Vec<_> = list_cameras().iter().map(|c| c.node.display().to_string()).collect();
    if nodes.is_empty() {
        "none is plugged in, test://pattern works without".to_owned()
    } else {
        nodes.join(", ")
    }
}

/// A camera's refusal, with what helps against the usual one.
pub(super) fn refused(node: &str, what: &str, error: &io::Error) -> SourceError {
    let node = node.to_owned();
    match Errno::from_io_error(error) {
        Some(Errno::NODEV) => SourceError::Vanished { origin: node },
        Some(Errno::BUSY) => {
            let reason = "the camera is in use by another program; close that one".to_owned();
            SourceError::Camera { node, reason }
        }
        _ => SourceError::Camera { node, reason: format!("the camera {what} ({error}); plug it in again") },
    }
}

/// The kernel's name of a format.
pub(super) fn fourcc(format: Delivered) -> [u8; 4] {
    *match format {
        Delivered::Mjpg => b"MJPG",
        Delivered::Raw(PixelFormat::Yuyv) => b"YUYV",
        Delivered::Raw(PixelFormat::Nv12) => b"NV12",
        Delivered::Raw(PixelFormat::Grey) => b"GREY",
        Delivered::Raw(PixelFormat::Rgb) => b"RGB3",
        Delivered::Raw(PixelFormat::Bgr) => b"BGR3",
    }
}

/// The offered formats that can be read, best first.
fn choose(offered: &[[u8; 4]], size: (u32, u32)) -> Vec<Delivered> {
    use Delivered::{Mjpg, Raw};
    use PixelFormat::{Bgr, Grey, Nv12, Rgb, Yuyv};
    let mut order = vec![Raw(Yuyv), Raw(Nv12), Raw(Rgb), Raw(Bgr), Mjpg, Raw(Grey)];
    if size.0.saturating_mul(size.1) > MANY_PIXELS {
        order.retain(|&format| format != Mjpg);
        order.insert(0, Mjpg);
    }
    order.retain(|&format| offered.contains(&fourcc(format)));
    order
}

/// Raw Bayer formats: `BA81`, `GBRG`, `GRBG`, `RGGB` (8 bits), `BG10`, `RG12`, `pgAA`, … (more bits).
fn is_bayer(fourcc: [u8; 4]) -> bool {
    let bits = matches!(&fourcc[2..], b"10" | b"12" | b"14" | b"16");
    let order = |pair: &[u8]| matches!(pair, b"BG" | b"GB" | b"RG" | b"BA" | b"GR" | b"BY");
    let packed = fourcc[0] == b'p' && matches!(fourcc[1], b'B' | b'G' | b'g' | b'R');
    matches!(&fourcc, b"BA81" | b"GBRG" | b"GRBG" | b"RGGB") || (bits && order(&fourcc[..2])) || packed
}

/// Seconds a frame as a fraction: 1/30, 1001/30000, 2/25.
fn interval(rate_hz: f64) -> (u32, u32) {
    for numerator in [1, 2, 1001] {
        let denominator = rate_hz * f64::from(numerator);
        if (denominator - denominator.round()).abs() < 1e-6 * denominator {
            return (numerator, whole(denominator));
        }
    }
    (1000, whole(rate_hz * 1000.0))
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "rates lie between 0.1 and 1000")]
fn whole(x: f64) -> u32 {
    x.round().clamp(1.0, 1e9) as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_pictures_come_raw_and_large_ones_compressed() {
        let offered = [*b"MJPG", *b"YUYV", *b"H264", *b"GREY"];
        let (yuyv, grey) = (Delivered::Raw(PixelFormat::Yuyv), Delivered::Raw(PixelFormat::Grey));
        assert_eq!(choose(&offered, (640, 480)), [yuyv, Delivered::Mjpg, grey]);
        assert_eq!(choose(&offered, (1280, 720)), [Delivered::Mjpg, yuyv, grey]);
        assert_eq!(choose(&[*b"H264"], (640, 480)), []);
        assert_eq!(choose(&[*b"GREY"], (640, 480)), [grey]);
    }

    #[test]
    fn bayer_formats_are_told_from_others() {
        for bayer in
            [b"BA81", b"RG10", b"BG10", b"GB12", b"BA12", b"RG16", b"BYR2", b"pBAA", b"pgAA", b"RGGB"]
        {
            assert_eq!(is_bayer(*bayer), bayer != b"BYR2", "{}", bayer.escape_ascii());
        }
        for other in
            [b"MJPG", b"YUYV", b"NV12", b"NV16", b"GREY", b"RGB3", b"BGR3", b"Y16 ", b"H264", b"YU12"]
        {
            assert!(!is_bayer(*other), "{}", other.escape_ascii());
        }
    }

    #[test]
    fn rates_become_the_fractions_that_drivers_know() {
        for (rate_hz, expected) in [
            (30.0, (1, 30)),
            (12.5, (2, 25)),
            (30000.0 / 1001.0, (1001, 30000)),
            (0.1, (1000, 100)),
            (29.9, (1000, 29900)),
        ] {
            assert_eq!(interval(rate_hz), expected, "{rate_hz}");
        }
    }

    #[test]
    fn nodes_are_told_by_their_capabilities() {
        let camera = abi::CAP_VIDEO_CAPTURE | abi::CAP_STREAMING;
        assert_eq!(not_for_pictures(camera), None);
        assert_eq!(not_for_pictures(camera | abi::CAP_M2M), Some("it is a codec"));
        assert_eq!(
            not_for_pictures(abi::CAP_META_CAPTURE | abi::CAP_STREAMING),
            Some("it delivers metadata")
        );
        assert_eq!(not_for_pictures(abi::CAP_VIDEO_CAPTURE), Some("it cannot stream"));
        assert_eq!(not_for_pictures(0), Some("it is no camera"));
    }

    #[test]
    fn the_handles_of_one_file_are_lent_again() {
        let path = std::env::current_exe().unwrap();
        let _file = File::open(&path).unwrap();
        match handles_of(&path) {
            Ok(handles) => assert_eq!(handles.len(), 1),
            Err(error) => eprintln!("skipped: this system lends no handles ({error})"),
        }
        assert!(handles_of(Path::new("/no/such/file")).is_ok_and(|handles| handles.is_empty()));
    }

    #[test]
    fn what_is_no_camera_gets_a_sentence() {
        let said = |path: &str| Device::open(Path::new(path)).unwrap_err().to_string();
        assert!(
            said("/dev/video9999").contains("no such camera; plug it in, or give one of"),
            "{}",
            said("/dev/video9999")
        );
        assert!(
            said("/dev/null").contains("delivers no pictures (it does not speak V4L2)"),
            "{}",
            said("/dev/null")
        );
        assert!(said("/proc/self/status").contains("it is no device"));
    }
}
