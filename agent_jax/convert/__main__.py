"""`python -m agent_jax.convert`: convert weights and check their parity with PyTorch.

from-hf --vision PATH --language PATH OUT [--config.FIELD=VALUE ...]
    make a checkpoint from Hugging Face's CLIP and OPT, for --config.init.checkpoint=OUT; PATH is a folder, one of its
    weight files, or ORG/NAME on the hub. With --dry_run, only print which tensor fills which parameter
to-pytorch CHECKPOINT OUT [--dtype float32|bfloat16] [--weights averaged|raw] [--json PATH]
    export a folder for PyTorch and transformers, with a parity report (parity.json)
push-to-hub CHECKPOINT ORG/NAME [--public] [--dtype float32|bfloat16] [--weights averaged|raw]
    upload that folder to the Hugging Face hub, for Policy.from_pretrained("ORG/NAME"); private without --public
to-onnx CHECKPOINT OUT [--precision f32|f16|int8|int4] [--data NAME=DIR] [--allow_loss] [--json PATH]
    export a folder that acts with onnxruntime alone, after a proof that it acts the same (parity.json)
to-page FOLDER OUT.html --runtime DIR [--domain NAME] [--levels LEVEL ...] [--rooms N]
    write a BabyAI agent of such a folder as one page, in which it acts without a server; DIR is npm's onnxruntime-web
to-stablehlo CHECKPOINT OUT
    export the network by jax.export, for CPU, GPU and TPU
from-pytorch FOLDER OUT
    make a checkpoint from such a folder, trained further in PyTorch or not
grow [CHECKPOINT] --config FILE.py[:VARIANT] [--config.FIELD=VALUE ...] [--json PATH]
    print what a run of this config would take from CHECKPOINT (by default config.init.checkpoint): parameters carried,
    grown, fresh and dropped, by part; no parameter is read, and nothing is written
adapters RUN FILE [--base CHECKPOINT]
    write the adapters of a run (config.lora), and what it trained besides, as one small file
with-adapters BASE FILE OUT
    make a checkpoint of a base and such a file, merged
verify-hf DIR [--json PATH]
    compare our models with transformers' torch models on the weights of DIR; exit with 1 if they differ
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import Any

from agent_jax.checkpoints.meta import DamagedCheckpointError
from agent_jax.convert.parity.tolerance import ParityError
from agent_jax.json_files import json_path, write_json
from agent_jax.runtime.cluster import USER_ERROR
from agent_jax.runtime.extras import install
from agent_jax.runtime.interrupts import end_at_once


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns 0, 1 if parity fails, or 2 for a user error."""
    parser = argparse.ArgumentParser(prog="python -m agent_jax.convert", description=__doc__, allow_abbrev=False,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    _add_from_hf(commands)
    _add_pytorch(commands)
    _add_onnx(commands)
    _add_grow(commands)
    _add_adapters(commands)
    verifier = commands.add_parser("verify-hf", help="compare with PyTorch on the same weights", allow_abbrev=False)
    verifier.add_argument("directory", metavar="DIR", help="a CLIP or OPT folder, or a directory of such folders")
    verifier.add_argument("--json", type=json_path, metavar="PATH", help="also write the figures to PATH")
    options, overrides = parser.parse_known_args(arguments)
    try:
        if options.command == "from-hf":
            return _run_from_hf(options, overrides)
        if options.command == "grow":
            return _run_grow(options, overrides)
        if overrides:
            parser.error(f"unrecognized arguments: {' '.join(overrides)}")
        if options.command == "to-pytorch":
            return _run_to_pytorch(options)
        if options.command == "push-to-hub":
            from agent_jax.convert.push_to_hub import push

            print(push(options.checkpoint, options.name, public=options.public, dtype=options.dtype,
                       weights=options.weights))
            return 0
        if options.command == "to-onnx":
            return _run_to_onnx(options)
        if options.command == "to-page":
            from agent_jax.convert.to_page import write_page

            print(write_page(options.folder, options.out, options.runtime, domain=options.domain,
                             levels=options.levels, rooms=options.rooms), f"written: {options.out}", sep="\n")
            return 0
        if options.command == "to-stablehlo":
            from agent_jax.convert.to_stablehlo import export

            print(f"{export(options.checkpoint, options.out)['largest_differences']}\nwritten: {options.out}")
            return 0
        if options.command == "from-pytorch":
            from agent_jax.convert.from_pytorch import import_folder

            print(import_folder(options.folder, options.out))
            return 0
        if options.command == "adapters":
            from agent_jax.convert.adapters import save_adapters

            print(save_adapters(options.run, options.file, options.base))
            return 0
        if options.command == "with-adapters":
            from agent_jax.convert.adapters import apply_adapters

            print(apply_adapters(options.base, options.file, options.out))
            return 0
        from agent_jax.convert.parity.huggingface import verify_folders

        return 0 if verify_folders(options.directory, options.json) else 1
    except ImportError as error:
        extras = {"torch": "torch", "transformers": "torch", "onnx": "onnx", "onnxruntime": "onnx",
                  "onnxscript": "onnx", "gymnasium": "babyai", "minigrid": "babyai"}
        if error.name not in extras:
            raise
        print(f"error: {options.command} needs {error.name}: {install(extras[error.name])}", file=sys.stderr)
    except ParityError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except (OSError, ValueError, DamagedCheckpointError) as error:
        print(f"error: {error}", file=sys.stderr)
    return USER_ERROR


def _add_pytorch(commands: Any) -> None:
    exporter = commands.add_parser("to-pytorch", help="a checkpoint -> a PyTorch folder", allow_abbrev=False)
    pusher = commands.add_parser("push-to-hub", help="a checkpoint -> the Hugging Face hub", allow_abbrev=False)
    for parser in (exporter, pusher):
        parser.add_argument("checkpoint", metavar="CHECKPOINT", help="a workdir, its checkpoints directory, one step, "
                            "or an exported folder")
        parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="of the stored tensors")
        parser.add_argument("--weights", choices=("averaged", "raw"), default="averaged",
                            help="averaged parameters if the run has them, or the last ones")
    pusher.add_argument("name", metavar="ORG/NAME", help="the repository on the hub; created if it does not exist")
    pusher.add_argument("--public", action="store_true", help="everybody may read it; by default it is private")
    exporter.add_argument("out", metavar="OUT", help="folder to write")
    exporter.add_argument("--json", type=json_path, metavar="PATH", help="also write parity.json to PATH")
    importer = commands.add_parser("from-pytorch", help="a PyTorch folder -> a checkpoint", allow_abbrev=False)
    importer.add_argument("folder", metavar="FOLDER", help="written by to-pytorch or torch_agent.Agent.save")
    importer.add_argument("out", metavar="OUT", help="directory to write")


