// Direct route on tensor cores.
#include "cuda/patch_columns.cuh"

namespace task2vec {
namespace {

// Column tiles: channels by channels, and kTaps taps by taps.
template <class Shape, class T, bool kVector>
struct WindowColumns {
  using Operand = T;
  static constexpr bool kVectorDelta = kVector;
  struct Cursor {
    const T* origin;  // pixel (0, 0) of the tile's first channel
    int channels, taps, first_tap;
  };

  View4<T> input;
  Conv conv;
  int tap_tiles;
  int tile_width;        // pixels in one row of the column tile
  int height, width;     // of the input, without what no output location reads (it may be anything)
  int step_h, step_w;    // pixels from one output location to the next in the column tile …
  int apart_h, apart_w;  // … and in the image from one of its pixels to the next

  __device__ __forceinline__ Cursor cursor(int64_t n, int64_t g, int tile) const {
    const int first_channel = tile / tap_tiles * Shape::kChannels, first_tap = tile % tap_tiles * Shape::kTaps;
    return {input.plane(n, g * conv.group_channels + first_channel), conv.group_channels - first_channel,
            conv.kernel_h * conv.kernel_w - first_tap, first_tap};
  }
  __device__ __forceinline__ void fill(T* tile, const Cursor& cursor, int oh, int ow, const Slices& slices) const {
    const Pixels<T> pixels{cursor.origin,
                           input.stride_c,
                           input.stride_h,
                           input.stride_w,
                           height,
                           width,
                           cursor.channels,
                           oh * conv.stride_h - conv.padding_h + cursor.first_tap / conv.kernel_w * conv.dilation_h,
                           ow * conv.stride_w - conv.padding_w,
                           slices.tile_rows / tile_width,
                           tile_width,
                           apart_h,
                           apart_w};
    load_pixels<Shape::kThreads, kVector, Shape::kChannels>(tile, pixels, slices.tile_rows);
  }
  __device__ __forceinline__ int row(int h, int w, const Slices&) const { return h * step_h * tile_width + w * step_w; }
  __device__ __forceinline__ int offset(const Cursor& cursor, int r, int) const {
    if (r >= cursor.taps) return 0;
    const int tap = cursor.first_tap + r;
    const int kh = tap / conv.kernel_w - cursor.first_tap / conv.kernel_w, kw = tap % conv.kernel_w;
    return kh * conv.dilation_h * tile_width + kw * conv.dilation_w;
  }
  __device__ __forceinline__ bool exists(const Cursor& cursor, int c, int) const {
    return Shape::kTaps == 1 || c % Shape::kTaps < cursor.taps;
  }
};

int64_t span(int outputs, int stride, int kernel, int dilation) {
  return int64_t{outputs - 1} * stride + int64_t{kernel - 1} * dilation + 1;
}

template <class Shape>
struct Plan {
  Slices slices;
  int tap_tiles, channel_tiles;
  int window_height;  // rows of the window that one tile of taps may touch

