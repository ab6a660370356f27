"""Train the agent.

    python -m agent_jax.train --config configs/babyai.py [--config.FIELD=VALUE ...] [--workdir DIR] [--json FILE]

The same command starts a run and resumes it. In the workdir:

    checkpoints/  metrics.jsonl  tensorboard/  pictures/  rollouts/  report.json  compiled/
"""

from __future__ import annotations

import contextlib

from absl import app, flags, logging

from agent_jax.checkpoints.meta import DamagedCheckpointError
from agent_jax.config import from_config_dict
from agent_jax.data.store.episode import RecordError
from agent_jax.envs.collect import DemonstrationsError
from agent_jax.json_files import check_json_path
from agent_jax.runtime import command_line, distributed
from agent_jax.runtime.command_line import config_name, define_cluster, define_config, parse_flags, refuse
from agent_jax.runtime.compile_cache import use_compile_cache
from agent_jax.runtime.compile_notice import announce_compilations
from agent_jax.runtime.host_memory import tune_heap
from agent_jax.runtime.preemption import end_by_interrupts
from agent_jax.train.early_stopping import MetricError
from agent_jax.train.loop import finish, print_once, train
from agent_jax.train.phases import STEP, Phases
from agent_jax.train.preflight import facts, set_platform
from agent_jax.train.run import open_run
from agent_jax.train.run_files import workdir_path

_CONFIG = define_config()
_CLUSTER = define_cluster()
_WORKDIR = flags.DEFINE_string("workdir", "", "Directory of the run; by default runs/NAME of the config file.")
_JSON = flags.DEFINE_string("json", "", "Also write the report to this file.")
flags.adopt_module_key_flags(command_line)  # for --help


def main(arguments: list[str]) -> None:
    """Parse, check, train, report. What the user must mend ends with one message and exit code 2."""
    del arguments
    phases = Phases()
    phases.count_compiling()
    announce_compilations()
    if not flags.FLAGS["verbosity"].present:
        logging.set_verbosity(logging.WARNING)  # Orbax tells dozens of lines of every save
    # It prints each failure three times, with tracebacks; checkpoints/checkpoint.py says it in one line.
    logging.get_absl_logger().addFilter(lambda record: not (record.exc_info and "orbax" in record.pathname))
    tune_heap()
    try:
        config = from_config_dict(_CONFIG.value)
        distributed.join(_CLUSTER())
        end_by_interrupts()
    except ValueError as error:
        refuse(str(error))
    with distributed.ending_together():
        try:
            json_path = check_json_path(_JSON.value, "--json=") if _JSON.value else None
            workdir = workdir_path(_WORKDIR.value or f"runs/{config_name()}")
            distributed.check_same(facts(config, workdir), "start the same command, of the same code, on all hosts")
            set_platform(config, distributed.count())
            use_compile_cache(config.train.compile_cache, workdir)
            run = open_run(config, workdir, phases)
            streams = run.open_streams()
        except (ValueError, OSError, ModuleNotFoundError, DamagedCheckpointError, DemonstrationsError) as error:
            logging.debug("where it was found:", exc_info=True)
            distributed.tell(str(error))
            refuse(str(error))
        failure = ""
        with run.wandb or contextlib.nullcontext(), run.alone():
            try:
                with phases.time(STEP):
                    state, validation = train(run, *streams)
                if validation is None or run.stopped_by:
                    print_once(f"stopped by {run.stopped_by} after step {int(state.step)}; the same command goes on "
                               "from there")
                elif distributed.leads():
                    failure = finish(run, validation, json_path)
            except (OSError, RecordError, MetricError) as error:  # a full disk, damaged data, early stopping by nothing
                logging.debug("where it was found:", exc_info=True)
                distributed.tell(str(error))
                refuse(str(error))
            finally:
                run.files.try_to_copy()
        run.files.copy()  # once more, if that has failed
        if failure:
            distributed.tell(failure)
            refuse(failure)


if __name__ == "__main__":
    app.run(main, flags_parser=parse_flags)
