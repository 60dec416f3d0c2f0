//! A conversion that was killed, or whose disk was full, goes on where it was stopped and gives the same bytes.

#![allow(clippy::unwrap_used)]

mod support;

use std::fs;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant, SystemTime};

use saccade_convert::random::write_checkpoint;
use support::{Workshop, tiny};

const FILES: [&str; 3] = ["saccade.json", "tokenizer.json", "weights.safetensors"];
const WEIGHTS: &str = "out.part/weights.safetensors.part";
const JOURNAL: &str = "out.part/conversion.journal";

fn same_bundle(shop: &Workshop, a: &str, b: &str) {
    for name in FILES {
        let [a, b] = [a, b].map(|bundle| fs::read(shop.path(bundle).join(name)).unwrap());
        assert!(a == b, "{name} differs");
    }
}

/// With a `tiny.safetensors` of more layers, so that much lies behind the first tensor, and its bundle `whole`.
fn workshop() -> Workshop {
    let shop = Workshop::new();
    let mut model = tiny();
    model.n_layers = 12;
    write_checkpoint(&shop.path("tiny.safetensors"), &model, 7).unwrap();
    shop.succeeds(&["convert", "tiny.safetensors", "whole"]);
    shop
}

/// Converts `tiny.safetensors` into `out` where no file may be longer than this share of the weights (twice as long where the shell
/// counts in 1,024 bytes): writing on gives an error, as on a full disk. Returns what is said.
fn stopped_at(shop: &Workshop, per_cent: u64) -> String {
    let blocks = fs::metadata(shop.path("whole/weights.safetensors")).unwrap().len() * per_cent / 100 / 512;
    let limited = format!("trap '' XFSZ; ulimit -f {blocks}; exec \"$0\" convert tiny.safetensors out");
    let output = Command::new("sh")
        .args(["-c", &limited, env!("CARGO_BIN_EXE_saccade-convert")])
        .current_dir(shop.dir.path())
        .env_remove("RUST_LOG")
        .output()
        .unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    assert!(output.stdout.is_empty(), "{stderr}");
    assert!(!shop.path("out").exists(), "nothing half-written appears");
    stderr
}

#[test]
fn a_full_disk_is_one_sentence_and_the_next_run_goes_on() {
    let shop = workshop();
    for per_cent in [49, 30, 3] {
        let said = stopped_at(&shop, per_cent);
        let sentences: Vec<_> = said.lines().filter(|line| line.starts_with("error: ")).collect();
        let [sentence] = sentences[..] else { panic!("{said}") };
        for words in
            ["out.part/weights.safetensors.part", "make room for", "the same command again", "os error"]
        {
            assert!(sentence.contains(words), "{sentence}");
        }
        assert!(shop.path(WEIGHTS).exists() && shop.path(JOURNAL).exists());
        let text = shop.succeeds(&["convert", "tiny.safetensors", "out"]);
        assert!(per_cent < 49 || text.contains("an earlier run had written"), "{text}");
        same_bundle(&shop, "out", "whole");
        assert!(!shop.path("out.part").exists());
        fs::remove_dir_all(shop.path("out")).unwrap();
    }
}

#[test]
fn a_torn_write_is_found_and_written_again() {
    let shop = workshop();
    type Damage = fn(&Workshop);
    // What happened, and whether something of the earlier run is of use.
    let damages: [(&str, bool, Damage); 7] = [
        ("the end is missing", true, |shop| shop.edit(WEIGHTS, |bytes| bytes.truncate(bytes.len() - 700))),
        ("the end is zeros", true, |shop| {
            shop.edit(WEIGHTS, |bytes| {
                let at = bytes.len() - 900;
                bytes[at..].fill(0);
            });
        }),
        ("there is more than the journal knows", true, |shop| {
            shop.edit(WEIGHTS, |bytes| bytes.extend([7; 5000]))
        }),
        ("there is nothing", false, |shop| fs::remove_file(shop.path(WEIGHTS)).unwrap()),
        ("the journal's last line is torn", true, |shop| {
            shop.edit(JOURNAL, |bytes| bytes.truncate(bytes.len() - 20));
        }),
        ("the journal ends in noise", true, |shop| {
            shop.edit(JOURNAL, |bytes| bytes.extend(b"{\"tensors\": -1}\n\xff\0\n"))
        }),
        ("the journal's first line is torn", false, |shop| shop.edit(JOURNAL, |bytes| bytes.truncate(30))),
    ];
    for (what, goes_on, damage) in damages {
        stopped_at(&shop, 49);
        damage(&shop);
        let output = shop.run(&["convert", "tiny.safetensors", "out"]);
        assert!(output.status.success(), "{what}: {}", String::from_utf8_lossy(&output.stderr));
        let said = String::from_utf8_lossy(&output.stdout);
        assert_eq!(said.contains("an earlier run had written"), goes_on, "{what}: {said}");
        same_bundle(&shop, "out", "whole");
        fs::remove_dir_all(shop.path("out")).unwrap();
    }
}

