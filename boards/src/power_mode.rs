//! The power mode, by name: numbers differ from board to board and from release to release.

use serde::Serialize;

use crate::Root;

/// One row of the table of power modes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Mode {
    /// The number that `nvpmodel -m` wants on this very system.
    pub id: u32,
    /// The name, e.g. `MAXN_SUPER`.
    pub name: String,
}

/// The table of power modes that this system has, and the one it is in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PowerMode {
    /// The mode the board is in; `None` where it is not told or not in the table.
    pub current: Option<Mode>,
    /// The mode it starts in.
    pub default: Option<Mode>,
    /// All of them.
    pub modes: Vec<Mode>,
}

impl PowerMode {
    /// Reads status and table below `root`, neither of which needs root rights; `None` where there is no table.
    pub fn read(root: &Root) -> Option<Self> {
        let conf = root.text("/etc/nvpmodel.conf")?;
        let status = root.text("/var/lib/nvpmodel/status").unwrap_or_default();
        let (modes, default) = parse_conf(&conf);
        let by_id = |id: u32| modes.iter().find(|mode| mode.id == id).cloned();
        Some(Self { current: parse_status(&status).and_then(by_id), default: default.and_then(by_id), modes })
    }

    /// The mode of this name, if this system has it.
    pub fn find(&self, name: &str) -> Option<&Mode> {
        self.modes.iter().find(|mode| mode.name == name)
    }
}

/// `pmode:0002 fmode:quiet` is mode 2.
fn parse_status(status: &str) -> Option<u32> {
    status.split_whitespace().find_map(|word| word.strip_prefix("pmode:")?.parse().ok())
}

/// Lines of the kind `< POWER_MODEL ID=2 NAME=MAXN_SUPER >` and `< PM_CONFIG DEFAULT=1 >`.
fn parse_conf(conf: &str) -> (Vec<Mode>, Option<u32>) {
    let mut modes = Vec::new();
    let mut default = None;
    for line in conf.lines().map(str::trim) {
        let Some(inner) = line.strip_prefix('<').and_then(|rest| rest.strip_suffix('>')) else { continue };
        let value =
            |key: &str| inner.split_whitespace().find_map(|word| word.strip_prefix(key)?.strip_prefix('='));
        match inner.split_whitespace().next() {
            Some("POWER_MODEL") => {
                if let (Some(Ok(id)), Some(name)) = (value("ID").map(str::parse), value("NAME")) {
                    modes.push(Mode { id, name: name.to_owned() });
                }
            }
            Some("PM_CONFIG") => default = value("DEFAULT").and_then(|id| id.parse().ok()),
            _ => {}
        }
    }
    (modes, default)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_the_table_and_ignores_the_rest() {
        let conf = "# a comment < POWER_MODEL ID=9 NAME=NO >\n< POWER_MODEL ID=0 NAME=15W >\nCPU_ONLINE CORE_0 1\n\
                    < POWER_MODEL ID=2 NAME=MAXN_SUPER >\n< POWER_MODEL ID=x NAME=BAD >\n< PM_CONFIG DEFAULT=2 >\n";
        let (modes, default) = parse_conf(conf);
        let names: Vec<&str> = modes.iter().map(|mode| mode.name.as_str()).collect();
        assert_eq!(names, ["15W", "MAXN_SUPER"]);
        assert_eq!(default, Some(2));
    }

    #[test]
    fn reads_the_status_line() {
        assert_eq!(parse_status("pmode:0002 fmode:quiet"), Some(2));
        assert_eq!(parse_status("pmode:two"), None);
        assert_eq!(parse_status(""), None);
    }
}
