//! How the program ends, for whoever starts it again.

use std::fmt;
use std::process::ExitCode;

use saccade::Error;

/// What each code means, as `--help` says it.
pub(crate) const CODES: &str = "Exit codes: 0 done or told to stop, 1 a sentence on stderr says what is wrong, 2 wrong arguments, \
     75 the card was lost, and starting again may bring it back (with systemd: Restart=on-failure)";
/// The card was lost. `EX_TEMPFAIL` of sysexits.h: what failed may work when it is tried again.
const CARD_LOST: u8 = 75;

/// The card was lost while the service was running; where is said in the log.
#[derive(Clone, Copy, Debug)]
pub(crate) struct CardLost;

impl fmt::Display for CardLost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the card was lost, and only a new process can open it again")
    }
}

impl std::error::Error for CardLost {}

/// The code for what went wrong.
pub(crate) fn code(error: &anyhow::Error) -> ExitCode {
    let lost = error.is::<CardLost>() || error.downcast_ref::<Error>().is_some_and(Error::is_card_lost);
    if lost { ExitCode::from(CARD_LOST) } else { ExitCode::FAILURE }
}
