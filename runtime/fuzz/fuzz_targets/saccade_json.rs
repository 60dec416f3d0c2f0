//! `saccade.json` of arbitrary bytes: no panic; what is accepted is written again with the same meaning, and its tensors can be listed.
//!
//! The hash that the file has of itself is put right first, so that what stands behind that check is reached.
#![no_main]

use libfuzzer_sys::fuzz_target;
use saccade::config::{BundleConfig, ModelConfig};
use saccade::family::tensors;

const KEY: &[u8] = b"\"self_blake3\": \"";
const DIGITS: usize = 64;

fn put_right(bytes: &mut [u8]) -> Option<()> {
    let at = bytes.windows(KEY.len()).rposition(|window| window == KEY)? + KEY.len();
    bytes.get_mut(at..at + DIGITS)?.fill(b'0');
    let hash = blake3::hash(bytes).to_hex();
    bytes[at..at + DIGITS].copy_from_slice(hash.as_bytes());
    Some(())
}

fn check(model: &ModelConfig) {
    let list = tensors(model);
    assert!(!list.is_empty());
    assert!(list.iter().all(|spec| spec.parameters() > 0), "an empty tensor");
    assert!(model.text_range().end as usize <= model.decoder().vocab_size);
}

fuzz_target!(|data: &[u8]| {
    let mut bytes = data.to_vec();
    let _ = put_right(&mut bytes);
    if let Ok(config) = BundleConfig::from_json(&bytes) {
        check(&config.model);
        let written = config.to_json().expect("what was read can be written");
        let again = BundleConfig::from_json(&written).expect("what was written can be read");
        assert_eq!(again.model, config.model);
        assert_eq!(again.files, config.files);
    }
    if let Ok(model) =
        std::str::from_utf8(data).map_err(drop).and_then(|text| ModelConfig::from_json(text).map_err(drop))
    {
        check(&model);
    }
});
