//! The GGUF reader on arbitrary bytes: no panic; in what it accepts the tensors lie in the file side by side.
#![no_main]

use libfuzzer_sys::fuzz_target;
use saccade_convert::gguf::read;

fuzz_target!(|data: &[u8]| {
    let Ok(gguf) = read(data, data.len() as u64) else { return };
    let mut tensors: Vec<_> = gguf.tensors.values().collect();
    tensors.sort_by_key(|tensor| tensor.offset);
    let mut end = 0;
    for tensor in tensors {
        assert!(tensor.offset >= end && tensor.bytes > 0);
        end = tensor.offset + tensor.bytes;
    }
    assert!(end <= data.len() as u64);
});
