"""The adapters of Language-Table, CALVIN and LIBERO, on replacements with the real repositories' names."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from simulator_checkouts import CALVIN, LANGUAGE_TABLE, LIBERO, write_checkout

from agent_jax import actions
from agent_jax.actions import BoundSpec
from agent_jax.actions.vocabulary import Vocabulary
from agent_jax.config import ClosedLoopConfig, DemonstrationsConfig
from agent_jax.data.pipeline.domains import Domain
from agent_jax.data.store.store import open_store
from agent_jax.envs import collect, load
from agent_jax.envs.workers.demonstration_worker import demonstrate, episode_seed
from agent_jax.envs.workers.simulator_pool import SimulatorPool
from agent_jax.evaluate.closed_loop import check_domain, closed_loop

FILES = {"language_table": LANGUAGE_TABLE, "calvin": CALVIN, "libero": LIBERO}
MODULES = [f"agent_jax.envs.{item}" for item in (*FILES, "calvin_checkout")]
TOPS = ("language_table", "tf_agents", "calvin_agent", "calvin_env", "hydra", "omegaconf", "libero")


def forget(modules: tuple[str, ...]) -> None:
    for name in list(sys.modules):
        if name.partition(".")[0] in modules or name in MODULES:
            del sys.modules[name]


@pytest.fixture
def found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A function from an environment's name to its module, on a replaced checkout."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    for variable in ("LIBERO_CONFIG_PATH", "AGENT_JAX_CALVIN_DATA", "AGENT_JAX_CALVIN_EGL"):
        monkeypatch.setenv(variable, "")  # so that it is restored after an adapter changes it
        monkeypatch.delenv(variable)
    forget(TOPS)

    def find(name: str) -> Any:
        checkout = write_checkout(tmp_path / name, FILES[name])
        monkeypatch.setenv(f"AGENT_JAX_{name.upper()}", str(checkout))
        return load(name)

    yield find
    forget(TOPS)


@pytest.mark.parametrize("name", FILES)
def test_a_missing_checkout_is_an_error_that_says_what_to_clone_install_and_set(
    name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    variable = f"AGENT_JAX_{name.upper()}"
    monkeypatch.delenv(variable, raising=False)
    with pytest.raises(FileNotFoundError, match=rf"{variable} is not set.*git clone .*https://github.com/.*pip|install"):
        load(name)
    monkeypatch.setenv(variable, str(tmp_path))
    with pytest.raises(FileNotFoundError, match=rf"{variable}={tmp_path} has no .*export {variable}=DIR"):
        load(name)


def test_a_missing_package_of_a_checkout_is_named(found: Any, tmp_path: Path) -> None:
    found("language_table")
    forget(TOPS)
    (tmp_path / "language_table/tf_agents/trajectories/time_step.py").write_text("import surely_not_installed")
    with pytest.raises(ModuleNotFoundError, match=r"needs surely_not_installed, .*pip install pybullet"):
        load("language_table")


def test_the_command_names_a_missing_checkout(monkeypatch: pytest.MonkeyPatch,
                                              capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.delenv("AGENT_JAX_CALVIN", raising=False)
    with pytest.raises(SystemExit):
        collect.main(["calvin", "--episodes", "1", "--out", "nowhere"])
    assert "AGENT_JAX_CALVIN is not set" in capsys.readouterr().err


def test_language_table_draws_layouts_until_the_oracle_has_a_plan_and_has_the_rewards_success(found: Any) -> None:
    module = found("language_table")
    for task in module.REWARDS:
        environment = module.make(task)
        seen, info = environment.reset(seed=3)
        assert environment.simulator.layout % 3 == 0
        assert environment.instruction == f"layout {environment.simulator.layout}"
        assert seen["rgb"].shape == module.IMAGE_SHAPES["rgb"]
        assert {key: seen[key].shape for key in module.STATE_SPEC.fields} == {
            "effector_translation": (2,), "effector_target_translation": (2,)}
        again = module.make(task).reset(seed=3)[0]
        np.testing.assert_array_equal(seen["rgb"], again["rgb"])
        expert, over, steps = module.Expert(environment), False, 0
        while not over:
            _, reward, over, truncated, info = environment.step(expert.act())
            steps += 1
        assert (info["success"], truncated, reward, steps) == (True, False, 100.0, 4)  # 0.03 m a step, past 0.1 m
        environment.close()
        assert not environment.simulator.connected


def test_language_table_is_truncated_after_200_steps_and_checks_the_set_of_blocks(found: Any) -> None:
    module = found("language_table")
    environment = module.make("separate@BLOCK_4", 64)
    assert environment.simulator.block_mode.name == "BLOCK_4"
    assert environment.reset(seed=0)[0]["rgb"].shape == (64, 64, 3)
    ends = [environment.step({"action": np.zeros(2)})[2:4] for _ in range(200)]
    assert ends == [(False, False)] * 199 + [(False, True)]
    with pytest.raises(ValueError, match="task: found 'blocktoblok', expected one of blocktoblock"):
        module.make("blocktoblok")
    with pytest.raises(ValueError, match="found 'separate@BLOCK_5', .*BLOCK_4, BLOCK_8"):
        module.make("separate@BLOCK_5")


def test_demonstrations_of_language_table_have_its_images_and_state(found: Any, tmp_path: Path) -> None:
    module = found("language_table")
    collect.main(["language_table", "--task", "separate", "--episodes", "2", "--validation_episodes", "1",
                  "--processes", "1", "--out", str(tmp_path / "made")])
    store = open_store(tmp_path / "made")
    assert store.field("steps/observation/rgb").shape == (180, 320, 3)
    record = demonstrate(module, module.make("separate"), episode_seed("train", 0, 0), 0.0)
    assert record is not None
    episode = store.split("train")[0]
    assert episode.value("instruction").decode() == record["instruction"]
    assert episode.steps == len(record["steps"])
    assert np.asarray(episode.values("steps/observation/effector_translation", 0, episode.steps)).shape[1:] == (2,)


FORWARD = {"action": np.array([1.0, 0, 0, 0, 0, 0, 0.4])}
STILL = {"action": np.zeros(7)}


def test_calvin_gives_the_next_instruction_when_the_oracle_finds_one_completed(found: Any) -> None:
    module = found("calvin")
    environment = module.make("Chains")
    seen, info = environment.reset(seed=1_000_000_002)
    assert info == {"success": False, "completed": 0, "instructions": 5}
    assert {camera: seen[camera].shape for camera in module.CAMERAS} == module.IMAGE_SHAPES
    condition, subtasks = module.chain(2)
    assert seen["robot_obs"].tolist() == [condition["number"]] * 15
    instructions, rewards = [], []
    over = False
    while not over:
        instructions.append(environment.instruction)
        seen, reward, over, truncated, info = environment.step(FORWARD)
        rewards.append(reward)
    assert instructions == [f"do thing {subtask.removeprefix('task_')}" for subtask in subtasks for _ in range(3)]
    assert rewards == [0.0, 0.0, 1.0] * 5
    assert info == {"success": True, "completed": 5, "instructions": 5}
    assert not truncated
    assert {action[6] for action in environment.simulator.actions} == {1}  # the only values the simulator takes


def test_a_domain_with_calvins_state_acts_in_it_for_any_bounds_of_its_data(found: Any) -> None:
    module, vocabulary = found("calvin"), Vocabulary.build("bytes", ("babyai", "iafm"))
    domain = Domain("calvin", 0, BoundSpec(actions.CALVIN, vocabulary), None, vocabulary, window=2, stride=2,
                    max_text=80, cameras=("steps/observation/rgb",), instruction="steps/observation/instruction",
                    image_size=16)
    state = BoundSpec(actions.calvin_state(np.arange(15.0), np.full(15, 2.0)), vocabulary)
    check_domain(dataclasses.replace(domain, state=state), module)
    other = dataclasses.replace(domain, state=BoundSpec(actions.LANGUAGE_TABLE_STATE, vocabulary))
    with pytest.raises(ValueError, match=r"shapes of the state, .*robot_obs"):
        check_domain(other, module)


def test_calvin_ends_with_the_first_instruction_that_takes_more_than_360_steps(found: Any) -> None:
    module = found("calvin")
    environment = module.make("Chains")
    environment.reset(seed=0)
    for _ in range(3):
        environment.step(FORWARD)
    ends = [environment.step(STILL)[2:] for _ in range(360)]
    assert ends[-1] == (False, True, {"success": False, "completed": 1, "instructions": 5})
    assert all(end[:2] == (False, False) for end in ends[:-1])
    environment.close()
    first = module.make("First")
    first.reset(seed=0)
    info = [first.step(FORWARD)[4] for _ in range(3)][-1]
    assert info == {"success": True, "completed": 1, "instructions": 1}


def test_calvins_chains_equal_those_of_its_generator(found: Any) -> None:
    class Here:
        """Runs the generator's tasks here, with numpy's global random state restored as in a process."""

        def __init__(self, max_workers: int) -> None: ...
        def __enter__(self) -> Here:
            return self

        def __exit__(self, *_: object) -> None: ...
        def map(self, function: Any, items: Any) -> list[Any]:
            with sequences.temp_seed(0):
                return [function(item) for item in items]

    module = found("calvin")
    chains = [module.chain(number) for number in range(1000)]
    sequences: Any = sys.modules["calvin_agent.evaluation.multistep_sequences"]
    sequences.ProcessPoolExecutor = Here
    assert chains == sequences.get_sequences(1000)
    assert len({condition["number"] for condition, _ in chains[:20]}) > 10  # shuffled


def test_calvins_evaluation_is_imported_without_the_replaced_packages(found: Any) -> None:
    module = found("calvin")
    checkout: Any = sys.modules["agent_jax.envs.calvin_checkout"]
    module.chain(0)
    assert not {"pyhash", "pytorch_lightning", "calvin_agent.models.mcil"} & set(sys.modules)
    assert checkout.fnv1_32("hello world") == 2805756500  # from the documentation of pyhash
    places = [module.initial_state(module.chain(number)[0])[1] for number in (0, 0, 1)]
    np.testing.assert_array_equal(places[0], places[1])
    assert (places[0] != places[2]).any()


def test_calvins_scene_is_d_or_that_of_a_data_set(found: Any, monkeypatch: pytest.MonkeyPatch,
                                                  tmp_path: Path) -> None:
    module = found("calvin")
    environment = module.make("Chains")
    assert (environment.simulator.env.scene, environment.simulator.env.use_egl) == ("D", True)
    assert environment.simulator.kwargs == {"show_gui": False, "use_vr": False, "use_scene_info": True}
    environment.close()
    monkeypatch.setenv("AGENT_JAX_CALVIN_DATA", str(tmp_path / "calvin/data"))
    monkeypatch.setenv("AGENT_JAX_CALVIN_EGL", "0")
    environment = module.make("Chains")
    assert (environment.simulator.env.scene, environment.simulator.env.use_egl) == ("recorded", False)


def test_a_process_has_one_calvin_environment_which_is_closed_once(found: Any) -> None:
    module = found("calvin")
    environment = module.make("Chains")
    with pytest.raises(RuntimeError, match="found another environment open in this process"):
        module.make("First")
    environment.close()
    simulator = environment.simulator
    simulator.close()  # as it does when it is collected
    assert simulator.closed == 1
    module.make("First").close()


def test_a_pool_closes_a_calvin_environment_before_it_makes_another(found: Any) -> None:
    found("calvin")
    pool = SimulatorPool("calvin")
    pool.begin(0, "Chains", 0)
    environment: Any = pool._environments[0][1]
    assert pool.play("First", 1, "random", [0]).over
    assert not environment.open
    assert pool.begin(1, "Chains", 2).chain == (0, 5)
    assert pool.begin(1, "First", 2).chain is None
    pool.close()


class Walker:
    """Walks forward, except in odd episodes after `stop_at` instructions; stores the steps at which it was reset."""

    def __init__(self, stop_at: int) -> None:
        self.stop_at, self.instructions, self.resets = stop_at, {}, []

    def reset(self, env_ids: Any) -> None:
        self.resets += [(i, len(self.instructions.get(i, ()))) for i in env_ids]

    def act(self, images: Any, instructions: Any, env_ids: Any, states: Any = None) -> list[Any]:
        for i, instruction in zip(env_ids, instructions, strict=True):
            self.instructions.setdefault(i, []).append(instruction)
        return [STILL if i and len(set(self.instructions[i])) > self.stop_at else FORWARD for i in env_ids]


@pytest.mark.parametrize("processes", [0, 1])
def test_a_policy_is_reset_at_every_new_instruction_and_chains_are_reported_by_length(
        found: Any, monkeypatch: pytest.MonkeyPatch, processes: int) -> None:
    found("calvin")
    walker, logged, recordings = Walker(stop_at=2), [], []
    config = ClosedLoopConfig(environment="calvin", episodes={"Chains": 2}, processes=processes)
    report = closed_loop(config, {"greedy": walker}, baselines=False, record=2, watch=recordings.append,
                         log=logged.append)
    summary = report["Chains"]["greedy"]
    assert [share["success"] for share in summary["chain"]["in_a_row"]] == [1.0, 1.0, 0.5, 0.5, 0.5]
    assert summary["chain"]["mean_length"] == 3.5
    assert (summary["success"], summary["mean_steps"]) == (0.5, (15 + 6 + 360) / 2)
    # Before the first step and after every three steps, except at the end.
    assert [time for i, time in walker.resets if i == 0] == [0, 3, 6, 9, 12]
    assert [time for i, time in walker.resets if i == 1] == [0, 3, 6]
    for i, recording in zip((1, 0), recordings, strict=True):  # failures first
        assert list(recording.instructions[:-1]) == walker.instructions[i]
        assert len(set(recording.instructions)) == (5, 3)[i]
    assert logged[-1].splitlines()[-3:] == [
        "in a row  policy       1       2      3      4      5  mean length",
        "------------------------------------------------------------------",
        "Chains    greedy  100.0%  100.0%  50.0%  50.0%  50.0%         3.50",
    ]


def test_errors_of_calvin_without_data_or_expert(found: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    module = found("calvin")
    monkeypatch.setenv("AGENT_JAX_CALVIN_DATA", "/nowhere")
    with pytest.raises(FileNotFoundError, match="AGENT_JAX_CALVIN_DATA=/nowhere, expected a data set of CALVIN"):
        module.make("Chains")
    with pytest.raises(ValueError, match="'calvin' has no expert"):
        collect.collect(DemonstrationsConfig(environment="calvin", episodes={"Chains": 1}), tmp_path / "made")
    with pytest.raises(ValueError, match='found \'Chain\', expected "Chains"'):
        module.make("Chain")


def test_libero_begins_in_its_initial_states_and_rotates_its_images(found: Any) -> None:
    module = found("libero")
    environment = module.make("libero_goal/3", 32)
    assert environment.instruction == "do thing 3"
    assert environment.simulator.bddl_file_name.endswith("libero/libero/bddl_files/suite/3.bddl")
    seen, _ = environment.reset(seed=1_000_000_007)
    assert environment.simulator.state == 7.0
    assert environment.simulator.steps == 5
    assert seen["rgb"][-1, -1].tolist() == [255] * 3
    assert seen["wrist"].shape == (32, 32, 3)
    np.testing.assert_allclose(seen["state"], [7, 0, 0, 0, 0, 0.5, 0.02, -0.02], atol=1e-6)
    results = [environment.step({"action": np.full(7, 9.0)}) for _ in range(3)]
    assert [result[2] for result in results] == [False, False, True]
    assert results[-1][4] == {"success": True}
    environment.reset(seed=0)
    ends = [environment.step({"action": np.zeros(7)})[2:4] for _ in range(600)]
    assert ends[-1] == (False, True)
    assert (False, True) not in ends[:-1]


def test_libero_knows_its_suites(found: Any) -> None:
    module = found("libero")
    assert [len(tasks) for tasks in module.TASKS.values()] == [10, 10, 10, 10, 90]
    for level in ("libero_goal/10", "libero_goal", "libero_gaol/1"):
        with pytest.raises(ValueError, match="expected SUITE/NUMBER, .*libero_goal/0 to libero_goal/9"):
            module.make(level)
