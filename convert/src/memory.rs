//! How much memory a conversion takes.

/// The most memory that this process has had resident so far; `None` where the system does not say. While nothing is mapped, this is its
/// anonymous memory and a few megabytes of program.
pub(crate) fn peak_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kib: u64 = line.trim().strip_suffix(" kB")?.parse().ok()?;
    Some(kib << 10)
}

#[cfg(test)]
mod tests {
    #[test]
    #[cfg(target_os = "linux")]
    fn the_peak_grows_by_what_is_touched() {
        let before = super::peak_bytes().unwrap();
        let touched = std::hint::black_box(vec![1u8; 64 << 20]);
        assert!(super::peak_bytes().unwrap() >= touched.len() as u64, "{before} before");
    }
}
