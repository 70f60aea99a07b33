"""Writes crates/weights/src/folder/defaults.json: what transformers (5.24.0) takes for keys that a
folder's config.json leaves out, by `model_type`.

    pip install transformers==5.24.0 torch
    python tools/golden/make_config_defaults.py

Only keys that crates/weights reads, and of those none that is the size of one model rather than
of its family. A default of None is the same as none and is left out.
"""

import dataclasses
import json
from pathlib import Path

from transformers.models.auto.configuration_auto import CONFIG_MAPPING

OUT = Path(__file__).resolve().parents[2] / "crates/weights/src/folder/defaults.json"
# As Pelton's folders are called: the class whose defaults those of their text are.
OTHER_CLASS = {
    "gemma3": "gemma3_text", "gemma4": "gemma4_text", "kimi_k2": "deepseek_v3",
    "qwen3_5": "qwen3_5_text", "qwen3_5_moe": "qwen3_5_moe_text",
    "qwen3_vl": "qwen3_vl_text", "qwen3_vl_moe": "qwen3_vl_moe_text",
}
TYPES = """bert deepseek_v2 deepseek_v3 ernie4_5 exaone4 gemma gemma2 gemma3 gemma3_text gemma4
gemma4_text glm glm4 glm4_moe glm4_moe_lite gpt_oss kimi_k2 llama minimax_m2 ministral ministral3 mistral
mixtral olmo2 olmo3 phi3 qwen2 qwen3 qwen3_5 qwen3_5_moe qwen3_5_moe_text qwen3_5_text qwen3_moe
qwen3_next qwen3_vl qwen3_vl_moe qwen3_vl_moe_text qwen3_vl_text seed_oss smollm3 xlm-roberta""".split()
KEYS = """attn_logit_softcapping final_logit_softcapping first_k_dense_replace head_dim
hidden_size_per_layer_input intermediate_size kv_lora_rank layer_norm_eps linear_conv_kernel_dim
linear_key_head_dim linear_num_key_heads linear_num_value_heads linear_value_head_dim
max_position_embeddings max_window_layers moe_intermediate_size n_group n_routed_experts n_shared_experts
norm_topk_prob num_attention_heads num_experts num_experts_per_tok num_key_value_heads
num_kv_shared_layers num_local_experts original_max_position_embeddings pad_token_id q_lora_rank
qk_nope_head_dim qk_rope_head_dim query_pre_attn_scalar rms_norm_eps rope_parameters
routed_scaling_factor scoring_func shared_expert_intermediate_size sliding_window
swiglu_alpha swiglu_limit tie_word_embeddings topk_group topk_method v_head_dim""".split()


def of_class(config_class):
    """What its fields say; what they are after it made something of each other would hide that
    some follow other keys."""
    fields = {field.name: field for field in dataclasses.fields(config_class)}
    given = {key: fields[key].default for key in KEYS if key in fields}
    for key in KEYS:
        if key not in given and hasattr(config_class, key):
            given[key] = getattr(config_class, key)
    made = config_class()
    theta = config_class.default_theta
    if isinstance(theta, dict):
        given["rope_theta"] = theta["global"]
        given["rope_local_base_freq"] = theta["local"]
    elif hasattr(made, "rope_parameters"):
        given["rope_theta"] = theta
    rope = getattr(made, "rope_parameters", None) or {}
    if "partial_rotary_factor" in rope and rope["partial_rotary_factor"] != 1.0:
        given["partial_rotary_factor"] = rope["partial_rotary_factor"]
    # Some scale positions where nothing is said.
    kinds = [kind for kind in [rope, *rope.values()] if isinstance(kind, dict)]
    if any(kind.get("rope_type", "default") != "default" for kind in kinds):
        given["rope_parameters"] = rope
    simple = (bool, int, float, str, dict)
    return {key: value for key, value in sorted(given.items()) if isinstance(value, simple)}


def main():
    defaults = {kind: of_class(CONFIG_MAPPING[OTHER_CLASS.get(kind, kind)]) for kind in TYPES}
    for kind, keys in defaults.items():
        # Of the others, positions are not counted from it.
        if kind != "xlm-roberta":
            keys.pop("pad_token_id", None)
    lines = [f"{json.dumps(kind)}: {json.dumps(keys)}" for kind, keys in defaults.items()]
    OUT.write_text("{\n" + ",\n".join(lines) + "\n}\n")


if __name__ == "__main__":
    main()
