//! The header reader on arbitrary bytes: no panic; what it accepts the reference accepts; planning it again gives the
//! same tensors.
#![no_main]

use libfuzzer_sys::fuzz_target;
use saccade::format::{Rules, TensorPlan, plan_header, read_header};
use safetensors::SafeTensors;

fuzz_target!(|data: &[u8]| {
    let file_bytes = data.len() as u64;
    let bundle = read_header(data, file_bytes, Rules::Bundle);
    let Ok(header) = read_header(data, file_bytes, Rules::Foreign) else {
        assert!(bundle.is_err(), "a bundle's file is a safetensors file");
        return;
    };

    let theirs = SafeTensors::deserialize(data).expect("what we accept is valid");
    assert_eq!(theirs.len(), header.tensors.len());
    for tensor in &header.tensors {
        let view = theirs.tensor(&tensor.name).expect("the same names");
        assert_eq!(view.shape(), tensor.shape);
        assert_eq!(Some(view.data()), tensor.data(data));
        assert_eq!(header.find(&tensor.name), Some(tensor));
    }

    for (header, rules) in [(Ok(header), Rules::Foreign), (bundle, Rules::Bundle)] {
        let Ok(header) = header else { continue };
        let plan: Vec<_> = header
            .tensors
            .iter()
            .map(|t| TensorPlan { name: t.name.clone(), dtype: t.dtype, shape: t.shape.clone() })
            .collect();
        let (_, again) = plan_header(&plan, &header.metadata, rules).expect("what was read can be written");
        assert_eq!(again.metadata, header.metadata);
        assert_eq!(again.tensors.len(), header.tensors.len());
        for (a, b) in again.tensors.iter().zip(&header.tensors) {
            assert_eq!((&a.name, a.dtype, &a.shape, a.bytes), (&b.name, b.dtype, &b.shape, b.bytes));
        }
    }
});
