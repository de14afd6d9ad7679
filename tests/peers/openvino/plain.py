"""Top-1 of a plain graph's IR beside ONNX Runtime's: plain.py MODEL.onnx HEIGHT WIDTH DIR…  (needs openvino, onnxruntime, pillow)

The inputs are lines of text drawn on paper of several greys, as readers of text take them: [1, 3, HEIGHT, WIDTH] in -1…1. Compared is the most
likely class wherever the last dimension is one of classes.
"""

import sys

import numpy as np
import onnxruntime as ort
import openvino as ov
from PIL import Image, ImageDraw, ImageFont

model, height, width = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
lines = ["The drop hammer", "lets a weight fall", "to shape metal.", "OpenVINO 2026", "int8 weights", "3.1415926535", "HELLO WORLD", "a quick brown fox"]


def picture(text, turned, paper, ink):
    image = Image.new("RGB", (width, height), (paper,) * 3)
    ImageDraw.Draw(image).text((4, height // 8), text, (ink,) * 3, font=ImageFont.load_default(size=height * 5 / 8))
    image = image.rotate(180) if turned else image
    return (np.asarray(image, np.float32).transpose(2, 0, 1)[None] / 255 - 0.5) / 0.5


inputs = [picture(text, turned, *tones) for text in lines for turned in (False, True) for tones in ((255, 0), (200, 40), (60, 230))]
session = ort.InferenceSession(model, providers=["CPUExecutionProvider"])
name = session.get_inputs()[0].name
due = [session.run(None, {name: x})[0] for x in inputs]
for directory in sys.argv[4:]:
    compiled = ov.Core().compile_model(f"{directory}/openvino_model.xml", "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    given = [compiled(x)[0] for x in inputs]
    places = sum(y.shape[:-1] and int(np.prod(y.shape[:-1])) or 1 for y in due)
    same = sum(int((a.argmax(-1) == b.argmax(-1)).sum()) for a, b in zip(due, given))
    largest = max(float(np.abs(a - b).max()) for a, b in zip(due, given))
    print(f"{directory}: top-1 the same in {same} of {places} places of {len(inputs)} pictures, largest difference {largest:.2e}")
