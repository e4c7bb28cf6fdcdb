"""Native libraries that are loaded in the right way: not crashing each other, and reporting to nobody."""

import os
import subprocess
import sys
from pathlib import Path


def test_a_large_gallery_and_the_networks_fit_into_one_process() -> None:
    program = (
        "import numpy as np\n"
        "from visaged.pipelines.identity.template_index import build_index\n"
        "build_index(np.eye(8, dtype=np.float32), np.arange(8), exact_up_to=1)\n"
        "import visaged.pipelines.engines.ort_engine\n"
    )

    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stderr


def test_the_runtime_of_the_networks_keeps_its_telemetry_off(tmp_path: Path) -> None:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("ORT_")}
    places = {"TMPDIR": str(tmp_path), "HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path)}
    program = "import visaged.pipelines.engines.ort_engine"

    subprocess.run([sys.executable, "-c", program], check=True, env=environment | places)

    assert list(tmp_path.iterdir()) == [], "onnxruntime began a telemetry session"
