// Brings pixels of an image into a tile in shared memory, channels side by side: the operands of filter_tile_mma.cuh.
#pragma once
#include "cuda/scalar.cuh"

namespace task2vec {

constexpr int kMmaPad = 8;  // numbers: 8 consecutive rows start in different banks, and at multiples of 16 bytes

// A rectangle of pixels of an image, some of them perhaps outside, and the channels wanted of it.
template <class T>
struct Pixels {
  const T* origin;  // pixel (0, 0), first channel
  int64_t stride_c, stride_h, stride_w;
  int height, width;  // of the image
  int channels;       // that exist
  int top, left, rows, columns, step_h, step_w;
};

// Walks the pixels of a rectangle, row by row, with a division at the start only.
template <class Offset>
struct PixelWalk {
  int row, column, h, w;  // in the rectangle and in the image
  Offset offset;          // of the pixel
  int height, width, rows, columns, step_h, step_w;
  Offset stride_w, stride_h;

  template <class T>
  __device__ __forceinline__ PixelWalk(const Pixels<T>& pixels, int pixel)
      : row(pixel / pixels.columns),
        column(pixel % pixels.columns),
        h(pixels.top + row * pixels.step_h),
        w(pixels.left + column * pixels.step_w),
        offset(h * static_cast<Offset>(pixels.stride_h) + w * static_cast<Offset>(pixels.stride_w)),
        height(pixels.height),
        width(pixels.width),
        rows(pixels.rows),
        columns(pixels.columns),
        step_h(pixels.step_h),
        step_w(pixels.step_w),
        stride_w(pixels.step_w * static_cast<Offset>(pixels.stride_w)),
        stride_h(pixels.step_h * static_cast<Offset>(pixels.stride_h)) {}
  __device__ __forceinline__ bool exists() const {  // & for &&: no branches
    return (row < rows) & (static_cast<unsigned>(h) < static_cast<unsigned>(height)) &
           (static_cast<unsigned>(w) < static_cast<unsigned>(width));
  }
  __device__ __forceinline__ void advance(int pixels) {
    column += pixels, w += pixels * step_w, offset += pixels * stride_w;
    while (column >= columns) {
      column -= columns, w -= columns * step_w, offset += stride_h - columns * stride_w;
      ++row, h += step_h;
    }
  }
};

// One number: 0 if it does not exist.
template <class T, class Source>
__device__ __forceinline__ void load_number(T* to, const Source* source, bool exists) {
  if constexpr (std::is_same_v<Source, float>)
    copy_async<4>(to, source, !exists);
  else if constexpr (std::is_same_v<T, Source>)
    *to = exists ? *source : T{};
  else
    *to = exists ? to_float(*source) : 0.f;
}

// 16 bytes of a source, on their way into a tile.
template <class T, class Source>
struct Passing {
  static constexpr int kSize = 16 / sizeof(Source);
  Vector<Source, kSize> numbers;

