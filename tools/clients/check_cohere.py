#!/usr/bin/env python3
"""Does Cohere's unmodified Python client get what it expects from a server of a reranker?

    python check_cohere.py http://127.0.0.1:8080

Needs `cohere`. That scores are those of the models' authors is a test of the engine.
"""

import cohere
from checks import MODEL, ROOT, check, refused, run

V1 = cohere.Client(api_key="none", base_url=ROOT)
V2 = cohere.ClientV2(api_key="none", base_url=ROOT)
ASK = {
    "model": MODEL,
    "query": "What is the capital of China?",
    "documents": ["The cat sat on the mat.", "Beijing, for centuries.", "a", "42 times!"],
}


def scores(results):
    return {result.index: result.relevance_score for result in results}


@check
def the_best_come_first_in_both_versions():
    all_of_them = V2.rerank(**ASK).results
    ordered = [result.relevance_score for result in all_of_them]
    assert ordered == sorted(ordered, reverse=True) and len(set(ordered)) == 4, ordered
    assert scores(all_of_them) == scores(V1.rerank(**ASK).results)
    best = V2.rerank(**ASK, top_n=2).results
    assert [one.index for one in best] == [one.index for one in all_of_them[:2]], best


@check
def a_document_scores_alone_as_among_others():
    among = scores(V2.rerank(**ASK).results)
    for index, document in enumerate(ASK["documents"]):
        alone = V2.rerank(**ASK | {"documents": [document]}).results[0].relevance_score
        assert abs(alone - among[index]) < 1e-6, (index, alone, among)


@check
def documents_come_back_where_asked():
    for result in V1.rerank(**ASK, return_documents=True).results:
        assert result.document.text == ASK["documents"][result.index], result


@check
def tokens_are_counted():
    assert V2.rerank(**ASK).meta.tokens.input_tokens > 20


@check
def mistakes_are_told():
    refused(cohere.NotFoundError, V2.rerank, **ASK | {"model": "no-such-model"})
    error = refused(cohere.BadRequestError, V2.rerank, **ASK | {"documents": []})
    assert "documents" in str(error.body), error


run()
