// Paint the canvas of the tiled pyramid: paint_canvas of pyramid.py on the GPU.
//
// On one stream and in this order,
//
//   paint_frame   once: the normalised frame at its place, level 0
//   paint_level   once per level k = 1, 2, ...: from level k - 1, which lies on the canvas already
//
// Launch with blocks of 32 x 8 threads; x and y of the grid cover the level painted.
//
// Buffers: the frame is uint8 RGB, rows `stride_bytes` apart; the canvas is (3, H, W) float32; `levels` are
// the rows of Layout.levels as int32, on the device. Gaps are never written: fill a new canvas with 0, once
// per layout. INVARIANT: levels do not touch (lay_out), so reading and writing one canvas is safe.
//
// The arithmetic is NumPy's, operation by operation, so compile with -fmad=false (-ffp-contract=off for
// g++); then every value equals that of pyramid.py.

#include <stddef.h>
#include <stdint.h>

#ifdef __CUDACC__
#define ON_BOTH __host__ __device__ inline
#else
#define ON_BOTH static inline
#endif

// Where a level lies on the canvas, in px. INVARIANT: the order of a row of Layout.levels.
struct Level {
    int32_t left, top, width, height;
};
static_assert(sizeof(Level) == 16, "Layout.levels has another layout");

struct Canvas {
    float *first;
    int height, width;
};

// A pixel of level `on` in channel `c`.
ON_BOTH float *pixel_of(const Canvas &canvas, const Level &on, int x, int y, int c)
{
    return canvas.first + ((size_t)c * canvas.height + on.top + y) * canvas.width + on.left + x;
}

// Between which two of `last + 1` rows or columns one lies, and how far towards the second.
struct Blend {
    int low, high;
    float share;
};

// `step` is last / max(n - 1, 1), a double like in pyramid.py, where n rows or columns are painted.
ON_BOTH Blend blend_at(int index, double step, int last)
{
    const double at = index * step;
    const int low = (int)at < last ? (int)at : last;
    return {low, low < last ? low + 1 : last, (float)(at - low)};
}

ON_BOTH float mix(float low, float high, float share) { return (high - low) * share + low; }

// One pixel of the frame, all channels.
ON_BOTH void paint_frame_at(int x, int y, const uint8_t *frame, int64_t stride_bytes, const Canvas &canvas,
                            const Level &to, const float *mean, float inverse_scale)
{
    if (x >= to.width || y >= to.height) return;
    const uint8_t *rgb = frame + y * stride_bytes + 3 * (int64_t)x;
    for (int c = 0; c < 3; c++) *pixel_of(canvas, to, x, y, c) = ((float)rgb[c] - mean[c]) * inverse_scale;
}

// One pixel of a level, all channels: rows blended first, then columns.
ON_BOTH void paint_level_at(int x, int y, const Canvas &canvas, const Level &from, const Level &to,
                            double step_x, double step_y)
{
    if (x >= to.width || y >= to.height) return;
    const Blend across = blend_at(x, step_x, from.width - 1), down = blend_at(y, step_y, from.height - 1);
    for (int c = 0; c < 3; c++) {
        const float left = mix(*pixel_of(canvas, from, across.low, down.low, c),
                               *pixel_of(canvas, from, across.low, down.high, c), down.share);
        const float right = mix(*pixel_of(canvas, from, across.high, down.low, c),
                                *pixel_of(canvas, from, across.high, down.high, c), down.share);
        *pixel_of(canvas, to, x, y, c) = mix(left, right, across.share);
    }
}

#ifdef __CUDACC__

#define HERE_X (int)(blockIdx.x * blockDim.x + threadIdx.x)
#define HERE_Y (int)(blockIdx.y * blockDim.y + threadIdx.y)

extern "C" __global__ void paint_frame(const uint8_t *frame, int64_t stride_bytes, float *canvas,
                                       int canvas_height, int canvas_width, const Level *levels,
                                       float mean_red, float mean_green, float mean_blue,
                                       float inverse_scale)
{
    const float mean[3] = {mean_red, mean_green, mean_blue};
    paint_frame_at(HERE_X, HERE_Y, frame, stride_bytes, {canvas, canvas_height, canvas_width}, levels[0],
                   mean, inverse_scale);
}

extern "C" __global__ void paint_level(float *canvas, int canvas_height, int canvas_width,
                                       const Level *levels, int level, double step_x, double step_y)
{
    paint_level_at(HERE_X, HERE_Y, {canvas, canvas_height, canvas_width}, levels[level - 1], levels[level],
                   step_x, step_y);
}

#else

// For the tests: the same arguments, then how many threads the grid has in x and y.

extern "C" void paint_frame(const uint8_t *frame, int64_t stride_bytes, float *canvas, int canvas_height,
                            int canvas_width, const Level *levels, float mean_red, float mean_green,
                            float mean_blue, float inverse_scale, int across, int down)
{
    const float mean[3] = {mean_red, mean_green, mean_blue};
    for (int y = 0; y < down; y++)
        for (int x = 0; x < across; x++)
            paint_frame_at(x, y, frame, stride_bytes, {canvas, canvas_height, canvas_width}, levels[0], mean,
                           inverse_scale);
}

extern "C" void paint_level(float *canvas, int canvas_height, int canvas_width, const Level *levels,
                            int level, double step_x, double step_y, int across, int down)
{
    for (int y = 0; y < down; y++)
        for (int x = 0; x < across; x++)
            paint_level_at(x, y, {canvas, canvas_height, canvas_width}, levels[level - 1], levels[level],
                           step_x, step_y);
}

#endif
