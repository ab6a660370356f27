from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
from data_stores import (
    CAMERAS,
    babyai_domain,
    babyai_store,
    clip_domain,
    clip_store,
    language_table_domain,
    language_table_store,
)

from agent_jax.actions import BABYAI, CALVIN, LANGUAGE_TABLE, LANGUAGE_TABLE_STATE
from agent_jax.actions.vocabulary import Vocabulary
from agent_jax.config import DomainConfig
from agent_jax.data.pipeline.domain_specs import find_specs
from agent_jax.data.pipeline.domains import Domain

VOCABULARY = Vocabulary.build("bytes", ("babyai", "iafm"))
TILES = DomainConfig(instruction="instruction")
TABLE = DomainConfig(instruction="steps/observation/instruction")


def from_config(config: DomainConfig, store) -> Domain:
    specs = find_specs("mine", config, store) if config.layout == "actions" else None
    return Domain.from_config("mine", 2, config, store, VOCABULARY, image_size=16, specs=specs)


def test_without_a_spec_in_the_config_that_of_the_data_set_is_used(tmp_path):
    config = dataclasses.replace(TILES, window=3, stride=2, max_text=20, weight=0.5)
    domain = from_config(config, babyai_store(tmp_path / "set"))
    assert domain.spec.spec == BABYAI
    assert domain.state is None
    assert (domain.name, domain.index, domain.window, domain.stride) == ("mine", 2, 3, 2)
    assert (domain.max_text, domain.weight, domain.image_size) == (20, 0.5, 16)
    assert (domain.action_length, domain.state_length, domain.has_terminal) == (3, 0, False)


def test_specs_of_the_config_describe_a_data_set_without_specs(tmp_path):
    config = dataclasses.replace(TABLE, action_spec=LANGUAGE_TABLE.to_dict(), state_spec=LANGUAGE_TABLE_STATE.to_dict())
    domain = from_config(config, language_table_store(tmp_path / "set"))
    assert domain.spec.spec == LANGUAGE_TABLE
    assert domain.state is not None
    assert domain.state.spec == LANGUAGE_TABLE_STATE
    assert (domain.action_length, domain.state_length, domain.has_terminal) == (4, 8, True)


def test_specs_of_config_and_data_set_must_be_equal(tmp_path):
    store = babyai_store(tmp_path / "set")
    assert from_config(dataclasses.replace(TILES, action_spec=BABYAI.to_dict()), store).spec.spec == BABYAI
    other = dataclasses.replace(BABYAI, rate_hz=7.0).to_dict()
    with pytest.raises(ValueError, match=r"config.data.domains.mine.action_spec: differs .* rate_hz: 7.0 here"):
        from_config(dataclasses.replace(TILES, action_spec=other), store)


def test_a_missing_spec_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"domains.mine.action_spec: empty, and .*set has no ActionSpec"):
        from_config(TABLE, language_table_store(tmp_path / "set"))


@pytest.mark.parametrize(("config", "message"), [
    (dataclasses.replace(TILES, cameras=("steps/observation/rgbd",)), "no field 'steps/observation/rgbd'; nearest"),
    (dataclasses.replace(TILES, instruction="text"), "no field 'text'"),
    (dataclasses.replace(TILES, state_spec=LANGUAGE_TABLE_STATE.to_dict()), "no field 'steps/effector_translation'"),
])
def test_fields_that_the_data_set_lacks_are_named(tmp_path, config, message):
    with pytest.raises(ValueError, match=message):
        from_config(config, babyai_store(tmp_path / "set"))


def test_a_field_of_another_shape_than_the_spec_is_named(tmp_path):
    parts = tuple(dataclasses.replace(part, key="action") for part in CALVIN.groups[0].parts)
    wider = dataclasses.replace(CALVIN, groups=(dataclasses.replace(CALVIN.groups[0], parts=parts),))
    message = r"expects numbers of shape \(7,\) for 'action'; found an array of shape \(2,\)"
    with pytest.raises(ValueError, match=message):
        from_config(dataclasses.replace(TABLE, action_spec=wider.to_dict()), language_table_store(tmp_path / "set"))


