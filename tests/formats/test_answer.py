"""Answers checked against their kind, and cut by `threshold` and `top_n`."""

from __future__ import annotations

import dataclasses
import json
import math
from decimal import Decimal
from enum import Enum
from typing import Any

import pytest

from mlpkit.errors import AnswerError, ArgumentError
from mlpkit.formats import (
    Argument,
    Cluster,
    Entities,
    Entity,
    Generated,
    Info,
    Label,
    Mention,
    Predicate,
    Relation,
    Span,
    check_answer,
    limited,
    to_json,
)


class Mood(Enum):
    GOOD = "good"


ENTITY = {"name": "特朗普", "start_pos": 0, "end_pos": 2, "label": "PER", "score": 100}
RELATION = Relation(
    subject=Argument("特朗普", 0, 3, "PER"),
    predicate=Predicate("总统", [Mention("总统", 6, 8)]),
    object=Argument("美国", 4, 6, "LOC", pos="ns"),
    score=90.0,
)
GOOD: list[tuple[str, Any]] = [
    ("text_custom", {1, 2}),
    ("text_classification", []),
    ("text_classification", [{"label": "a", "score": 100, "more": None}]),
    ("text_classification", ({"label": "a", "score": 0.5, "other_info": [{"key": "k", "value": [1]}]},)),
    ("text_classification", [Label("a", 50), Label("b", 0.0, [Info("k", "v")])]),
    ("text_classification", [{"label": Mood.GOOD, "score": Decimal("99.5")}]),
    ("text_classification", [Label("a", Decimal("50"))]),  # type: ignore[arg-type]
    ("text_sequence_labeling", [{"score": 0, "entity_list": []}]),
    ("text_sequence_labeling", [{"score": 100, "entity_list": [ENTITY]}]),
    ("text_sequence_labeling", [Entities(99.0, [Entity("特朗普", 0, 3, "PER", 99.0)])]),
    ("text_cluster", [Cluster("c", ["a", "b"], 5.0)]),
    ("text_cluster", [{"cluster_name": "c", "cluster": [], "score": 5}]),
    ("text_generation", ["text", {"text": "t", "score": 1}, Generated("t"), Generated("t", 3.0)]),
    ("relation_extraction", [RELATION]),
]
WRONG: list[tuple[str, Any, str]] = [
    ("text_classification", None, "predictions: "),
    ("text_classification", {"label": "a", "score": 1}, "predictions: "),
    ("text_classification", ["a"], "predictions[0]: "),
    ("text_classification", [{"label": "a", "score": 1}, {"label": "b"}], "predictions[1].score: the field is missing"),
    (
        "text_classification",
        [{"label": "a", "score": 100.5}],
        "predictions[0].score: expected float <= 100.0, got 100.5",
    ),
    ("text_classification", [{"label": "a", "score": -1}], "predictions[0].score: "),
    ("text_classification", [{"label": "a", "score": math.nan}], "predictions[0].score: "),
    ("text_classification", [{"label": "a", "score": True}], "predictions[0].score: "),
    ("text_classification", [{"label": True, "score": 1}], "predictions[0].label: "),
    ("text_classification", [Label("a", 1.0), Label("b", 101.0)], "predictions[1].score: "),
    ("text_classification", [{"label": "a", "score": {1}}], "predictions[0].score: "),
    (
        "text_classification",
        [{"label": "a", "score": b"1"}],
        "predictions[0].score: Object of type bytes is not JSON serializable",
    ),
    (
        "text_classification",
        [{"label": "a", "score": 1, "other_info": [{"value": 1}]}],
        "predictions[0].other_info[0].key: the field is missing",
    ),
    ("text_sequence_labeling", [{"score": 1}], "predictions[0].entity_list: the field is missing"),
    (
        "text_sequence_labeling",
        [{"score": 1, "entity_list": [ENTITY, ENTITY, {**ENTITY, "end_pos": 3}]}],
        "predictions[0].entity_list[2].end_pos: 3 is one too far for '特朗普' at 0",
    ),
    (
        "text_sequence_labeling",
        [{"score": 1, "entity_list": [{**ENTITY, "start_pos": 3}]}],
        "predictions[0].entity_list[0].end_pos: 2 is before the start, 3",
    ),
    (
        "text_sequence_labeling",
        [{"score": 1, "entity_list": [{**ENTITY, "start_pos": -1}]}],
        "predictions[0].entity_list[0].start_pos: ",
    ),
    (
        "text_sequence_labeling",
        [Entities(1.0, [Entity("a", 0, 1, "X", 200.0)])],
        "predictions[0].entity_list[0].score: ",
    ),
    ("text_cluster", [{"cluster_name": "c", "cluster": ["a", 1], "score": 1}], "predictions[0].cluster[1]: "),
    ("text_generation", "text", "predictions: "),
    ("text_generation", [{"texts": "t"}], "predictions[0].text: the field is missing"),
    ("relation_extraction", [{"score": 1}], "predictions[0].subject: the field is missing"),
]


@dataclasses.dataclass
class OwnLabel:
    label: str
    score: float


@pytest.mark.parametrize(("kind", "answer"), GOOD)
def test_a_good_answer_of_each_kind_passes(kind: str, answer: Any) -> None:
    check_answer(kind, answer)


@pytest.mark.parametrize(("kind", "answer", "message"), WRONG)
def test_a_wrong_answer_is_an_error_that_begins_with_the_path(kind: str, answer: Any, message: str) -> None:
    with pytest.raises(AnswerError) as raised:
        check_answer(kind, answer)
    assert str(raised.value).startswith(message)


