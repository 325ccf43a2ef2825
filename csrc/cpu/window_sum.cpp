// The Gram matrix of patches from the Gram matrix of pixels, one pass over the output: torch's slices and in-place adds
// would read and write it once per element of the window.
#include "../kernels.h"

namespace task2vec {

template <class T>
void window_sum(const T* gram,
                T* out,
                int64_t matrices,
                int row_positions,
                int column_positions,
                int row_pixels,
                int column_pixels,
                const GramWindow& window) {
  const int out_rows = column_positions / window.out_width;
#pragma omp parallel for collapse(2) schedule(static)
  for (int64_t m = 0; m < matrices; ++m)
    for (int q = 0; q < row_positions; ++q) {
      const int oh = q / window.out_width, ow = q % window.out_width;
      T* row = out + (m * row_positions + q) * column_positions;
      for (int c = 0; c < column_positions; ++c) row[c] = T(0);
      for (int kh = 0; kh < window.kernel_h; ++kh)
        for (int kw = 0; kw < window.kernel_w; ++kw) {
          const int64_t pixel = int64_t(oh * window.stride_h + kh * window.dilation_h) * window.gram_width +
                                ow * window.stride_w + kw * window.dilation_w;
          const T* source = gram + (m * row_pixels + pixel) * column_pixels +
                            int64_t(kh) * window.dilation_h * window.gram_width + kw * window.dilation_w;
          for (int h = 0; h < out_rows; ++h) {
            const T* from = source + int64_t(h) * window.stride_h * window.gram_width;
            T* to = row + h * window.out_width;
            for (int w = 0; w < window.out_width; ++w) to[w] += from[w * window.stride_w];
          }
        }
    }
}

template void window_sum(const float*, float*, int64_t, int, int, int, int, const GramWindow&);
template void window_sum(const double*, double*, int64_t, int, int, int, int, const GramWindow&);

}  // namespace task2vec
