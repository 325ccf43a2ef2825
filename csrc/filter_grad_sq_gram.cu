// Epilogue of the Gram routes: the quadratic form δ A δᵀ, A gathered from the Gram matrix while tiles are loaded, so
// that neither A nor δA is ever written.
#include "filter_tile.cuh"

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
                         float* out,
                         Place at) {
  if (samples == 0) return;
  with_scalar(scalar, [&](auto zero) {
    using T = decltype(zero);
    const GramColumns<T> columns{gram, View4<T>(grad_output_columns), groups, row_pixels, column_pixels, window};
    launch_filter_tile(View4<T>(grad_output_rows), columns, samples, groups, group_filters, row_positions,
                       window.out_width, column_positions, 1, out, at);
  });
}

}  // namespace task2vec
