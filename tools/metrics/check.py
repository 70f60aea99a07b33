"""Is /metrics what Prometheus reads, and are vLLM's names in it?

    pip install prometheus-client==0.23.1
    python tools/metrics/check.py http://127.0.0.1:8080/metrics [KEY]

Parses the page with the parser of Prometheus' own client package, which refuses what is not its
text form, and looks for the series that dashboards and autoscalers of vLLM ask for. Ends with 1 and
says why when anything is wrong.
"""

import sys
import urllib.request

from prometheus_client.parser import text_string_to_metric_families

GAUGES = [
    "num_requests_running",
    "num_requests_waiting",
    "kv_cache_usage_perc",
    "cache_config_info",
]
COUNTERS = [
    "prompt_tokens",
    "prompt_tokens_cached",
    "generation_tokens",
    "num_preemptions",
    "prefix_cache_queries",
    "prefix_cache_hits",
    "request_success",
    "spec_decode_num_drafts",
    "spec_decode_num_draft_tokens",
    "spec_decode_num_accepted_tokens",
]
HISTOGRAMS = [
    "time_to_first_token_seconds",
    "inter_token_latency_seconds",
    "time_per_output_token_seconds",
    "request_time_per_output_token_seconds",
    "e2e_request_latency_seconds",
    "request_queue_time_seconds",
    "request_inference_time_seconds",
    "request_prefill_time_seconds",
    "request_decode_time_seconds",
    "request_prompt_tokens",
    "request_generation_tokens",
    "request_params_max_tokens",
    "request_params_n",
    "request_prefill_kv_computed_tokens",
    "iteration_tokens_total",
]


def read(url, key):
    request = urllib.request.Request(url)
    if key:
        request.add_header("Authorization", f"Bearer {key}")
    with urllib.request.urlopen(request, timeout=10) as response:
        return response.read().decode()


def check_histogram(family):
    """Buckets of each set of labels rise, end at +Inf, and end with the count."""
    buckets, counts = {}, {}
    for sample in family.samples:
        labels = {name: value for name, value in sample.labels.items() if name != "le"}
        key = tuple(sorted(labels.items()))
        if sample.name.endswith("_bucket"):
            buckets.setdefault(key, []).append((float(sample.labels["le"]), sample.value))
        elif sample.name.endswith("_count"):
            counts[key] = sample.value
    for key, pairs in buckets.items():
        bounds = [bound for bound, _ in pairs]
        values = [value for _, value in pairs]
        assert bounds == sorted(bounds) and bounds[-1] == float("inf"), (family.name, key)
        assert values == sorted(values), (family.name, key)
        assert values[-1] == counts[key], (family.name, key)
    assert buckets.keys() == counts.keys(), family.name


def main():
    url, key = sys.argv[1], sys.argv[2] if len(sys.argv) > 2 else None
    families = list(text_string_to_metric_families(read(url, key)))
    names = [family.name for family in families]
    assert len(names) == len(set(names)), "a name has two heads"
    kinds = {family.name: family.type for family in families}
    for family in families:
        assert family.type in ("gauge", "counter", "histogram", "summary"), (family.name, family.type)
        assert family.documentation, f"{family.name} has no help"
        if family.type == "histogram":
            check_histogram(family)
        if family.type == "counter":
            assert all(sample.name.endswith("_total") for sample in family.samples), family.name
            assert all(sample.value >= 0 for sample in family.samples), family.name
    for kind, wanted in [("gauge", GAUGES), ("counter", COUNTERS), ("histogram", HISTOGRAMS)]:
        for name in wanted:
            found = kinds.get(f"vllm:{name}")
            assert found == kind, f"vllm:{name} is {found}, not a {kind}"
    for family in families:
        if family.name.startswith("vllm:"):
            assert all("model_name" in sample.labels for sample in family.samples), family.name
    print(f"{len(families)} series, all of them as Prometheus reads them")


main()
