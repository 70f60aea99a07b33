"""GLM-4 by experts: a dense layer, then sigmoids with a bias of the choice and a shared expert."""

import gguf
from make_tiny_families import Case, stacked_experts
from transformers import Glm4MoeConfig, Glm4MoeForCausalLM


class Plain(Case):
    name = "glm4moe"
    architecture = gguf.MODEL_ARCH.GLM4_MOE
    config, model = Glm4MoeConfig, Glm4MoeForCausalLM
    settings = dict(num_hidden_layers=3, num_attention_heads=2, num_key_value_heads=1,
                    num_local_experts=6, num_experts_per_tok=2, moe_intermediate_size=32,
                    n_shared_experts=2, first_k_dense_replace=1, n_group=1, topk_group=1,
                    routed_scaling_factor=1.5, norm_topk_prob=True, use_qk_norm=True,
                    attention_bias=True, rms_norm_eps=1e-5, tie_word_embeddings=False,
                    rope_parameters=dict(rope_type="default", rope_theta=10000.0,
                                         partial_rotary_factor=0.5))

    def keys(self, writer, cfg):
        super().keys(writer, cfg)
        writer.add_rope_dimension_count(8)
        writer.add_expert_count(cfg.num_local_experts)
        writer.add_expert_used_count(cfg.num_experts_per_tok)
        writer.add_expert_feed_forward_length(cfg.moe_intermediate_size)
        writer.add_expert_shared_count(cfg.n_shared_experts)
        writer.add_leading_dense_block_count(cfg.first_k_dense_replace)
        writer.add_expert_weights_scale(cfg.routed_scaling_factor)
        writer.add_expert_weights_norm(True)
        writer.add_expert_gating_func(gguf.ExpertGatingFuncType.SIGMOID)

    def tensors(self, model):
        yield from stacked_experts(super().tensors(model))
        for name, buffer in model.named_buffers():
            if name.endswith("e_score_correction_bias"):
                layer = name.split(".")[2]
                yield f"blk.{layer}.exp_probs_b.bias", tuple(buffer.shape), buffer.copy_


CASES = [Plain]
