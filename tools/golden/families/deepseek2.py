"""DeepSeek V2 (queries by one matrix, softmax, the best groups by their best), V3 (queries by two,
sigmoids with a bias, the best groups by their two best, YaRN whose factor scales scores) and
GLM-4.7-Flash (the same without groups and YaRN)."""

import gguf
from make_tiny_families import Case, stacked_experts
from transformers import (DeepseekV2Config, DeepseekV2ForCausalLM, DeepseekV3Config,
                          DeepseekV3ForCausalLM, Glm4MoeLiteConfig, Glm4MoeLiteForCausalLM)

LATENT, TURNING, PLAIN, VALUE = 32, 16, 16, 16


class Second(Case):
    name = "deepseek_v2"
    architecture = gguf.MODEL_ARCH.DEEPSEEK2
    config, model = DeepseekV2Config, DeepseekV2ForCausalLM
    own_heads = True
    settings = dict(num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=2,
                    tie_word_embeddings=False, head_dim=TURNING, q_lora_rank=None,
                    kv_lora_rank=LATENT, qk_rope_head_dim=TURNING, qk_nope_head_dim=PLAIN,
                    v_head_dim=VALUE, n_routed_experts=6, num_experts_per_tok=2, n_group=3,
                    topk_group=1, topk_method="group_limited_greedy", n_shared_experts=1,
                    first_k_dense_replace=1, moe_intermediate_size=32, routed_scaling_factor=1.5,
                    norm_topk_prob=False, rms_norm_eps=1e-6,
                    rope_parameters=dict(rope_type="default", rope_theta=10000.0))

    def keys(self, writer, cfg):
        writer.add_head_count_kv(1)
        writer.add_key_length(LATENT + TURNING)
        writer.add_value_length(LATENT)
        writer.add_key_length_mla(PLAIN + TURNING)
        writer.add_value_length_mla(VALUE)
        writer.add_kv_lora_rank(LATENT)
        writer.add_rope_dimension_count(TURNING)
        writer.add_rope_freq_base(cfg.rope_parameters["rope_theta"])
        writer.add_leading_dense_block_count(1)
        writer.add_expert_count(cfg.n_routed_experts)
        writer.add_expert_used_count(cfg.num_experts_per_tok)
        writer.add_expert_group_count(cfg.n_group)
        writer.add_expert_group_used_count(cfg.topk_group)
        writer.add_expert_shared_count(cfg.n_shared_experts)
        writer.add_expert_feed_forward_length(cfg.moe_intermediate_size)
        writer.add_expert_weights_scale(cfg.routed_scaling_factor)

    def tensors(self, model):
        heads = model.config.num_attention_heads
        for name, shape, put in stacked_experts(super().tensors(model)):
            if "attn_kv_b" not in name:
                yield name, shape, put
                continue
            both = put.__self__.view(heads, PLAIN + VALUE, LATENT)
            keys, values = both[:, :PLAIN], both[:, PLAIN:]
            yield (name.replace("kv_b", "k_b"), (heads, LATENT, PLAIN),
                   lambda read, keys=keys: keys.copy_(read.transpose(1, 2)))
            yield name.replace("kv_b", "v_b"), (heads, VALUE, LATENT), values.copy_


class Third(Second):
    name = "deepseek_v3"
    config, model = DeepseekV3Config, DeepseekV3ForCausalLM
    settings = {**{key: value for key, value in Second.settings.items() if key != "topk_method"},
                "q_lora_rank": 24, "norm_topk_prob": True, "topk_group": 2,
                "rope_parameters": dict(rope_type="yarn", rope_theta=10000.0, factor=4.0,
                                        mscale=1.0, mscale_all_dim=1.0,
                                        original_max_position_embeddings=16)}

    def keys(self, writer, cfg):
        super().keys(writer, cfg)
        writer.add_q_lora_rank(cfg.q_lora_rank)
        writer.add_expert_weights_norm(True)
        writer.add_expert_gating_func(gguf.ExpertGatingFuncType.SIGMOID)
        if cfg.rope_parameters["rope_type"] == "yarn":
            writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
            writer.add_rope_scaling_factor(4.0)
            writer.add_rope_scaling_orig_ctx_len(16)
            writer.add_rope_scaling_yarn_log_mul(0.1 * cfg.rope_parameters["mscale_all_dim"])

    def tensors(self, model):
        yield from super().tensors(model)
        for name, buffer in model.named_buffers():
            if name.endswith("e_score_correction_bias"):
                layer = name.split(".")[2]
                yield f"blk.{layer}.exp_probs_b.bias", tuple(buffer.shape), buffer.copy_


class Flash(Third):
    name = "glm4_moe_lite"
    config, model = Glm4MoeLiteConfig, Glm4MoeLiteForCausalLM
    settings = {**{key: value for key, value in Third.settings.items()
                   if key not in ("head_dim", "first_k_dense_replace")},
                # Published models say 1e-5; transformers has 1e-6 all the same behind latents,
                # where MLX-LM, vLLM and llama.cpp have what is said.
                "n_group": 1, "topk_group": 1, "rms_norm_eps": 1e-6,
                "mlp_layer_types": ["dense", "sparse"],
                "rope_parameters": dict(rope_type="default", rope_theta=1000000.0)}


CASES = [Second, Third, Flash]
