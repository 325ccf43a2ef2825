// Every host entry point on one page: numbers in, numbers out. Nothing here knows of Python or torch.
//
// Index letters (CONTRIBUTING.md): n sample, g group, i input channel, o filter, p = (i, kh, kw) position in a
// patch, q = (oh, ow) output location. Strides count elements, so that any layout is read where it lies.
#pragma once
#include <array>
#include <cstdint>

namespace task2vec {

// ---- where and what ------------------------------------------------------------------------------------

struct Place {
  int device;
  void* stream;
};

enum class Scalar : int { kFloat32 = 0, kFloat16 = 1, kBFloat16 = 2 };

// A strided array [N, C, H, W] on the device.
struct Array4 {
  const void* data;
  std::array<int64_t, 4> stride;
};

// One convolution. Filters of group g are o = g·group_filters … (g+1)·group_filters − 1.
struct Conv {
  int64_t samples, groups;
  int group_channels, group_filters;  // input channels and filters of one group
  int height, width;                  // of the input
  int out_height, out_width;
  int kernel_h, kernel_w, stride_h, stride_w, padding_h, padding_w, dilation_h, dilation_w;

  int positions() const { return out_height * out_width; }                 // Q
  int patch_size() const { return group_channels * kernel_h * kernel_w; }  // P
};

// ---- filter_grad_sq: s[n,o] = ‖g_n[o,·]‖²,  g_n[o,p] = Σ_q δ_n[o,q] · patch(x_n)[p,q] ------------------------

// Direct route. Tiles of g_n are formed in registers, squared and summed there; g_n is never written.
// Block (n, split) covers the p-tiles split, split + splits, …; the caller adds the splits up, in order.
void filter_grad_sq_direct(Array4 input,        // [N, groups·group_channels, H, W]
                           Array4 grad_output,  // [N, groups·group_filters, H_out, W_out]
                           Scalar scalar,       // of both
                           const Conv& conv,
                           int splits,
                           float* partial,  // [N, splits, groups·group_filters]
                           Place at);

// The same on tensor cores, of sm_80 and later: products of float16, bfloat16, or float32 rounded to TF32; sums in
// float32. Tiles of filters and of columns of one group, or {0, 0} where the window is too large for shared memory;
// block (n, split) covers the column tiles split, split + splits, ….
std::array<int, 2> filter_grad_sq_direct_mma_tiles(Scalar scalar, const Conv& conv, int device);
void filter_grad_sq_direct_mma(Array4 input,
                               Array4 grad_output,
                               Scalar scalar,
                               const Conv& conv,
                               int splits,
                               float* partial,  // [N, splits, groups·group_filters]
                               Place at);

// The same for groups of few filters (depthwise, ResNeXt): one warp a filter, no tile that would stay empty.
void filter_grad_sq_narrow(Array4 input,
                           Array4 grad_output,
                           Scalar scalar,
                           const Conv& conv,
                           float* out,  // [N, groups·group_filters]
                           Place at);

// Epilogue of both Gram routes, for output rows I (rows) against output rows J (columns) of every sample:
//   out[n,o] = Σ_{q∈I, q'∈J} δ[o,q] · A[q,q'] · δ[o,q'],   A[q,q'] = Σ_{r∈window} gram[pixel(q,r), pixel(q',r)],
// with pixel(q,r) = (oh·stride_h + kh·dilation_h)·gram_width + ow·stride_w + kw·dilation_w, oh counted from the
// strip's first row. Gram route: a window of one pixel, gram = UᵀU of the unfolded input. Shifted Gram: the conv's
// window, gram of the padded input's pixels.
struct GramWindow {
  int kernel_h, kernel_w, stride_h, stride_w, dilation_h, dilation_w;
  int gram_width;  // pixels in one row of a strip
  int out_width;   // output locations in one row of a strip
};
void filter_grad_sq_gram(const float* gram,           // [N, groups, row_pixels, column_pixels], contiguous
                         Array4 grad_output_rows,     // [N, groups·group_filters, rows of I, out_width]
                         Array4 grad_output_columns,  // [N, groups·group_filters, rows of J, out_width]
                         Scalar scalar,               // of grad_output
                         int64_t samples,
                         int64_t groups,
                         int group_filters,
                         int row_positions,     // locations in I
                         int column_positions,  // locations in J
                         int row_pixels,
                         int column_pixels,
                         const GramWindow& window,
                         bool tensor_cores,  // δ·A in TF32 (sm_80 and later)
                         float* out,         // [N, groups·group_filters]
                         Place at);

// ---- on the CPU ------------------------------------------------------------------------------------------

// A[m,q,q'] = Σ_{r∈window} gram[m, pixel(q,r), pixel(q',r)]: the Gram matrix of patches from that of pixels.
template <class T>
void window_sum(const T* gram,  // [matrices, row_pixels, column_pixels]
                T* out,         // [matrices, row_positions, column_positions]
                int64_t matrices,
                int row_positions,
                int column_positions,
                int row_pixels,
                int column_pixels,
                const GramWindow& window);

}  // namespace task2vec
