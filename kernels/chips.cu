// Cut the chips of N faces out of one frame and write them as network input: chips.py on the GPU.
//
// cut_table.py prepares one `Cut` per face. Then, on one stream and in this order,
//
//   halve      once per level k = 1, 2, ... that any face needs: builds level k of every such face
//   crop_f32   once: warps, truncates, colours and normalises all chips, (N, C, S, S) float32
//   crop_f16   the same, rounded to half precision at the very end
//
// Launch with blocks of 32 x 8 threads; x and y of the grid cover a level or a chip, z counts the faces.
// No faces, no launch: CUDA refuses an empty grid. Recipes with CLAHE are not for these kernels, which
// hold no histogram: the host decides, and cuts those chips with chips.py.
//
// Buffers: the frame is uint8 RGB, rows `stride_bytes` apart; the scratch buffer has as many bytes as the
// table says and is overwritten; the table's rows are on the device.
//
// The arithmetic is OpenCV's, operation by operation: what is fused there is `fmaf` here, and nothing
// else may be fused, so compile with -fmad=false (-ffp-contract=off for g++). Then a GPU computes what a
// CPU does, to the last bit, and the tests, which compile this file as C++, speak for both. Against
// chips.py a few pixels in a hundred thousand differ, by one grey level: OpenCV computes the last columns
// of a chip, and on other processors all of them, in another order.

#include <math.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __CUDACC__
#include <cuda_fp16.h>
#define ON_BOTH __host__ __device__ inline
typedef __half Half;
#else
#define ON_BOTH static inline
typedef _Float16 Half;
#endif

// One face. INVARIANT: the same layout as `CUT` of cut_table.py.
struct Cut {
    int64_t scratch_at;                // byte of the scratch buffer where its level 1 begins; 2, 3 follow
    float matrix[6];                   // (2, 3) by rows: px of the chip -> px of the last level
    int32_t left, top, width, height;  // level 0, a part of the frame and all of it inside; may be empty
    int32_t n_halvings;                // the level the chip is cut from
};
static_assert(sizeof(Cut) == 56 && offsetof(Cut, matrix) == 8 && offsetof(Cut, left) == 32 &&
                  offsetof(Cut, n_halvings) == 48,
              "cut_table.py builds another layout");

// What a network wants, as ChipRecipe says it.
struct Recipe {
    int size;        // S
    int n_channels;  // C: 3 RGB planes, or 1, luma
    float mean[3];   // pixel units; the first C count
    float inverse_scale;
};

// RGB uint8 pixels somewhere in memory.
struct Pixels {
    const uint8_t *first;
    int64_t stride_bytes;
    int width, height;
};

// Where level `level` of a face is.
ON_BOTH Pixels level_of(const uint8_t *frame, int64_t stride_bytes, const Cut &cut, const uint8_t *scratch,
                        int level)
{
    Pixels at = {frame + cut.top * stride_bytes + 3 * (int64_t)cut.left, stride_bytes, cut.width, cut.height};
    const uint8_t *next = scratch + cut.scratch_at;
    for (int k = 0; k < level; k++) {
        at.width = (at.width - 3) / 2;  // chips.halved_side; the table halves no side below 5 px
        at.height = (at.height - 3) / 2;
        at.stride_bytes = 3 * (int64_t)at.width;
        at.first = next;
        next += at.stride_bytes * at.height;
    }
    return at;
}

// One pixel of level `level` of one face: dlib's 5 x 5 taps around every other pixel, truncated.
ON_BOTH void halve_at(int x, int y, const uint8_t *frame, int64_t stride_bytes, const Cut &cut,
                      uint8_t *scratch, int level)
{
    const int taps[5] = {1, 4, 6, 4, 1};
    if (level > cut.n_halvings) return;
    const Pixels to = level_of(frame, stride_bytes, cut, scratch, level);
    if (x >= to.width || y >= to.height) return;
    const Pixels from = level_of(frame, stride_bytes, cut, scratch, level - 1);
    const uint8_t *corner = from.first + 2 * y * from.stride_bytes + 6 * (int64_t)x;
    int sums[3] = {0, 0, 0};  // at most 255 * 256
    for (int j = 0; j < 5; j++)
        for (int i = 0; i < 5; i++)
            for (int c = 0; c < 3; c++)
                sums[c] += taps[j] * taps[i] * corner[j * from.stride_bytes + 3 * i + c];
    uint8_t *pixel = scratch + (to.first - scratch) + y * to.stride_bytes + 3 * (int64_t)x;
    for (int c = 0; c < 3; c++) pixel[c] = (uint8_t)(sums[c] >> 8);
}

// A neighbour of a point, black outside.
ON_BOTH float neighbour(const Pixels &from, int x, int y, int c)
{
    if (x < 0 || y < 0 || x >= from.width || y >= from.height) return 0.0f;
    return from.first[y * from.stride_bytes + 3 * (int64_t)x + c];
}

// One RGB pixel of a chip, as cv2.warpAffine blends it and cut_chip truncates it.
ON_BOTH void sample(const Pixels &from, const float *matrix, int x, int y, int *rgb)
{
    const float at_x = fmaf(matrix[0], (float)x, matrix[1] * (float)y + matrix[2]);
    const float at_y = fmaf(matrix[3], (float)x, matrix[4] * (float)y + matrix[5]);
    rgb[0] = rgb[1] = rgb[2] = 0;
    // Further out all four neighbours are black. Written so that NaN, of absurd landmarks, is outside too.
    if (!(at_x >= -1.0f && at_x < (float)from.width && at_y >= -1.0f && at_y < (float)from.height)) return;
    const float low_x = floorf(at_x), low_y = floorf(at_y);
    const float part_x = at_x - low_x, part_y = at_y - low_y;
    const int left = (int)low_x, top = (int)low_y;
    for (int c = 0; c < 3; c++) {
        const float a = neighbour(from, left, top, c), b = neighbour(from, left + 1, top, c);
        const float d = neighbour(from, left, top + 1, c), e = neighbour(from, left + 1, top + 1, c);
        const float above = fmaf(part_x, b - a, a);
        const float below = fmaf(part_x, e - d, d);
        const float blend = fmaf(part_y, below - above, above);
        rgb[c] = (int)fminf(fmaxf(blend + 1e-3f, 0.0f), 255.0f);  // the step undoes noise below an integer
    }
}

