"""Qwen 3, dense: norms of query and key heads, heads wider than width / heads."""

import gguf
from make_tiny_families import Case
from transformers import Qwen3Config, Qwen3ForCausalLM


class Plain(Case):
    name = "qwen3"
    architecture = gguf.MODEL_ARCH.QWEN3
    config, model = Qwen3Config, Qwen3ForCausalLM
    settings = dict(rms_norm_eps=1e-6,
                    rope_parameters=dict(rope_type="default", rope_theta=1000000.0))


CASES = [Plain]
