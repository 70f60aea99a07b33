"""Writes crates/engine/golden/rerankers/: tiny models that rank texts, and the scores that
transformers gives some pairs of texts with them.

    pip install sentence-transformers==6.2.0 transformers==5.24.0 torch==2.15.0 numpy==2.4.6 \
        gguf==0.19.0 safetensors==0.8.0 sentencepiece==0.2.3 protobuf
    python tools/golden/make_tiny_rerankers.py

BERT and XLM-RoBERTa with a classifier of the first token; Qwen 3 with one of the last, and without
any: then the scores are the logits of its `yes` and `no`, asked as Qwen3-Reranker's page says.
<name>.json holds the pairs, the ids of each, and the scores.
"""

import json
import shutil
from pathlib import Path

import numpy as np
import torch
import transformers
from make_tiny_embeddings import TEXTS, likeliest_of, save_model, tokenizer_of, words_of

OUT = Path(__file__).resolve().parents[2] / "crates/engine/golden/rerankers"
QUERY = "What is the capital of China?"
BEGIN = ("<|im_start|>system\nJudge whether the Document meets the requirements based on the Query "
         "and the Instruct provided. Note that the answer can only be \"yes\" or \"no\".<|im_end|>\n"
         "<|im_start|>user\n")
END = "<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"
TASK = "Given a web search query, retrieve relevant passages that answer the query"


def asked(folder):
    """Byte-level BPE with the control tokens of Qwen, and a yes and a no."""
    tokenizer_of(folder, False)
    path = folder / "tokenizer.json"
    tokens = json.loads(path.read_text())
    vocab = tokens["model"]["vocab"]
    for name in ("<|im_start|>", "<|im_end|>", "yes", "no"):
        if name not in vocab:
            vocab[name] = len(vocab)
        if name.startswith("<"):
            tokens["added_tokens"].append(dict(
                id=vocab[name], content=name, single_word=False, lstrip=False, rstrip=False,
                normalized=False, special=True))
    path.write_text(json.dumps(tokens, ensure_ascii=False))


@torch.no_grad()
def make(name, config, model, tokenizer, encode, score, seed):
    folder = OUT / name
    tokenizer(folder)
    model = model(config).float().eval()
    save_model(folder, model, np.random.default_rng(seed))
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    pairs, ids, scores = [], [], []
    for text in TEXTS:
        inputs = encode(tokenizer, text)
        pairs.append([QUERY, text])
        ids.append(inputs["input_ids"])
        tensors = {key: torch.tensor([value]) for key, value in inputs.items()}
        scores.append([round(float(value), 6) for value in score(model(**tensors).logits[0],
                                                                 tokenizer)])
    (folder / "generation_config.json").unlink(missing_ok=True)
    (OUT / f"{name}.json").write_text(json.dumps(
        dict(pairs=pairs, ids=ids, scores=scores), ensure_ascii=False) + "\n")
    print(name, [len(one) for one in ids], scores)


def pair(tokenizer, text):
    return dict(tokenizer(QUERY, text, return_token_type_ids=True))


def question(tokenizer, text):
    plain = lambda part: tokenizer(part, add_special_tokens=False)["input_ids"]
    body = f"<Instruct>: {TASK}\n<Query>: {QUERY}\n<Document>: {text}"
    return dict(input_ids=plain(BEGIN) + plain(body) + plain(END))


def main():
    print(f"transformers {transformers.__version__}, torch {torch.__version__}")
    shutil.rmtree(OUT, ignore_errors=True)
    words = dict(hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=2,
                 vocab_size=220, max_position_embeddings=160, type_vocab_size=2, num_labels=1)
    whole = lambda logits, _: logits.tolist()
    make("bert", transformers.BertConfig(**words), transformers.BertForSequenceClassification,
         words_of, pair, whole, 1)
    make("xlm_roberta", transformers.XLMRobertaConfig(
        **{**words, "type_vocab_size": 1, "vocab_size": 150, "max_position_embeddings": 194,
           "pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2}),
        transformers.XLMRobertaForSequenceClassification, likeliest_of, pair, whole, 2)
    base = dict(hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4,
                num_key_value_heads=2, head_dim=16, vocab_size=304, max_position_embeddings=512,
                tie_word_embeddings=True, pad_token_id=0, num_labels=1,
                rope_parameters=dict(rope_type="default", rope_theta=10000.0))
    make("qwen3_classifier", transformers.Qwen3Config(**base),
         transformers.Qwen3ForSequenceClassification, asked, question, whole, 3)
    answers = lambda logits, tokenizer: [
        logits[-1, tokenizer.convert_tokens_to_ids(word)] for word in ("yes", "no")]
    make("qwen3_answers", transformers.Qwen3Config(**base), transformers.Qwen3ForCausalLM, asked,
         question, answers, 4)


if __name__ == "__main__":
    main()
