"""ONNX files: graphs whose RNN nodes are the network, https://onnx.ai/onnx/operators/onnx__RNN.html.

The modules here, from the bottom up: tensors.py has arrays from a file's tensors, graph.py the graph with its constants and
views, functions.py the activations, nodes.py one RNN node, reading.py the network of a graph, writing.py a graph of a network.
"""

from rnncore.interchange.onnx.reading import decode
from rnncore.interchange.onnx.writing import OPTIONS, encode

__all__ = ["OPTIONS", "decode", "encode"]
