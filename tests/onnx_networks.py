"""Small ONNX networks for tests of identity embeddings."""

from pathlib import Path

import pytest


def write_onnx_means(path: Path, shape: list[int | None]) -> Path:
    """Writes a network whose output is the mean of each colour channel."""
    onnx = pytest.importorskip("onnx")
    helper, number = onnx.helper, onnx.TensorProto.FLOAT
    nodes = [
        helper.make_node("GlobalAveragePool", ["picture"], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["features"]),
    ]
    graph = helper.make_graph(
        nodes,
        "means",
        [helper.make_tensor_value_info("picture", number, shape)],
        [helper.make_tensor_value_info("features", number, None)],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    onnx.save(model, path)
    return path
