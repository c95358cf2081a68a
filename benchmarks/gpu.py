"""The stages on a CUDA GPU in torch: eager, replayed as one CUDA graph, and compiled before that.

    python benchmarks/gpu.py                       # benchmarks/gpu.json
    python benchmarks/gpu.py --device cpu --small  # the same code without a GPU, sizes that mean nothing

Needs torch alone, no ROS and no weights: sizes decide the time. The paper's model has a language model
of Vicuna-7B's shape. Beside each time stands what the machine could do: bandwidth and matrix rate are
measured in the same run.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.measuring import command, interleaved, machine, spread
from sparseoccvla.anchors import analytic_anchors
from sparseoccvla.backbone import BackboneConfig
from sparseoccvla.encoder import Encoder, EncoderConfig
from sparseoccvla.engines.graphs import BackboneGraph, DecoderGraph, PlannerGraph, ReasonerGraph, StageGraph
from sparseoccvla.language import LanguageConfig
from sparseoccvla.model import ModelConfig, read_config
from sparseoccvla.planner import Planner, PlannerConfig
from sparseoccvla.reasoner import Reasoner, ReasonerConfig
from sparseoccvla.runtime.exported import fixed_inputs
from sparseoccvla.runtime.manifest import find_model
from sparseoccvla.runtime.torch_backend import compile_parts

PROMPT_TOKENS = 88  # with 600 occupancy and 12 global tokens about 700
COMPILED = "compiled bf16, replayed"
WAYS = ("eager bf16", "replayed bf16", COMPILED)
CHAIN = ("backbone", "decoder", "reasoner", "planner")


def sizes(small: bool) -> dict[str, ModelConfig]:
    """Configurations to measure, by name."""
    if small:
        language = LanguageConfig(width=32, layers=1, heads=2, ffn_width=32, vocabulary=64, dtype="float32")
        return {"small": _of_sizes(
            EncoderConfig(
                image_size_px=(64, 128), frames=2, backbone=BackboneConfig("small", 8, (8, 16), (1, 1), 32),
                queries=12, width=32, heads=4, sampling_points=2, mixing_points=4, ffn_width=32,
                points=(2, 4),
            ),
            language, PlannerConfig(width=32, heads=4, ffn_width=32),
        )}  # fmt: skip
    paper = _of_sizes(EncoderConfig(), LanguageConfig(dtype="bfloat16"), PlannerConfig())
    return {"tiny": read_config(find_model("tiny") / "config.json"), "paper": paper}


def _of_sizes(encoder: EncoderConfig, language: LanguageConfig, planner: PlannerConfig) -> ModelConfig:
    language = replace(language, lora_rank=0)  # merged, as it is for driving
    return ModelConfig(
        encoder,
        ReasonerConfig(query_width=encoder.width, language=language),
        replace(planner, query_width=encoder.width, token_width=language.width),
    )


def stage_graphs(config: ModelConfig, device: torch.device) -> dict[str, StageGraph]:
    """The four stages with random weights."""
    shape = (config.encoder.queries, config.encoder.points[-1])
    with torch.device(device):
        encoder, reasoner, planner = (
            Encoder(config.encoder), Reasoner(config.reasoner), Planner(config.planner)
        )  # fmt: skip
    ids = torch.arange(PROMPT_TOKENS, device=device) % config.reasoner.language.vocabulary
    graphs: dict[str, StageGraph] = {
        "backbone": BackboneGraph(encoder),
        "decoder": DecoderGraph(encoder),
        "reasoner": ReasonerGraph(reasoner, *shape, ids),
        "planner": PlannerGraph(planner, *shape, analytic_anchors()),
    }
    return {name: graph.eval().requires_grad_(False).to(device) for name, graph in graphs.items()}


def inputs_of(graph: StageGraph, name: str, config: ModelConfig, device: torch.device) -> list[Tensor]:
    arrays = fixed_inputs(name, graph.inputs, config.encoder.image_size_px).values()
    return [torch.from_numpy(array).to(device) for array in arrays]


def with_half_weights(graph: nn.Module) -> nn.Module:
    """Matrices and kernels in bf16 for good, so that autocast has only activations to convert; kernels with
    channels last, as matrix units read them.
    """
    for module in graph.modules():
        if isinstance(module, (nn.Linear, nn.Conv2d)):
            module.to(torch.bfloat16)
        if isinstance(module, nn.Conv2d):
            module.to(memory_format=torch.channels_last)
    return graph


def runner(graph: nn.Module, inputs: list[Tensor], half: bool) -> Callable[[], Any]:
    """One eager run that has ended when it returns."""
    device = inputs[0].device

    def run() -> Any:
        with torch.inference_mode(), torch.autocast(device.type, torch.bfloat16, enabled=half):
            outputs = graph(*inputs)
        _wait(device)
        return outputs

    return run


def replayed(graph: nn.Module, inputs: list[Tensor]) -> tuple[Callable[[], Any], Any]:
    """One run as a single launch, and the tensors it writes to; on a CPU just a run."""
    device = inputs[0].device
    if device.type != "cuda":
        run = runner(graph, inputs, half=True)
        return run, run()
    with torch.inference_mode(), torch.autocast("cuda", torch.bfloat16, cache_enabled=False):
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):  # libraries choose their kernels before the capture
                graph(*inputs)
        torch.cuda.current_stream().wait_stream(stream)
        captured = torch.cuda.CUDAGraph()
        with torch.cuda.graph(captured):
            outputs = graph(*inputs)

    def run() -> Any:
        captured.replay()
        _wait(device)
        return outputs

    return run, outputs


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def kernels(run: Callable[[], Any], most: int = 12) -> dict[str, Any]:
    """Where one run's time on the GPU goes: how many kernels, their sum, and the longest by name."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        run()
    found = [row for row in profiler.key_averages() if row.device_time_total]
    found.sort(key=lambda row: -row.device_time_total)
    return {
        "kernels": sum(row.count for row in found),
        "busy_ms": round(sum(row.device_time_total for row in found) / 1e3, 3),
        "longest": [
            {"name": row.key[:100], "ms": round(row.device_time_total / 1e3, 3), "n": row.count}
            for row in found[:most]
        ],
    }


