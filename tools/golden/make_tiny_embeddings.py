"""Writes crates/engine/golden/embeddings/: tiny models that give vectors of texts, and what
sentence-transformers makes of some texts with them.

    pip install sentence-transformers==6.2.0 transformers==5.24.0 torch==2.15.0 numpy==2.4.6 \
        gguf==0.19.0 safetensors==0.8.0 sentencepiece==0.2.3 protobuf
    python tools/golden/make_tiny_embeddings.py

Weights are random. Each model is a folder as sentence-transformers saves it, with matrices in f16
(of which it computes, in float32). <name>.json holds the texts, the ids that its tokenizer gives,
and the vectors. One is a GGUF file, too.
"""

import base64
import json
import shutil
import tempfile
from pathlib import Path

import gguf
import numpy as np
import sentence_transformers
import sentencepiece as spm
import torch
import transformers
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformer
from sentence_transformers.models import Normalize, Pooling, Transformer
from tokenizers import BertWordPieceTokenizer
from sentencepiece import sentencepiece_model_pb2
from tokenizers import (Tokenizer, decoders, models, normalizers, pre_tokenizers, processors,
                        trainers)

OUT = Path(__file__).resolve().parents[2] / "crates/engine/golden/embeddings"
TEXTS = [
    "The cat sat on the mat.",
    "a",
    "What is the capital of China? Beijing, as far as anybody knows; it has been for centuries.",
    "Grüße aus Köln, 42 mal!",
    "for (int i = 0; i < n; ++i) { sum += values[i]; }  // and so on, until the end of the list",
    "  \uff21 caf\u00e9 and a cafe\u0301\u00a0with \ufb01ve\u2026 2\u338f   \u5317\u4eac\U0001f600!\n",
]
END = "<|endoftext|>"


def tokenizer_of(folder, ends):
    """Byte-level BPE; a text ends in END where the model looks at its last token."""
    tokenizer = Tokenizer(models.BPE())
    split = pre_tokenizers.Split(
        __import__("tokenizers").Regex(
            r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
            r"|\s*[\r\n]+|\s+(?!\S)|\s+"), "isolated")
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, byte_level])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=300, special_tokens=[END], show_progress=False,
                                  initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    tokenizer.train_from_iterator(TEXTS, trainer)
    if ends:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"$A {END}", special_tokens=[(END, tokenizer.token_to_id(END))])
    folder.mkdir(parents=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(
        dict(tokenizer_class="PreTrainedTokenizerFast", eos_token=END, pad_token=END,
             add_bos_token=False), indent=1))


def words_of(folder):
    """BERT's pieces of words, uncased."""
    tokenizer = BertWordPieceTokenizer()
    tokenizer.train_from_iterator(TEXTS, vocab_size=220, min_frequency=1, show_progress=False)
    folder.mkdir(parents=True)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[(name, tokenizer.token_to_id(name)) for name in ("[CLS]", "[SEP]")])
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(
        dict(tokenizer_class="PreTrainedTokenizerFast", cls_token="[CLS]", sep_token="[SEP]",
             unk_token="[UNK]", pad_token="[PAD]", mask_token="[MASK]"), indent=1))


def charsmap():
    """A small table of replacements, made by SentencePiece."""
    with tempfile.TemporaryDirectory() as folder:
        rules = Path(folder) / "rules.tsv"
        pairs = [("\u00a0", " "), ("\ufb01", "fi"), ("\uff21", "A"), ("\u338f", "kg"),
                 ("e\u0301", "\u00e9"), ("\u2026", "..."), ("\u200b", "")]
        points = lambda text: " ".join(f"{ord(c):X}" for c in text)
        rules.write_text("".join(f"{points(a)}\t{points(b)}\n" for a, b in pairs))
        text = Path(folder) / "text.txt"
        text.write_text("\n".join(TEXTS) + "\n")
        spm.SentencePieceTrainer.train(
            input=str(text), model_prefix=f"{folder}/model", vocab_size=60, hard_vocab_limit=False,
            normalization_rule_tsv=str(rules), minloglevel=2)
        model = sentencepiece_model_pb2.ModelProto()
        model.ParseFromString((Path(folder) / "model.model").read_bytes())
        return model.normalizer_spec.precompiled_charsmap


