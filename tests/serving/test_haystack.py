"""The component of Haystack: answers of the artifact, in a pipeline after a retriever."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import qabuild
from qabuild.errors import VerificationFailed

pytestmark = pytest.mark.layouts

haystack = pytest.importorskip("haystack", reason="no Haystack: pip install 'qabuild[haystack]'")

from qabuild.serving.haystack import QABuildExtractiveReader  # noqa: E402 - imports Haystack

TEXTS = (
    "Ann Vole built the mill in 1871. The mill was closed in 1902.",
    "The old bridge was repaired by Alma Serin in 1871, and by nobody since. " * 30,  # several windows
    "About 4,200 people live in Arvik.",
)
QUERY = "Who repaired the old bridge?"


@pytest.fixture(scope="module")
def reader(artifact: Path) -> QABuildExtractiveReader:
    made = QABuildExtractiveReader(str(artifact))
    made.warm_up()
    return made


def documents(*texts: str) -> list[Any]:
    return [haystack.Document(content=text) for text in texts]


def test_answers_of_a_document_are_those_of_the_artifact(reader, artifact):
    pipeline = qabuild.load(artifact)
    for text in TEXTS:
        expected = pipeline(question=QUERY, context=text, top_k=3, normalize="none")
        answers = reader.run(QUERY, documents(text), top_k=3)["answers"]
        assert [answer.data for answer in answers] == [result["answer"] for result in expected]
        for answer, result in zip(answers, expected, strict=True):
            assert answer.score == pytest.approx(1 / (1 + result["score"] ** -0.1))
            assert (answer.document_offset.start, answer.document_offset.end) == (result["start"], result["end"])
            assert answer.document.content[answer.document_offset.start : answer.document_offset.end] == answer.data
            assert answer.query == QUERY


def test_scores_are_those_of_the_pipeline_where_it_normalizes(artifact):
    reader = QABuildExtractiveReader(str(artifact), parameters={"normalize": "window"})
    expected = qabuild.load(artifact)(question=QUERY, context=TEXTS[0], top_k=3)
    answers = reader.run(QUERY, documents(TEXTS[0]), top_k=3)["answers"]
    assert [answer.score for answer in answers] == pytest.approx([result["score"] for result in expected])


def test_answers_of_all_documents_compete(reader):
    alone = [answer for text in TEXTS for answer in reader.run(QUERY, documents(text), top_k=5)["answers"]]
    best = sorted(alone, key=lambda answer: -answer.score)[:5]
    together = reader.run(QUERY, documents(*TEXTS), top_k=5)["answers"]
    assert [answer.data for answer in together] == [answer.data for answer in best]
    assert [answer.score for answer in together] == pytest.approx([answer.score for answer in best], abs=1e-5)
    threshold = together[1].score - 1e-6
    assert len(reader.run(QUERY, documents(*TEXTS), top_k=5, score_threshold=threshold)["answers"]) == 2


def test_the_empty_answer_competes_where_that_is_asked_for(reader, artifact):
    pipeline = qabuild.load(artifact)
    asked = [{"question": QUERY, "context": text} for text in TEXTS[::2]]
    scores = [
        next(found["score"] for found in results if not found["answer"])
        for results in pipeline(asked, top_k=999, handle_impossible_answer=True, normalize="none")
    ]
    answers = reader.run(QUERY, documents(*TEXTS[::2]), top_k=999, no_answer=True)["answers"]
    (empty,) = [answer for answer in answers if answer.data is None]
    assert empty.score == pytest.approx(1 / (1 + min(scores) ** -0.1), abs=1e-5)
    assert empty.document is None
    assert all(answer.data for answer in reader.run(QUERY, documents(*TEXTS), no_answer=False)["answers"])


def test_documents_without_text_are_passed_over(reader):
    assert reader.run(QUERY, [])["answers"] == []
    assert reader.run(QUERY, [haystack.Document(content=None), haystack.Document(content=" ")])["answers"] == []


def test_it_answers_in_a_pipeline_that_was_stored_and_loaded(artifact, reader):
    from haystack.components.retrievers.in_memory import InMemoryBM25Retriever
    from haystack.document_stores.in_memory import InMemoryDocumentStore

    store = InMemoryDocumentStore()
    store.write_documents(documents(*TEXTS))
    pipeline = haystack.Pipeline()
    pipeline.add_component("retriever", InMemoryBM25Retriever(store, top_k=1))
    pipeline.add_component("reader", QABuildExtractiveReader(str(artifact), top_k=2, parameters={"max_answer_len": 5}))
    pipeline.connect("retriever", "reader")
    request = {"retriever": {"query": QUERY}, "reader": {"query": QUERY}}
    answers = pipeline.run(request)["reader"]["answers"]
    assert [answer.document.content for answer in answers] == [TEXTS[1]] * 2
    restored = haystack.Pipeline.loads(pipeline.dumps(), allowed_modules=["qabuild.serving.haystack"])
    component = restored.get_component("reader")
    assert component.to_dict() == pipeline.get_component("reader").to_dict()
    restored = component.run(QUERY, documents(*TEXTS[1:2]))["answers"]
    assert [answer.data for answer in restored] == [answer.data for answer in answers]


def test_it_answers_as_haystacks_own_reader_where_both_decode_alike(artifact):
    """Both take the same request; Haystack's reader has no longest answer, and aligns answers to no words."""
    extractors = pytest.importorskip("haystack_integrations.components.readers.transformers")
    from qabuild.qa import sample

    own = extractors.TransformersExtractiveReader(model=str(sample.CHECKPOINT), no_answer=False)
    own.warm_up()
    reader = QABuildExtractiveReader(str(artifact), parameters={"max_answer_len": 384, "align_to_words": False})
    request = {"query": QUERY, "documents": documents(*TEXTS), "top_k": 3}
    theirs, ours = own.run(**request)["answers"], reader.run(**request)["answers"]
    assert [set(answer.to_dict()) for answer in ours] == [set(answer.to_dict()) for answer in theirs]
    assert ours[0].document.id == theirs[0].document.id
    assert ours[0].data == theirs[0].data
    assert ours[0].score == pytest.approx(theirs[0].score, abs=1e-4)


def test_an_unverified_artifact_is_refused(tmp_path):
    import proven

    from qabuild.artifact.manifest import open_artifact

    artifact = proven.make(tmp_path / "tiny")
    proven.verify(open_artifact(artifact), **proven.FAILED)
    with pytest.raises(VerificationFailed):
        QABuildExtractiveReader(str(artifact)).warm_up()
