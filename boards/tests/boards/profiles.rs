//! The board files: that they hold, and what is said when one does not.

use std::collections::BTreeSet;
use std::error::Error as _;
use std::path::Path;

use saccade_boards::{Board, ComputeCapability, Error, Kind, Root, profiles};

fn parse(text: &str) -> Result<Board, Error> {
    Board::parse(Path::new("boards/x.toml"), text, &Root::system())
}

/// A small board file that holds.
const GOOD: &str = r#"name = "X"
generation = "x"
product-line = "x"
variant = "X 2GB"
memory-mib = { value = 2048, source = "sheet" }
cpu-cores = { value = 2, source = "sheet" }
[sources]
sheet = { kind = "read", text = "a data sheet" }
"#;

/// The message of the broken rule when `from` is replaced in the good file.
fn broken(from: &str, to: &str) -> String {
    assert!(GOOD.contains(from), "{from}");
    match parse(&GOOD.replace(from, to)) {
        Ok(_) => panic!("{from} -> {to} was taken"),
        Err(error) => error.to_string(),
    }
}

#[test]
fn every_file_of_the_folder_is_compiled_in_and_holds() {
    let boards = profiles(&Root::system()).unwrap();
    let files = std::fs::read_dir(env!("CARGO_MANIFEST_DIR")).unwrap();
    let names = files.map(|file| file.unwrap().file_name().into_string().unwrap());
    let files: BTreeSet<String> =
        names.filter(|name| name.ends_with(".toml") && name != "Cargo.toml" && name != "host.toml").collect();
    assert_eq!(boards.len(), files.len(), "each board file needs its line in profiles.rs: {files:?}");
    for file in files {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(&file);
        let board = Board::load(&path, &Root::system()).unwrap();
        assert!(boards.contains(&board), "{file} is not compiled in");
    }
}

#[test]
fn no_two_boards_share_a_name_or_a_module() {
    let boards = profiles(&Root::system()).unwrap();
    for key in [|board: &Board| vec![board.name.clone()], |board: &Board| board.modules.clone()] {
        let all: Vec<String> = boards.iter().flat_map(key).collect();
        let different: BTreeSet<&String> = all.iter().collect();
        assert_eq!(all.len(), different.len(), "{all:?}");
    }
}

#[test]
fn derived_throughput_follows_its_formula() {
    let mut checked = 0;
    for board in profiles(&Root::system()).unwrap() {
        let Some(gpu) = board.gpu else { continue };
        let pairs = [
            (&gpu.int8_dense_tops, Some(&gpu.max_mhz)),
            (&gpu.int8_dense_super_tops, gpu.max_super_mhz.as_ref()),
        ];
        for (tops, mhz) in pairs {
            let (Some(tops), Some(mhz)) = (tops, mhz) else { continue };
            if tops.source != "formula" {
                continue;
            }
            let expected = f64::from(gpu.sm_count.value) * 4.096 * f64::from(mhz.value) / 1000.0;
            let ratio = tops.value / expected;
            assert!(
                (0.97..=1.03).contains(&ratio),
                "{}: {} TOPS, the formula says {expected:.1}",
                board.name,
                tops.value
            );
            checked += 1;
        }
    }
    assert!(checked >= 9, "only {checked} checked");
}

#[test]
fn every_chip_has_one_compute_capability() {
    for board in profiles(&Root::system()).unwrap() {
        let expected = match board.soc.as_deref() {
            Some("tegra264") => (11, 0),
            Some("tegra234") => (8, 7),
            Some("tegra194") => (7, 2),
            Some("tegra186") => (6, 2),
            Some("tegra210") => (5, 3),
            other => panic!("{}: {other:?}", board.name),
        };
        let found: ComputeCapability = board.gpu.unwrap().compute_capability.value;
        assert_eq!((found.major, found.minor), expected, "{}", board.name);
    }
}

#[test]
fn a_typo_reads_as_a_sentence_with_its_line() {
    let error = parse(&GOOD.replace("memory-mib", "memroy-mib")).unwrap_err();
    assert_eq!(error.to_string(), "board file boards/x.toml");
    let cause = error.source().unwrap().to_string();
    assert!(cause.starts_with("TOML parse error at line 5, column 1"), "{cause}");
    assert!(cause.contains("memroy-mib = { value = 2048"), "the line itself: {cause}");
    assert!(cause.contains("unknown field `memroy-mib`, expected one of `name`, `generation`,"), "{cause}");
    assert!(cause.contains("`memory-mib`"), "{cause}");
}

#[test]
fn a_typo_inside_a_fact_or_a_source_is_refused_too() {
    for (from, to) in
        [("value = 2048", "valeu = 2048"), ("kind = \"read\"", "kind = \"raed\""), ("text =", "txt =")]
    {
        let cause = parse(&GOOD.replace(from, to)).unwrap_err().source().unwrap().to_string();
        assert!(cause.contains("unknown"), "{cause}");
    }
}

#[test]
fn each_rule_has_its_sentence() {
    parse(GOOD).unwrap();
    let at = |rest: &str| format!("board file boards/x.toml: {rest}");
    assert_eq!(
        broken("2048, source = \"sheet\"", "2048, source = \"sheep\""),
        at("`memory-mib` cites `sheep`, which [sources] does not define")
    );
    assert_eq!(
        broken("[sources]\n", "[sources]\nspare = { kind = \"read\", text = \"\" }\n"),
        at("`spare` is defined in [sources] and cited by no fact")
    );
    assert_eq!(
        broken("value = 2048, ", ""),
        at("`memory-mib` has no value, and its source is not a measured one")
    );
    assert_eq!(
        broken("kind = \"read\"", "kind = \"measured\""),
        at("`memory-mib` is measured at run time, so it must not have a value")
    );
    assert_eq!(
        broken("[sources]", "sm-count = { value = 8, source = \"sheet\" }\n[sources]"),
        at("`sm-count` needs `compute-capability` beside it")
    );
    assert_eq!(
        broken("[sources]", "compute-capability = { value = \"8\", source = \"sheet\" }\n[sources]"),
        at("`compute-capability` is `8`, not MAJOR.MINOR such as 8.7")
    );
    assert_eq!(
        broken("[sources]", "default-power-mode = { value = \"MAXN\", source = \"sheet\" }\n[sources]"),
        at("`default-power-mode` is `MAXN`, which `power-modes` does not list")
    );
}

#[test]
fn a_missing_file_is_named() {
    let error = Board::load(Path::new("boards/none.toml"), &Root::system()).unwrap_err();
    assert_eq!(error.to_string(), "board file boards/none.toml");
    assert!(error.source().unwrap().to_string().contains("No such file"));
}

#[test]
fn only_the_host_profile_is_measured() {
    for board in profiles(&Root::system()).unwrap() {
        assert!(board.sources.values().all(|source| source.kind != Kind::Measured), "{}", board.name);
    }
}
