//! What is not there, too old, too small or lost is a sentence.

use super::emulator;
use crate::cuda::{CudaError, CudaOptions, Device};

/// Opens an emulated card that is told to be so.
fn open(settings: &[(&str, &str)]) -> Result<std::sync::Arc<Device>, CudaError> {
    let dir = emulator::plug_in();
    for (name, value) in settings {
        // SAFETY: each test runs in a process of its own, and has no other threads here.
        unsafe { std::env::set_var(name, value) };
    }
    Device::open(&CudaOptions { ordinal: 0, kernels: dir.join("kernels") })
}

#[test]
fn without_a_driver() {
    // Nothing is plugged in here; a machine with a driver has nothing to show.
    let options = CudaOptions { ordinal: 0, kernels: "nowhere".into() };
    match Device::open(&options) {
        Err(CudaError::NoDriver) => {}
        other => assert!(std::path::Path::new("/proc/driver/nvidia").exists(), "{other:?}"),
    }
}

#[test]
fn an_old_driver() {
    let error = open(&[("EMULATOR_DRIVER", "10020")]).unwrap_err();
    assert_eq!(
        error.to_string(),
        "the CUDA driver is of version 10.2, and 11.4 is needed (JetPack 5); update the board's software"
    );
}

#[test]
fn no_card() {
    let error = open(&[("EMULATOR_DEVICES", "0")]).unwrap_err();
    assert_eq!(error.to_string(), "there is no CUDA device number 0: the driver knows 0");
}

#[test]
fn a_card_that_no_kernel_is_for() {
    // The last one runs no code of a Tegra chip, although there is some of its major version.
    for (major, minor) in [("5", "3"), ("10", "0"), ("11", "1")] {
        let error = open(&[("EMULATOR_MAJOR", major), ("EMULATOR_MINOR", minor)]).unwrap_err();
        assert_eq!(
            error.to_string(),
            format!(
                "no kernels are compiled for `emulated card` (compute capability {major}.{minor}); Saccade has them for 7.2, 7.5, 8.0, 8.7, 9.0, 11.0, and `--kernels nvrtc` compiles them for this card with NVIDIA's NVRTC"
            )
        );
    }
}

#[test]
fn kernels_that_are_missing_or_of_another_kind() {
    emulator::plug_in();
    let error = Device::open(&CudaOptions { ordinal: 0, kernels: "nowhere".into() }).unwrap_err();
    assert!(
        error.to_string().starts_with("no compiled kernel `nowhere/sm_87/attention_f32.cubin`"),
        "{error}"
    );
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir(dir.path().join("sm_87")).unwrap();
    std::fs::write(dir.path().join("sm_87/attention_f32.cubin"), "no kernel").unwrap();
    let error = Device::open(&CudaOptions { ordinal: 0, kernels: dir.path().into() }).unwrap_err();
    assert!(error.to_string().contains("cuModuleLoadData"), "{error}");
}

#[test]
fn memory_that_does_not_suffice() {
    let device = open(&[("EMULATOR_MEMORY_MB", "1")]).unwrap();
    let kept = device.allocate("a test", 1 << 19).unwrap();
    let error = device.allocate("the weights", 1 << 20).unwrap_err();
    assert!(
        error
            .to_string()
            .starts_with("the weights needs 1048576 bytes of the card's memory, and 524288 are free"),
        "{error}"
    );
    drop(kept);
    device.allocate("the weights", 1 << 20).unwrap();
}

#[test]
fn a_card_that_is_lost() {
    lost_by("719");
}

/// An error of the memory, which drivers from 12.8 on know.
#[test]
fn a_card_whose_error_was_contained_is_lost_too() {
    lost_by("226");
}

#[track_caller]
fn lost_by(code: &str) {
    let device = open(&[("EMULATOR_FAIL", &format!("cuStreamSynchronize:{code}:0"))]).unwrap();
    let error = device.wait().unwrap_err();
    assert!(matches!(&error, CudaError::Lost { call: "cuStreamSynchronize", .. }), "{error}");
    assert!(crate::Error::from(error).is_card_lost());
}

#[test]
fn a_call_that_fails_loses_no_card() {
    let device = open(&[("EMULATOR_FAIL", "cuStreamSynchronize:1:0")]).unwrap();
    let error = crate::Error::from(device.wait().unwrap_err());
    assert!(!error.is_card_lost() && !error.is_out_of_memory(), "{error}");
}

#[test]
fn memory_of_the_host_goes_whatever_thread_drops_it() {
    let device = open(&[]).unwrap();
    let pinned = crate::cuda::Pinned::new(&device, 16).unwrap();
    std::thread::spawn(move || drop(pinned)).join().unwrap();
    assert_eq!(emulator::launches("cuMemFreeHost"), 1);
}

#[test]
fn nothing_is_copied_nowhere() {
    let device = open(&[]).unwrap();
    let memory = device.allocate("a test", 16).unwrap();
    let mut pinned = crate::cuda::Pinned::new(&device, 16).unwrap();
    memory.write_from(16, &mut pinned, 16, 0).unwrap();
    memory.read_into(16, &mut pinned, 16, 0).unwrap();
    memory.copy_to(0, &memory, 16, 0).unwrap();
    memory.copy_within(0, 0, 0).unwrap();
    memory.fill(16, 0).unwrap();
    device.wait().unwrap();
}

#[test]
fn memory_that_the_driver_itself_lacks() {
    let device = open(&[("EMULATOR_FAIL", "cuMemHostAlloc:2:0")]).unwrap();
    let error = crate::Error::from(crate::cuda::Pinned::new(&device, 16).unwrap_err());
    assert!(error.is_out_of_memory() && !error.is_card_lost(), "{error}");
    assert!(
        error.to_string().starts_with("the CUDA driver has no memory left for cuMemHostAlloc"),
        "{error}"
    );
}