def likeliest_of(folder):
    """XLM-RoBERTa's kind: the likeliest pieces, behind a table of replacements."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Precompiled(charsmap()),
         normalizers.Replace(__import__("tokenizers").Regex(" {2,}"), " ")])
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="always")
    trainer = trainers.UnigramTrainer(
        vocab_size=150, special_tokens=["<s>", "<pad>", "</s>", "<unk>"], unk_token="<unk>",
        show_progress=False)
    tokenizer.train_from_iterator(TEXTS, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> </s> $B </s>",
        special_tokens=[(name, tokenizer.token_to_id(name)) for name in ("<s>", "</s>")])
    folder.mkdir(parents=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(
        dict(tokenizer_class="PreTrainedTokenizerFast", bos_token="<s>", eos_token="</s>",
             cls_token="<s>", sep_token="</s>", unk_token="<unk>", pad_token="<pad>"), indent=1))


def save_model(folder, model, rng):
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            shape = tuple(parameter.shape)
            if name.endswith("bias"):
                values = np.round(256 * 0.2 * rng.standard_normal(shape)) / 256
            elif len(shape) == 1:
                values = 1 + np.round(256 * 0.2 * rng.standard_normal(shape)) / 256
            else:
                scale = 1.0 if "embed" in name else 1.5 / np.sqrt(shape[-1])
                values = (scale * rng.standard_normal(shape)).astype(np.float16)
            parameter.copy_(torch.from_numpy(values.astype(np.float32)))
    model.save_pretrained(folder)
    path = folder / "model.safetensors"
    tensors = {name: values.half() if values.dim() > 1 else values
               for name, values in load_file(path).items()}
    save_file(tensors, path, metadata={"format": "pt"})


def to_gguf(folder, path, arch, pooling):
    cfg = json.loads((folder / "config.json").read_text())
    tokens = json.loads((folder / "tokenizer.json").read_text())
    writer = gguf.GGUFWriter(path, gguf.MODEL_ARCH_NAMES[arch])
    writer.add_context_length(cfg["max_position_embeddings"])
    writer.add_embedding_length(cfg["hidden_size"])
    writer.add_block_count(cfg["num_hidden_layers"])
    writer.add_feed_forward_length(cfg["intermediate_size"])
    writer.add_head_count(cfg["num_attention_heads"])
    writer.add_head_count_kv(cfg["num_key_value_heads"])
    writer.add_key_length(cfg["head_dim"])
    writer.add_value_length(cfg["head_dim"])
    writer.add_layer_norm_rms_eps(cfg["rms_norm_eps"])
    writer.add_rope_freq_base(10000.0)
    writer.add_pooling_type(pooling)
    vocab = tokens["model"]["vocab"]
    texts = sorted(vocab, key=vocab.get)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list(texts)
    writer.add_token_types([3 if text == END else 1 for text in texts])
    writer.add_token_merges([" ".join(merge) for merge in tokens["model"]["merges"]])
    writer.add_eos_token_id(vocab[END])
    writer.add_add_bos_token(False)
    writer.add_add_eos_token(True)
    names = gguf.get_tensor_name_map(arch, cfg["num_hidden_layers"])
    for name, values in load_file(folder / "model.safetensors").items():
        stored = names.get_name("model." + name, try_suffixes=(".weight",))
        writer.add_tensor(stored, values.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def encoder_gguf(folder, path, arch, pooling):
    """As llama.cpp's converter writes BERT and Nomic's: pieces that begin a word have a mark."""
    cfg = json.loads((folder / "config.json").read_text())
    tokens = json.loads((folder / "tokenizer.json").read_text())
    writer = gguf.GGUFWriter(path, gguf.MODEL_ARCH_NAMES[arch])
    before = cfg["pad_token_id"] + 1 if cfg["model_type"] == "xlm-roberta" else 0
    writer.add_context_length(cfg["max_position_embeddings"] - before)
    writer.add_embedding_length(cfg["hidden_size"])
    writer.add_block_count(cfg["num_hidden_layers"])
    writer.add_feed_forward_length(cfg["intermediate_size"])
    writer.add_head_count(cfg["num_attention_heads"])
    writer.add_layer_norm_eps(cfg["layer_norm_eps"])
    writer.add_causal_attention(False)
    writer.add_pooling_type(pooling)
    if "rope_parameters" in cfg:
        writer.add_rope_freq_base(cfg["rope_parameters"]["rope_theta"])
    control = {token["content"] for token in tokens["added_tokens"]}
    if tokens["model"]["type"] == "Unigram":
        likeliest_keys(writer, tokens, control)
    else:
        word_keys(writer, tokens, control)
    encoder_tensors(folder, writer, arch, cfg)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def likeliest_keys(writer, tokens, control):
    pieces = tokens["model"]["vocab"]
    kinds = {"<unk>": 2}
    writer.add_tokenizer_model("t5")
    writer.add_token_list([text for text, _ in pieces])
    writer.add_token_scores([score for _, score in pieces])
    writer.add_token_types([kinds.get(text, 3 if text in control else 1) for text, _ in pieces])
    writer.add_add_space_prefix(True)
    writer.add_remove_extra_whitespaces(True)
    table = next(part for part in tokens["normalizer"]["normalizers"]
                 if part["type"] == "Precompiled")
    writer.add_precompiled_charsmap(base64.b64decode(table["precompiled_charsmap"]))
    ids = {text: index for index, (text, _) in enumerate(pieces)}
    writer.add_bos_token_id(ids["<s>"])
    writer.add_eos_token_id(ids["</s>"])
    writer.add_unk_token_id(ids["<unk>"])
    writer.add_pad_token_id(ids["<pad>"])


def word_keys(writer, tokens, control):
    vocab = tokens["model"]["vocab"]
    texts = sorted(vocab, key=vocab.get)

    def marked(text):
        if text in control:
            return text
        return text[2:] if text.startswith("##") else "\u2581" + text

    writer.add_tokenizer_model("bert")
    writer.add_token_list([marked(text) for text in texts])
    writer.add_token_types([3 if text in control else 1 for text in texts])
    writer.add_bos_token_id(vocab["[CLS]"])
    writer.add_sep_token_id(vocab["[SEP]"])
    writer.add_unk_token_id(vocab["[UNK]"])
    writer.add_pad_token_id(vocab["[PAD]"])


def encoder_tensors(folder, writer, arch, cfg):
    tensors = load_file(folder / "model.safetensors")
    names = gguf.get_tensor_name_map(arch, cfg["num_hidden_layers"])
    for name, values in tensors.items():
        if name.startswith("pooler"):
            continue
        stored = names.get_name(name, try_suffixes=(".weight", ".bias"))
        assert stored, name
        # RoBERTa's positions begin behind the row of padding; the file's at its first.
        if stored == "position_embd.weight" and cfg["model_type"] == "xlm-roberta":
            values = values[cfg["pad_token_id"] + 1:]
        writer.add_tensor(stored, values.numpy())


def as_published(folder):
    """The settings as Nomic's own code has them; the tensors are saved in its names already."""
    cfg = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(dict(
        model_type="nomic_bert", architectures=["NomicBertModel"], activation_function="swiglu",
        causal=False, layer_norm_epsilon=cfg["layer_norm_eps"], max_trained_positions=128,
        mlp_fc1_bias=False, mlp_fc2_bias=False, n_embd=cfg["hidden_size"],
        n_head=cfg["num_attention_heads"], n_inner=cfg["intermediate_size"],
        n_layer=cfg["num_hidden_layers"], n_positions=512, parallel_block=False, prenorm=False,
        qkv_proj_bias=False, rotary_emb_base=cfg["rope_parameters"]["rope_theta"],
        rotary_emb_fraction=1.0, rotary_emb_interleaved=False, rotary_scaling_factor=None,
        type_vocab_size=2, use_rms_norm=False, vocab_size=cfg["vocab_size"]), indent=1) + "\n")