def roofline(device: torch.device, small: bool) -> dict[str, float]:
    """Bandwidth of a copy and rates of a large product, each the best of ten."""
    bytes_ = 2**20 if small else 2**30
    side = 256 if small else 8192
    source = torch.zeros(bytes_, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)

    def best_s(work: Callable[[], object]) -> float:
        took = []
        for _ in range(10):
            _wait(device)
            start = time.perf_counter()
            work()
            _wait(device)
            took.append(time.perf_counter() - start)
        return min(took)

    figures = {"bandwidth_gb_per_s": 2 * bytes_ / best_s(lambda: target.copy_(source)) / 1e9}
    for name, dtype in (("bf16", torch.bfloat16), ("fp32", torch.float32)):
        # Not of ones: they switch fewer bits, and a product of them is a tenth faster.
        a = torch.randn(side, side, device=device).to(dtype)
        figures[f"{name}_tflop_per_s"] = 2 * side**3 / best_s(lambda a=a: a @ a) / 1e12
    return {name: round(value, 3) for name, value in figures.items()}


def prefill_bound_ms(config: ModelConfig, bound: dict[str, float]) -> float:
    """The least a prefill takes here: its products at the matrix rate, its weights once over the bus."""
    language = config.reasoner.language
    weights = language.layers * (4 * language.width**2 + 3 * language.width * language.ffn_width)
    tokens = config.encoder.queries + config.reasoner.global_tokens + PROMPT_TOKENS + 1
    attention = 4 * language.layers * language.width * tokens**2
    compute_s = (2 * weights * tokens + attention) / (bound["bf16_tflop_per_s"] * 1e12)
    return max(compute_s, 2 * weights / (bound["bandwidth_gb_per_s"] * 1e9)) * 1e3


