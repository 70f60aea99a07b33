"""Writes crates/testkit/golden/published/: tiny models in the forms in which quantized weights are
published beside MLX's and GGUF's, and what transformers computes with the weights that each form's
own code reads from them.

    pip install torch==2.15.0 transformers==5.24.0 safetensors compressed-tensors==0.20.0
    pip download --no-deps auto-gptq==0.7.1 autoawq==0.2.9   # unpack both, side by side
    python tools/golden/make_tiny_published.py FOLDER_OF_BOTH

GPTQ is packed and read by AutoGPTQ's QuantLinear (from its file: the packages need a GPU to be
imported), AWQ is read by AutoAWQ's dequantize_gemm and packed by its formula, compressed-tensors by
its compressors, FP8 and MXFP4 by transformers' integrations. Scales are f32 while reading, so that
codes times scales are exact, but for columns in another order and FP8, which are rounded to f16 and
bf16 by their code, and by ours.

<name>/: config.json and model.safetensors. <name>.truth: u32 count of ids, the ids as u32, then the
logits of all positions in f32.
"""

import importlib.util
import json
import shutil
import struct
import sys
from pathlib import Path

import numpy as np
import torch
from compressed_tensors.compressors.pack_quantized.base import PackedQuantizationCompressor
from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
from safetensors.torch import save_file
from transformers import (DeepseekV3Config, DeepseekV3ForCausalLM, Glm4MoeConfig,
                          Glm4MoeForCausalLM, GptOssConfig, GptOssForCausalLM, LlamaConfig,
                          LlamaForCausalLM, Ministral3Config, Ministral3ForCausalLM, Qwen2Config,
                          Qwen2ForCausalLM, Qwen3MoeConfig, Qwen3MoeForCausalLM, Qwen3NextConfig,
                          Qwen3NextForCausalLM)
from transformers.integrations.finegrained_fp8 import Fp8Dequantize
from transformers.integrations.mxfp4 import convert_moe_packed_tensors

OUT = Path(__file__).resolve().parents[2] / "crates/testkit/golden/published"
TOKENS = 24
BASE = dict(hidden_size=128, intermediate_size=256, num_hidden_layers=1, num_attention_heads=4,
            num_key_value_heads=2, head_dim=32, vocab_size=72, max_position_embeddings=64,
            rms_norm_eps=1e-5, rope_theta=10000.0, tie_word_embeddings=True)
EXPERTS = dict(BASE, num_experts=3, num_experts_per_tok=2, norm_topk_prob=True,
               moe_intermediate_size=64, decoder_sparse_step=1, mlp_only_layers=[])
LATENT = dict(hidden_size=64, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
              num_key_value_heads=2, vocab_size=72, max_position_embeddings=64,
              tie_word_embeddings=False, q_lora_rank=64, kv_lora_rank=64, qk_rope_head_dim=32,
              qk_nope_head_dim=32, v_head_dim=32, n_routed_experts=4, num_experts_per_tok=2,
              n_group=2, topk_group=1, n_shared_experts=1, first_k_dense_replace=1,
              moe_intermediate_size=64, routed_scaling_factor=1.5, norm_topk_prob=True,
              rms_norm_eps=1e-6)
GLM = dict(BASE, hidden_size=64, num_hidden_layers=2, intermediate_size=64, tie_word_embeddings=False,
           n_routed_experts=4, num_experts_per_tok=2, n_group=1, topk_group=1, n_shared_experts=1,
           first_k_dense_replace=1, moe_intermediate_size=64, routed_scaling_factor=1.5,
           norm_topk_prob=True, use_qk_norm=True, attention_bias=True)
MINISTRAL = dict({key: value for key, value in BASE.items() if key != "rope_theta"},
                 rope_parameters=dict(rope_type="yarn", rope_theta=10000.0, factor=4.0,
                                      beta_fast=32.0, beta_slow=1.0, mscale=1.0,
                                      mscale_all_dim=1.0, original_max_position_embeddings=16,
                                      llama_4_scaling_beta=0.5))
QWEN2 = {key: value for key, value in BASE.items() if key != "head_dim"}
NEXT = dict(BASE, hidden_size=64, num_hidden_layers=2, layer_types=["linear_attention", "full_attention"],
            num_experts=3, num_experts_per_tok=2, moe_intermediate_size=64, norm_topk_prob=True,
            shared_expert_intermediate_size=64, decoder_sparse_step=1, mlp_only_layers=[],
            linear_num_key_heads=2, linear_num_value_heads=4, linear_key_head_dim=32,
            linear_value_head_dim=32, linear_conv_kernel_dim=4)