def _add_onnx(commands: Any) -> None:
    exporter = commands.add_parser("to-onnx", help="a checkpoint -> a folder for onnxruntime", allow_abbrev=False)
    exporter.add_argument("checkpoint", metavar="CHECKPOINT", help="a workdir, its checkpoints directory, or one step")
    exporter.add_argument("out", metavar="OUT", help="folder to write")
    exporter.add_argument("--precision", choices=("f32", "f16", "int8", "int4"), default="f32", help="of the weights")
    exporter.add_argument("--data", action="append", default=[], metavar="NAME=DIR",
                          help="recorded data of a domain; by default those of the run")
    exporter.add_argument("--windows", type=int, default=64, help="of recorded frames compared, of each domain; 0: "
                          "none (default 64)")
    exporter.add_argument("--episodes", type=int, default=400, help="of each task of the run's simulators, except in "
                          "f32 (default 400)")
    exporter.add_argument("--margin", type=float, default=2.0, metavar="POINTS", help="of success that may be lost, in "
                          "percentage points, except in f32 (default 2)")
    exporter.add_argument("--allow_loss", action="store_true", help="write the folder although the proof failed")
    exporter.add_argument("--json", type=json_path, metavar="PATH", help="also write parity.json to PATH")
    page = commands.add_parser("to-page", help="a folder of to-onnx -> a page in which the BabyAI agent acts",
                               allow_abbrev=False)
    page.add_argument("folder", metavar="FOLDER", help="written by to-onnx")
    page.add_argument("out", metavar="OUT", help="file to write, NAME.html")
    page.add_argument("--runtime", required=True, metavar="DIR", help="the unpacked npm package onnxruntime-web")
    page.add_argument("--domain", default="", metavar="NAME", help="to act in; by default the only one with actions")
    page.add_argument("--levels", nargs="+", default=(), metavar="LEVEL", help="of one room; by default "
                      "GoToLocal and smaller ones")
    page.add_argument("--rooms", type=int, default=5, metavar="N", help="of each level (default 5)")
    other = commands.add_parser("to-stablehlo", help="a checkpoint -> StableHLO for CPU, GPU, TPU", allow_abbrev=False)
    other.add_argument("checkpoint", metavar="CHECKPOINT", help="a workdir, its checkpoints directory, or one step")
    other.add_argument("out", metavar="OUT", help="folder to write")


