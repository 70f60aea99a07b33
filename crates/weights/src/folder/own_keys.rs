//! Which key of `config.json` says what a key of GGUF does? For errors about folders, whose owners
//! know no other.

/// Without the architecture in front; and, of several keys that would do, the one that most
/// configurations have.
const KEYS: &[(&str, &str)] = &[
    ("attention.causal", "is_decoder"),
    ("attention.head_count", "num_attention_heads"),
    ("attention.head_count_kv", "num_key_value_heads"),
    ("attention.key_length", "head_dim"),
    ("attention.key_length_mla", "qk_nope_head_dim"),
    ("attention.key_length_swa", "head_dim"),
    ("attention.kv_lora_rank", "kv_lora_rank"),
    ("attention.layer_norm_epsilon", "layer_norm_eps"),
    ("attention.layer_norm_rms_epsilon", "rms_norm_eps"),
    ("attention.q_lora_rank", "q_lora_rank"),
    ("attention.recurrent_layers", "layer_types"),
    ("attention.scale", "query_pre_attn_scalar"),
    ("attention.shared_kv_layers", "num_kv_shared_layers"),
    ("attention.sliding_window", "sliding_window"),
    ("attention.sliding_window_pattern", "layer_types"),
    ("attention.temperature_scale", "llama_4_scaling_beta"),
    ("attention.value_length", "head_dim"),
    ("attention.value_length_mla", "v_head_dim"),
    ("attention.value_length_swa", "head_dim"),
    ("attn_logit_softcapping", "attn_logit_softcapping"),
    ("block_count", "num_hidden_layers"),
    ("context_length", "max_position_embeddings"),
    ("embedding_length", "hidden_size"),
    ("embedding_length_per_layer_input", "hidden_size_per_layer_input"),
    ("expert_count", "num_experts"),
    ("expert_feed_forward_length", "moe_intermediate_size"),
    ("expert_gating_func", "scoring_func"),
    ("expert_group_count", "n_group"),
    ("expert_group_used_count", "topk_group"),
    ("expert_shared_count", "n_shared_experts"),
    ("expert_shared_feed_forward_length", "shared_expert_intermediate_size"),
    ("expert_used_count", "num_experts_per_tok"),
    ("expert_weights_norm", "norm_topk_prob"),
    ("expert_weights_scale", "routed_scaling_factor"),
    ("feed_forward_length", "intermediate_size"),
    ("final_logit_softcapping", "final_logit_softcapping"),
    ("full_attention_interval", "full_attention_interval"),
    ("leading_dense_block_count", "first_k_dense_replace"),
    ("rope.dimension_count", "partial_rotary_factor"),
    ("rope.dimension_count_swa", "head_dim"),
    ("rope.dimension_sections", "mrope_section"),
    ("rope.freq_base", "rope_theta"),
    ("rope.freq_base_swa", "rope_local_base_freq"),
    ("rope.scaling.attn_factor", "rope_scaling.attention_factor"),
    ("rope.scaling.factor", "rope_scaling.factor"),
    ("rope.scaling.original_context_length", "original_max_position_embeddings"),
    ("rope.scaling.type", "rope_scaling.rope_type"),
    ("rope.scaling.yarn_beta_fast", "rope_scaling.beta_fast"),
    ("rope.scaling.yarn_beta_slow", "rope_scaling.beta_slow"),
    ("rope.scaling.yarn_log_multiplier", "rope_scaling.mscale_all_dim"),
    ("ssm.conv_kernel", "linear_conv_kernel_dim"),
    ("ssm.group_count", "linear_num_key_heads"),
    ("ssm.inner_size", "linear_value_head_dim"),
    ("ssm.state_size", "linear_key_head_dim"),
    ("ssm.time_step_rank", "linear_num_value_heads"),
    ("vocab_size", "vocab_size"),
];

/// `None`: no key of `config.json` is behind it.
pub fn own_key(key: &str) -> Option<&'static str> {
    let find = |key: &str| KEYS.iter().find(|(known, _)| *known == key).map(|(_, own)| *own);
    find(key).or_else(|| find(key.split_once('.')?.1))
}