OSS = dict(hidden_size=64, intermediate_size=32, num_hidden_layers=2, num_attention_heads=4,
           num_key_value_heads=2, head_dim=16, vocab_size=72, max_position_embeddings=64,
           rms_norm_eps=1e-5, tie_word_embeddings=False, num_local_experts=4,
           num_experts_per_tok=2, sliding_window=9,
           rope_parameters=dict(rope_type="yarn", rope_theta=150000.0, factor=4.0, beta_fast=32.0,
                                beta_slow=1.0, truncate=False,
                                original_max_position_embeddings=16))


def load(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def randomize(model, rng):
    for parameter in model.parameters():
        shape = tuple(parameter.shape)
        drawn = rng.standard_normal(shape)
        if len(shape) == 1:
            drawn = 1 + 0.2 * drawn
        elif len(shape) == 2:
            drawn *= 1.5 / shape[-1] ** 0.5
        else:
            drawn *= 1.5 / shape[-2] ** 0.5
        parameter.data = torch.tensor(drawn, dtype=torch.float32)


def rounding(weight, bits, group, symmetric):
    """Scales and zeros `[rows, groups]` of plain rounding, one code less than there are: packers do
    not clamp."""
    rows, cols = weight.shape
    groups = weight.reshape(rows, cols // group, group)
    if symmetric:
        scales = 2 * groups.abs().amax(-1) / (2**bits - 2)
        return scales.half().float(), torch.full_like(scales, 2 ** (bits - 1))
    low, high = groups.amin(-1).clamp(max=0), groups.amax(-1).clamp(min=0)
    scales = ((high - low) / (2**bits - 2)).half().float()
    # Stored less one, and AutoGPTQ's zero of none wraps around.
    return scales, (-low / scales).round().clamp(1, 2**bits - 2)


def gptq(path, bits, group, symmetric, act_order=False, v2=False):
    old = load(path / "auto_gptq/nn_modules/qlinear/qlinear_cuda_old.py").QuantLinear
    new = load(path / "auto_gptq/nn_modules/qlinear/qlinear_cuda.py").QuantLinear

    def quantize(linear, rng):
        weight = linear.weight.data
        rows, cols = weight.shape
        size = cols if group == -1 else group
        if act_order:
            order = torch.tensor(rng.permutation(cols))
            scales, zeros = rounding(weight[:, order], bits, size, symmetric)
            g_idx = torch.empty(cols, dtype=torch.int32)
            g_idx[order] = torch.arange(cols, dtype=torch.int32) // size
        else:
            scales, zeros = rounding(weight, bits, size, symmetric)
            g_idx = torch.arange(cols, dtype=torch.int32) // size
        own = torch.nn.Linear(cols, rows, bias=False, dtype=torch.float32)
        own.weight.data = weight.clone()
        kind = new if act_order else old
        packed = kind(bits, size, cols, rows, False, weight_dtype=torch.float32)
        packed.pack(own, scales.clone(), zeros.clone(), g_idx)
        if act_order:
            packed.scales = packed.scales.half()
            whole = packed(torch.eye(cols, dtype=torch.float16)).float()
        else:
            whole = packed(torch.eye(cols))
        qzeros = packed.qzeros
        if v2:
            qzeros = qzeros + sum(1 << shift for shift in range(0, 32, bits))
        tensors = dict(qweight=packed.qweight, qzeros=qzeros, scales=packed.scales.half(),
                       g_idx=g_idx, bias=torch.zeros(rows, dtype=torch.float16))
        return whole.t(), tensors

    settings = dict(quant_method="gptq", bits=bits, group_size=group, sym=symmetric,
                    desc_act=act_order, checkpoint_format="gptq_v2" if v2 else "gptq")
    return quantize, settings


def awq(path, group):
    packing = load(path / "autoawq-0.2.9/awq/utils/packing_utils.py")

    def pack(codes):
        words = torch.zeros(codes.shape[0], codes.shape[1] // 8, dtype=torch.int32)
        for place, column in enumerate(packing.AWQ_ORDER):
            words |= codes[:, column::8].to(torch.int32) << (4 * place)
        return words

    def quantize(linear, rng):
        weight = linear.weight.data
        scales, zeros = rounding(weight, 4, group, False)
        wide = [part.repeat_interleave(group, dim=1) for part in (scales, zeros)]
        codes = (weight / wide[0] + wide[1]).round().clamp(0, 15).t()
        tensors = dict(qweight=pack(codes), qzeros=pack(zeros.t()),
                       scales=scales.t().half().contiguous())
        whole = packing.dequantize_gemm(tensors["qweight"], tensors["qzeros"],
                                        scales.t().contiguous(), 4, group)
        return whole.t(), tensors

    settings = dict(quant_method="awq", bits=4, group_size=group, zero_point=True, version="gemm")
    return quantize, settings


def packed(bits, group, symmetric, act_order=False):
    def quantize(linear, rng):
        weight = linear.weight.data
        rows, cols = weight.shape
        strategy = "channel" if group is None else "group"
        arguments = QuantizationArgs(num_bits=bits, type="int", symmetric=symmetric,
                                     strategy=strategy, group_size=group)
        scheme = QuantizationScheme(targets=["Linear"], weights=arguments)
        scales, zeros = rounding(weight, bits, group or cols, symmetric)
        scales = scales.bfloat16()
        zeros = (zeros - 2 ** (bits - 1)).to(torch.int8)
        state = dict(weight=weight, weight_scale=scales.float(), weight_zero_point=zeros)
        tensors = PackedQuantizationCompressor.compress(state, scheme)
        whole = PackedQuantizationCompressor.decompress(tensors, scheme)["weight"]
        tensors["weight_scale"] = scales
        return whole.float(), tensors

    settings = dict(quant_method="compressed-tensors", format="pack-quantized",
                    config_groups=dict(group_0=dict(targets=["Linear"], weights=dict(
                        num_bits=bits, group_size=group, symmetric=symmetric, type="int"))))
    return quantize, settings


def fp8(block, suffix, method):
    def quantize(linear, rng):
        weight = linear.weight.data
        rows, cols = weight.shape
        down, across = (min(rows, block[0] or rows), min(cols, block[1] or cols))
        blocks = weight.reshape(rows // down, down, cols // across, across)
        scales = blocks.abs().amax(dim=(1, 3)) / 448
        wide = scales.repeat_interleave(down, 0).repeat_interleave(across, 1)
        codes = (weight / wide).to(torch.float8_e4m3fn)
        whole = Fp8Dequantize(None)._dequantize_one(codes, scales, torch.bfloat16)
        if block == (None, None):
            scales = scales.reshape(1)
        return whole.float(), {"weight": codes, suffix: scales}

    settings = dict(quant_method=method)
    if method == "fp8":
        settings["weight_block_size"] = list(block) if block[0] else None
    else:
        settings["format"] = "float-quantized"
    return quantize, settings


def of_class(name, classes, settings, quantize, quantization):
    """Matrices of attention, feed-forwards and experts, the latter one by one in files; what chooses
    experts and what stands outside the layers stays in bfloat16."""
    rng = np.random.default_rng(14)
    config = classes[0](**settings)
    model = classes[1](config).eval()
    randomize(model, rng)
    for path, parameter in model.named_parameters():
        if path.endswith("bias"):
            parameter.data -= 1
    tensors = {}

    def take(stem, matrix):
        linear = torch.nn.Linear(*reversed(matrix.shape), bias=False)
        linear.weight.data = matrix.clone()
        whole, parts = quantize(linear, rng)
        matrix.copy_(whole)
        tensors.update({f"{stem}.{part}": values.contiguous() for part, values in parts.items()})

    linears = {f"{path}.weight" for path, module in model.named_modules()
               if isinstance(module, torch.nn.Linear) and path != "lm_head"
               and not path.endswith(("mlp.gate", "shared_expert_gate", "in_proj_ba"))}
    for path, parameter in model.named_parameters():
        if parameter.dim() == 3 and "experts." in path:
            stem, kind = path.rsplit(".", 1)
            for index, matrices in enumerate(parameter.data):
                names = ["gate_proj", "up_proj"] if kind == "gate_up_proj" else [kind]
                for own, matrix in zip(names, matrices.chunk(len(names))):
                    take(f"{stem}.{index}.{own}", matrix)
        elif path in linears:
            take(path.removesuffix(".weight"), parameter.data)
        else:
            parameter.data = parameter.data.bfloat16().float()
            tensors[path] = parameter.data.bfloat16()
    for path, buffer in model.named_buffers():
        if path in model.state_dict():
            buffer.copy_(torch.tensor(0.2 * rng.standard_normal(tuple(buffer.shape))))
            tensors[path] = buffer.clone()
    if config.tie_word_embeddings:
        tensors.pop("lm_head.weight", None)
    save(name, model, config, quantization, tensors, rng)


def llama(name, quantize, settings):
    rng = np.random.default_rng(11)
    config = LlamaConfig(**BASE)
    model = LlamaForCausalLM(config).eval()
    randomize(model, rng)
    tensors = {}
    for path, module in model.named_modules():
        if isinstance(module, torch.nn.Linear) and path != "lm_head":
            whole, parts = quantize(module, rng)
            assert whole.shape == module.weight.shape and whole.dtype == torch.float32
            near = (whole - module.weight.data).abs().max() / module.weight.data.abs().max()
            assert near < 0.6, f"{name}: {path} is {near} away"
            module.weight.data = whole.contiguous()
            tensors |= {f"{path}.{kind}": part.contiguous() for kind, part in parts.items()}
        elif hasattr(module, "weight") and path != "lm_head":
            module.weight.data = module.weight.data.half().float()
            tensors[f"{path}.weight"] = module.weight.data.half()
    save(name, model, config, settings, tensors, rng)


def gpt_oss(name):
    rng = np.random.default_rng(13)
    config = GptOssConfig(**OSS)
    model = GptOssForCausalLM(config).eval()
    randomize(model, rng)
    tensors = {}
    for path, parameter in model.named_parameters():
        if path.endswith(("gate_up_proj", "down_proj")):
            experts, cols, rows = parameter.shape
            groups = cols // 32
            blocks = rng.integers(0, 256, (experts, rows, groups, 16), dtype=np.uint8)
            scales = rng.integers(121, 125, (experts, rows, groups), dtype=np.uint8)
            blocks, scales = torch.tensor(blocks), torch.tensor(scales)
            whole = convert_moe_packed_tensors(blocks, scales, dtype=torch.float32)
            assert whole.shape == parameter.shape
            parameter.data = whole.contiguous()
            tensors |= {f"{path}_blocks": blocks, f"{path}_scales": scales}
        else:
            parameter.data = parameter.data.bfloat16().float()
            tensors[path] = parameter.data.bfloat16()
    settings = dict(quant_method="mxfp4", modules_to_not_convert=["model.layers.*.self_attn"])
    save(name, model, config, settings, tensors, rng)


def save(name, model, config, settings, tensors, rng):
    folder = OUT / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    said = config.to_diff_dict()
    said["quantization_config"] = settings
    (folder / "config.json").write_text(json.dumps(said, indent=1, sort_keys=True) + "\n")
    ids = rng.integers(0, config.vocab_size, TOKENS).tolist()
    with torch.no_grad():
        logits = model(torch.tensor([ids])).logits[0].float().numpy()
    assert np.isfinite(logits).all()
    truth = struct.pack(f"<I{TOKENS}I", TOKENS, *ids) + logits.astype("<f4").tobytes()
    (OUT / f"{name}.truth").write_bytes(truth)
    kinds = len(set(logits.argmax(axis=1).tolist()))
    assert kinds >= 8, f"{name}: {kinds} different words"
    sizes = sum(path.stat().st_size for path in folder.iterdir())
    print(f"{name}: {sizes} bytes, logits to {np.abs(logits).max():.2f}, {kinds} words")


def main():
    path = Path(sys.argv[1])
    llama("awq", *awq(path, 64))
    llama("gptq_4bit", *gptq(path, 4, 128, True))
    llama("gptq_asymmetric", *gptq(path, 4, 32, False))
    llama("gptq_v2", *gptq(path, 4, 64, False, v2=True))
    llama("gptq_act_order", *gptq(path, 4, 32, False, act_order=True))
    llama("gptq_3bit", *gptq(path, 3, -1, False))
    llama("gptq_8bit", *gptq(path, 8, 128, True))
    llama("packed_4bit", *packed(4, 128, True))
    llama("packed_asymmetric", *packed(4, 32, False))
    llama("packed_8bit_rows", *packed(8, None, True))
    llama("fp8_blocks", *fp8((128, 128), "weight_scale_inv", "fp8"))
    llama("fp8_tensor", *fp8((None, None), "weight_scale", "compressed-tensors"))
    llama("fp8_rows", *fp8((1, None), "weight_scale", "compressed-tensors"))
    blocks = fp8((128, 128), "weight_scale_inv", "fp8")
    qwen = Qwen3MoeConfig, Qwen3MoeForCausalLM
    of_class("experts_fp8", qwen, EXPERTS, *blocks)
    of_class("experts_gptq", qwen, EXPERTS, *gptq(path, 4, 64, True))
    of_class("deepseek_v3_fp8", (DeepseekV3Config, DeepseekV3ForCausalLM), LATENT, *blocks)
    of_class("deepseek_v3_gptq", (DeepseekV3Config, DeepseekV3ForCausalLM), LATENT,
             *gptq(path, 4, 64, True))
    of_class("glm4_moe_fp8", (Glm4MoeConfig, Glm4MoeForCausalLM), GLM,
             *fp8((1, None), "weight_scale", "compressed-tensors"))
    of_class("ministral3_fp8", (Ministral3Config, Ministral3ForCausalLM), MINISTRAL,
             *fp8((None, None), "weight_scale_inv", "fp8"))
    of_class("qwen2_gptq", (Qwen2Config, Qwen2ForCausalLM), QWEN2, *gptq(path, 4, 128, True))
    of_class("qwen2_awq", (Qwen2Config, Qwen2ForCausalLM), QWEN2, *awq(path, 64))
    of_class("qwen3_next_fp8", (Qwen3NextConfig, Qwen3NextForCausalLM), NEXT, *blocks)
    gpt_oss("gpt_oss")


if __name__ == "__main__":
    torch.manual_seed(0)
    main()
