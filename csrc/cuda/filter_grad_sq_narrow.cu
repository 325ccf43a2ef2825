// Direct route for groups of few filters (depthwise: one): a 64-filter tile would be almost empty, so one warp takes
// one filter of one sample, its lanes share the output locations, and eight patch positions are accumulated at a time.
#include "cuda/launch.h"
#include "cuda/patch.cuh"

namespace task2vec {
namespace {

constexpr int kWarps = 4, kPositionsAtOnce = 8;

template <class T>
__global__ void __launch_bounds__(kWarps * 32)
    filter_grad_sq_narrow_kernel(View4<T> input,  // [N, groups·group_channels, H, W]
                                 View4<T> delta,  // [N, groups·group_filters, H_out, W_out]
                                 Conv conv,
                                 float* __restrict__ out) {  // [N, groups·group_filters]
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int64_t filters = conv.groups * conv.group_filters;
  const int64_t row = static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.x / 32;
  if (row >= conv.samples * filters) return;  // whole warps leave together
  const int64_t n = row / filters, o = row % filters, g = o / conv.group_filters;
  const T* delta_plane = delta.plane(n, o);
  const int positions = conv.out_height * conv.out_width;
  const int patch_size = conv.group_channels * conv.kernel_h * conv.kernel_w;

  float total = 0.f;
  for (int p0 = 0; p0 < patch_size; p0 += kPositionsAtOnce) {
    PatchElement<T> element[kPositionsAtOnce];
#pragma unroll
    for (int j = 0; j < kPositionsAtOnce; ++j)
      element[j] = patch_element(input, conv, n, g, p0 + j < patch_size ? p0 + j : 0);
    float gradient[kPositionsAtOnce] = {};
    for (int q = lane; q < positions; q += 32) {
      const int oh = q / conv.out_width, ow = q - oh * conv.out_width;
      const float d = to_float(delta_plane[oh * delta.stride_h + ow * delta.stride_w]);
#pragma unroll
      for (int j = 0; j < kPositionsAtOnce; ++j) gradient[j] += d * element[j].at(oh, ow);
    }
#pragma unroll
    for (int j = 0; j < kPositionsAtOnce; ++j) {
      for (int offset = 16; offset > 0; offset >>= 1) gradient[j] += __shfl_xor_sync(0xffffffffu, gradient[j], offset);
      if (p0 + j < patch_size) total += gradient[j] * gradient[j];
    }
  }
  if (lane == 0) out[row] = total;
}

}  // namespace

void filter_grad_sq_narrow(Array4 input, Array4 grad_output, Scalar scalar, const Conv& conv, float* out, Place at) {
  if (conv.samples == 0) return;
  with_scalar(scalar, [&](auto zero) {
    using T = decltype(zero);
    const dim3 grid = grid_of(ceil_div(conv.samples * conv.groups * conv.group_filters, kWarps));
    DeviceGuard guard(at.device);
    TASK2VEC_LAUNCH((filter_grad_sq_narrow_kernel<T>), grid, dim3(kWarps * 32), 0, stream_of(at), View4<T>(input),
                    View4<T>(grad_output), conv, out);
    check(cudaGetLastError());
  });
}

}  // namespace task2vec
