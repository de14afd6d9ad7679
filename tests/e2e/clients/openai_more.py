"""Tools, schemas, responses and embeddings, as the official client asks for them: python openai_more.py BASE_URL KEY MODEL [ENCODER]."""

import json
import sys

import openai

client = openai.OpenAI(base_url=sys.argv[1], api_key=sys.argv[2], max_retries=0)
model = sys.argv[3]
question = [{"role": "user", "content": "What is the weather in Paris?"}]
schema = {
    "type": "object",
    "properties": {"city": {"enum": ["Paris", "Rome"]}, "days": {"type": "integer", "minimum": 0, "maximum": 9}},
    "required": ["city", "days"],
    "additionalProperties": False,
}
weather = {"name": "weather", "description": "of a city", "parameters": schema}
clock = {"name": "clock", "parameters": {"type": "object", "properties": {}, "additionalProperties": False}}
tools = [{"type": "function", "function": function} for function in (weather, clock)]


def follows(text):
    found = json.loads(text)
    assert set(found) == {"city", "days"} and found["city"] in ("Paris", "Rome") and 0 <= found["days"] <= 9, text


# The model is a poor one: what it says is its own affair, in which form is ours.
called = client.chat.completions.create(
    model=model, messages=question, tools=tools, tool_choice="required", parallel_tool_calls=False, max_tokens=200
).choices[0]
assert called.finish_reason == "tool_calls" and len(called.message.tool_calls) == 1, called
call = called.message.tool_calls[0]
follows(call.function.arguments) if call.function.name == "weather" else json.loads(call.function.arguments)

named = {"type": "function", "function": {"name": "weather"}}
names, arguments, reasons = [], "", []
for chunk in client.chat.completions.create(
    model=model, messages=question, tools=tools, tool_choice=named, max_tokens=200, stream=True
):
    for choice in chunk.choices:
        for piece in choice.delta.tool_calls or []:
            names += [piece.function.name] if piece.function.name else []
            arguments += piece.function.arguments
        reasons += [choice.finish_reason] if choice.finish_reason else []
assert names == ["weather"] and reasons == ["tool_calls"], (names, reasons)
follows(arguments)

result = {"role": "tool", "tool_call_id": call.id, "content": "sunny"}
answer = client.chat.completions.create(
    model=model, messages=question + [called.message.model_dump(exclude_none=True), result], tools=tools, max_tokens=8
)
assert answer.choices[0].finish_reason in ("length", "stop", "tool_calls"), answer
free = client.chat.completions.create(model=model, messages=question, tools=tools, tool_choice="none", max_tokens=4)
assert free.choices[0].message.tool_calls is None, free

form = {"type": "json_schema", "json_schema": {"name": "forecast", "schema": schema, "strict": True}}
follows(
    client.chat.completions.create(model=model, messages=question, response_format=form, max_tokens=200)
    .choices[0]
    .message.content
)

first = client.responses.create(model=model, input="Tell me a long story about the sea.", max_output_tokens=6, temperature=0)
assert first.status == "incomplete" and first.output_text and first.usage.output_tokens == 6, first
text, last = "", None
with client.responses.stream(
    model=model, input="Go on with it.", previous_response_id=first.id, max_output_tokens=6, temperature=0
) as events:
    for event in events:
        text += event.delta if event.type == "response.output_text.delta" else ""
        last = event.response if event.type == "response.incomplete" else last
assert text == last.output_text and last.usage.input_tokens > first.usage.input_tokens, last
called = client.responses.create(
    model=model, input="Weather?", tools=[{"type": "function", **weather}], tool_choice="required", max_output_tokens=400,
    parallel_tool_calls=False,
)
follows(called.output[0].arguments)
assert client.responses.retrieve(first.id).output_text == first.output_text
client.responses.delete(first.id)


def refused(status, ask):
    try:
        ask()
    except openai.APIStatusError as error:
        assert error.status_code == status and error.message, error
    else:
        raise AssertionError(f"no error of status {status}")


refused(404, lambda: client.responses.create(model=model, input="x", previous_response_id=first.id))
refused(400, lambda: client.embeddings.create(model=model, input="x"))
refused(400, lambda: client.chat.completions.create(model=model, messages=question, tools=[{"type": "function"}]))

if len(sys.argv) > 4:
    encoder = sys.argv[4]
    texts = ["A cat sits on the mat.", "A kitten is lying on a rug.", "Share prices fell on Monday."]
    # The client asks for Base64 and decodes it itself.
    found = client.embeddings.create(model=encoder, input=texts)
    one, two, three = (item.embedding for item in found.data)
    product = lambda a, b: sum(x * y for x, y in zip(a, b))
    assert abs(product(one, one) - 1) < 1e-4 and product(one, two) > product(one, three) + 0.2, found.usage
    plain = client.embeddings.create(model=encoder, input=texts[0], encoding_format="float").data[0].embedding
    assert max(abs(x - y) for x, y in zip(one, plain)) < 1e-5
    refused(400, lambda: client.embeddings.create(model=encoder, input=""))
    refused(400, lambda: client.chat.completions.create(model=encoder, messages=question))
