"""Seed-OSS: biases of query, key and value, and heads of a size of their own."""

import gguf
from make_tiny_families import Case
from transformers import SeedOssConfig, SeedOssForCausalLM


class Plain(Case):
    name = "seed_oss"
    architecture = gguf.MODEL_ARCH.SEED_OSS
    config, model = SeedOssConfig, SeedOssForCausalLM
    settings = dict(attention_bias=True, rms_norm_eps=1e-6, tie_word_embeddings=False,
                    rope_parameters=dict(rope_type="default", rope_theta=10000000.0))


CASES = [Plain]