def make(name, config, model, mode, tokenizer, seed):
    folder = OUT / name
    inner = OUT / f"{name}.inner"
    tokenizer(inner)
    save_model(inner, model(config).float(), np.random.default_rng(seed))
    body = Transformer(str(inner), model_args=dict(dtype=torch.float32,
                                                   attn_implementation="eager"))
    whole = SentenceTransformer(modules=[body, Pooling(config.hidden_size, pooling_mode=mode),
                                         Normalize()], device="cpu")
    vectors = [whole.encode(text).tolist() for text in TEXTS]
    ids = [whole.tokenizer(text)["input_ids"] for text in TEXTS]
    whole.save(str(folder), create_model_card=False)
    # Saved in the type it computed with: put the small one back.
    shutil.copy(inner / "model.safetensors", folder / "model.safetensors")
    for path in folder.iterdir():
        if path.name not in ("config.json", "model.safetensors", "modules.json", "1_Pooling",
                             "tokenizer.json", "tokenizer_config.json"):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    (folder / "tokenizer_config.json").write_text((inner / "tokenizer_config.json").read_text())
    shutil.copy(inner / "tokenizer.json", folder / "tokenizer.json")
    shutil.rmtree(inner)
    truth = dict(texts=TEXTS, ids=ids, vectors=[[round(v, 7) for v in one] for one in vectors])
    (OUT / f"{name}.json").write_text(json.dumps(truth, ensure_ascii=False) + "\n")
    print(name, [len(one) for one in ids], sorted(p.name for p in folder.iterdir()))


