"""Native libraries that do not get along unless they are loaded in the right order."""

import subprocess
import sys


def test_a_large_gallery_and_the_networks_fit_into_one_process() -> None:
    program = (
        "import numpy as np\n"
        "from visaged.pipelines.template_index import build_index\n"
        "build_index(np.eye(8, dtype=np.float32), np.arange(8), exact_up_to=1)\n"
        "import visaged.pipelines.ort_engine\n"
    )

    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stderr
