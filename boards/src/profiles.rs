//! The boards we know: one file and one line each.

use std::path::Path;

use crate::{Board, Result, Root};

macro_rules! board_files {
    ($($name:literal)*) => { &[$(($name, include_str!(concat!("../", $name)))),*] };
}

/// Every board file but `host.toml`, compiled in.
const FILES: &[(&str, &str)] = board_files![
    "nano-2gb.toml" "nano-4gb.toml"
    "tx2.toml" "tx2-4gb.toml" "tx2-nx.toml"
    "xavier-nx-8gb.toml" "xavier-nx-16gb.toml" "agx-xavier-32gb.toml" "agx-xavier-64gb.toml"
    "orin-nano-4gb.toml" "orin-nano-8gb.toml" "orin-nx-8gb.toml" "orin-nx-16gb.toml"
    "agx-orin-32gb.toml" "agx-orin-devkit.toml" "agx-orin-64gb.toml"
    "thor-t4000.toml" "thor-t5000.toml"
];

const HOST: &str = include_str!("../host.toml");

/// The profiles of all known boards. Facts that are to be measured are measured below `root`.
///
/// # Errors
/// If one of the compiled-in files breaks a rule, which the tests of this crate exclude.
pub fn profiles(root: &Root) -> Result<Vec<Board>> {
    FILES.iter().map(|(name, text)| Board::parse(&Path::new("boards").join(name), text, root)).collect()
}

/// The profile of a machine that is no known board.
pub(crate) fn host(root: &Root) -> Result<Board> {
    Board::parse(Path::new("boards/host.toml"), HOST, root)
}
