//! ONNX Runtime's library, opened once in a process.

use std::error::Error as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use ort::LoadDynamicError;
use ort::environment::Environment;
use ort::logging::LogLevel;

use super::OnnxError;

/// Names the library, as for everything else that is built on `ort`.
const PATH_VARIABLE: &str = "ORT_DYLIB_PATH";
/// What the system's loader is asked for otherwise.
const USUAL: &str = "libonnxruntime.so";

/// The library's environment, and the path that it was opened by. Kept to the end of the process: there can be no second one.
static OPENED: Mutex<Option<(PathBuf, Environment)>> = Mutex::new(None);

/// The environment of the library at `asked`, or where it usually is.
pub(super) fn environment(asked: Option<&Path>) -> Result<Environment, OnnxError> {
    let path = match (asked, std::env::var_os(PATH_VARIABLE)) {
        (Some(path), _) => path.to_path_buf(),
        (None, Some(path)) if !path.is_empty() => path.into(),
        (None, _) => USUAL.into(),
    };
    // Poisoned only by a panic in here, which leaves nothing half done.
    let mut opened = OPENED.lock().unwrap_or_else(PoisonError::into_inner);
    match &*opened {
        Some((first, environment)) if *first == path => return Ok(environment.clone()),
        Some((first, _)) => return Err(OnnxError::OtherLibrary { opened: first.clone(), path }),
        None => {}
    }
    let refused = |reason: String| OnnxError::Library { path: path.clone(), reason };
    let builder = ort::init_from(&path).map_err(|error| refused(reason(&error)))?;
    let environment = builder.with_name("saccade").with_telemetry(false).with_logger(Arc::new(log)).build();
    let environment = environment.map_err(|error| refused(error.message().into()))?;
    environment.set_log_level(LogLevel::Warning);
    log::info!("onnx_runtime={}", path.display());
    *opened = Some((path, environment.clone()));
    Ok(environment)
}

fn reason(error: &LoadDynamicError) -> String {
    match error {
        // What the system's loader said stands beneath.
        LoadDynamicError::Dlopen { error, .. } => {
            error.source().map_or_else(|| error.to_string(), ToString::to_string)
        }
        LoadDynamicError::BadVersion { version_str, .. } => format!("it is version {version_str}"),
        LoadDynamicError::MissingApi { .. } | LoadDynamicError::InvalidVersionString => {
            "it is another library".into()
        }
    }
}

/// What the library says, in our log. Its errors come back as results too, and are said there.
fn log(level: LogLevel, _: &str, _: &str, _: &str, message: &str) {
    match level {
        LogLevel::Warning => log::warn!("onnx runtime: {message}"),
        LogLevel::Verbose | LogLevel::Info | LogLevel::Error | LogLevel::Fatal => {
            log::debug!("onnx runtime: {message}");
        }
    }
}