#[test]
fn another_recipe_or_checkpoint_starts_anew_and_says_so() {
    let shop = workshop();
    let anew = |args: &[&str], whole: &str| {
        stopped_at(&shop, 49);
        if args.is_empty() {
            let file = fs::File::options().append(true).open(shop.path("tiny.safetensors")).unwrap();
            file.set_modified(SystemTime::now() + Duration::from_secs(2)).unwrap();
        }
        let output = shop.run(&[&["convert", "tiny.safetensors", "out"], args].concat());
        let (stdout, stderr) =
            (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success() && stderr.contains("from the beginning"), "{args:?}: {stderr}");
        assert!(!stdout.contains("an earlier run"), "{args:?}: {stdout}");
        same_bundle(&shop, "out", whole);
        fs::remove_dir_all(shop.path("out")).unwrap();
    };
    for (args, whole) in [
        (&["--one-part"][..], "one-part"),
        (&["--dtype", "f16"], "f16"),
        (&["--keep-float", "embed"], "kept"),
    ] {
        shop.succeeds(&[&["convert", "tiny.safetensors", whole], args].concat());
        anew(args, whole);
    }
    anew(&[], "whole");
}

#[test]
fn a_refused_checkpoint_leaves_nothing_to_go_on_from() {
    let shop = Workshop::new();
    shop.changed("bad.safetensors", |c| c.tensor("norm.weight").1[..2].fill(0x7e));
    shop.refuses(&["convert", "bad.safetensors", "out"], &["`norm.weight`"]);
}

#[test]
fn two_conversions_do_not_write_to_one_place() {
    let shop = workshop();
    stopped_at(&shop, 49);
    let journal = fs::File::open(shop.path(JOURNAL)).unwrap();
    journal.lock().unwrap();
    shop.refuses(&["convert", "tiny.safetensors", "out"], &["out.part", "another conversion"]);
    journal.unlock().unwrap();
    shop.succeeds(&["convert", "tiny.safetensors", "out"]);
    same_bundle(&shop, "out", "whole");
}

#[test]
fn a_conversion_survives_being_killed_again_and_again() {
    let shop = Workshop::new();
    let mut model = tiny();
    (model.d_model, model.n_heads, model.n_kv_heads, model.d_ff, model.n_layers) = (192, 12, 2, 768, 16);
    write_checkpoint(&shop.path("big.safetensors"), &model, 3).unwrap();
    shop.succeeds(&["convert", "big.safetensors", "whole"]);
    let lines = || fs::read(shop.path(JOURNAL)).map_or(0, |text| text.split(|&byte| byte == b'\n').count());
    let mut killed = 0;
    // Killed when so many tensors are written; at last when all of them are, before the bundle has its name.
    for tensors in [1, 2, 3, 10, 30, 31, 60, 90, 120, usize::MAX] {
        let mut child = Command::new(env!("CARGO_BIN_EXE_saccade-convert"))
            .args(["convert", "big.safetensors", "out"])
            .current_dir(shop.dir.path())
            .env_remove("RUST_LOG")
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let start = Instant::now();
        let written = || lines() > tensors || shop.path("out.part/weights.safetensors").exists();
        while !written() && child.try_wait().unwrap().is_none() && start.elapsed() < Duration::from_secs(60) {
        }
        child.kill().unwrap();
        let status = child.wait().unwrap();
        killed += usize::from(!status.success());
        if status.success() {
            break;
        }
    }
    assert!(killed > 0, "every run was through before it could be killed");
    if !shop.path("out").exists() {
        let text = shop.succeeds(&["convert", "big.safetensors", "out"]);
        assert!(text.contains("an earlier run had written"), "{text}");
    }
    same_bundle(&shop, "out", "whole");
    shop.succeeds(&["verify", "out"]);
    assert!(!shop.path("out.part").exists());
}
