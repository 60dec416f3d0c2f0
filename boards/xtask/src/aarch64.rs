//! Placeholder.
pub(crate) fn run(_args: &[String]) -> crate::Outcome {
    Ok(())
}
