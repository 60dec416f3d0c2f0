//! The tokenizer of a GGUF file on arbitrary metadata: a sentence, or a tokenizer that the runtime reads, which then cuts text into tokens of
//! its vocabulary and joins them again.
#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use saccade::config::ModelConfig;
use saccade::tokenize::TextTokenizer;
use saccade_convert::gguf::{read, tokenizer_json};
use serde_json::json;

/// More tokens than a small input can list.
const VOCABULARY: usize = 1 << 20;

/// Takes away the hook that ends the program at any panic: those of the tokenizer's library are caught, ours still end it.
static HOOK: LazyLock<()> = LazyLock::new(|| drop(std::panic::take_hook()));

fuzz_target!(|data: &[u8]| {
    LazyLock::force(&HOOK);
    let Ok(gguf) = read(data, data.len() as u64) else { return };
    let Ok(tokenizer) = tokenizer_json(&gguf.metadata) else { return };
    let model: ModelConfig = serde_json::from_value(json!({
        "family": "llama", "name": "fuzz", "max_positions": 64, "bos": null, "end_ids": [0], "chat": null,
        "generation": {"max_new_tokens": 1},
        "decoder": {"d_model": 32, "n_layers": 1, "n_heads": 1, "n_kv_heads": 1, "head_dim": 32, "d_ff": 32, "vocab_size": VOCABULARY,
            "rope_theta": 1e4, "norm_eps": 1e-5, "qk_norm": "none", "norm_place": "before", "modality_bias": null, "tied": true},
    }))
    .expect("a model of the format");
    let Ok(tokenizer) = TextTokenizer::from_bytes(tokenizer.as_bytes(), &model) else { return };
    if let Ok(ids) = tokenizer.encode("The ring, über 12 😀 <|im_end|>\n\n") {
        assert!(ids.iter().all(|&id| (id as usize) < VOCABULARY));
        let _ = tokenizer.decode(&ids);
    }
});
