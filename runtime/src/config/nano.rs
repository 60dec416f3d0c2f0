//! The shipped model's sizes.

use super::{
    ActionConfig, ActionSemantics, ChatConfig, GenerationConfig, ImageConfig, Modality, ModalityConfig,
    SpecialTokens, StateConfig, TokenRanges, UnimodalConfig,
};

/// The `nano` model of Saccade: the sizes that are shipped, trained and tested.
#[must_use]
pub fn nano() -> UnimodalConfig {
    let names = |names: &[&str]| names.iter().map(ToString::to_string).collect::<Vec<_>>();
    UnimodalConfig {
        name: "nano".into(),
        d_model: 192,
        n_layers: 6,
        n_heads: 6,
        n_kv_heads: 2,
        head_dim: 32,
        d_ff: 512,
        vocab_size: 3392,
        rope_theta: 10_000.0,
        norm_eps: 1e-5,
        modalities: Modality::ALL
            .into_iter()
            .map(|name| ModalityConfig { name, window: (name != Modality::Text).then_some(4) })
            .collect(),
        tokens: TokenRanges { text: [0, 2112], bins: [2112, 2368], image: [2368, 3392] },
        special: SpecialTokens {
            pad: 0,
            eos: 1,
            img: 2,
            img_end: 3,
            pts: 4,
            pts_end: 5,
            state: 6,
            act: 7,
            ask: 8,
            ans: 9,
        },
        tasks: names(&["robot", "vqa", "text"]),
        task_prefix_len: 4,
        image: ImageConfig {
            width: 64,
            height: 64,
            grid: [8, 8],
            code_dim: 16,
            codebook_size: 1024,
            l2_norm: false,
            encoder_channels: [32, 64, 96],
            decoder_channels: [96, 64, 32],
            res_hidden: 48,
            n_res: 2,
            mean: 127.5,
            std: 127.5,
        },
        state: StateConfig {
            names: names(&["hand_x", "hand_y", "hand_z", "gripper"]),
            low: vec![-1.0; 4],
            high: vec![1.0; 4],
        },
        action: ActionConfig {
            names: names(&["dx", "dy", "dz", "gripper"]),
            low: vec![-1.0; 4],
            high: vec![1.0; 4],
            steps: 8,
            executed: 4,
            semantics: ActionSemantics::Delta,
            rate_hz: 20.0,
        },
        chat: ChatConfig { caption: "what is happening?".into(), question_suffix: String::new() },
        generation: GenerationConfig { max_new_tokens: 64 },
    }
}
