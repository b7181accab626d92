"""What `make test` leaves out and `make test-all` runs: the same test of one more family, and what takes minutes.

Every family keeps its own comparison with transformers (tests/exporters/test_to_onnx.py, tests/models/families, tests/behaviour);
what is left out here is each a network more that is traced, which takes ten seconds whatever its size.
"""

from __future__ import annotations

import pytest

LEFT_OUT = {
    "tests/passes/test_quantize_static.py::test_graph_equals_torch_and_runs_on_integers": (
        "distilbert", "xlm-roberta", "electra", "mpnet", "albert",
    ),
    "tests/models/test_structure.py::test_reloading_and_exporting_keep_the_numbers": (
        "distilbert", "xlm-roberta", "electra", "mpnet",
    ),
    "tests/models/surgery/test_answers_pruned.py::test_it_comes_back_from_disk_and_answers_token_by_token": (
        "t5-hollow", "bart-narrow", "marian-hollow", "marian-narrow",
    ),
    "tests/models/surgery/test_decoders_pruned.py::test_it_comes_back_from_disk_and_generates_token_by_token": (
        "opt", "phi", "qwen2", "mistral", "qwen3", "gemma", "gpt_neox",
    ),
    "tests/passes/test_answers_pruned.py::test_the_time_asked_for_is_met_by_pruning_both": ("bart", "marian"),
    "tests/passes/test_answers_pruned.py::test_second_order_beats_plain_removal_of_the_same_units": ("bart", "marian"),
    "tests/passes/test_answers_pruned.py::test_a_pruned_network_learns_to_answer_as_the_whole_one": ("marian",),
    "tests/behaviour/test_audio.py::test_each_architecture_works_end_to_end": (
        "hubert-automatic-speech-recognition", "hubert-audio-classification",
    ),
    "tests/behaviour/test_detection.py::test_each_architecture_works_end_to_end": ("yolos",),
    "tests/behaviour/test_images.py::test_each_architecture_works_end_to_end": ("deit", "dinov2"),
    "tests/models/wrappers/test_image_features.py::test_each_architecture_gives_the_vector_that_transformers_gives": (
        "siglip", "dinov2",
    ),
    "tests/models/test_structure.py::test_a_pruned_embedding_model_keeps_its_pooling_and_quantizes": (
        "distilbert", "xlm-roberta", "electra", "mpnet",
    ),
    "tests/passes/test_answers_pruned.py::test_a_network_that_answers_is_quantized_by_what_each_group_costs": ("bart", "marian"),
    "tests/exporters/test_openvino_stateful.py::test_whole_texts_and_steps_are_torchs": ("gpt_neox",),
    "tests/exporters/test_openvino_stateful.py::test_it_goes_on_with_texts_as_the_other_runtime_does": ("gpt_neox",),
    "tests/models/surgery/test_audio_pruned.py::test_a_pruned_network_learns_from_the_whole_one": (
        "hubert-audio-classification",
    ),
    "tests/core/test_length_buckets.py::test_a_padded_text_has_the_answer_that_it_has_alone": ("token-classification",),
    "tests/edge/test_saturation.py::test_the_self_test_sees_what_saturates": ("token-classification",),
    "tests/exporters/test_half_precision.py::test_int8_for_tensorrt_is_symmetric_and_equals_torch": ("modernbert",),
}  # fmt: skip

# whole tests, which take minutes: workers and a node of a cluster are killed while they work; a family is trained
MINUTES = (
    "tests/workflow/cluster/test_faults.py::test_workers_and_a_node_that_die",
    # three networks are trained one after the other; one is in test_max_effort_…
    "tests/workflow/test_optimize.py::test_a_family_is_trained_on_from_member_to_member",
    # real weights, where they are in the cache: 135M parameters exported, tiny networks of the same shape are in every run
    "tests/edge/test_lookup.py::test_smollm2_writes_the_same_and_as_transformers_does",
    "tests/behaviour/test_llama_cpp.py::test_a_real_file_is_read_as_llama_cpp_reads_it",
)


def pytest_addoption(parser: pytest.Parser) -> None:
    """`--extended` for all of them."""
    parser.addoption("--extended", action="store_true", help="run the repetitions of tests/extended.py too")


def without_repetitions(config: pytest.Config, items: list[pytest.Item]) -> list[pytest.Item]:
    """The items that are to run; a test that is named on the command line runs whatever is said here."""
    if config.getoption("--extended") or any("::" in argument for argument in config.args):
        return items
    left_out = {*MINUTES, *(f"{name}[{case}]" for name, cases in LEFT_OUT.items() for case in cases)}
    return [item for item in items if item.nodeid not in left_out]
