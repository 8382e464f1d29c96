"""Small TensorFlow Lite networks for tests of face recognition."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest


def write_tflite_means(path: Path, shape: Sequence[int]) -> Path:
    """Writes a network whose output is the mean of each channel of pictures (B, H, W, C)."""
    tflite = pytest.importorskip("ai_edge_litert.schema_py_generated")
    import flatbuffers

    def tensor(name: str, sides: Sequence[int], buffer: int, kind: int):
        made = tflite.TensorT()
        made.name, made.shape, made.buffer, made.type = name, list(sides), buffer, kind
        return made

    axes = tflite.BufferT()
    axes.data = list(np.array([1, 2], np.int32).tobytes())
    options = tflite.ReducerOptionsT()
    options.keepDims = False
    operator = tflite.OperatorT()
    operator.opcodeIndex, operator.inputs, operator.outputs = 0, [0, 1], [2]
    operator.builtinOptionsType = tflite.BuiltinOptions.ReducerOptions
    operator.builtinOptions = options
    code = tflite.OperatorCodeT()
    code.builtinCode = code.deprecatedBuiltinCode = tflite.BuiltinOperator.MEAN
    code.version = 1
    graph = tflite.SubGraphT()
    number = tflite.TensorType.FLOAT32
    graph.tensors = [
        tensor("pictures", shape, 0, number),
        tensor("axes", [2], 1, tflite.TensorType.INT32),
        tensor("means", [shape[0], shape[3]], 0, number),
    ]
    graph.inputs, graph.outputs, graph.operators = [0], [2], [operator]
    model = tflite.ModelT()
    model.version, model.operatorCodes, model.subgraphs = 3, [code], [graph]
    model.buffers = [tflite.BufferT(), axes]
    builder = flatbuffers.Builder()
    builder.Finish(model.Pack(builder), b"TFL3")
    path.write_bytes(builder.Output())
    return path
