"""GPT-OSS: sinks, biases, clamped gates, YaRN that is not rounded, windows in every other layer."""

import gguf
from make_tiny_families import Case
from transformers import GptOssConfig, GptOssForCausalLM


class Plain(Case):
    name = "gpt_oss"
    architecture = gguf.MODEL_ARCH.GPT_OSS
    config, model = GptOssConfig, GptOssForCausalLM
    settings = dict(num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1,
                    intermediate_size=32, num_local_experts=4, num_experts_per_tok=2,
                    sliding_window=9, tie_word_embeddings=False, rms_norm_eps=1e-5,
                    rope_parameters=dict(rope_type="yarn", rope_theta=150000.0, factor=4.0,
                                         beta_fast=32.0, beta_slow=1.0, truncate=False,
                                         original_max_position_embeddings=16))

    def keys(self, writer, cfg):
        super().keys(writer, cfg)
        writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
        writer.add_rope_scaling_factor(4.0)
        writer.add_rope_scaling_orig_ctx_len(16)
        writer.add_sliding_window(cfg.sliding_window)
        writer.add_expert_count(cfg.num_local_experts)
        writer.add_expert_used_count(cfg.num_experts_per_tok)
        writer.add_expert_feed_forward_length(cfg.intermediate_size)

    def tensors(self, model):
        """The vendor's experts are [expert, in, out], gate and up alternating; files hold
        [expert, out, in], apart."""
        for name, shape, put in super().tensors(model):
            if "gate_up" not in name and "exps" not in name:
                yield name, shape, put
                continue
            parameter = put.__self__
            stem, _, kind = name.rpartition(".")
            if "gate_up" in name:
                for offset, part in enumerate(["gate", "up"]):
                    yield (f"{stem.replace('gate_up', part)}.{kind}",
                           stored_shape(parameter[..., offset::2]),
                           setter(parameter[..., offset::2]))
            else:
                yield name, stored_shape(parameter), setter(parameter)

    def stored_name(self, names, name):
        if name.endswith("sinks"):
            return f"blk.{name.split('.')[2]}.attn_sinks.weight"
        return super().stored_name(names, name)


def stored_shape(values):
    shape = tuple(values.shape)
    return (shape[0], shape[2], shape[1]) if len(shape) == 3 else shape


def setter(values):
    def put(read):
        values.copy_(read.transpose(1, 2) if len(values.shape) == 3 else read)

    return put


CASES = [Plain]
