"""Plain graphs in whole numbers, by ONNX Runtime's own quantizer and by this project, compared with the original on held-out samples.

    python plain.py MODEL.onnx SAMPLES.npz [OURS.onnx ...]

Needs onnx and onnxruntime. Every fourth sample is held out, as `drophammer quantize` does.
"""

import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_dynamic, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process


def samples(path):
    data = dict(np.load(path))
    count = max(array.shape[0] for array in data.values())
    return [{name: array[i : i + 1] for name, array in data.items()} for i in range(count)]


class Reader(CalibrationDataReader):
    def __init__(self, feeds):
        self.feeds = iter(feeds)

    def get_next(self):
        return next(self.feeds, None)


def run(path, feeds):
    options = ort.SessionOptions()
    options.intra_op_num_threads = 2
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    outputs = [session.run(None, feed) for feed in feeds]
    began, rounds = time.perf_counter(), 0
    while time.perf_counter() - began < 2:
        session.run(None, feeds[rounds % len(feeds)])
        rounds += 1
    return outputs, (time.perf_counter() - began) / rounds * 1e3


def compare(name, path, feeds, due):
    found, milliseconds = run(path, feeds)
    for index in range(len(due[0])):
        a = np.concatenate([np.asarray(row[index], np.float64).ravel() for row in found])
        b = np.concatenate([np.asarray(row[index], np.float64).ravel() for row in due])
        width = due[0][index].shape[-1] if due[0][index].ndim else 1
        top1 = (a.reshape(-1, width).argmax(1) == b.reshape(-1, width).argmax(1)).mean() if width > 1 else float("nan")
        cosine = a @ b / np.sqrt((a @ a) * (b @ b))
        relative = np.sqrt(((a - b) ** 2).sum() / (b**2).sum())
        size = Path(path).stat().st_size
        print(
            f"{name:28} output {index}: cosine {cosine:.6f}  relative {relative:.4f}  top-1 {top1 * 100:6.2f}%"
            f"  {size / 1e6:.2f} MB  {milliseconds:.2f} ms"
        )


def main():
    model, data, *ours = sys.argv[1:]
    every = samples(data)
    held = every[3::4]
    calibrating = [feed for number, feed in enumerate(every) if number % 4 != 3]
    due, milliseconds = run(model, held)
    print(f"original: {Path(model).stat().st_size / 1e6:.2f} MB  {milliseconds:.2f} ms")
    with tempfile.TemporaryDirectory() as place:
        prepared = f"{place}/prepared.onnx"
        try:
            quant_pre_process(model, prepared, skip_symbolic_shape=True)
        except Exception as error:
            print(f"pre-processing failed: {error}")
            prepared = model
        for name, options in [
            ("quantize_static QDQ U8S8", {"activation_type": QuantType.QUInt8}),
            ("quantize_static QDQ U16S8", {"activation_type": QuantType.QUInt16}),
        ]:
            out = f"{place}/static.onnx"
            try:
                began = time.perf_counter()
                quantize_static(
                    prepared, out, Reader(calibrating), quant_format=QuantFormat.QDQ, per_channel=True,
                    weight_type=QuantType.QInt8, **options,
                )
                seconds = time.perf_counter() - began
                compare(name, out, held, due)
                print(f"{'':28} made in {seconds:.1f} s")
            except Exception as error:
                print(f"{name}: {str(error)[:200]}")
        out = f"{place}/dynamic.onnx"
        try:
            quantize_dynamic(prepared, out, per_channel=True, weight_type=QuantType.QUInt8)
            compare("quantize_dynamic U8", out, held, due)
        except Exception as error:
            print(f"quantize_dynamic: {str(error)[:200]}")
    for path in ours:
        onnx.checker.check_model(path)
        compare(f"ours {Path(path).parent.name}", path, held, due)


main()
