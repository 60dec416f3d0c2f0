//! The verbs, as somebody types them.

use std::process::{Command, Output};

fn xtask(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_xtask"))
        .args(args)
        .output()
        .expect("the program was built with this test")
}

#[test]
fn lists_its_verbs_when_asked_nothing() {
    for args in [&[][..], &["--help"]] {
        let output = xtask(args);
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success());
        for verb in ["demo", "test", "check", "bench", "golden", "train", "aarch64"] {
            assert!(text.lines().any(|line| line.trim_start().starts_with(verb)), "{verb} is not in\n{text}");
        }
    }
}

#[test]
fn an_unknown_verb_is_a_sentence_and_a_failure() {
    let output = xtask(&["dmeo"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(output.stdout.is_empty(), "stdout belongs to what was asked for");
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(text, "error: there is no verb `dmeo`; `cargo xtask` lists those there are\n");
}

#[test]
fn a_command_that_is_missing_is_a_sentence() {
    // The check asks for cargo's components first; this cargo is no program at all.
    let output = Command::new(env!("CARGO_BIN_EXE_xtask"))
        .arg("check")
        .env("CARGO", "/no/such/cargo")
        .output()
        .expect("as above");
    assert_eq!(output.status.code(), Some(1));
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(text.contains("rustup component add rustfmt"), "{text}");
}
