"""The Hub's rules for a card's metadata, and what is suggested where they are broken."""

from __future__ import annotations

import pytest
from hub_writing import DATASET
from hypothesis import given
from hypothesis import strategies as st

from qabuild.system import card_metadata


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        *(("Apache 2.0", "apache-2.0"), ("Apache License, Version 2.0", "apache-2.0"), ("apache2", "apache-2.0")),
        *(("MIT License", "mit"), ("MIT", "mit"), ("CC BY-SA 4.0", "cc-by-sa-4.0"), ("cc_by_4.0", "cc-by-4.0")),
        *(("GPL-3.0-or-later", "gpl-3.0"), ("GNU GPL v3", "gpl-3.0"), ("AGPLv3", "agpl-3.0")),
    ],
)
def test_a_license_written_otherwise_is_refused_with_the_id(given, meant):
    problem = card_metadata.license_problem(given)
    assert problem == f"{given!r} is no id of a license on the Hub: perhaps {meant!r}"
    assert card_metadata.license_problem(meant) is None


def test_a_license_that_the_hub_does_not_know_is_called_other():
    assert "any other is 'other', with license_name" in (card_metadata.license_problem("ours, all rights") or "")


@given(st.text())
def test_any_file_name_gets_an_id_that_the_hub_takes(name):
    safe = card_metadata.dataset_id(name)
    assert DATASET.fullmatch(safe)
    assert card_metadata.dataset_id(safe) == safe


def test_an_id_stays_and_a_file_name_stays_legible():
    names = ("squad", "rajpurkar/squad_v2", "dev-v1.1.json", "fragen (geprüft) v2.json", "質問.json", "a/b/c.json")
    assert [card_metadata.dataset_id(name) for name in names] == [
        *("squad", "rajpurkar/squad_v2", "dev-v1.1.json", "fragen_gepruft_v2.json", ".json", "a_b_c.json"),
    ]


@pytest.mark.parametrize(
    ("metadata", "expected"),
    [
        ({"license": ["mit", "Apache 2.0"]}, ["license: 'Apache 2.0' is no id of a license on the Hub: perhaps"]),
        ({"tags": ["a", 1], "language": [""]}, ["tags: must be texts", "language: must be texts"]),
        ({"datasets": ["squad", "librispeech 960h"]}, ["datasets[1]: 'librispeech 960h' is no id of a data set"]),
        (
            {"model-index": [{"results": [{"dataset": {"type": "my dev set", "name": "My dev set"}}]}]},
            ["model-index: dataset.type: 'my dev set' is no id"],
        ),
        ({"license": "mit", "datasets": "squad", "language": "de", "tags": ["a"], "base_model": "a/b"}, []),
    ],
)
def test_what_the_hub_refuses_is_named(metadata, expected):
    problems = list(card_metadata.problems(metadata))
    assert len(problems) == len(expected)
    assert all(problem.startswith(start) for problem, start in zip(problems, expected, strict=True))
