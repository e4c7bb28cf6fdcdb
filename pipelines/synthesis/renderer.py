"""Another view of a face from one photo: its picture on the average face's surface, turned, lit and bent.

Shape letters: V vertices of the scene, T triangles, H W photo.
"""

from dataclasses import dataclass
from typing import Self

import cv2
import numpy as np
import numpy.typing as npt
from scipy.spatial import Delaunay

from ...kernels.rasteriser import rasterise
from .face_mesh import LANDMARK_VERTICES, face_mesh, rotation
from .pose import Pose, fit_pose

U8 = npt.NDArray[np.uint8]
F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]
I64 = npt.NDArray[np.int64]

REACH_CM = 21.0  # from the middle of the face to the sides of the square that is turned with it
MAX_REACH_PX = 320.0  # a larger photo is scaled down: no network here sees more of a face
ANCHORS_A_SIDE = 6  # points on the border of the square, which do not move
ANCHOR_DEPTH_CM = 25.0  # how far they are behind the face
SHAPE_REACH_CM = 4.0  # how far the correction at a landmark is felt on the face
AMBIENT, DIFFUSE = 0.55, 0.7  # of the light
LIGHT_AT_OUTLINE = 0.3  # share of the light at the border of the face, where hair or background begins
SOFT_LIGHT_CM = 0.6  # standard deviation by which shading is smoothed: the mesh has no pores
RATIO = (0.45, 1.3)  # darker and brighter than the photo at most
FRONTALISED = (15.0, 35.0)
INPAINT_PX = 3.0
EDGE_JUMP_PX = 6.0  # between neighbours in the photo that are not neighbours in the face


@dataclass(frozen=True, slots=True)
class Source:
    """A photo with one face whose pose is known.

    `photo` is `(H, W, 3)` uint8 RGB, scaled down if the face was very large; `landmarks` `(5, 2)` px in it.
    """

    photo: U8
    landmarks: F32
    pose: Pose

    @classmethod
    def of(cls, photo: U8, landmarks: F32) -> Self:
        """Return the source of a photo, given dlib's landmarks of its face.

        Raises:
            ValueError: wrong shapes, or landmarks that are not finite or all coincide.
        """
        if photo.ndim != 3 or photo.shape[2] != 3 or photo.dtype != np.uint8:
            raise ValueError(f"photo must be (H, W, 3) uint8: {photo.shape=} {photo.dtype=}")
        pose = fit_pose(landmarks)
        scale = MAX_REACH_PX / (REACH_CM * abs(pose.scale_roll))
        if scale < 1:
            size = max(1, round(photo.shape[1] * scale)), max(1, round(photo.shape[0] * scale))
            ratio = np.array(size, np.float32) / [photo.shape[1], photo.shape[0]]
            photo = cv2.resize(photo, size, interpolation=cv2.INTER_AREA).astype(np.uint8)
            landmarks = ((landmarks + 0.5) * ratio - 0.5).astype(np.float32)
            pose = fit_pose(landmarks)
        return cls(photo, landmarks, pose)


@dataclass(frozen=True, slots=True)
class View:
    """What is wanted: degrees to turn by, where light comes from, how the face is bent.

    `light` is a direction in the picture's frame (x right, y down, z towards the viewer), or None: as it
    is. `bend` is `(468, 3)` cm in the frame of a frontal face, or None.
    """

    yaw: float = 0.0
    pitch: float = 0.0
    light: tuple[float, float, float] | None = None
    bend: F64 | None = None


@dataclass(frozen=True, slots=True)
class Rendering:
    """What came of it: `photo` `(H, W, 3)` uint8 RGB, the head's yaw and pitch in degrees now.

    `hole_share` is the share of the redrawn square's pixels that no surface covered and that were filled in;
    `landmarks` `(5, 2)` px are where the face's landmarks went.
    """

    photo: U8
    yaw: float
    pitch: float
    hole_share: float
    landmarks: F32


