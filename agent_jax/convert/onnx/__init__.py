"""An exported agent for onnxruntime: its graphs, their quantisation, and the file that acts with them."""
