"""Releases change under load on a real GPU: no answer mixes two of them, and no memory stays behind."""

import queue
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from visaged.pipelines.engines.cuda_device import Gpu
from visaged.pipelines.engines.engine_loader import EngineInfo
from visaged.pipelines.engines.parity_inputs import face_chips
from visaged.pipelines.engines.plan import Backend, Precision, Profile
from visaged.pipelines.engines.precision import to_fp16
from visaged.pipelines.engines.trt_builder import build_trt_plan
from visaged.pipelines.engines.trt_engine import TrtEngine
from visaged.pipelines.ensemble import Ensemble, Member, Outputs
from visaged.pipelines.model_store import ModelStore
from visaged.pipelines.registry import NETWORKS

pytestmark = pytest.mark.gpu

F32 = npt.NDArray[np.float32]

N_SWAPS, N_FIRST = 50, 10  # the first take what libraries keep for good
MAX_LOST_BYTES = 32 << 20  # over all later swaps; one lost engine a swap would be over 1 GB
PATIENCE_S = 300.0


def negated(data: bytes) -> bytes:
    """Return an ONNX graph whose every answer is that of `data`, negated: not to be mistaken for it."""
    model = onnx.load_model_from_string(data)
    for output in model.graph.output:
        plain = f"{output.name}_plain"
        for node in model.graph.node:
            node.input[:] = [plain if name == output.name else name for name in node.input]
            node.output[:] = [plain if name == output.name else name for name in node.output]
        model.graph.node.append(onnx.helper.make_node("Neg", [plain], [output.name]))
    return bytes(model.SerializeToString())


CHANGES: tuple[Callable[[bytes], bytes], ...] = (bytes, negated)


def build(network: str, data: bytes, backend: Backend, path: Path) -> Path:
    """Return the plan of an ONNX graph, in fp16, with one profile for a face and one for many."""
    recipe = NETWORKS[network].recipe
    chip = (len(recipe.mean), recipe.size, recipe.size)
    small = Profile(minimum=(1, *chip), optimum=(1, *chip), maximum=(4, *chip))
    whole = Profile(minimum=(1, *chip), optimum=(8, *chip), maximum=(16, *chip))
    path.write_bytes(build_trt_plan(to_fp16(data), backend, [small, whole]).data)
    return path


def load(plans: dict[str, Path], backend: Backend) -> Ensemble:
    """Return a warm ensemble of `plans`."""
    info = EngineInfo(backend=backend, precision=Precision.FP16, device="cuda:0")
    members = [
        Member(NETWORKS[network], TrtEngine(path, backend), path.name, info)
        for network, path in plans.items()
    ]
    ensemble = Ensemble(members)
    ensemble.warm_up()
    return ensemble


def nearest(answers: F32, expected: list[F32]) -> int:
    """Return which of `expected` the answers are."""
    distances = [float(np.linalg.norm(answers - truth)) for truth in expected]
    assert min(distances) < 0.1 * max(distances), f"neither release: {distances}"
    return int(np.argmin(distances))


def test_fifty_swaps_under_load_mix_no_answers_and_keep_no_memory(
    flavour: Backend, gpu: Gpu, store: ModelStore, tmp_path: Path
) -> None:
    graphs = {network: store.ensure(network).read_bytes() for network in NETWORKS}
    releases = [
        {n: build(n, change(data), flavour, tmp_path / f"{n}-{turn}") for n, data in graphs.items()}
        for turn, change in enumerate(CHANGES)
    ]
    chips = {network.recipe: face_chips(network.recipe) for network in NETWORKS.values()}
    expected: list[Outputs] = []
    for plans in releases:
        ensemble = load(plans, flavour)
        expected.append(ensemble.infer(chips))
        ensemble.close()
    ready: queue.Queue[Ensemble | BaseException] = queue.Queue()
    wanted = threading.Semaphore(1)  # one ensemble at a time, so that memory is looked at with one loaded
    free: list[int] = []

    def prepare() -> None:
        try:
            for turn in range(N_SWAPS):
                assert wanted.acquire(timeout=PATIENCE_S)
                ready.put(load(releases[(turn + 1) % 2], flavour))
        except BaseException as error:  # shown by the thread that waits
            ready.put(error)

    active, n_swaps, deadline_s = load(releases[0], flavour), 0, time.monotonic() + PATIENCE_S
    thread = threading.Thread(target=prepare, daemon=True)
    thread.start()
    while n_swaps < N_SWAPS:
        assert time.monotonic() < deadline_s, f"{n_swaps} swaps in {PATIENCE_S} s"
        answers = active.infer(chips)
        assert nearest(answers.embeddings, [e.embeddings for e in expected]) == n_swaps % 2
        assert nearest(answers.logits, [e.logits for e in expected]) == n_swaps % 2
        if ready.empty():
            continue
        taken = ready.get()
        if isinstance(taken, BaseException):
            raise taken
        before, active = active, taken
        retire = threading.Thread(target=before.close)  # as the daemon frees them
        retire.start()
        retire.join()
        n_swaps += 1
        with gpu.current():
            free.append(gpu.free_bytes())
        wanted.release()
    thread.join()
    active.close()

    slope = np.polyfit(np.arange(N_SWAPS - N_FIRST), free[N_FIRST:], 1)[0]
    assert -slope * (N_SWAPS - N_FIRST) < MAX_LOST_BYTES, f"{-slope / 1e6:.2f} MB lost a swap"
