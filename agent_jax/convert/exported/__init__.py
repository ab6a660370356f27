"""An exported agent without its network: what needs NumPy, Pillow and tokenizers alone.

`torch_agent.Policy` and `onnx_agent.Policy` are subclasses of `ExportedPolicy` that add the network. `one_file` writes
either, with these modules, as the one file of an exported folder.
"""
