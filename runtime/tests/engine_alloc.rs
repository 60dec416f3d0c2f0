//! The engine allocates nothing after it is made: not on the calling thread, not on its workers, not on the first call.

mod counting;

use std::hint::black_box;
use std::time::Duration;

use counting::allocations;
use half::f16;
use saccade::engine::{ActivationKinds, Activations, Engine, EngineOptions, Linear};
use saccade::kernels::attention::{KvPanels, PanelScales, Queries};
use saccade::kernels::{Epilogue, KV_BLOCK, Kernels};
use saccade::quant::{TilesI8, pack_n16k4, quantise_weight_rows, row_sums};

// The only test of its file: another one beside it would be counted too.
#[test]
fn nothing_is_allocated_after_the_engine_is_made() {
    assert_eq!(allocations(|| drop(black_box(vec![0u8; 64]))), 1, "the counter counts");

    // All three token counts are shared between the threads, by outputs and by tokens; the 100 rows of one are not.
    let (n, k) = (4200, 517);
    let w = vec![0.5f32; n * k];
    let half = vec![f16::from_f32(0.5); n * k];
    let (rows, scale) = quantise_weight_rows(&w, n, k);
    let (tiles, sum) = (pack_n16k4(&rows, n, k), row_sums(&rows, n, k));
    let tiles = TilesI8 { tiles: &tiles, scale: &scale, sum: &sum, n, k };
    let [one, two] = [1, 2].map(|parts| Linear::I8 { tiles, parts });
    let linears = [one, two, Linear::F16 { rows: &half, n, k }, Linear::F32 { rows: &w, n, k }];
    let (x, mut out) = (vec![0.25f32; 20 * k], vec![0.0f32; 20 * n]);
    let mut scratch = Activations::new(20, k, 2, 3, ActivationKinds::Both);
    let (mut q, mut head) = (vec![0i8; 64], vec![0.5f32; 64]);
    let (tiles, mut p) = (vec![1i8; KvPanels::panel_len(64).iter().sum()], [0.0; KV_BLOCK]);
    let (scales, mut weights) = ([PanelScales::default()], [0i8; 2 * KV_BLOCK]);
    let float_keys = vec![0.5f32; KV_BLOCK * 64];

    for set in Kernels::available() {
        let engine =
            Engine::new(&EngineOptions { threads: 3, kernels: Some(set.name), ..EngineOptions::default() })
                .unwrap();
        for pause_ms in [0, 5] {
            // After a pause the workers sleep and have to be woken.
            std::thread::sleep(Duration::from_millis(pause_ms));
            let count = allocations(|| {
                for m in [1, 3, 20] {
                    for w in linears {
                        engine.linear(&x[..m * k], w, None, &mut out[..m * n], &mut scratch);
                        engine.load_normed(&x[..m * k], &x[..k], 1e-5, w, &mut scratch);
                        engine.gated(&mut scratch, (w, None), (w, None), &mut out[..m * n]);
                        engine.products(&scratch, [((w, None), &mut out[..m * n])]);
                        engine.product(&scratch, w, 5..105, Epilogue::default(), &mut out[..m * 100]);
                    }
                }
                engine.rms_norm_inplace(&mut head, &w[..64], 1e-5);
                engine.rope_inplace(&mut head, &w[..32], &w[..32]);
                let scale = [(engine.kernels().quantise_row)(&head, &mut q)];
                let queries = Queries { q: &q, scale: &scale, bias: &[0.0] };
                let (which, head_dim) = (&[0u32][..], 64);
                let panels = KvPanels { tiles: &tiles, scales: &scales, which, head_dim };
                (engine.kernels().scores_i8)(queries, panels, &mut p, KV_BLOCK);
                let sum = (engine.kernels().softmax_u14)(&p, &scales[0].value, 100.0, &mut weights);
                (engine.kernels().weighted_sum_i8)(&weights, &[sum], panels, &mut head);
                (engine.kernels().scores_f32)(&head, &float_keys, &mut p);
                engine.softmax_inplace(&mut p);
                (engine.kernels().weighted_sum_f32)(&p, &float_keys, &mut head);
                engine.silu_inplace(&mut head);
                engine.add(&mut head, &w[..64]);
            });
            assert_eq!(count, 0, "{} after {pause_ms} ms", set.name);
        }
    }
}