// ITU-R BT.601 luma with OpenCV's fixed point: 15 bits, rounded.
ON_BOTH int luma(const int *rgb)
{
    return (9798 * rgb[0] + 19235 * rgb[1] + 3735 * rgb[2] + (1 << 14)) >> 15;
}

ON_BOTH void store(float *to, float value) { *to = value; }

ON_BOTH void store(Half *to, float value)
{
#ifdef __CUDACC__
    *to = __float2half_rn(value);
#else
    *to = (Half)value;
#endif
}

// One pixel of one chip, all its channels; `chip` is (C, S, S).
template <typename T>
ON_BOTH void crop_at(int x, int y, const uint8_t *frame, int64_t stride_bytes, const Cut &cut,
                     const uint8_t *scratch, const Recipe &recipe, T *chip)
{
    if (x >= recipe.size || y >= recipe.size) return;
    int values[3];
    sample(level_of(frame, stride_bytes, cut, scratch, cut.n_halvings), cut.matrix, x, y, values);
    if (recipe.n_channels == 1) values[0] = luma(values);
    const size_t plane = (size_t)recipe.size * recipe.size;
    for (int c = 0; c < 3; c++)
        if (c < recipe.n_channels)
            store(chip + c * plane + (size_t)y * recipe.size + x,
                  ((float)values[c] - recipe.mean[c]) * recipe.inverse_scale);
}

ON_BOTH size_t chip_length(const Recipe &recipe)
{
    return (size_t)recipe.n_channels * recipe.size * recipe.size;
}

#ifdef __CUDACC__

#define HERE_X (int)(blockIdx.x * blockDim.x + threadIdx.x)
#define HERE_Y (int)(blockIdx.y * blockDim.y + threadIdx.y)

extern "C" __global__ void halve(const uint8_t *frame, int64_t stride_bytes, const Cut *cuts,
                                 uint8_t *scratch, int level)
{
    halve_at(HERE_X, HERE_Y, frame, stride_bytes, cuts[blockIdx.z], scratch, level);
}

extern "C" __global__ void crop_f32(const uint8_t *frame, int64_t stride_bytes, const Cut *cuts,
                                    const uint8_t *scratch, float *chips, int size, int n_channels,
                                    float mean_0, float mean_1, float mean_2, float inverse_scale)
{
    const Recipe recipe = {size, n_channels, {mean_0, mean_1, mean_2}, inverse_scale};
    crop_at(HERE_X, HERE_Y, frame, stride_bytes, cuts[blockIdx.z], scratch, recipe,
            chips + blockIdx.z * chip_length(recipe));
}

extern "C" __global__ void crop_f16(const uint8_t *frame, int64_t stride_bytes, const Cut *cuts,
                                    const uint8_t *scratch, Half *chips, int size, int n_channels,
                                    float mean_0, float mean_1, float mean_2, float inverse_scale)
{
    const Recipe recipe = {size, n_channels, {mean_0, mean_1, mean_2}, inverse_scale};
    crop_at(HERE_X, HERE_Y, frame, stride_bytes, cuts[blockIdx.z], scratch, recipe,
            chips + blockIdx.z * chip_length(recipe));
}

#else

// For the tests: the same arguments, then how many threads the grid has in x and y, and its z.

extern "C" void halve(const uint8_t *frame, int64_t stride_bytes, const Cut *cuts, uint8_t *scratch,
                      int level, int across, int down, int n_faces)
{
    for (int face = 0; face < n_faces; face++)
        for (int y = 0; y < down; y++)
            for (int x = 0; x < across; x++)
                halve_at(x, y, frame, stride_bytes, cuts[face], scratch, level);
}

template <typename T>
static void crop(const uint8_t *frame, int64_t stride_bytes, const Cut *cuts, const uint8_t *scratch,
                 T *chips, const Recipe &recipe, int across, int down, int n_faces)
{
    for (int face = 0; face < n_faces; face++)
        for (int y = 0; y < down; y++)
            for (int x = 0; x < across; x++)
                crop_at(x, y, frame, stride_bytes, cuts[face], scratch, recipe,
                        chips + face * chip_length(recipe));
}

extern "C" void crop_f32(const uint8_t *frame, int64_t stride_bytes, const Cut *cuts, const uint8_t *scratch,
                         float *chips, int size, int n_channels, float mean_0, float mean_1, float mean_2,
                         float inverse_scale, int across, int down, int n_faces)
{
    const Recipe recipe = {size, n_channels, {mean_0, mean_1, mean_2}, inverse_scale};
    crop(frame, stride_bytes, cuts, scratch, chips, recipe, across, down, n_faces);
}

extern "C" void crop_f16(const uint8_t *frame, int64_t stride_bytes, const Cut *cuts, const uint8_t *scratch,
                         Half *chips, int size, int n_channels, float mean_0, float mean_1, float mean_2,
                         float inverse_scale, int across, int down, int n_faces)
{
    const Recipe recipe = {size, n_channels, {mean_0, mean_1, mean_2}, inverse_scale};
    crop(frame, stride_bytes, cuts, scratch, chips, recipe, across, down, n_faces);
}

#endif
