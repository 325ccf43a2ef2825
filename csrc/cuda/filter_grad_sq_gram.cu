// Epilogue of the Gram routes: A gathered from the Gram matrix of pixels, once for all filters, and the quadratic form
// δ A δᵀ, of which δA is never written.
#include "cuda/filter_tile.cuh"
#include "cuda/filter_tile_mma.cuh"

namespace task2vec {
namespace {

// ---- A[q, q'] = Σ_r gram[pixel(q, r), pixel(q', r)] ------------------------------------------------------

constexpr int kGatherThreads = 128, kGatherRows = 16;  // a thread keeps its column q' for so many rows q

__global__ void __launch_bounds__(kGatherThreads) gather_kernel(const float* __restrict__ gram,
                                                                GramWindow window,
                                                                int row_positions,
                                                                int column_positions,
                                                                int row_pixels,
                                                                int column_pixels,
                                                                int pitch,
                                                                int column_blocks,
                                                                int row_blocks,
                                                                float* __restrict__ a) {
  int64_t block = blockIdx.x;
  const int column = static_cast<int>(block % column_blocks) * kGatherThreads + static_cast<int>(threadIdx.x);
  block /= column_blocks;
  const int first = static_cast<int>(block % row_blocks) * kGatherRows;
  block /= row_blocks;  // n·groups + g
  if (column >= pitch) return;
  const bool exists = column < column_positions;
  const auto pixel = [&](int h, int w) { return h * window.stride_h * window.gram_width + w * window.stride_w; };
  gram +=
      block * row_pixels * column_pixels + (exists ? pixel(column / window.out_width, column % window.out_width) : 0);
  a += block * row_positions * pitch + column;
  int h = first / window.out_width, w = first % window.out_width;
  for (int row = first; row < first + kGatherRows && row < row_positions; ++row) {
    // Both pixels move by the same step: along the diagonal of the Gram matrix.
    const int64_t diagonal = int64_t{column_pixels} + 1;
    const float* line = gram + int64_t{pixel(h, w)} * column_pixels;
    float sum = 0.f;
    for (int kh = 0; exists && kh < window.kernel_h; ++kh, line += window.dilation_h * window.gram_width * diagonal)
#pragma unroll 3
      for (int kw = 0; kw < window.kernel_w; ++kw) sum += __ldg(line + kw * window.dilation_w * diagonal);
    a[int64_t{row} * pitch] = sum;
    if (++w == window.out_width) w = 0, ++h;
  }
}

// ---- Σ δ[o, q]·A[q, q']·δ[o, q'] --------------------------------------------------------------------------

template <class T>
struct GramColumns {
  static constexpr bool kAlongDepth = false;  // A is contiguous along its columns, that is along q'

  using Column = const float*;  // A[0, q']

  const float* a;  // [N, groups, row_positions, pitch]
  View4<T> delta;  // [N, groups·group_filters, rows of J, out_width]
  int64_t groups;
  int row_positions, column_positions, pitch, out_width;

  __device__ __forceinline__ const float* matrix(int64_t n, int64_t g) const {
    return a + (n * groups + g) * row_positions * pitch;
  }
  __device__ __forceinline__ Column column(int64_t n, int64_t g, int q) const { return matrix(n, g) + q; }
  __device__ __forceinline__ float at(Column column, int oh, int ow) const {
    return __ldg(column + int64_t{oh * out_width + ow} * pitch);
  }
  __device__ __forceinline__ float epilogue(float value, int64_t n, int64_t o, int q) const {
    const int oh = q / out_width, ow = q - oh * out_width;
    return value * to_float(delta.plane(n, o)[oh * delta.stride_h + ow * delta.stride_w]);
  }
};

using GramShape = MatrixShape<true>;

// The same columns for tensor cores.
template <class T, bool kVector>
struct GramMmaColumns {
  using Operand = float;  // A is float32, and every 16-bit δ is a TF32 number
  static constexpr bool kVectorDelta = kVector;
  struct Cursor {
    const float* origin;  // A[0, q'] of the tile's first column
    int channels, first;  // columns q' from the tile's first one on, and that one
  };

  GramColumns<T> gram;