def render(source: Source, view: View) -> Rendering:
    """Return `source` as `view` says; what is far from the face stays as it is.

    Source: Zhu et al., "Face alignment across large poses: a 3D solution", CVPR 2016, for turning face and
    background; Shashua and Riklin-Raviv, "The quotient image", PAMI 2001, for light as a ratio.
    """
    low, side = _square(source.pose)
    scene = Scene.of(source, low, side)
    after = scene.turned(view)
    which, weights = rasterise(after, scene.triangles, side, side)
    is_hole = which < 0
    corners = scene.triangles[which]  # (side, side, 3); of holes any
    mapped: F32 = (weights[..., None] * scene.before[corners, :2]).sum(axis=2).astype(np.float32)
    square = _cut(source.photo, low, side)
    x, y = mapped[..., 0], mapped[..., 1]
    taken = cv2.remap(square, x, y, cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE)
    shown = _without_stairs(taken.astype(np.uint8), mapped)
    if is_hole.any():
        filled = cv2.inpaint(shown, is_hole.astype(np.uint8), INPAINT_PX, cv2.INPAINT_TELEA)
        shown = filled.astype(np.uint8)
    if view.light is not None:
        ratio = scene.light_ratio(after, view.light)
        smooth = SOFT_LIGHT_CM * abs(source.pose.scale_roll)
        at_pixel = cv2.GaussianBlur((weights * ratio[corners]).sum(axis=2) + is_hole, (0, 0), smooth)
        shown = np.clip(shown * at_pixel[..., None], 0, 255).round().astype(np.uint8)
    photo = _paste(source.photo, shown, low)
    return Rendering(
        photo,
        source.pose.yaw + view.yaw,
        source.pose.pitch + view.pitch,
        float(is_hole.mean()),
        (after[LANDMARK_VERTICES, :2] + low).astype(np.float32),
    )


def frontalised(source: Source) -> Rendering | None:
    """Return the face looking straight ahead if it is turned enough to gain and little enough to work.

    This is the renderer used backwards: a pose normalisation. None outside of `FRONTALISED` degrees of yaw:
    below, a face is as good as frontal; above, half of it would be guessed.

    Source: the purpose is that of Hassner et al., "Effective face frontalization in unconstrained images",
    CVPR 2015; no half is mirrored onto the other here.
    """
    low, high = FRONTALISED
    if not low < abs(source.pose.yaw) <= high:
        return None
    return render(source, View(yaw=-source.pose.yaw))


@dataclass(frozen=True, slots=True)
class Scene:
    """Face, rings and border anchors as one surface over the square around a face.

    `points` is `(V, 3)` cm in the frontal frame, without the anchors; `before` `(V', 3)` px of the square,
    with them; `triangles` `(T, 3)` indices into `before`.
    """

    pose: Pose
    low: I64
    points: F64
    before: F64
    triangles: I64

    @classmethod
    def of(cls, source: Source, low: I64, side: int) -> Self:
        """Return the scene of a source's square, of `side` px from `low` px on."""
        mesh, pose = face_mesh(), source.pose
        turn = rotation(pose.yaw, pose.pitch)
        points = mesh.vertices + _shape_correction(source) @ turn
        flat = pose.project(points @ turn.T) - [*low, 0]
        anchors = _anchors(side, -ANCHOR_DEPTH_CM * abs(pose.scale_roll))
        before = np.concatenate([flat, anchors])
        return cls(
            pose, low, points, before, _with_background(before, mesh.triangles, mesh.outline, mesh.n_face)
        )

    def turned(self, view: View) -> F64:
        """Return `(V', 3)` px of the square where everything is after `view`."""
        mesh, pose = face_mesh(), self.pose
        points = self.points.copy()
        if view.bend is not None:
            points[: mesh.n_face] += view.bend
        turned = np.empty_like(points)
        for share in np.unique(mesh.shares):
            turn = rotation(pose.yaw + share * view.yaw, pose.pitch + share * view.pitch)
            turned[mesh.shares == share] = (points[mesh.shares == share] - mesh.pivot) @ turn.T
        turned += rotation(pose.yaw, pose.pitch) @ mesh.pivot
        flat = pose.project(turned) - [*self.low, 0]
        return np.concatenate([flat, self.before[len(flat) :]])

    def light_ratio(self, after: F64, light: tuple[float, float, float]) -> F32:
        """Return `(V',)` how much brighter each vertex is under `light` than under light from the viewer."""
        normals = vertex_normals(after, self.triangles)
        towards = np.array(light, np.float64) / np.linalg.norm(light)
        lit = AMBIENT + DIFFUSE * np.maximum(normals @ towards, 0)
        plain = AMBIENT + DIFFUSE * np.maximum(normals[:, 2], 0)
        mesh = face_mesh()
        felt = np.zeros(len(after))  # what is behind the face has a light of its own
        felt[: mesh.n_face], felt[mesh.outline] = 1, LIGHT_AT_OUTLINE
        exposed = lit / plain / (lit / plain)[: mesh.n_face].mean()  # as a camera would
        ratio: F32 = (1 + felt * (np.clip(exposed, *RATIO) - 1)).astype(np.float32)
        return ratio


