"""The flags `--config FILE --config.FIELD=VALUE` of a command, and mistakes in them told in one line."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from absl import flags
from ml_collections import ConfigDict, config_flags

from agent_jax.fields import read_list
from agent_jax.runtime.cluster import USER_ERROR, Cluster

_HELP = frozenset({"-h", "-help", "--help", "-helpshort", "--helpshort", "-helpfull", "--helpfull"})


def define_config() -> Any:
    """The flag `--config`, required; its `.value` is the ConfigDict with all overrides, locked."""
    holder = config_flags.DEFINE_config_file("config", None, "A config file, FILE.py or FILE.py:VARIANT.")
    flags.mark_flag_as_required("config")
    return holder


def read_config(file: str, overrides: Sequence[str]) -> ConfigDict:
    """The ConfigDict of a config file with overrides, for commands that parse their other arguments by themselves.

    Args:
        file: FILE.py or FILE.py:VARIANT.
        overrides: `--config.FIELD=VALUE`.

    Raises:
        ValueError: there is no such file, field or value; or an argument is not an override.
    """
    arguments, values = ["", f"--config={file}", *overrides], flags.FlagValues()
    if mistake := _config_mistake(arguments):
        raise ValueError(mistake)
    try:
        arguments = with_lists(arguments)
        holder = config_flags.DEFINE_config_file("config", flag_values=values, sys_argv=arguments)
        rest = values(arguments)[1:]
    except flags.Error as error:
        raise ValueError(str(error)) from error
    if rest:
        raise ValueError(f"unexpected arguments: {' '.join(rest)}; fields are given as --config.FIELD=VALUE")
    return holder.value


def define_cluster() -> Callable[[], Cluster]:
    """The flags of a run of several processes; the function reads them, once they are parsed."""
    default = Cluster()
    holders: dict[str, Any] = {
        "coordinator": flags.DEFINE_string("coordinator", default.coordinator, "HOST:PORT of process 0, where the "
            "processes of one run meet; empty: by the environment (TPU pod, Slurm, Open MPI, Kubernetes), or alone."),
        "processes": flags.DEFINE_integer("processes", default.processes, "How many processes the run has; 1: this "
            "one alone, whatever the environment says."),
        "process": flags.DEFINE_integer("process", default.process, "Which of them this is, from 0."),
        "join_timeout": flags.DEFINE_float("join_timeout", default.join_timeout, "Seconds until all processes must "
            "have come."),
        "heartbeat_timeout": flags.DEFINE_float("heartbeat_timeout", default.heartbeat_timeout, "Seconds of silence "
            "after which a process counts as dead, and the others end."),
        "stall_timeout": flags.DEFINE_float("stall_timeout", default.stall_timeout, "Seconds without progress (a "
            "step, a compilation, an evaluation) after which a run of several processes ends."),
    }  # fmt: skip
    return lambda: Cluster(**{name: holder.value for name, holder in holders.items()})


def config_name() -> str:
    """babyai for `--config configs/babyai.py`, babyai-smoke for `--config configs/babyai.py:smoke`."""
    file, _, variant = config_flags.get_config_filename(flags.FLAGS["config"]).partition(":")
    return "-".join(part for part in (Path(file).stem, variant) if part)


def refuse(message: str) -> NoReturn:
    """End the program with the message, behind the command's name as `python -m` takes it, and status 2."""
    spec = sys.modules["__main__"].__spec__
    program = spec.name.removesuffix(".__main__") if spec else Path(sys.argv[0]).stem
    print(f"{program}: {message}", file=sys.stderr, flush=True)
    sys.exit(USER_ERROR)


def parse_flags(arguments: Sequence[str]) -> list[str]:
    """`flags_parser` of `absl.app.run`: help, and a mistake, end with a text rather than with a traceback."""
    if not _HELP.isdisjoint(arguments):
        _print_help(every_flag=any(argument.endswith("helpfull") for argument in arguments))
    if mistake := _config_mistake(arguments):
        refuse(mistake)
    try:
        rest = flags.FLAGS(with_lists(arguments))
    except flags.Error as error:
        refuse(str(error))
    if len(rest) > 1:
        refuse(f"unexpected arguments: {' '.join(rest[1:])}; fields are given as --config.FIELD=VALUE")
    return rest


