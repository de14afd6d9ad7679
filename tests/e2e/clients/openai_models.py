"""What is there, over TLS and with a key: python openai_models.py BASE_URL KEY MODEL."""

import sys

import openai

client = openai.OpenAI(base_url=sys.argv[1], api_key=sys.argv[2], max_retries=0)
assert sys.argv[3] in [model.id for model in client.models.list()]
try:
    openai.OpenAI(base_url=sys.argv[1], api_key="wrong", max_retries=0).models.list()
except openai.AuthenticationError as error:
    assert "key" in error.message, error
else:
    raise AssertionError("a wrong key opened")
