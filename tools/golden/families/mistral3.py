"""Ministral 3: YaRN whose two factors cancel, queries that grow with their positions."""

import gguf
from make_tiny_families import Case
from transformers import Ministral3Config, Ministral3ForCausalLM


class Plain(Case):
    name = "mistral3"
    architecture = gguf.MODEL_ARCH.MISTRAL3
    config, model = Ministral3Config, Ministral3ForCausalLM
    permutes = True
    settings = dict(num_hidden_layers=2,
                    rope_parameters=dict(rope_type="yarn", rope_theta=10000.0, factor=4.0,
                                         beta_fast=32.0, beta_slow=1.0, mscale=1.0,
                                         mscale_all_dim=1.0, original_max_position_embeddings=16,
                                         llama_4_scaling_beta=0.5))

    def keys(self, writer, cfg):
        super().keys(writer, cfg)
        writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
        writer.add_rope_scaling_factor(4.0)
        writer.add_rope_scaling_orig_ctx_len(16)
        writer.add_rope_scaling_yarn_log_mul(cfg.rope_parameters["mscale_all_dim"])
        writer.add_attn_temperature_scale(cfg.rope_parameters["llama_4_scaling_beta"])


CASES = [Plain]
