//! What a board is, which one this is, and what it feels.
//!
//! A board is a TOML file of facts, each with its unit in the key and its source beside it ([`Board`], [`profiles`]).
//! [`detect`] says which one a machine is, [`Sensors`] what it feels (heat, power, clocks), and [`Report`] puts
//! both together with what a user should know: it is what `saccaded doctor` prints. Everything is read below a
//! [`Root`], so that tests run on fixture trees of boards that nobody has on the desk.
//!
//! **Invariant:** no code here or elsewhere branches on a board's name; it branches on a fact.
//! **Invariant:** nothing is ever written, and no power mode is switched. We show and advise.
//!
//! ```
//! let report = saccade_boards::Report::collect(&saccade_boards::Root::system())?;
//! assert!(report.memory.total_mib > 0);
//! # Ok::<(), saccade_boards::Error>(())
//! ```

mod camera;
mod detect;
mod error;
mod fact;
mod findings;
mod machine;
mod power_mode;
mod profile;
mod profiles;
mod report;
mod root;
mod sensors;

pub use camera::Camera;
pub use detect::{Detection, FoundBy, detect};
pub use error::Error;
pub use fact::{Fact, Kind, Source};
pub use findings::{Finding, Level};
pub use machine::{Cpu, Memory};
pub use power_mode::{Mode, PowerMode};
pub use profile::{Board, ComputeCapability, Gpu};
pub use profiles::profiles;
pub use report::{Power, Report};
pub use root::Root;
pub use sensors::{GpuClock, OverCurrent, PowerRail, Sensors, Temperature};

/// What everything here that can fail returns.
pub type Result<T> = std::result::Result<T, Error>;
