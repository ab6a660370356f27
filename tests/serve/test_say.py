"""Text over the websocket: what `Policy.say` generates, beside acting, and errors for prompts that do not fit."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from data_stores import clip_domain
from served import Served, make_image, served, table_policy, twin

from agent_jax.client import BadRequestError, Client
from agent_jax.policy import Policy

CLIP = np.random.default_rng(1).integers(0, 256, (3, 16, 16, 3), np.uint8)
STATE = {"effector_target_translation": np.float32([0.3, 0.1]), "effector_translation": np.float32([0.2, 0.0])}


def speaking_policy(*, acts: bool) -> Policy:
    base, text = table_policy(), clip_domain("answer")
    domains = {base.domain.name: base.domain, "clips": text}
    return Policy(base._config, base.params, base.domain, domains=domains) if acts else Policy(
        base._config, base.params, text)


@pytest.fixture(scope="module")
def policy() -> Policy:
    return speaking_policy(acts=True)


@pytest.fixture(scope="module")
def robots(policy: Policy) -> Iterator[Served]:
    with served(policy, max_batch=1) as running:
        yield running


def test_the_server_says_what_the_policy_says_between_actions(robots: Served):
    own, ours = twin(table_policy()), speaking_policy(acts=True)
    with Client(robots.url) as client:
        assert client.metadata["text_domains"] == {
            "clips": {"window": 3, "max_text": 6, "max_answer": 10, "cameras": ["front"]}}
        for images in (CLIP, list(CLIP), [{"front": image} for image in CLIP], CLIP[0]):
            (expected,) = ours.say([images], ["who?"])
            (action,) = own.act([make_image()], ["go"], [0], [STATE])
            np.testing.assert_equal(client.act(make_image(), "go", STATE), action)
            found = client.say(images, "who?")
            assert found["text"] == expected.text
            assert found["ids"] == expected.ids.tolist()
            assert found["complete"] == expected.complete
            assert found["log_probability"] == pytest.approx(expected.log_probability, abs=1e-4)
            assert client.timing["policy_ms"] > 0
        sampled = client.say(CLIP, "who?", domain="clips", max_tokens=4, temperature=1.0, top_p=0.9, seed=2)
        (expected,) = ours.say([CLIP], ["who?"], max_tokens=4, temperature=1.0, top_p=0.9, seed=2)
        assert sampled["ids"] == expected.ids.tolist()


def test_prompts_that_do_not_fit_are_refused_and_the_connection_stays(robots: Served):
    refused: list[tuple[dict[str, Any], str]] = [
        ({"prompt": "too long a prompt"}, "max_text=6"), ({"images": np.concatenate([CLIP, CLIP])}, "clip of 6 images"),
        ({"images": []}, "clip of 0 images"), ({"domain": "talk"}, r"domain='talk' is not a domain .*\(clips\)"),
        ({"max_tokens": 11}, "max_tokens=11"), ({"top_p": 2.0}, "top_p=2.0"), ({"seed": -1}, "seed: found -1"),
        ({"temperature": float("nan")}, "temperature=nan"), ({"max_tokens": True}, "max_tokens: found True"),
        ({"images": CLIP.astype(np.float32)}, "found float32"), ({"prompt": 7}, "expected a text"),
        ({"prompt": "x" * 20_000}, "20000 characters")]
    with Client(robots.url) as client:
        for changes, message in refused:
            with pytest.raises(BadRequestError, match=message):
                client.say(**{"images": CLIP, "prompt": "who?", **changes})
        assert client.say(CLIP, "who?")["ids"]


def test_a_policy_without_actions_is_served_and_refuses_to_act():
    with served(speaking_policy(acts=False)) as running, Client(running.url) as client:
        assert client.say(CLIP, "who?")["ids"]
        with pytest.raises(BadRequestError, match="act: domain 'clips' has the layout 'answer'"):
            client.act(make_image(), "go")


def test_a_server_of_actions_alone_has_no_text(policy: Policy):
    with served(twin(table_policy())) as running, Client(running.url) as client:
        assert client.metadata["text_domains"] == {}
        with pytest.raises(BadRequestError, match=r"say: no domain .*this run had none|this run had none"):
            client.say(make_image(), "who?")
