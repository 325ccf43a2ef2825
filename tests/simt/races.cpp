// All CUDA kernels on small arrays, each result compared with plain loops; the kernels are compiled for
// ThreadSanitizer, which reports what no barrier orders. No Python and no torch: nothing but the kernels is watched.
//
//   races [convolution] [bias] [noise] [pairwise] [threads]   some parts, or all; exit status 1 for a wrong result
//   races NAME                                                a kernel of racy.cpp
//
// This file knows nothing of the emulation and is not instrumented: its loops are fast, and would report nothing.
#include <atomic>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "kernels.h"
#include "pairwise.h"
#include "philox.h"
#include "racy.h"

using namespace task2vec;

namespace {

std::atomic<int> wrong{0};
const Place kHere{0, nullptr};
const Scalar kScalars[] = {Scalar::kFloat32, Scalar::kFloat16, Scalar::kBFloat16};

const char* name_of(Scalar scalar) {
  return scalar == Scalar::kFloat32 ? "float32" : scalar == Scalar::kFloat16 ? "float16" : "bfloat16";
}

// |actual − expected| relative to the largest expected number.
void compare(const std::string& what,
             const std::vector<double>& actual,
             const std::vector<double>& expected,
             double limit) {
  double worst = 0, top = 0;
  bool defined = actual.size() == expected.size();
  for (size_t i = 0; defined && i < expected.size(); ++i) {
    worst = std::max(worst, std::abs(actual[i] - expected[i])), top = std::max(top, std::abs(expected[i]));
    defined = actual[i] == actual[i];
  }
  const double error = defined ? worst / top : NAN;
  const bool good = error <= limit;
  std::printf("%s %s: error %.1e\n", good ? "     " : "WRONG", what.c_str(), error);
  std::fflush(stdout);
  wrong += !good;
}
std::vector<double> doubles(const std::vector<float>& values) { return {values.begin(), values.end()}; }

// ---- arrays ----------------------------------------------------------------------------------------------

// Eighths between −2 and 2: exact in every type, TF32 included, and so are their products in float32.
std::vector<float> eighths(size_t count, unsigned seed) {
  std::mt19937 random(seed);
  std::vector<float> values(count);
  for (float& value : values) value = (static_cast<int>(random() % 33) - 16) / 8.f;
  return values;
}

size_t size_of(Scalar scalar) { return scalar == Scalar::kFloat32 ? 4 : 2; }

// The bytes of an array of a type. Aligned to 16 bytes, or one number behind that: vectors may not be used then.
class Bytes {
 public:
  Bytes(Scalar scalar, const std::vector<float>& values, bool aligned = true)
      : scalar_(scalar), count_(values.size()), shift_(aligned ? 0 : size_of(scalar)) {
    bytes_.resize(shift_ + count_ * size_of(scalar));
    for (size_t i = 0; i < count_; ++i) {
      const float value = values[i];
      const _Float16 half = static_cast<_Float16>(value);
      uint32_t bits;
      std::memcpy(&bits, &value, 4);
      const uint16_t top = static_cast<uint16_t>(bits >> 16);
      const void* from = scalar == Scalar::kFloat32   ? static_cast<const void*>(&value)
                         : scalar == Scalar::kFloat16 ? static_cast<const void*>(&half)
                                                      : &top;
      std::memcpy(data() + i * size_of(scalar), from, size_of(scalar));
    }
  }
  unsigned char* data() { return bytes_.data() + shift_; }
  std::vector<double> values() {
    std::vector<double> values(count_);
    for (size_t i = 0; i < count_; ++i) {
      float value = 0;
      _Float16 half;
      uint16_t top;
      const unsigned char* from = data() + i * size_of(scalar_);
      if (scalar_ == Scalar::kFloat32) {
        std::memcpy(&value, from, 4);
      } else if (scalar_ == Scalar::kFloat16) {
        std::memcpy(&half, from, 2);
        value = static_cast<float>(half);
      } else {
        std::memcpy(&top, from, 2);
        const uint32_t bits = uint32_t{top} << 16;
        std::memcpy(&value, &bits, 4);
      }
      values[i] = value;
    }
    return values;
  }

