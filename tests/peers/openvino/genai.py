"""Greedy continuation by OpenVINO GenAI: genai.py DIR PROMPT [COUNT]  (needs the Python package openvino_genai)."""

import sys
import time

import openvino_genai as genai

start = time.time()
pipeline = genai.LLMPipeline(sys.argv[1], "CPU", INFERENCE_PRECISION_HINT="f32", DYNAMIC_QUANTIZATION_GROUP_SIZE="0", KV_CACHE_PRECISION="f16")
loaded = time.time() - start
config = genai.GenerationConfig(max_new_tokens=int(sys.argv[3]) if len(sys.argv) > 3 else 32, do_sample=False, apply_chat_template=False)
tokens = pipeline.get_tokenizer().encode(sys.argv[2])
print("prompt", tokens.input_ids.data.tolist())
result = pipeline.generate(tokens, config)
print("tokens", list(result.tokens[0]))
print("text", repr(pipeline.get_tokenizer().decode(list(result.tokens[0]))))
print(f"load {loaded:.2f} s, first {result.perf_metrics.get_ttft().mean:.1f} ms, then {result.perf_metrics.get_tpot().mean:.2f} ms per token")
