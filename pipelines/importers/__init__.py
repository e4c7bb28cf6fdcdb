"""Read published weights in their makers' own formats and rebuild the networks as ONNX."""
