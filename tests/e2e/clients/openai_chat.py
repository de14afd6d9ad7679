"""The official client's own calls against a daemon: python openai_chat.py BASE_URL MODEL."""

import sys

import openai

client = openai.OpenAI(base_url=sys.argv[1], api_key="none is asked for", max_retries=0)
model = sys.argv[2]
question = [{"role": "user", "content": "Speak."}]

assert model in [known.id for known in client.models.list()], "the model is not listed"
assert client.models.retrieve(model).id == model

whole = client.chat.completions.create(model=model, messages=question, max_tokens=6, temperature=0)
answer = whole.choices[0].message.content
assert whole.choices[0].message.role == "assistant" and answer, whole
assert whole.usage.completion_tokens == 6 and whole.choices[0].finish_reason == "length", whole

stream = client.chat.completions.create(
    model=model, messages=question, max_tokens=6, temperature=0, stream=True, stream_options={"include_usage": True}
)
pieces, usage = [], None
for chunk in stream:
    pieces += [choice.delta.content or "" for choice in chunk.choices]
    usage = chunk.usage or usage
assert "".join(pieces) == answer, (pieces, answer)
assert usage.completion_tokens == 6, usage

text = client.completions.create(model=model, prompt="Speak.", max_tokens=4, temperature=0, logprobs=2)
assert len(text.choices[0].logprobs.tokens) == 4, text

conversation = question + [{"role": "assistant", "content": answer}, {"role": "user", "content": "Go on."}]
seeded = [
    client.chat.completions.create(model=model, messages=conversation, max_tokens=5, seed=7, n=2).choices
    for _ in range(2)
]
assert [c.message.content for c in seeded[0]] == [c.message.content for c in seeded[1]], seeded

for call, status in [
    (lambda: client.chat.completions.create(model="nobody", messages=question), 404),
    (lambda: client.chat.completions.create(model=model, messages=[]), 400),
]:
    try:
        call()
    except openai.APIStatusError as error:
        assert error.status_code == status and error.message, error
    else:
        raise AssertionError(f"no error of status {status}")
print(answer)
