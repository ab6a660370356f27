"""`python -m agent_jax.convert`: weights in, and the proof that they are right.

from-hf --vision DIR --language DIR OUT [--config.FIELD=VALUE ...]
    a checkpoint from Hugging Face folders, for --config.init.checkpoint=OUT
verify-hf DIR [--json PATH]
    compares our models with transformers' torch models on the weights of DIR; exits 1 where they differ
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m agent_jax.convert", description=__doc__, allow_abbrev=False,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    importer = commands.add_parser("from-hf", help="Hugging Face folders -> a checkpoint", allow_abbrev=False)
    importer.add_argument("--vision", required=True, metavar="DIR", help="folder of a CLIP, or of its vision tower")
    importer.add_argument("--language", required=True, metavar="DIR", help="folder of an OPT, with its tokenizer")
    importer.add_argument("out", metavar="OUT", help="directory to make")
    verifier = commands.add_parser("verify-hf", help="compare with PyTorch on the same weights", allow_abbrev=False)
    verifier.add_argument("directory", metavar="DIR", help="a CLIP or OPT folder, or a directory of such folders")
    verifier.add_argument("--json", metavar="PATH", help="also write the figures here")
    options, overrides = parser.parse_known_args(arguments)
    try:
        if options.command == "from-hf":
            from agent_jax.convert.from_huggingface import config_of, write_checkpoint

            print(write_checkpoint(config_of(options.vision, options.language, overrides), options.out))
            print(f"written: {options.out}")
            return 0
        if overrides:
            parser.error(f"unrecognized arguments: {' '.join(overrides)}")
        from agent_jax.convert.verify import verify_folders

        return 0 if verify_folders(options.directory, options.json) else 1
    except ImportError as error:
        if error.name not in ("torch", "transformers"):
            raise
        print(f'error: verify-hf needs {error.name}: pip install "agent_jax[torch]"', file=sys.stderr)
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