def test_numpy_and_own_types_in_an_answer_are_checked_by_what_they_become() -> None:
    numpy = pytest.importorskip("numpy")
    check_answer("text_classification", [{"label": numpy.str_("a"), "score": numpy.float32(100)}])
    check_answer("text_classification", [OwnLabel("a", 1.0)])
    with pytest.raises(AnswerError, match=r"^predictions\[0\]\.score: "):
        check_answer("text_classification", [{"label": "a", "score": numpy.float32(100.1)}])
    with pytest.raises(AnswerError, match=r"^predictions\[0\]\.score: "):
        check_answer("text_classification", [OwnLabel("a", -1.0)])


def test_an_unknown_kind_is_an_error_that_names_the_kinds() -> None:
    with pytest.raises(ValueError, match=r"no kind 'text_classify'.*text_classification"):
        check_answer("text_classify", [])


def test_spans_are_half_open_in_python_and_inclusive_in_the_answer() -> None:
    sentence = "特朗普是美国总统。"
    entities = Entities.of(sentence, [Span(0, 3, "PER"), Span(4, 6, "LOC")], [90.0, 80.0])
    assert json.loads(to_json([entities])) == [
        {
            "score": 80.0,
            "entity_list": [
                {"name": "特朗普", "start_pos": 0, "end_pos": 2, "label": "PER", "score": 90.0},
                {"name": "美国", "start_pos": 4, "end_pos": 5, "label": "LOC", "score": 80.0},
            ],
        }
    ]
    assert Entities.of(sentence, []).score == 100.0


def test_an_entity_outside_of_its_sentence_is_an_error() -> None:
    with pytest.raises(ValueError, match="leaves the sentence of 2 characters"):
        Entity.of("ab", Span(1, 3, "X"))


def test_a_relation_is_written_with_inclusive_ends() -> None:
    assert json.loads(to_json([RELATION])) == [
        {
            "score": 90.0,
            "subject": {"name": "特朗普", "start": 0, "end": 2, "label": "PER"},
            "object": {"name": "美国", "start": 4, "end": 5, "label": "LOC", "pos": "ns"},
            "predicate": {"text": "总统", "mention": [{"text": "总统", "start": 6, "end": 7}]},
        }
    ]


LABELS = [Label("low", 10.0), Label("high", 90.0), Label("middle", 50.0), Label("also middle", 50.0)]


@pytest.mark.parametrize(
    ("params", "names"),
    [
        ({"top_n": 2}, ["high", "middle"]),
        ({"top_n": 2.0}, ["high", "middle"]),
        ({"top_n": 0}, []),
        ({"top_n": 99}, ["high", "middle", "also middle", "low"]),
        ({"threshold": 50}, ["high", "middle", "also middle"]),
        ({"threshold": 50.1, "top_n": None}, ["high"]),
        ({"threshold": 20, "top_n": 1, "other": "x"}, ["high"]),
    ],
)
def test_threshold_and_top_n_keep_the_best_labels_in_order(params: dict[str, Any], names: list[str]) -> None:
    objects = limited(LABELS, params)
    assert isinstance(objects, list)
    assert [each.label for each in objects] == names
    dicts = limited([{"label": each.label, "score": each.score} for each in LABELS], params)
    assert isinstance(dicts, list)
    assert [each["label"] for each in dicts] == names


@pytest.mark.parametrize("params", [None, {}, {"top_n": None, "threshold": None}, {"other": 1}])
def test_without_threshold_and_top_n_the_answer_stays_as_it_is(params: dict[str, Any] | None) -> None:
    assert limited(LABELS, params) is LABELS


@pytest.mark.parametrize("wrong", ["x", "2", -1, 1.5, True, [], math.nan])
def test_a_top_n_that_is_no_count_is_the_callers_error(wrong: Any) -> None:
    with pytest.raises(ArgumentError, match=r"^params\.top_n is a whole number of at least 0, not "):
        limited(LABELS, {"top_n": wrong})


@pytest.mark.parametrize("wrong", ["x", -1, 100.5, True, {}, math.nan, math.inf])
def test_a_threshold_outside_of_the_scores_is_the_callers_error(wrong: Any) -> None:
    with pytest.raises(ArgumentError, match=r"^params\.threshold is a number from 0 to 100, not "):
        limited(LABELS, {"threshold": wrong})


def test_a_label_without_a_score_cannot_be_limited() -> None:
    with pytest.raises(AnswerError, match=r"^predictions\[1\]\.score: "):
        limited([{"label": "a", "score": 1}, {"label": "b"}], {"top_n": 1})


def test_probabilities_become_ranked_scores_from_0_to_100() -> None:
    assert Label.ranked(["a", "b", 3], [0.25, 0.5, 0.25]) == [Label("b", 50.0), Label("a", 25.0), Label("3", 25.0)]
    numpy = pytest.importorskip("numpy")
    ranked = Label.ranked(numpy.array(["a", "b"]), numpy.array([0.25, 0.75], dtype=numpy.float32))
    assert ranked == [Label("b", 75.0), Label("a", 25.0)]
    assert all(type(each.score) is float for each in ranked)


@pytest.mark.parametrize(
    ("probabilities", "message"),
    [
        ([0.5], "2 classes but 1 probabilities"),
        ([50.0, 50.0], "a probability is a number from 0 to 1, not 50.0"),
        ([math.nan, 0.5], "a probability is a number from 0 to 1, not nan"),
        ([[0.5, 0.5], 0.5], "a probability is a number from 0 to 1, not "),
        (0.5, "a row of probabilities is needed"),
    ],
)
def test_what_are_no_probabilities_is_an_error(probabilities: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Label.ranked(["a", "b"], probabilities)


def test_rounding_beside_0_and_1_is_cut_off() -> None:
    assert [each.score for each in Label.ranked(["a", "b"], [1.0000001, -0.0000001])] == [100.0, 0.0]
