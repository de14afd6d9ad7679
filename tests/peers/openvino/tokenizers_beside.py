"""A directory's tokenizer graphs beside its tokenizer.json: tokenizers_beside.py DIR TEXT  (needs openvino, openvino_tokenizers, tokenizers)"""

import sys

import numpy as np
import openvino as ov
import openvino_tokenizers  # noqa: F401  (its operations)
from tokenizers import Tokenizer

directory, path = sys.argv[1:]
awkward = ["", " ", "  two  spaces ", "tab\tand\nnewline", "naïve café", "日本語のテキスト", "🙂 emoji 👩‍👩‍👧", "<s>a special one</s>", "don't we've I'm", "1234567890 3.14", "İstanbul ΑΒΓ", "[MASK] x"]
lines = [line for line in open(path, encoding="utf-8").read().splitlines() if line.strip()][:400] + awkward
own = Tokenizer.from_file(f"{directory}/tokenizer.json")
own.no_truncation()
own.no_padding()
core = ov.Core()
encode = core.compile_model(f"{directory}/openvino_tokenizer.xml", "CPU")
decode = core.compile_model(f"{directory}/openvino_detokenizer.xml", "CPU")
different = {"ids": [], "text": []}
for line in lines:
    due = own.encode(line).ids
    answer = encode([line])
    given = answer["input_ids"][0].tolist()
    if given != due:
        different["ids"].append((line, due, given))
    if due:
        text = str(decode(np.array([due], dtype=np.int64))[0][0])
        if text != own.decode(due):
            different["text"].append((line, own.decode(due), text))
for what, those in different.items():
    print(f"{directory}: {what} differ in {len(those)} of {len(lines)} lines")
    for one in those[:8]:
        print("   ", one)