 private:
  Scalar scalar_;
  size_t count_, shift_;
  std::vector<unsigned char> bytes_;
};

std::array<int64_t, 4> strides(bool channels_last, int64_t channels, int64_t height, int64_t width) {
  if (channels_last) return {channels * height * width, 1, width * channels, channels};
  return {channels * height * width, height * width, width, 1};
}

// ---- filter_grad_sq --------------------------------------------------------------------------------------

struct Window {
  int kernel, stride, padding, dilation;
};

Conv conv_of(int groups, int group_channels, int group_filters, int height, int width, const Window& w) {
  const auto out = [&](int size) { return (size + 2 * w.padding - w.dilation * (w.kernel - 1) - 1) / w.stride + 1; };
  return {1,        groups,   group_channels, group_filters, height,    width,     out(height), out(width),
          w.kernel, w.kernel, w.stride,       w.stride,      w.padding, w.padding, w.dilation,  w.dilation};
}

enum Kernels : unsigned { kMma = 1, kTile = 2, kNarrow = 4, kGram = 8, kAll = 15 };

void convolution(const char* name,
                 Scalar scalar,
                 bool channels_last,
                 const Conv& conv,
                 unsigned kernels,
                 int splits = 1,
                 bool aligned = true) {
  const int channels = static_cast<int>(conv.groups) * conv.group_channels,
            filters = static_cast<int>(conv.groups) * conv.group_filters;
  const auto x = eighths(size_t(channels) * conv.height * conv.width, 1),
             delta = eighths(size_t(filters) * conv.positions(), 2);
  Bytes x_bytes(scalar, x, aligned), delta_bytes(scalar, delta, aligned);
  const Array4 x_array{x_bytes.data(), strides(channels_last, channels, conv.height, conv.width)},
      delta_array{delta_bytes.data(), strides(channels_last, filters, conv.out_height, conv.out_width)};
  const auto x_at = [&](int c, int h, int w) -> double {
    if (h < 0 || w < 0 || h >= conv.height || w >= conv.width) return 0;
    return x[c * x_array.stride[1] + h * x_array.stride[2] + w * x_array.stride[3]];
  };

  std::vector<double> expected(filters);
  for (int o = 0; o < filters; ++o)
    for (int p = 0; p < conv.patch_size(); ++p) {
      const int kw = p % conv.kernel_w, kh = p / conv.kernel_w % conv.kernel_h;
      const int c = o / conv.group_filters * conv.group_channels + p / conv.kernel_w / conv.kernel_h;
      double sum = 0;
      for (int oh = 0; oh < conv.out_height; ++oh)
        for (int ow = 0; ow < conv.out_width; ++ow)
          sum += delta[o * delta_array.stride[1] + oh * delta_array.stride[2] + ow * delta_array.stride[3]] *
                 x_at(c, oh * conv.stride_h - conv.padding_h + kh * conv.dilation_h,
                      ow * conv.stride_w - conv.padding_w + kw * conv.dilation_w);
      expected[o] += sum * sum;
    }

  const auto check = [&](const char* kernel, const std::vector<float>& partial) {
    std::vector<double> actual(filters);
    for (size_t i = 0; i < partial.size(); ++i) actual[i % filters] += partial[i];
    compare(std::string(name) + ", " + name_of(scalar) + (channels_last ? ", channels-last, " : ", channels-first, ") +
                kernel,
            actual, expected, 2e-6);  // float32 sums of exact products
  };
  if (kernels & kMma) {
    std::vector<float> partial(size_t(splits) * filters, NAN);
    filter_grad_sq_direct_mma(x_array, delta_array, scalar, conv, splits, partial.data(), kHere);
    check("direct_mma", partial);
  }
  if (kernels & kTile) {
    std::vector<float> partial(size_t(splits) * filters, NAN);
    filter_grad_sq_direct(x_array, delta_array, scalar, conv, splits, partial.data(), kHere);
    check("direct", partial);
  }
  if (kernels & kNarrow) {
    std::vector<float> out(filters, NAN);
    filter_grad_sq_narrow(x_array, delta_array, scalar, conv, out.data(), kHere);
    check("narrow", out);
  }
  if (kernels & kGram) {  // of the padded input's pixels
    const int height = (conv.out_height - 1) * conv.stride_h + (conv.kernel_h - 1) * conv.dilation_h + 1,
              width = (conv.out_width - 1) * conv.stride_w + (conv.kernel_w - 1) * conv.dilation_w + 1;
    const int pixels = height * width;
    std::vector<float> gram(size_t(conv.groups) * pixels * pixels);
    for (int g = 0; g < conv.groups; ++g)
      for (int a = 0; a < pixels; ++a)
        for (int b = 0; b < pixels; ++b) {
          double sum = 0;
          for (int c = g * conv.group_channels; c < (g + 1) * conv.group_channels; ++c)
            sum += x_at(c, a / width - conv.padding_h, a % width - conv.padding_w) *
                   x_at(c, b / width - conv.padding_h, b % width - conv.padding_w);
          gram[(size_t(g) * pixels + a) * pixels + b] = static_cast<float>(sum);
        }
    const GramWindow window{conv.kernel_h,   conv.kernel_w,   conv.stride_h, conv.stride_w,
                            conv.dilation_h, conv.dilation_w, width,         conv.out_width};
    const int pitch = (conv.positions() + 3) / 4 * 4;
    std::vector<float> a(size_t(conv.groups) * conv.positions() * pitch, NAN);
    filter_grad_sq_gather(gram.data(), conv.groups, conv.positions(), conv.positions(), pixels, pixels, window, pitch,
                          a.data(), kHere);
    for (const bool tensor_cores : {true, false}) {
      std::vector<float> out(filters, NAN);
      filter_grad_sq_gram(a.data(), delta_array, delta_array, scalar, 1, conv.groups, conv.group_filters,
                          conv.positions(), conv.positions(), pitch, conv.out_width, tensor_cores, out.data(), kHere);
      std::vector<double> actual = doubles(out);
      // TF32 rounds A to 11 bits; its sums are float32, of numbers of either sign.
      compare(std::string(name) + ", " + name_of(scalar) +
                  (channels_last ? ", channels-last, " : ", channels-first, ") + (tensor_cores ? "gram_mma" : "gram"),
              actual, expected, tensor_cores ? 1e-3 : 1e-5);
    }
  }
}

void convolutions() {
  for (const Scalar scalar : kScalars)
    for (const bool last : {false, true}) {
      // Two slices of locations; two tiles of columns of the Gram matrix.
      convolution("3x3, 144 locations", scalar, last, conv_of(1, 16, 72, 12, 12, {3, 1, 1, 1}), kMma | kTile | kGram);
      // Two tiles of channels for one block, or one each.
      convolution("3x3, two tiles", scalar, last, conv_of(1, 72, 16, 9, 8, {3, 1, 1, 1}), kMma);
      convolution("3x3, two splits", scalar, last, conv_of(1, 72, 16, 9, 8, {3, 1, 1, 1}), kMma | kTile, 2);
      // More slices than stages; two tiles of filters and of channels.
      convolution("1x1, two tiles", scalar, last, conv_of(1, 136, 136, 12, 11, {1, 1, 0, 1}), kMma);
      convolution("1x1, stride 2", scalar, last, conv_of(1, 24, 40, 9, 9, {1, 2, 0, 1}), kAll);
      convolution("1x1, not aligned", scalar, last, conv_of(1, 24, 40, 5, 9, {1, 1, 0, 1}), kMma, 1, false);
      // A network's first layer: several slices; then two tiles of the patch's numbers.
      convolution("7x7, few channels", scalar, last, conv_of(1, 3, 24, 20, 38, {7, 2, 3, 1}), kMma | kTile);
      convolution("5x5, few channels", scalar, last, conv_of(1, 7, 16, 9, 9, {5, 1, 2, 2}), kMma);
      // Three tiles of taps; groups.
      convolution("5x5, dilated", scalar, last, conv_of(1, 8, 16, 9, 9, {5, 1, 2, 2}), kMma | kNarrow);
      convolution("3x3, stride 2, groups", scalar, last, conv_of(2, 8, 24, 8, 9, {3, 2, 1, 1}), kAll);
    }
}

// Two threads of the host start the same kernel with more and with less shared memory.
void threads() {
  const auto many = [] {
    convolution("a thread", Scalar::kFloat32, true, conv_of(1, 8, 16, 12, 12, {3, 1, 1, 1}), kMma);
  };
  const auto few = [] { convolution("another", Scalar::kFloat32, true, conv_of(1, 8, 16, 3, 4, {3, 1, 1, 1}), kMma); };
  std::thread first(many), second(few);
  first.join(), second.join();
}

// ---- bias_relu -------------------------------------------------------------------------------------------

// More rows than one turn of the threads; eighths, and their sums, are exact in every type.
void bias(Scalar scalar, bool with_other, int rows, int filters) {
  const size_t size = size_t(rows) * filters;
  const auto x = eighths(size, 1), y = eighths(size, 2), b = eighths(filters, 3);
  Bytes output(scalar, x), other(scalar, y);
  std::vector<double> expected(size);
  for (size_t i = 0; i < size; ++i)
    expected[i] = std::max(0., double{x[i]} + b[i % filters] + (with_other ? y[i] : 0.f));
  bias_relu(output.data(), scalar, b.data(), with_other ? other.data() : nullptr, rows, filters, kHere);
  compare(std::string("bias_relu, ") + name_of(scalar) + (with_other ? ", with a sum" : ""), output.values(), expected,
          0);
}

void biases() {
  for (const Scalar scalar : kScalars)
    for (const bool with_other : {false, true}) bias(scalar, with_other, 700, 24);
}

// ---- noise -----------------------------------------------------------------------------------------------

const NoiseKey kKey{7, 1, 2};

void local(Scalar scalar, bool last, bool of_filter, int samples, int filters, int positions, bool aligned = true) {
  const NoiseShape shape{samples, filters, positions, last, of_filter};
  const size_t size = size_t(samples) * filters * positions;
  const int tiles = (positions + kNoiseTile - 1) / kNoiseTile, parts = (filters + kNoiseFilters - 1) / kNoiseFilters;
  const auto x = eighths(size, 3), norm = eighths(of_filter ? size : size_t(samples) * positions, 4),
             sigma = eighths(filters, 5);
  Bytes x_bytes(scalar, x, aligned), out(scalar, std::vector<float>(size, NAN), aligned),
      norm_bytes(Scalar::kFloat32, norm, aligned);
  const auto* norm_data = reinterpret_cast<const float*>(norm_bytes.data());

  std::vector<double> sum_out(size), sums(size_t(samples) * tiles * filters),
      grad_norm(of_filter ? size : size_t(samples) * positions);
  for (int n = 0; n < samples; ++n)
    for (int q = 0; q < positions; ++q)
      for (int o = 0; o < filters; ++o) {
        const size_t at = last ? (size_t(n) * positions + q) * filters + o : (size_t(n) * filters + o) * positions + q;
        const size_t norm_at = of_filter ? at : size_t(n) * positions + q;
        const uint64_t block = (uint64_t(n) * positions + q) * ((filters + 3) / 4) + o / 4;
        float e[4];
        normals(kKey, static_cast<uint32_t>(block), static_cast<uint32_t>(block >> 32), e[0], e[1], e[2], e[3]);
        const double noise = e[o % 4];
        sum_out[at] = x[at] + sigma[o] * norm[norm_at] * noise;
        sums[(size_t(n) * tiles + q / kNoiseTile) * filters + o] += x[at] * norm[norm_at] * noise;
        grad_norm[norm_at] += x[at] * sigma[o] * noise;
      }

  const std::string name = std::string("local_noise, ") + name_of(scalar) +
                           (last ? ", channels-last" : ", channels-first") + (of_filter ? ", norm of filter" : "") +
                           (aligned ? "" : ", not aligned");
  local_noise(x_bytes.data(), scalar, norm_data, sigma.data(), shape, kKey, out.data(), kHere);
  const double rounding = scalar == Scalar::kFloat32 ? 1e-6 : scalar == Scalar::kFloat16 ? 1. / 2048 : 1. / 256;
  compare(name, out.values(), sum_out, rounding);
  std::vector<float> partial(of_filter ? size : size_t(parts) * samples * positions, NAN), own_sums(sums.size(), NAN);
  local_noise_backward(x_bytes.data(), scalar, norm_data, sigma.data(), shape, kKey, own_sums.data(), partial.data(),
                       kHere);
  compare(name + ", sums", doubles(own_sums), sums, 1e-5);
  std::vector<double> own_norm(grad_norm.size());
  for (size_t i = 0; i < partial.size(); ++i) own_norm[i % own_norm.size()] += partial[i];
  compare(name + ", grad_norm", own_norm, grad_norm, 1e-5);
}

void weights() {
  const std::vector<int64_t> starts{0, 147, 174, 175, 800};
  const int filters = static_cast<int>(starts.size()) - 1;
  const auto weight = eighths(starts.back(), 1), sigma = eighths(filters, 2);
  std::vector<double> out(weight.size()), sums(filters);
  for (int o = 0; o < filters; ++o)
    for (int64_t i = starts[o]; i < starts[o + 1]; ++i) {
      const int64_t j = i - starts[o];
      float e[4];
      normals(kKey, static_cast<uint32_t>(j / 4), static_cast<uint32_t>(o), e[0], e[1], e[2], e[3]);
      out[i] = weight[i] + sigma[o] * e[j % 4], sums[o] += weight[i] * e[j % 4];
    }
  std::vector<float> own_out(weight.size(), NAN), own_sums(filters, NAN);
  weight_noise(weight.data(), sigma.data(), starts.data(), filters, kKey, own_out.data(), kHere);
  compare("weight_noise", doubles(own_out), out, 1e-6);
  weight_noise_backward(weight.data(), starts.data(), filters, kKey, own_sums.data(), kHere);
  compare("weight_noise, sums", doubles(own_sums), sums, 1e-5);
}

void noise() {
  for (const Scalar scalar : kScalars)
    for (const bool last : {false, true})
      for (const bool of_filter : {false, true}) {
        local(scalar, last, of_filter, 2, 24, 100);      // two tiles of locations
        local(scalar, last, of_filter, 1, 132, 33);      // two parts of filters
        local(scalar, last, of_filter, 1, 5, 9);         // quads that do not fit
        local(scalar, last, of_filter, 1, 8, 9, false);  // quads that fit and are not aligned
      }
  weights();
}

// ---- distances -------------------------------------------------------------------------------------------

void distances(int rows, int filters, bool exact) {
  const auto logarithms = eighths(size_t(rows) * filters, 1);
  std::vector<float> values(logarithms.size()), mean(rows);
  for (size_t i = 0; i < values.size(); ++i) values[i] = std::exp(logarithms[i]), mean[i / filters] += values[i];
  const std::vector<double> numbers = doubles(values);
  const std::vector<int64_t> exponents(rows, 3);  // e² is below 2³
  std::vector<double> expected(size_t(rows) * rows);
  for (int i = 0; i < rows; ++i)
    for (int j = 0; j < rows; ++j) {
      double rr = 0, qq = 0, rq = 0;
      for (int k = 0; k < filters; ++k) {
        const double x = numbers[size_t(i) * filters + k], y = numbers[size_t(j) * filters + k];
        const double r = x / (x + y), q = y / (x + y);
        rr += r * r, qq += q * q, rq += r * q;
      }
      expected[size_t(i) * rows + j] = sym_distance(rr, qq, rq);
    }
  for (const bool symmetric : {false, true}) {
    std::vector<double> out(expected.size(), -1), wanted = expected;
    int unsure = 0;
    const SymRows all{values.data(), values.data(), mean.data(), rows};
    if (exact)
      sym_distances_exact(numbers.data(), numbers.data(), exponents.data(), exponents.data(), rows, rows, filters,
                          symmetric, out.data(), kHere);
    else
      sym_distances_fast(all, all, filters, symmetric, nullptr, out.data(), kHere);
    for (int i = 0; i < rows; ++i)
      for (int j = 0; j < rows; ++j) {
        const size_t at = size_t(i) * rows + j;
        // The fast pass writes -1 where it is not sure; the symmetric one leaves the diagonal alone.
        if (out[at] == -1 && (i == j || !exact)) wanted[at] = -1, unsure += i != j;
      }
    if (unsure > rows * rows / 10) std::printf("WRONG %d distances are not sure\n", unsure), ++wrong;
    compare(std::string(exact ? "sym_distances_exact" : "sym_distances_fast") + (symmetric ? ", symmetric" : ""), out,
            wanted, exact ? 1e-12 : 1e-6);
  }
}

void pairwise() {
  distances(70, 40, false);  // two tiles of pairs, two slices of filters
  distances(11, 40, true);   // rows that do not fill a block's warps
}

}  // namespace

int main(int count, char** arguments) try {
  std::vector<std::string> parts(arguments + 1, arguments + count);
  if (parts.empty()) parts = {"convolution", "bias", "noise", "pairwise", "threads"};
  for (const std::string& part : parts) {
    if (part == "convolution")
      convolutions();
    else if (part == "bias")
      biases();
    else if (part == "noise")
      noise();
    else if (part == "pairwise")
      pairwise();
    else if (part == "threads")
      threads();
    else
      run_racy(part);
  }
  return wrong != 0;
} catch (const std::exception& error) {
  std::printf("WRONG %s\n", error.what());
  return 1;
}