def measure(
    config: ModelConfig, device: torch.device, rounds: int, bound: dict[str, float], compiled: bool
) -> dict[str, Any]:
    """All stages of one model in every way, in turn."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    graphs = stage_graphs(config, device)
    inputs = {name: inputs_of(graph, name, config, device) for name, graph in graphs.items()}
    works: dict[str, Callable[[], Any]] = {}
    took_ms: dict[str, list[float]] = {}
    for name, graph in graphs.items():
        works[f"{name}, eager fp32"] = runner(graph, inputs[name], half=False)
        works[f"{name}, eager bf16"] = runner(graph, inputs[name], half=True)
    works["all four, eager bf16"] = _chain([works[f"{name}, eager bf16"] for name in CHAIN])
    took_ms |= interleaved(works, rounds)
    # Halved afterwards, in place: two copies of seven billion weights would not fit.
    for graph in graphs.values():
        with_half_weights(graph)
    where = {}
    ways = WAYS if compiled else WAYS[:2]
    for way in ways[1:]:
        if way == COMPILED:
            for graph in graphs.values():
                if not isinstance(graph, DecoderGraph):  # its network is the backbone's
                    compile_parts(graph.net)
        began = time.perf_counter()
        fast = {f"{name}, {way}": replayed(graph, inputs[name])[0] for name, graph in graphs.items()}
        where[way] = {"seconds_to_record": round(time.perf_counter() - began, 1)}
        if device.type == "cuda":
            where[way] |= {name.split(",")[0]: kernels(run) for name, run in fast.items()}
        fast[f"all four, {way}"] = _chain([fast[f"{name}, {way}"] for name in CHAIN])
        took_ms |= interleaved(fast, rounds)
    table = {name: spread(times) for name, times in took_ms.items()}

    def p50(name: str) -> float:
        return float(table[name]["p50"])

    encoder = {way: sum(p50(f"{n}, {way}") for n in CHAIN[:2]) for way in ways}
    prefill_ms = prefill_bound_ms(config, bound)
    return {
        "parameters": sum(p.numel() for g in graphs.values() for p in g.parameters()),
        "peak_memory_gib": (
            round(torch.cuda.max_memory_allocated(device) / 2**30, 2) if device.type == "cuda" else None
        ),
        "stages_ms": table,
        "prefill_bound_ms": round(prefill_ms, 3),
        "ways": {
            way: {
                "encoder_and_planner_ms": round(encoder[way] + p50(f"planner, {way}"), 3),
                "encoder_times_faster_than_eager_bf16": round(encoder[WAYS[0]] / encoder[way], 2),
                "reasoner_over_bound": round(p50(f"reasoner, {way}") / prefill_ms, 2),
                "all_four_ms": p50(f"all four, {way}"),
            }
            for way in ways
        },
        "where_time_goes": where,
    }


def _chain(works: list[Callable[[], Any]]) -> Callable[[], None]:
    def run() -> None:
        for work in works:
            work()

    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("gpu.json"))
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--rounds", type=int, default=50)
    parser.add_argument("--models", nargs="+", help="some of them")
    parser.add_argument("--compiled", action="store_true", help="also compiled, which takes minutes")
    parser.add_argument("--small", action="store_true", help="sizes that only show that the code runs")
    args = parser.parse_args()
    if args.device == "cuda" and not torch.cuda.is_available():
        print("benchmarks/gpu.py: no CUDA GPU here, nothing measured", file=sys.stderr)
        return
    device = torch.device(args.device)
    torch.manual_seed(0)
    with torch.inference_mode() if device.type == "cuda" else nullcontext():
        bound = roofline(device, args.small)
    report = {
        "what": "each stage alone and all four in a row, random weights, inputs on the device",
        "command": command(),
        "gpu": torch.cuda.get_device_name(device) if device.type == "cuda" else "none",
        **machine(),
        "roofline": bound,
        "models": {
            name: measure(config, device, args.rounds, bound, args.compiled)
            for name, config in sizes(args.small).items()
            if not args.models or name in args.models
        },
    }
    args.out.write_text(json.dumps(report, indent=2) + "\n")
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