  __device__ __forceinline__ Cursor cursor(int64_t n, int64_t g, int tile) const {
    const int first = tile * GramShape::kChannels;
    return {gram.matrix(n, g) + first, gram.column_positions - first, first};
  }
  __device__ __forceinline__ void fill(float* tile, const Cursor& cursor, int oh, int ow, const Slices& slices) const {
    const Pixels<float> rows{cursor.origin,
                             1,
                             int64_t{gram.out_width} * gram.pitch,
                             gram.pitch,
                             gram.row_positions / gram.out_width,
                             gram.out_width,
                             cursor.channels,
                             oh,
                             ow,
                             slices.height,
                             slices.width,
                             1,
                             1};
    load_pixels<GramShape::kThreads, true, GramShape::kChannels>(tile, rows, slices.tile_rows);
  }
  __device__ __forceinline__ int row(int h, int w, const Slices& slices) const { return h * slices.width + w; }
  __device__ __forceinline__ int offset(const Cursor&, int, int) const { return 0; }
  __device__ __forceinline__ bool exists(const Cursor&, int, int) const { return true; }
  __device__ __forceinline__ void weights(float* tile, const Cursor& cursor, int64_t n, int64_t o, int filters) const {
    const View4<T>& delta = gram.delta;
    const int height = gram.column_positions / gram.out_width;
    const Pixels<T> locations{delta.plane(n, o),
                              delta.stride_c,
                              delta.stride_h,
                              delta.stride_w,
                              height,
                              gram.out_width,
                              filters,
                              0,
                              0,
                              height,
                              gram.out_width,
                              1,
                              1};
    constexpr int kOfWarp = GramShape::kChunks * 8;
    const int rows = cursor.channels > kOfWarp ? GramShape::kChannels : kOfWarp;  // of the warps that have columns
    static_assert(GramShape::kChannels == 2 * kOfWarp);
    load_pixels<GramShape::kThreads, kVector, GramShape::kFilters>(tile, locations, rows, cursor.first);
  }
};

}  // namespace

void filter_grad_sq_gather(const float* gram,
                           int64_t matrices,
                           int row_positions,
                           int column_positions,
                           int row_pixels,
                           int column_pixels,
                           const GramWindow& window,
                           int pitch,
                           float* a,
                           Place at) {
  if (matrices == 0) return;
  const int column_blocks = static_cast<int>(ceil_div(pitch, kGatherThreads)),
            row_blocks = static_cast<int>(ceil_div(row_positions, kGatherRows));
  DeviceGuard guard(at.device);
  TASK2VEC_LAUNCH(gather_kernel, grid_of(matrices * column_blocks * row_blocks), dim3(kGatherThreads), 0, stream_of(at),
                  gram, window, row_positions, column_positions, row_pixels, column_pixels, pitch, column_blocks,
                  row_blocks, a);
  check(cudaGetLastError());
}

void filter_grad_sq_gram(const float* a,
                         Array4 grad_output_rows,
                         Array4 grad_output_columns,
                         Scalar scalar,
                         int64_t samples,
                         int64_t groups,
                         int group_filters,
                         int row_positions,
                         int column_positions,
                         int pitch,
                         int out_width,
                         bool tensor_cores,
                         float* out,
                         Place at) {
  if (samples == 0) return;
  const int out_height = row_positions / out_width;
  with_scalar(scalar, [&](auto zero) {
    using T = decltype(zero);
    const View4<T> rows(grad_output_rows);
    const GramColumns<T> columns{
        a, View4<T>(grad_output_columns), groups, row_positions, column_positions, pitch, out_width};
    if (!tensor_cores)
      return launch_filter_tile(rows, columns, samples, groups, group_filters, row_positions, out_width,
                                column_positions, 1, out, at);
    if (pitch % 4 != 0 || int64_t{row_positions} * pitch >= int64_t{1} << 30)
      throw std::invalid_argument("filter_grad_sq_gram: expected rows of whole vectors, and less than 4 GiB of them");
    const auto launch = [&](auto vector) {
      const Slices slices = cut_for<GramShape, float>(out_height, out_width, at.device,
                                                      [](int height, int width) { return int64_t{height} * width; });
      launch_mma_tile<GramShape>(rows, GramMmaColumns<T, decltype(vector)::value>{columns}, slices, samples, groups,
                                 group_filters, out_height, out_width,
                                 static_cast<int>(ceil_div(column_positions, GramShape::kChannels)), 1, out, at);
    };
    const auto vectors = [&](const Array4& array, int positions) {
      return by_vectors<T>(array, {samples, groups * group_filters, positions / out_width, out_width}, groups);
    };
    if (vectors(grad_output_rows, row_positions) && vectors(grad_output_columns, column_positions))
      launch(std::true_type{});
    else
      launch(std::false_type{});
  });
}

}  // namespace task2vec
