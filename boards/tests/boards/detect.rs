//! Which board a tree is.

use saccade_boards::{FoundBy, Root, detect};

use crate::fixtures::{Tree, orin_nano_super};

/// What is detected: variant, how, module, super.
fn told(tree: &Tree) -> (String, FoundBy, Option<String>, bool) {
    let found = detect(&tree.root()).unwrap();
    (found.board.variant, found.found_by, found.module, found.super_flashed)
}

fn jetson(compatible: &[&str], model: &str, memory_kib: u64) -> Tree {
    Tree::new().device_tree(compatible, model).memory_kib(memory_kib).cores("0-7", "0-7")
}

#[test]
fn knows_a_board_that_was_flashed_with_the_super_suffix() {
    let tree = orin_nano_super();
    assert_eq!(told(&tree), ("Orin Nano 8GB".into(), FoundBy::ModuleId, Some("p3767-0005".into()), true));
    let found = detect(&tree.root()).unwrap();
    assert_eq!(found.l4t_version.as_deref(), Some("36.4.3"));
    assert_eq!(
        found.compatible,
        ["nvidia,p3768-0000+p3767-0005-super", "nvidia,p3767-0005", "nvidia,tegra234"]
    );
    let model = found.product_model.unwrap();
    assert_eq!(
        model, "NVIDIA Jetson Orin Nano Engineering Reference Developer Kit Super",
        "without its NUL byte"
    );
}

#[test]
fn every_module_number_leads_to_its_own_board() {
    for board in saccade_boards::profiles(&Root::system()).unwrap() {
        let soc = format!("nvidia,{}", board.soc.as_deref().unwrap());
        for module in &board.modules {
            let first = format!("nvidia,p3509-0000+{module}");
            let tree = jetson(&[&first, &soc], "some carrier", board.memory_mib.value * 1024);
            let (variant, found_by, id, _) = told(&tree);
            assert_eq!(
                (variant, found_by, id),
                (board.variant.clone(), FoundBy::ModuleId, Some(module.clone()))
            );
        }
    }
}

#[test]
fn tells_the_two_thors_apart() {
    let t5000 = ["nvidia,p4071-0000+p3834-0008", "nvidia,p3834-0008", "nvidia,tegra264"];
    let (variant, found_by, ..) = told(&jetson(&t5000, "NVIDIA Jetson AGX Thor Developer Kit", 128_790_000));
    assert_eq!((variant.as_str(), found_by), ("Thor T5000", FoundBy::ModuleId));

    // A kit that runs as the smaller module: the boot control file knows, the part number does not.
    let conf = "TNSPEC 3834-300-0008-M.0-1-1-jetson-agx-thor-t4000-\nCOMPATIBLE_SPEC 3834-300-0008-jetson-agx-thor-t4000-\n";
    let tree = jetson(&t5000, "NVIDIA Jetson AGX Thor", 64_400_000).file("etc/nv_boot_control.conf", conf);
    let (variant, found_by, ..) = told(&tree);
    assert_eq!((variant.as_str(), found_by), ("Thor T4000", FoundBy::BootControl));

    // A carrier that names neither: the memory decides.
    for (memory_kib, expected) in [(128_790_000, "Thor T5000"), (64_400_000, "Thor T4000")] {
        let (variant, found_by, ..) =
            told(&jetson(&["acme,robot", "nvidia,tegra264"], "Acme Robot", memory_kib));
        assert_eq!((variant.as_str(), found_by), (expected, FoundBy::SocAndMemory));
    }
}

#[test]
fn splits_by_memory_what_the_model_text_leaves_open() {
    for (model, memory_kib, expected) in [
        ("Acme box with Jetson Orin NX", 15_700_000, "Orin NX 16GB"),
        ("Acme box with Jetson Orin NX", 7_800_000, "Orin NX 8GB"),
        ("NVIDIA Jetson TX2 NX Developer Kit", 3_900_000, "TX2 NX"),
        ("NVIDIA Jetson Nano 2GB Developer Kit", 2_000_000, "Nano 2GB"),
    ] {
        let (variant, found_by, ..) = told(&jetson(&["acme,box"], model, memory_kib));
        assert_eq!((variant.as_str(), found_by), (expected, FoundBy::ModelText), "{model} {memory_kib}");
    }
}

#[test]
fn an_unknown_module_is_no_guess() {
    // IGX Orin: the chip of an Orin, and none of its facts are known.
    let compatible = ["nvidia,p3740-0002+p3701-0002", "nvidia,tegra234"];
    let (variant, found_by, module, _) = told(&jetson(&compatible, "NVIDIA IGX Development Kit", 64_000_000));
    assert_eq!(
        (variant.as_str(), found_by, module.as_deref()),
        ("host", FoundBy::Nothing, Some("p3701-0002"))
    );
}

#[test]
fn another_machine_is_measured() {
    let tree = Tree::new()
        .memory_kib(16_777_216)
        .cores("0-15", "0-7")
        .file("sys/class/dmi/id/product_name", "Laptop\n");
    let found = detect(&tree.root()).unwrap();
    assert_eq!((found.board.name.as_str(), found.found_by), ("host", FoundBy::Nothing));
    assert_eq!((found.board.memory_mib.value, found.board.cpu_cores.value), (16_384, 16));
    assert_eq!(found.board.cpu_core.unwrap().value, "Cortex-A78AE");
    assert_eq!(found.board.cpu_max_mhz, None, "what the machine does not tell is no fact");
    assert_eq!(found.product_model.as_deref(), Some("Laptop"));
}

#[test]
fn a_machine_that_tells_nothing_is_an_error_with_a_sentence() {
    let error = detect(&Tree::new().root()).unwrap_err().to_string();
    assert_eq!(
        error,
        "board file boards/host.toml: `memory-mib` is missing, and this machine does not tell it either"
    );
}

#[test]
fn nonsense_in_the_device_tree_is_no_board_and_no_panic() {
    let tree = Tree::new()
        .memory_kib(1_000_000)
        .cores("0", "0")
        .file("proc/device-tree/compatible", [0xff, 0, 0, 0xfe]);
    assert_eq!(detect(&tree.root()).unwrap().found_by, FoundBy::Nothing);
}
