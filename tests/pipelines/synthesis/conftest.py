"""Fixtures: what judges synthetic faces, and a real face."""

import numpy as np
import numpy.typing as npt
import pytest
from visaged.pipelines.detector import DetectorConfig, build_detector
from visaged.pipelines.engines.ort_engine import OrtEngine
from visaged.pipelines.model_store import ModelStore
from visaged.pipelines.synthesis.admission import Admission, KnownFace

U8 = npt.NDArray[np.uint8]


@pytest.fixture(scope="session")
def admission(store: ModelStore) -> Admission:
    """The real detector and the real identity network."""
    return Admission(
        build_detector(DetectorConfig(min_face_px=60), store), OrtEngine(store.ensure("face-resnet"))
    )


@pytest.fixture(scope="session")
def known(admission: Admission, astronaut: U8) -> KnownFace:
    """The astronaut, who looks into the camera."""
    return admission.known_face(np.ascontiguousarray(astronaut[:360, 60:400]))  # searched faster
