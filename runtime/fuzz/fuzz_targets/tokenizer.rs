//! `tokenizer.json` of arbitrary bytes: a sentence, or a tokenizer whose tokens are of the model's vocabulary whatever the text.
//!
//! Behind the last zero byte of an input stands the text, before it the file.
#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use saccade::config::ModelConfig;
use saccade::tokenize::{Message, TextTokenizer};
use serde_json::json;

const VOCABULARY: u32 = 512;

static MODEL: LazyLock<ModelConfig> = LazyLock::new(|| {
    serde_json::from_value(json!({
        "family": "llama", "name": "fuzz", "max_positions": 64, "bos": 1, "end_ids": [0],
        "chat": {"template": "{% for m in messages %}<|im_start|>{{ m.content }}<|im_end|>{% endfor %}", "bos_token": "", "eos_token": ""},
        "generation": {"max_new_tokens": 1},
        "decoder": {"d_model": 32, "n_layers": 1, "n_heads": 1, "n_kv_heads": 1, "head_dim": 32, "d_ff": 32, "vocab_size": VOCABULARY,
            "rope_theta": 1e4, "norm_eps": 1e-5, "qk_norm": "none", "norm_place": "before", "modality_bias": null, "tied": true},
    }))
    .expect("a model of the format")
});

/// Takes away the hook that ends the program at any panic: those of the tokenizer's library are caught, ours still end it.
static HOOK: LazyLock<()> = LazyLock::new(|| drop(std::panic::take_hook()));

fuzz_target!(|data: &[u8]| {
    LazyLock::force(&HOOK);
    let at = data.iter().rposition(|&byte| byte == 0);
    let (file, text) = at.map_or((data, &b"the ring <|im_end|> 12"[..]), |at| (&data[..at], &data[at + 1..]));
    let Ok(tokenizer) = TextTokenizer::from_bytes(file, &MODEL) else { return };
    let text = String::from_utf8_lossy(text);
    for ids in [tokenizer.encode(&text), tokenizer.encode_chat(&[Message::text("user", &text)])] {
        let Ok(ids) = ids else { continue };
        assert!(ids.iter().all(|&id| id < VOCABULARY), "{ids:?}");
        let _ = tokenizer.decode(&ids);
    }
});