  // At once and without waiting if nothing is converted; else here, and there with put.
  __device__ __forceinline__ void get(T* to, const Source* source, bool exists) {
    if constexpr (std::is_same_v<T, Source>)
      copy_async<16>(to, source, !exists);
    else
      numbers = exists ? *reinterpret_cast<const Vector<Source, kSize>*>(source) : Vector<Source, kSize>{};
  }
  __device__ __forceinline__ void put(T* to) const {
    if constexpr (!std::is_same_v<T, Source>)
#pragma unroll
      for (int i = 0; i < kSize / 4; ++i) {
        Vector<float, 4> four;
#pragma unroll
        for (int k = 0; k < 4; ++k) four.value[k] = to_float(numbers.value[i * 4 + k]);
        reinterpret_cast<Vector<float, 4>*>(to)[i] = four;
      }
  }
};

// tile[pixel][channel] of tile_rows pixels, row by row from the given one on: 0 where there is no such pixel or
// channel. Ready after copies_wait and a barrier. kVector: channels are contiguous, everything is a multiple of 16
// bytes, and offsets inside an image fit 32 bits.
template <int kThreads, bool kVector, int kChannels, class T, class Source>
__device__ __forceinline__ void load_pixels(T* tile, const Pixels<Source>& pixels, int tile_rows, int first = 0) {
  constexpr int kPitch = kChannels + kMmaPad, kWarps = kThreads / 32;
  const int thread = static_cast<int>(threadIdx.x);
  if constexpr (kVector) {
    using V = Passing<T, Source>;
    // Loads that are waited for go together.
    constexpr int kLanes = kChannels / V::kSize, kAtOnce = kThreads / kLanes,
                  kTogether = std::is_same_v<T, Source> ? 1 : 4;
    const int c = thread % kLanes * V::kSize;
    const bool channel_exists = c < pixels.channels;
    T* to = tile + thread / kLanes * kPitch + c;
    if constexpr (kTogether == 1)
      if (pixels.rows == 1) {  // 1×1 convolutions mostly: nothing but one pointer and one number moves on
        int w = pixels.left + (first + thread / kLanes) * pixels.step_w;
        const Source* source = pixels.origin + pixels.top * pixels.stride_h + w * pixels.stride_w + c;
        const int64_t step = kAtOnce * pixels.step_w * pixels.stride_w;
        const int end = static_cast<unsigned>(pixels.top) < static_cast<unsigned>(pixels.height) && channel_exists
                            ? (pixels.width < pixels.left + pixels.columns * pixels.step_w
                                   ? pixels.width
                                   : pixels.left + pixels.columns * pixels.step_w)
                            : 0;
        const T* const last = tile + tile_rows * kPitch;
#pragma unroll 1
        for (; to < last; to += kAtOnce * kPitch, source += step, w += kAtOnce * pixels.step_w) {
          const bool exists = static_cast<unsigned>(w) < static_cast<unsigned>(end);
          copy_async<16>(to, source, !exists);
        }
        return;
      }
    PixelWalk<int> walk(pixels, first + thread / kLanes);
#pragma unroll 1
    for (int pixel = thread / kLanes; pixel < tile_rows; pixel += kTogether * kAtOnce) {
      V vector[kTogether];
#pragma unroll
      for (int i = 0; i < kTogether; ++i) {
        const bool exists = channel_exists & walk.exists();
        vector[i].get(to + i * kAtOnce * kPitch, pixels.origin + (exists ? walk.offset + c : 0), exists);
        walk.advance(kAtOnce);
      }
#pragma unroll
      for (int i = 0; i < kTogether; ++i)
        if (i == 0 || pixel + i * kAtOnce < tile_rows) vector[i].put(to + i * kAtOnce * kPitch);
      to += kTogether * kAtOnce * kPitch;
    }
  } else {
    const auto load = [&](int pixel, const PixelWalk<int64_t>& walk, int c) {
      const bool exists = c < pixels.channels && walk.exists();
      const Source* source = pixels.origin + (exists ? walk.offset + c * pixels.stride_c : 0);
      load_number(tile + pixel * kPitch + c, source, exists);
    };
    const int warp = thread / 32, lane = thread % 32;
    if (pixels.stride_c == 1) {  // lanes along whichever is contiguous
      PixelWalk<int64_t> walk(pixels, first + warp);
#pragma unroll 1
      for (int pixel = warp; pixel < tile_rows; pixel += kWarps, walk.advance(kWarps))
        for (int c = lane; c < kChannels; c += 32) load(pixel, walk, c);
    } else {
      PixelWalk<int64_t> walk(pixels, first + lane);
#pragma unroll 1
      for (int pixel = lane; pixel < tile_rows; pixel += 32, walk.advance(32))
        for (int c = warp; c < kChannels; c += kWarps) load(pixel, walk, c);
    }
  }
}

// Whether load_pixels may take 16 bytes at a time; sizes are those of the axes n, c, h, w.
template <class T>
bool by_vectors(const Array4& array, const std::array<int64_t, 4>& size, int64_t groups) {
  constexpr int kVectorSize = 16 / sizeof(T);
  bool aligned =
      reinterpret_cast<uintptr_t>(array.data) % 16 == 0 && array.stride[1] == 1 && size[1] / groups % kVectorSize == 0;
  for (int axis : {0, 2, 3}) aligned = aligned && (size[axis] == 1 || array.stride[axis] % kVectorSize == 0);
  int64_t last = size[1] - 1;  // offset of an image's last number
  for (int axis : {2, 3}) last += (size[axis] - 1) * array.stride[axis];
  return aligned && last < int64_t{1} << 30;  // and a slice may reach over the image's edge
}

}  // namespace task2vec