def main():
    print(f"sentence-transformers {sentence_transformers.__version__}, "
          f"transformers {transformers.__version__}, torch {torch.__version__}")
    shutil.rmtree(OUT, ignore_errors=True)
    base = dict(hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4,
                num_key_value_heads=2, head_dim=16, vocab_size=300, max_position_embeddings=128,
                tie_word_embeddings=True, rope_parameters=dict(rope_type="default",
                                                               rope_theta=10000.0))
    make("qwen3_last", transformers.Qwen3Config(**base), transformers.Qwen3Model, "lasttoken",
         lambda folder: tokenizer_of(folder, True), 1)
    make("llama_mean", transformers.LlamaConfig(**base), transformers.LlamaModel, "mean",
         lambda folder: tokenizer_of(folder, False), 2)
    words = dict(hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=2,
                 vocab_size=220, max_position_embeddings=128, type_vocab_size=2)
    make("bert_mean", transformers.BertConfig(**words), transformers.BertModel, "mean", words_of, 3)
    make("bert_first", transformers.BertConfig(**words), transformers.BertModel, "cls", words_of, 4)
    make("nomic_mean", transformers.NomicBertConfig(**words, rope_parameters=dict(
        rope_type="default", rope_theta=1000.0)), transformers.NomicBertModel, "mean", words_of, 5)
    encoder_gguf(OUT / "bert_first", OUT / "bert_first.gguf", gguf.MODEL_ARCH.BERT,
                 gguf.PoolingType.CLS)
    encoder_gguf(OUT / "nomic_mean", OUT / "nomic_mean.gguf", gguf.MODEL_ARCH.NOMIC_BERT,
                 gguf.PoolingType.MEAN)
    make("xlm_roberta_first", transformers.XLMRobertaConfig(
        **{**words, "type_vocab_size": 1, "vocab_size": 150, "max_position_embeddings": 130,
           "pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2}),
        transformers.XLMRobertaModel, "cls", likeliest_of, 6)
    encoder_gguf(OUT / "xlm_roberta_first", OUT / "xlm_roberta_first.gguf", gguf.MODEL_ARCH.BERT,
                 gguf.PoolingType.CLS)
    as_published(OUT / "nomic_mean")
    to_gguf(OUT / "qwen3_last", OUT / "qwen3_last.gguf", gguf.MODEL_ARCH.QWEN3,
            gguf.PoolingType.LAST)


if __name__ == "__main__":
    main()
