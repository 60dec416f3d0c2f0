//! A conversion holds one tensor at a time, however many there are.

#![allow(clippy::unwrap_used)]

mod counting;
mod support;

use counting::peak;
use saccade::config::WeightDtype;
use saccade_convert::bundle::convert;
use saccade_convert::checkpoint::Checkpoint;
use saccade_convert::progress::Progress;
use saccade_convert::random::write_checkpoint;
use support::tiny;

/// Most memory of a conversion, and what the plan and the report say of it.
fn convert_layers(n_layers: usize, dtype: WeightDtype) -> (usize, u64, u64) {
    let dir = tempfile::tempdir().unwrap();
    let (path, out) = (dir.path().join("x.safetensors"), dir.path().join("out"));
    let mut model = tiny();
    (model.d_model, model.n_heads, model.n_kv_heads, model.d_ff) = (512, 32, 8, 2048);
    model.n_layers = n_layers;
    write_checkpoint(&path, &model, 1).unwrap();
    let mut checkpoint = Checkpoint::open(&path).unwrap();
    let (report, most) =
        peak(|| convert(&mut checkpoint, &out, dtype, false, &mut Progress::silent()).unwrap());
    (most, report.plan.peak_bytes, report.largest_tensor_bytes)
}

#[test]
fn memory_is_that_of_one_tensor_whatever_their_number() {
    // Buffers of 1 MiB for the file, and the headers.
    const REST: usize = 2 << 20;
    for dtype in [WeightDtype::Int8, WeightDtype::F32] {
        let (few, plan, largest) = convert_layers(2, dtype);
        let (many, ..) = convert_layers(8, dtype);
        assert_eq!(largest, 4 * 512 * 2048);
        assert!(many < few + (256 << 10), "{dtype:?}: {few} bytes with 2 layers, {many} with 8");
        // Weights of 8 layers have 126 MB in F32.
        assert!(many < usize::try_from(plan).unwrap() + REST, "{dtype:?}: {many} bytes, {plan} were planned");
    }
}
