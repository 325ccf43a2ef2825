// Epilogue of the Gram routes: the quadratic form δ A δᵀ, A gathered from the Gram matrix while tiles are loaded, so
// that neither A nor δA is ever written.
#include "cuda/filter_tile.cuh"
#include "cuda/filter_tile_mma.cuh"

namespace task2vec {
namespace {

template <class T>
struct GramColumns {
  static constexpr bool kAlongDepth = false;  // gram is contiguous along its columns, that is along q'

  using Column = const float*;  // gram at pixel(0, 0), pixel(q', 0)

  const float* gram;  // [N, groups, row_pixels, column_pixels]
  View4<T> delta;     // [N, groups·group_filters, rows of J, out_width]
  int64_t groups;
  int row_pixels, column_pixels;
  GramWindow window;

  __device__ __forceinline__ Column column(int64_t n, int64_t g, int q) const {
    const int oh = q / window.out_width, ow = q - oh * window.out_width;
    const int64_t pixel = static_cast<int64_t>(oh) * window.stride_h * window.gram_width + ow * window.stride_w;
    return gram + (n * groups + g) * row_pixels * column_pixels + pixel;
  }
  __device__ __forceinline__ float at(Column column, int oh, int ow) const {
    const int64_t row_stride = column_pixels;
    const float* corner = column + (oh * window.stride_h * window.gram_width + ow * window.stride_w) * row_stride;
    float sum = 0.f;
    for (int kh = 0; kh < window.kernel_h; ++kh)
      for (int kw = 0; kw < window.kernel_w; ++kw) {
        // Both pixels move by the same step: along the diagonal of the Gram matrix.
        const int step = kh * window.dilation_h * window.gram_width + kw * window.dilation_w;
        sum += __ldg(corner + step * (row_stride + 1));
      }
    return sum;
  }
  __device__ __forceinline__ float epilogue(float value, int64_t n, int64_t o, int q) const {
    const int oh = q / window.out_width, ow = q - oh * window.out_width;
    return value * to_float(delta.plane(n, o)[oh * delta.stride_h + ow * delta.stride_w]);
  }
};

using GramShape = MatrixShape<true>;
struct PixelWalkOld {
  int row, column, columns;

  __device__ __forceinline__ PixelWalkOld(int pixel, int columns)
      : row(pixel / columns), column(pixel % columns), columns(columns) {}
  __device__ __forceinline__ void advance(int pixels) {
    column += pixels;
    while (column >= columns) column -= columns, ++row;
  }
};

// The same columns for tensor cores: the tile [q, q'] of A is gathered into shared memory.
template <class T>
struct GramMmaColumns {
  using Operand = float;  // A is float32, and every 16-bit δ is a TF32 number
  static constexpr bool kVectorDelta = false;
  struct Cursor {
    typename GramColumns<T>::Column mine;  // the column that this thread gathers
    int channels, taps, first;             // columns q' from the tile's first one on; 1; that first one
  };

  GramColumns<T> gram;
  int out_height, column_count;

  __device__ __forceinline__ Cursor cursor(int64_t n, int64_t g, int tile) const {
    const int first = tile * GramShape::kChannels, mine = first + static_cast<int>(threadIdx.x) % GramShape::kChannels;
    return {gram.column(n, g, mine < column_count ? mine : 0), column_count - first, 1, first};
  }
  __device__ __forceinline__ void fill(float* tile, const Cursor& cursor, int oh, int ow, const Slices& slices) const {
    constexpr int kAtOnce = GramShape::kThreads / GramShape::kChannels;
    const int thread = static_cast<int>(threadIdx.x), column = thread % GramShape::kChannels;
    PixelWalkOld walk(thread / GramShape::kChannels, slices.width);
#pragma unroll 1
    for (int q = thread / GramShape::kChannels; q < slices.tile_rows; q += kAtOnce, walk.advance(kAtOnce)) {
      const int h = oh + walk.row, w = ow + walk.column;
      const bool exists =
          column < cursor.channels && walk.row < slices.height && h < out_height && w < gram.window.out_width;
      tile[q * GramShape::kChannelPitch + column] = exists ? gram.at(cursor.mine, h, w) : 0.f;
    }
  }
  __device__ __forceinline__ int row(int h, int w, const Slices& slices) const { return h * slices.width + w; }
  __device__ __forceinline__ int offset(const Cursor&, int, int) const { return 0; }
  __device__ __forceinline__ bool exists(const Cursor&, int, int) const { return true; }
  __device__ __forceinline__ void weights(float* tile, const Cursor& cursor, int64_t n, int64_t o, int filters) const {
    const View4<T>& delta = gram.delta;
    const int width = gram.window.out_width;
    const Pixels<T> locations{delta.plane(n, o),
                              delta.stride_c,
                              delta.stride_h,
                              delta.stride_w,
                              column_count / width,
                              width,
                              filters,
                              0,
                              0,
                              column_count / width,
                              width,
                              1,
                              1};
    load_pixels<GramShape::kThreads, false, GramShape::kFilters>(tile, locations, GramShape::kChannels, cursor.first);
  }
};

}  // namespace

void filter_grad_sq_gram(const float* gram,
                         Array4 grad_output_rows,
                         Array4 grad_output_columns,
                         Scalar scalar,
                         int64_t samples,
                         int64_t groups,
                         int group_filters,
                         int row_positions,
                         int column_positions,
                         int row_pixels,
                         int column_pixels,
                         const GramWindow& window,
                         bool tensor_cores,
                         float* out,
                         Place at) {
  if (samples == 0) return;
  with_scalar(scalar, [&](auto zero) {
    using T = decltype(zero);
    const GramColumns<T> columns{gram, View4<T>(grad_output_columns), groups, row_pixels, column_pixels, window};
    if (tensor_cores) {
      const int out_height = row_positions / window.out_width;
      const Slices slices = cut_for<GramShape, float>(
          out_height, window.out_width, at.device,
          [](int height, int width) { return ceil_div(height * width, kMmaDepth<float>) * kMmaDepth<float>; });
      const GramMmaColumns<T> mma_columns{columns, out_height, column_positions};
      launch_mma_tile<GramShape>(View4<T>(grad_output_rows), mma_columns, slices, samples, groups, group_filters,
                                 out_height, window.out_width,
                                 static_cast<int>(ceil_div(column_positions, GramShape::kChannels)), 1, out, at);
      return;
    }
    launch_filter_tile(View4<T>(grad_output_rows), columns, samples, groups, group_filters, row_positions,
                       window.out_width, column_positions, 1, out, at);
  });
}

}  // namespace task2vec
