"""Ollama's own client against a daemon: python ollama_calls.py URL MODEL [ENCODER]."""

import sys

import ollama

client = ollama.Client(host=sys.argv[1])
model = sys.argv[2]
question = [{"role": "user", "content": "Speak."}]
greedy = {"temperature": 0, "num_predict": 6}

assert model in [known.model for known in client.list().models]
shown = client.show(model)
assert "completion" in shown.capabilities and "tools" in shown.capabilities, shown
whole = client.chat(model=model, messages=question, options=greedy)
assert whole.done and whole.message.content and whole.eval_count == 6, whole
streamed = client.chat(model=model, messages=question, options=greedy, stream=True)
assert "".join(piece.message.content for piece in streamed) == whole.message.content
assert client.generate(model=model, prompt="Speak.", options=greedy).response
schema = {"type": "object", "properties": {"n": {"enum": [1, 2]}}, "required": ["n"], "additionalProperties": False}
assert client.chat(model=model, messages=question, format=schema).message.content in ('{"n": 1}', '{"n": 2}')
tool = {"type": "function", "function": {"name": "clock", "description": "tells the time", "parameters": {"type": "object"}}}
client.chat(model=model, messages=question, tools=[tool], options=greedy)
assert any(loaded.model.startswith(model) for loaded in client.ps().models)
try:
    client.chat(model="nobody", messages=question)
except ollama.ResponseError as error:
    assert error.status_code == 404, error
else:
    raise AssertionError("nobody answered")
if len(sys.argv) > 3:
    found = client.embed(model=sys.argv[3], input=["one", "two"])
    assert len(found.embeddings) == 2 and abs(sum(x * x for x in found.embeddings[0]) - 1) < 1e-4
    assert "embedding" in client.show(sys.argv[3]).capabilities