def _without_stairs(shown: U8, mapped: F32) -> U8:
    """Return the picture softened where a surface ends in front of another: a z-buffer has hard edges."""
    across, down = (np.abs(np.diff(mapped, axis=axis, append=np.take(mapped, [-1], axis))) for axis in (1, 0))
    jump = (across + down).sum(axis=2)
    is_edge = cv2.dilate((jump > EDGE_JUMP_PX).astype(np.float32), np.ones((2, 2)))
    share = cv2.GaussianBlur(is_edge, (0, 0), 0.7)[..., None]
    soft = cv2.GaussianBlur(shown, (0, 0), 1.0)
    return np.asarray(share * soft + (1 - share) * shown + 0.5, np.uint8)


def vertex_normals(points: F64, triangles: I64) -> F64:
    """Return `(V, 3)` unit normals, towards the viewer, of a surface in px: mean of those around, by area."""
    a, b, c = points[triangles].transpose(1, 0, 2)
    normals = np.cross(b - a, c - a)
    normals *= np.where(normals[:, 2:] < 0, -1, 1)
    summed = np.zeros_like(points)
    for corner in range(3):
        np.add.at(summed, triangles[:, corner], normals)
    length = np.linalg.norm(summed, axis=1, keepdims=True)
    return np.asarray(summed / np.maximum(length, 1e-9), np.float64)


def _shape_correction(source: Source) -> F64:
    """Return `(V, 3)` cm in the turned frame by which the average face is bent to meet the landmarks."""
    mesh, pose = face_mesh(), source.pose
    turned = mesh.vertices @ rotation(pose.yaw, pose.pitch).T
    wanted = pose.unproject(source.landmarks.astype(np.float64)) - turned[LANDMARK_VERTICES, :2]
    marks = mesh.vertices[LANDMARK_VERTICES]
    kernel = _felt(marks, marks)
    correction = np.zeros_like(turned)
    correction[:, :2] = _felt(mesh.vertices, marks) @ np.linalg.solve(kernel, wanted)
    return correction


def _felt(points: F64, marks: F64) -> F64:
    """Return `(V, 5)` how much each point follows each mark."""
    apart = np.linalg.norm(points[:, None] - marks[None], axis=2)
    felt: F64 = np.exp(-((apart / SHAPE_REACH_CM) ** 2))
    return felt


def _with_background(before: F64, triangles: I64, outline: I64, n_face: int) -> I64:
    """Return the triangles of the face and of all that is around it."""
    around = np.concatenate([outline, np.arange(n_face, len(before))])
    outer = around[Delaunay(before[around, :2]).simplices]
    contour = before[outline, :2].astype(np.float32)
    centres = before[outer, :2].mean(axis=1)
    is_outside = [cv2.pointPolygonTest(contour, (float(x), float(y)), False) < 0 for x, y in centres]
    return np.concatenate([triangles, outer[is_outside]])


def _anchors(side: int, depth: float) -> F64:
    """Return `(20, 3)` px on the border of the square."""
    steps = np.linspace(0, side - 1, ANCHORS_A_SIDE)
    rim = [(x, y) for x in steps for y in steps if {x, y} & {steps[0], steps[-1]}]
    return np.column_stack([rim, np.full(len(rim), depth)])


def _square(pose: Pose) -> tuple[I64, int]:
    """Return corner `(2,)` px and side in px of the square around the face; it may leave the photo."""
    mesh = face_mesh()
    middle = mesh.vertices[mesh.outline].mean(axis=0) @ rotation(pose.yaw, pose.pitch).T
    centre = pose.project(middle[None])[0, :2]
    reach = max(8.0, REACH_CM * abs(pose.scale_roll))
    return np.floor(centre - reach).astype(np.int64), int(2 * reach) + 1


def _cut(photo: U8, low: I64, side: int) -> U8:
    """Return the square; beyond the photo its border goes on."""
    rows = np.clip(np.arange(low[1], low[1] + side), 0, photo.shape[0] - 1)
    columns = np.clip(np.arange(low[0], low[0] + side), 0, photo.shape[1] - 1)
    square: U8 = photo[rows[:, None], columns]
    return square


def _paste(photo: U8, square: U8, low: I64) -> U8:
    """Return a copy of the photo with the part of the square that lies in it."""
    left, top = (int(value) for value in low)
    whole = photo.copy()
    into = whole[max(top, 0) : max(top + len(square), 0), max(left, 0) : max(left + len(square), 0)]
    into[:] = square[max(-top, 0) :, max(-left, 0) :][: into.shape[0], : into.shape[1]]
    return whole
