"""A refit: in a worker process of its own, from a stripped plan and an ONNX file to a checked engine.

`launch` is the parent's side, `pipeline` the worker's, `messages` what passes between them.
"""