def _print_help(*, every_flag: bool) -> NoReturn:
    """The main module's docstring and the flags it takes (absl's own leaves out --config, and exits with 1)."""
    flags.FLAGS.mark_as_parsed()  # unless defaults may be read, none is shown
    text = flags.FLAGS.get_help() if every_flag else flags.FLAGS.main_module_help()
    print(f"{sys.modules['__main__'].__doc__ or ''}\nflags:\n{text}")
    sys.exit(0)


def _config_mistake(arguments: Sequence[str]) -> str:
    """What is wrong with the config file or the first `--config.FIELD`; "" if nothing is."""
    given = [argument.lstrip("-").partition("=") for argument in arguments if argument.startswith("-")]
    file = _config_file(arguments)
    if not file:
        return "--config is missing; expected --config=FILE.py or --config=FILE.py:VARIANT (--help)"
    if not Path(file.partition(":")[0]).is_file():
        return f"--config={file}: no such file; expected FILE.py or FILE.py:VARIANT"
    alone, values = ["", f"--config={file}"], flags.FlagValues()
    config_flags.DEFINE_config_file("config", flag_values=values, sys_argv=alone)
    try:
        config: Any = values(alone) and values["config"].value
    except flags.IllegalFlagValueError as error:  # holds the traceback of the config file; its last line is the message
        return f"--config={file}: {str(error).strip().splitlines()[-1]}"
    if not isinstance(config, ConfigDict):
        return f"--config={file}: its get_config() returned no ConfigDict"
    told = (_unknown_field(config, name) for name, _, _ in given if name.startswith("config."))
    return next(filter(None, told), "")


def _after(arguments: Sequence[str], name: str) -> str:
    """The argument that follows `--NAME`."""
    places = [i for i, argument in enumerate(arguments) if argument.lstrip("-") == name and argument.startswith("-")]
    return arguments[places[0] + 1] if places and places[0] + 1 < len(arguments) else ""


def with_lists(arguments: Sequence[str]) -> list[str]:
    """The arguments with each list as ml_collections reads it: a,b and ["a", "b"] become ('a', 'b').

    Raises:
        flags.Error: a list that does not end; names the flag.
    """
    given = list(arguments)
    file = _config_file(given)
    if not file or not any(argument.lstrip("-").startswith("config.") for argument in given):
        return given
    alone, values = ["", f"--config={file}"], flags.FlagValues()
    config_flags.DEFINE_config_file("config", flag_values=values, sys_argv=alone)
    values(alone)
    for place, argument in enumerate(given):
        name, equals, text = argument.partition("=")
        at = place if equals else place + 1
        if not argument.startswith("-") or not name.lstrip("-").startswith("config.") or at == len(given):
            continue
        default: Any = values["config"].value
        for field in name.lstrip("-").split(".")[1:]:
            default = default[field]
        if isinstance(default, tuple):
            try:
                found = read_list(text if equals else given[at], texts=any(isinstance(item, str) for item in default))
            except ValueError as error:
                raise flags.Error(f"{name}: {error}") from error
            given[at] = f"{name}={tuple(found)!r}" if equals else repr(tuple(found))
    return given


def _config_file(arguments: Sequence[str]) -> str:
    """The file of `--config`; "" without one."""
    given = [argument.lstrip("-").partition("=") for argument in arguments if argument.startswith("-")]
    return next((value or _after(arguments, name) for name, _, value in given if name == "config"), "")


def _unknown_field(config: ConfigDict, name: str) -> str:
    """What is wrong with the path of `--config.FIELD`; "" if the config has it."""
    holder: Any = config
    path = "config"
    for field in name.split(".")[1:]:
        if not isinstance(holder, ConfigDict):
            return f"--{name}: {path} is a value, not a group of fields"
        if field not in holder:
            near = difflib.get_close_matches(field, list(holder), n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"known fields: {', '.join(holder) or 'none'}"
            return f"--{name}: {path} has no field {field!r}; {hint}"
        holder, path = holder[field], f"{path}.{field}"
    return ""
