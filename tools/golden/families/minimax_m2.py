"""MiniMax-M2: norms of all heads together, half of a head turns, sigmoids with a bias of the choice."""

import gguf
from make_tiny_families import Case, stacked_experts
from transformers import MiniMaxM2Config, MiniMaxM2ForCausalLM


class Plain(Case):
    name = "minimax_m2"
    architecture = gguf.MODEL_ARCH.MINIMAXM2
    config, model = MiniMaxM2Config, MiniMaxM2ForCausalLM
    settings = dict(num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1,
                    intermediate_size=32, num_local_experts=6, num_experts_per_tok=3,
                    rms_norm_eps=1e-6, tie_word_embeddings=False,
                    rope_parameters=dict(rope_type="default", rope_theta=10000.0,
                                         partial_rotary_factor=0.5))

    def keys(self, writer, cfg):
        super().keys(writer, cfg)
        writer.add_rope_dimension_count(8)
        writer.add_expert_count(cfg.num_local_experts)
        writer.add_expert_used_count(cfg.num_experts_per_tok)
        writer.add_expert_feed_forward_length(cfg.intermediate_size)
        writer.add_expert_gating_func(gguf.ExpertGatingFuncType.SIGMOID)

    def stored_name(self, names, name):
        return super().stored_name(names, name.replace(".mlp.gate.", ".block_sparse_moe.gate."))

    def tensors(self, model):
        yield from stacked_experts(super().tensors(model))
        for name, buffer in model.named_buffers():
            if name.endswith("e_score_correction_bias"):
                layer = name.split(".")[2]
                yield f"blk.{layer}.exp_probs_b.bias", tuple(buffer.shape), buffer.copy_


CASES = [Plain]