  template <class T>
  static Plan of(const Conv& conv, int device) {
    Plan plan;
    if constexpr (Shape::kGathered) {
      plan.tap_tiles = 1;
      plan.channel_tiles = static_cast<int>(ceil_div(conv.patch_size(), Shape::kChannels));
      plan.slices = cut_for<Shape, float>(conv.out_height, conv.out_width, device, [&](int height, int width) {
        return PatchTile(conv, height, width).numbers(conv);
      });
      return plan;
    }
    plan.tap_tiles = static_cast<int>(ceil_div(conv.kernel_h * conv.kernel_w, Shape::kTaps));
    plan.channel_tiles = static_cast<int>(ceil_div(conv.group_channels, Shape::kChannels));
    // kTaps taps in a row of rows of kernel_w: in the worst case the first is the last of its row.
    plan.window_height = std::min<int>(conv.kernel_h, static_cast<int>(ceil_div(Shape::kTaps - 1, conv.kernel_w)) + 1);
    plan.slices = cut_for<Shape, T>(conv.out_height, conv.out_width, device, [&](int height, int width) {
      return plan.tile_height(conv, height) * plan.tile_width(conv, width);
    });
    return plan;
  }
  // With a single tap only the pixels that it reads are brought in.
  int64_t tile_height(const Conv& conv, int height) const {
    return Shape::kTaps == 1 ? height : span(height, conv.stride_h, window_height, conv.dilation_h);
  }
  int64_t tile_width(const Conv& conv, int width) const {
    return Shape::kTaps == 1 ? width : span(width, conv.stride_w, conv.kernel_w, conv.dilation_w);
  }
};

// Tensor cores multiply 8 columns at a time.
bool few_channels(const Conv& conv) { return conv.group_channels < 8; }

// Calls f with the shape that suits the layer.
template <class F>
auto with_shape(const Conv& conv, F&& f) {
  if (few_channels(conv)) return f(PatchShape{});
  return conv.kernel_h * conv.kernel_w == 1 ? f(MatrixShape<false>{}) : f(WindowShape{});
}

// A 1×1 convolution whose pixels follow one another is one of a single row: long slices, and pointers that only move
// on.
Conv in_one_row(const Conv& conv, const Array4& input, const Array4& grad_output) {
  const bool plain =
      conv.kernel_h * conv.kernel_w * conv.stride_h * conv.stride_w == 1 && conv.padding_h == 0 && conv.padding_w == 0;
  if (!plain || input.stride[2] != conv.width * input.stride[3] ||
      grad_output.stride[2] != conv.out_width * grad_output.stride[3])
    return conv;
  Conv row = conv;
  row.height = row.out_height = 1;
  row.width = row.out_width = conv.positions();
  return row;
}

}  // namespace

std::array<int, 2> filter_grad_sq_direct_mma_tiles(Scalar scalar, const Conv& conv, int device) {
  std::array<int, 2> tiles{};
  with_scalar(scalar, [&](auto zero) {
    with_shape(conv, [&](auto shape) {
      using Shape = decltype(shape);
      const auto plan = Plan<Shape>::template of<decltype(zero)>(conv, device);
      if (plan.slices.count() > 0)
        tiles = {static_cast<int>(ceil_div(conv.group_filters, Shape::kFilters)), plan.channel_tiles * plan.tap_tiles};
    });
  });
  return tiles;
}

void filter_grad_sq_direct_mma(Array4 input,
                               Array4 grad_output,
                               Scalar scalar,
                               const Conv& layer,
                               int splits,
                               float* partial,
                               Place at) {
  if (layer.samples == 0) return;
  const Conv conv = in_one_row(layer, input, grad_output);
  const auto launch = [&](auto zero, auto shape, auto vector) {
    using T = decltype(zero);
    using Shape = decltype(shape);
    const auto plan = Plan<Shape>::template of<T>(conv, at.device);
    if (plan.slices.count() == 0)
      throw std::invalid_argument(
          "filter_grad_sq_direct_mma: expected a window that fits into shared memory; use filter_grad_sq_direct");
    constexpr bool kOneTap = Shape::kTaps == 1;
    const auto used = [](int size, int outputs, int stride, int kernel, int dilation, int padding) {
      return static_cast<int>(std::clamp<int64_t>(span(outputs, stride, kernel, dilation) - padding, 0, size));
    };
    const int height =
                  used(conv.height, conv.out_height, conv.stride_h, conv.kernel_h, conv.dilation_h, conv.padding_h),
              width = used(conv.width, conv.out_width, conv.stride_w, conv.kernel_w, conv.dilation_w, conv.padding_w);
    const auto start = [&](const auto& columns) {
      launch_mma_tile<Shape>(View4<T>(grad_output), columns, plan.slices, conv.samples, conv.groups, conv.group_filters,
                             conv.out_height, conv.out_width, plan.channel_tiles * plan.tap_tiles, splits, partial, at);
    };
    constexpr bool kVector = decltype(vector)::value;
    if constexpr (Shape::kGathered)
      start(PatchColumns<T, kVector>{View4<T>(input), conv, PatchTile(conv, plan.slices.height, plan.slices.width),
                                     height, width});
    else
      start(WindowColumns<Shape, T, kVector>{View4<T>(input), conv, plan.tap_tiles,
                                             static_cast<int>(plan.tile_width(conv, plan.slices.width)), height, width,
                                             kOneTap ? 1 : conv.stride_h, kOneTap ? 1 : conv.stride_w,
                                             kOneTap ? conv.stride_h : 1, kOneTap ? conv.stride_w : 1});
  };
  with_scalar(scalar, [&](auto zero) {
    using T = decltype(zero);
    const auto by_vectors_of = [&](const Array4& array, int64_t channels, int height, int width) {
      return by_vectors<T>(array, {conv.samples, conv.groups * channels, height, width}, conv.groups);
    };
    const bool vector = by_vectors_of(grad_output, conv.group_filters, conv.out_height, conv.out_width) &&
                        (few_channels(conv) || by_vectors_of(input, conv.group_channels, conv.height, conv.width));
    with_shape(conv, [&](auto shape) {
      if (vector)
        launch(zero, shape, std::true_type{});
      else
        launch(zero, shape, std::false_type{});
    });
  });
}

}  // namespace task2vec