def _run_to_onnx(options: argparse.Namespace) -> int:
    from agent_jax.convert.to_onnx import export
    from agent_jax.evaluate.checkpoints import TrainedRun, data_paths

    data = data_paths(options.data, TrainedRun.load(options.checkpoint).domains) if options.data else {}
    parity = export(options.checkpoint, options.out, precision=options.precision, data=data, windows=options.windows,
                    episodes=options.episodes, margin=options.margin / 100, allow_loss=options.allow_loss)
    print(f"{parity.summary()}\nwritten: {options.out}")
    if options.json:
        write_json(options.json, parity.to_dict())
    return 0


def _add_adapters(commands: Any) -> None:
    writer = commands.add_parser("adapters", help="a run's adapters -> a file", allow_abbrev=False)
    writer.add_argument("run", metavar="RUN", help="a workdir, its checkpoints directory, or one step")
    writer.add_argument("file", metavar="FILE", help="safetensors file to write")
    writer.add_argument("--base", default="", metavar="CHECKPOINT", help="what the run was begun from; by default its "
                        "config.init.checkpoint")
    merger = commands.add_parser("with-adapters", help="a base and a file of adapters -> a checkpoint",
                                 allow_abbrev=False)
    merger.add_argument("base", metavar="BASE", help="a workdir, its checkpoints directory, or one step")
    merger.add_argument("file", metavar="FILE", help="written by adapters")
    merger.add_argument("out", metavar="OUT", help="directory to write")


def _run_to_pytorch(options: argparse.Namespace) -> int:
    from agent_jax.convert.to_pytorch import export

    parity = export(options.checkpoint, options.out, dtype=options.dtype, weights=options.weights)
    print(f"{parity.summary()}\nwritten: {options.out}")
    if options.json:
        write_json(options.json, parity.to_dict())
    return 0


def _add_from_hf(commands: Any) -> None:
    importer = commands.add_parser("from-hf", help="CLIP and OPT of Hugging Face -> a checkpoint", allow_abbrev=False)
    importer.add_argument("--vision", required=True, metavar="PATH", help="CLIP, or its vision tower")
    importer.add_argument("--language", required=True, metavar="PATH", help="OPT, with its tokenizer")
    importer.add_argument("--dry_run", action="store_true", help="read headers, print the table, write no checkpoint")
    importer.add_argument("--json", type=json_path, metavar="PATH", help="also write the table to PATH")
    importer.add_argument("out", metavar="OUT", nargs="?", help="directory to write; not needed with --dry_run")


def _run_from_hf(options: argparse.Namespace, overrides: Sequence[str]) -> int:
    from agent_jax.convert.from_huggingface import config_of, dry_run, write_checkpoint
    from agent_jax.convert.huggingface.load_report import mapping_table, to_json

    config = config_of(options.vision, options.language, overrides)
    if options.dry_run:
        report = dry_run(config, options.out)
        print(mapping_table(report))
        print("dry run: nothing was written; values (NaN, tied heads) were not checked")
    elif options.out is None:
        raise ValueError("from-hf: OUT is missing, the directory to write; only --dry_run needs none")
    else:
        report = write_checkpoint(config, options.out)
        print(f"{report}\nwritten: {options.out}")
    if options.json:
        write_json(options.json, to_json(report))
    return 0


def _add_grow(commands: Any) -> None:
    grower = commands.add_parser("grow", help="what a run would take from a checkpoint", allow_abbrev=False)
    grower.add_argument("checkpoint", metavar="CHECKPOINT", nargs="?", default="",
                        help="a run, an exported PyTorch folder, or ORG/NAME of one on the hub")
    grower.add_argument("--config", required=True, metavar="FILE", help="the config of the new run")
    grower.add_argument("--json", type=json_path, metavar="PATH", help="also write the table to PATH")


def _run_grow(options: argparse.Namespace, overrides: Sequence[str]) -> int:
    from agent_jax.config import from_config_dict
    from agent_jax.convert.grow.preview import preview
    from agent_jax.convert.grow.report import growth_json, growth_table
    from agent_jax.runtime.command_line import read_config

    given = [f"--config.init.checkpoint={options.checkpoint}"] if options.checkpoint else []
    name, growth = preview(from_config_dict(read_config(options.config, [*overrides, *given])))
    print("\n".join([name, *(f"  differs: {field}" for field in growth.fields), growth_table(growth)]))
    if options.json:
        write_json(options.json, {"checkpoint": name, **growth_json(growth)})
    return 0


if __name__ == "__main__":
    end_at_once()
    sys.exit(main())
