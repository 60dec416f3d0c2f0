//! Names of a decoder's tensors that most architectures share.

/// Buffers that some versions of transformers have saved: what the runtime computes, and what only training counts.
pub(super) const IGNORED: [&str; 3] = ["rotary_emb.inv_freq", "position_ids", "num_batches_tracked"];

/// Ours for theirs, inside a block.
const BLOCK: [(&str, &str); 20] = [
    ("input_layernorm.weight", "attn_norm.weight"),
    ("self_attn.q_proj.weight", "attn.q.weight"),
    ("self_attn.k_proj.weight", "attn.k.weight"),
    ("self_attn.v_proj.weight", "attn.v.weight"),
    ("self_attn.o_proj.weight", "attn.o.weight"),
    ("self_attn.q_norm.weight", "attn.q_norm.weight"),
    ("self_attn.q_norm.bias", "attn.q_norm.bias"),
    ("self_attn.k_norm.weight", "attn.k_norm.weight"),
    ("self_attn.k_norm.bias", "attn.k_norm.bias"),
    ("post_attention_layernorm.weight", "ffn_norm.weight"),
    ("mlp.gate_proj.weight", "ffn.gate.weight"),
    ("mlp.up_proj.weight", "ffn.up.weight"),
    ("mlp.down_proj.weight", "ffn.down.weight"),
    ("self_attn.q_proj.bias", "attn.q.bias"),
    ("self_attn.k_proj.bias", "attn.k.bias"),
    ("self_attn.v_proj.bias", "attn.v.bias"),
    ("self_attn.o_proj.bias", "attn.o.bias"),
    ("mlp.gate_proj.bias", "ffn.gate.bias"),
    ("mlp.up_proj.bias", "ffn.up.bias"),
    ("mlp.down_proj.bias", "ffn.down.bias"),
];

/// Our name for a tensor of a decoder whose names stand behind `prefix` (`model.`).
pub(super) fn decoder(prefix: &str, name: &str) -> Option<String> {
    let name = name.strip_prefix(prefix)?;
    match name {
        "embed_tokens.weight" => return Some("embed.weight".into()),
        "norm.weight" => return Some("norm.weight".into()),
        _ => {}
    }
    let (layer, rest) = name.strip_prefix("layers.")?.split_once('.')?;
    let (_, ours) = BLOCK.iter().find(|(theirs, _)| *theirs == rest)?;
    Some(format!("layers.{layer}.{ours}"))
}
