// Direct route: tiles of the per-sample weight gradient in registers, squared and summed in the epilogue.
#include "cuda/filter_tile.cuh"
#include "cuda/patch.cuh"

namespace task2vec {
namespace {

template <class T>
struct PatchColumns {
  static constexpr bool kAlongDepth = true;  // x is contiguous along w, that is along q
  using Column = PatchElement<T>;

  View4<T> input;
  Conv conv;

  __device__ __forceinline__ Column column(int64_t n, int64_t g, int p) const {
    return patch_element(input, conv, n, g, p);
  }
  __device__ __forceinline__ float at(const Column& column, int oh, int ow) const { return column.at(oh, ow); }
  __device__ __forceinline__ float epilogue(float gradient, int64_t, int64_t, int) const { return gradient * gradient; }
};

}  // namespace

void filter_grad_sq_direct(Array4 input,
                           Array4 grad_output,
                           Scalar scalar,
                           const Conv& conv,
                           int splits,
                           float* partial,
                           Place at) {
  if (conv.samples == 0) return;
  with_scalar(scalar, [&](auto zero) {
    using T = decltype(zero);
    launch_filter_tile(View4<T>(grad_output), PatchColumns<T>{View4<T>(input), conv}, conv.samples, conv.groups,
                       conv.group_filters, conv.positions(), conv.out_width, conv.patch_size(), splits, partial, at);
  });
}

}  // namespace task2vec
