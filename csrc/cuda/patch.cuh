// The unfolded input, read where it lies: B[q,p] = x[n, i, oh·stride − padding + kh·dilation, …], 0 outside.
#pragma once
#include "cuda/scalar.cuh"

namespace task2vec {

template <class T>
struct PatchElement {  // one position p of the patch, for every output location
  const T* plane;      // of its input channel
  int64_t stride_h, stride_w;
  int top, left;  // where the window's element stands for the output location (0, 0)
  int step_h, step_w, height, width;

  __device__ __forceinline__ float at(int oh, int ow) const {
    const int ih = top + oh * step_h, iw = left + ow * step_w;
    // One unsigned comparison refuses both sides.
    if (static_cast<unsigned>(ih) >= static_cast<unsigned>(height) ||
        static_cast<unsigned>(iw) >= static_cast<unsigned>(width))
      return 0.f;
    return to_float(plane[ih * stride_h + iw * stride_w]);
  }
};

template <class T>
__device__ __forceinline__ PatchElement<T> patch_element(const View4<T>& input,
                                                         const Conv& conv,
                                                         int64_t n,
                                                         int64_t g,
                                                         int p) {
  const int window = conv.kernel_h * conv.kernel_w;
  const int i = p / window, r = p - i * window;
  const int kh = r / conv.kernel_w, kw = r - kh * conv.kernel_w;
  return {input.plane(n, g * conv.group_channels + i),
          input.stride_h,
          input.stride_w,
          kh * conv.dilation_h - conv.padding_h,
          kw * conv.dilation_w - conv.padding_w,
          conv.stride_h,
          conv.stride_w,
          conv.height,
          conv.width};
}

}  // namespace task2vec