@pytest.mark.parametrize("domain", [babyai_domain(), language_table_domain(video=True, weight=0.25)],
                         ids=["babyai", "table"])
def test_a_domain_from_its_json_encodes_the_same_ids(domain):
    meta = json.loads(json.dumps(domain.to_meta()))
    loaded = Domain.from_meta(meta, domain.vocabulary)
    assert loaded.to_meta() == domain.to_meta()
    values = {"action": np.asarray(3) if domain.name == "babyai" else np.asarray([0.01, -0.02])}
    np.testing.assert_array_equal(loaded.spec.encode(values), domain.spec.encode(values))
    np.testing.assert_array_equal(loaded.text_ids("go left"), domain.text_ids("go left"))
    assert (loaded.state is None) == (domain.state is None)


def test_clips_need_no_action_spec_but_the_field_of_their_layout(tmp_path):
    store = clip_store(tmp_path / "set")
    plain = DomainConfig(cameras=CAMERAS[:1], video=True)
    answer = from_config(dataclasses.replace(plain, layout="answer", max_answer=12), store)
    assert (answer.spec, answer.answer, answer.max_answer, answer.label, answer.images) == (None, "answer", 12, "", 4)
    label = from_config(dataclasses.replace(plain, layout="label", cameras=CAMERAS), store)
    assert (label.spec, label.answer, label.max_answer, label.label, label.images) == (None, "", 0, "label", 8)
    assert label.camera_names == ("front", "wrist")
    for domain in (answer, label):
        loaded = Domain.from_meta(json.loads(json.dumps(domain.to_meta())), VOCABULARY)
        assert loaded == dataclasses.replace(domain, vocabulary=VOCABULARY)
    for wrong, message in (({"layout": "answer", "answer": "label"}, "domains.mine.answer='label': found array"),
                           ({"layout": "label", "label": "answer"}, "domains.mine.label='answer': found text"),
                           ({"layout": "label", "label": "start2"}, "no field 'start2'"),
                           ({"layout": "label", "cameras": ("start",)}, "domains.mine.cameras='start': found array")):
        with pytest.raises(ValueError, match=message):
            from_config(dataclasses.replace(plain, **wrong), store)


def test_an_answer_ends_in_eos_and_is_refused_if_too_long_or_empty():
    domain = clip_domain("answer", max_answer=3)
    assert domain.answer_ids("go").tolist() == [4 + ord("g"), 4 + ord("o"), 2]
    with pytest.raises(ValueError, match=r"the answer 'gone' has 5 tokens .* max_answer=3; raise .* to 5 or more"):
        domain.answer_ids("gone")
    with pytest.raises(ValueError, match=r"an answer is empty \(field 'answer'\)"):
        domain.answer_ids(" ")


def test_missing_fields_of_older_meta_get_their_defaults():
    meta = babyai_domain().to_meta()
    for name in ("layout", "sampling", "answer", "max_answer", "label"):
        del meta[name]
    assert Domain.from_meta(meta, VOCABULARY).to_meta() == babyai_domain().to_meta()


def test_meta_of_another_version_is_refused_with_its_fields():
    meta = babyai_domain().to_meta()
    del meta["window"]
    with pytest.raises(ValueError, match=r"missing \['window'\], unknown \['horizon'\]"):
        Domain.from_meta({**meta, "horizon": 4}, VOCABULARY)


def test_a_text_begins_with_eos():
    assert babyai_domain().text_ids("go").tolist() == [2, 4 + ord("g"), 4 + ord("o")]


def test_a_text_that_is_too_long_is_refused_with_the_length_it_needs():
    domain = babyai_domain(max_text=5)
    assert len(domain.text_ids("1234")) == 5
    with pytest.raises(ValueError, match=r"'12345' has 6 tokens .* max_text=5; raise .* to 6 or more"):
        domain.text_ids("12345")
