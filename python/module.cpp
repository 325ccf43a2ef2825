// The C++ that Python sees: names, and addresses turned into pointers. The Python side has checked types and shapes
// (task2vec_ext/kernels/geometry.py); the GIL is released while kernels run or are launched.
//
// Built with TASK2VEC_CPU it has the submodule `cpu`, with TASK2VEC_CUDA the submodule `cuda`. Where both have a
// function, the arguments are the same; those of `cuda` end with the device and the stream.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <stdexcept>
#include <string>
#include <tuple>

#include "kernels.h"
#include "philox.h"

#ifndef TASK2VEC_MODULE
#define TASK2VEC_MODULE TORCH_EXTENSION_NAME  // built by torch.utils.cpp_extension (task2vec_ext/kernels/native.py)
#endif

namespace py = pybind11;
using namespace task2vec;

namespace {

using nogil = py::call_guard<py::gil_scoped_release>;
using Pair = std::array<int, 2>;
using Strides = std::array<int64_t, 4>;
using Counts = std::array<int64_t, 2>;  // rows of a, rows of b

template <class T>
T* ptr(uintptr_t address) {
  return reinterpret_cast<T*>(address);
}
Array4 array(uintptr_t address, const Strides& strides) { return {ptr<const void>(address), strides}; }

// The structs of kernels.h, as tuples of their fields; pairs are (height, width).
using ConvFields = std::tuple<int64_t, int64_t, int, int, Pair, Pair, Pair, Pair, Pair, Pair>;
using ShapeFields = std::tuple<int64_t, int, int, bool, bool>;
using KeyFields = std::tuple<uint64_t, uint32_t, uint32_t>;

Conv conv_of(const ConvFields& fields) {
  const auto& [samples, groups, channels, filters, size, out_size, kernel, stride, padding, dilation] = fields;
  return {samples,   groups,    channels,  filters,   size[0],    size[1],    out_size[0], out_size[1],
          kernel[0], kernel[1], stride[0], stride[1], padding[0], padding[1], dilation[0], dilation[1]};
}
NoiseShape shape_of(const ShapeFields& fields) {
  return std::apply([](auto... field) { return NoiseShape{field...}; }, fields);
}
NoiseKey key_of(const KeyFields& fields) {
  return std::apply([](auto... field) { return NoiseKey{field...}; }, fields);
}

#ifdef TASK2VEC_CPU
// Calls f with a value of the C++ type that `scalar` names.
template <class F>
void with_cpu_scalar(int scalar, F&& f) {
  switch (Scalar{scalar}) {
    case Scalar::kFloat32:
      return f(float{});
    case Scalar::kFloat64:
      return f(double{});
    default:
      throw std::invalid_argument("task2vec_ext: expected float32 or float64 on the CPU, got another scalar type");
  }
}

template <class Route>
void def_cpu_route(py::module_& m, const char* name, Route route) {
  m.def(
      name,
      [route](uintptr_t input, Strides input_strides, uintptr_t grad_output, Strides grad_strides, int scalar,
              ConvFields conv, uintptr_t out) {
        with_cpu_scalar(scalar, [&](auto zero) {
          route(array(input, input_strides), array(grad_output, grad_strides), conv_of(conv), ptr<decltype(zero)>(out));
        });
      },
      nogil());
}

void def_cpu(py::module_ m) {
  m.def("instruction_sets", instruction_sets);
  m.def("use_instruction_set", use_instruction_set);
  m.def("scratch_peak", scratch_peak);
  m.attr("noise_tile") = kNoiseTile;
  m.def("philox", [](uint64_t key, std::array<uint32_t, 4> counter) {
    const Words random = philox(key, {{counter[0], counter[1], counter[2], counter[3]}});
    return std::array<uint32_t, 4>{random.word[0], random.word[1], random.word[2], random.word[3]};
  });

  def_cpu_route(m, "filter_grad_sq_direct", [](auto... arguments) { filter_grad_sq_direct(arguments...); });
  def_cpu_route(m, "filter_grad_sq_winograd", [](auto... arguments) { filter_grad_sq_winograd(arguments...); });
  def_cpu_route(m, "filter_grad_sq_shifted_gram", [](auto... arguments) { filter_grad_sq_shifted_gram(arguments...); });

  m.def(
      "local_noise",
      [](uintptr_t output, int scalar, uintptr_t norm, uintptr_t sigma, ShapeFields shape, KeyFields key,
         uintptr_t out) {
        with_cpu_scalar(scalar, [&](auto zero) {
          using T = decltype(zero);
          local_noise(ptr<const T>(output), ptr<const T>(norm), ptr<const T>(sigma), shape_of(shape), key_of(key),
                      ptr<T>(out));
        });
      },
      nogil());
  m.def(
      "local_noise_backward",
      [](uintptr_t grad, int scalar, uintptr_t norm, uintptr_t sigma, ShapeFields shape, KeyFields key, uintptr_t sums,
         uintptr_t grad_norm) {
        with_cpu_scalar(scalar, [&](auto zero) {
          using T = decltype(zero);
          local_noise_backward(ptr<const T>(grad), ptr<const T>(norm), ptr<const T>(sigma), shape_of(shape),
                               key_of(key), ptr<T>(sums), ptr<T>(grad_norm));
        });
      },
      nogil());
  m.def(
      "weight_noise",
      [](uintptr_t weight, int scalar, uintptr_t sigma, uintptr_t starts, int64_t filters, KeyFields key,
         uintptr_t out) {
        with_cpu_scalar(scalar, [&](auto zero) {
          using T = decltype(zero);
          weight_noise(ptr<const T>(weight), ptr<const T>(sigma), ptr<const int64_t>(starts), filters, key_of(key),
                       ptr<T>(out));
        });
      },
      nogil());
  m.def(
      "weight_noise_backward",
      [](uintptr_t grad, int scalar, uintptr_t starts, int64_t filters, KeyFields key, uintptr_t sums) {
        with_cpu_scalar(scalar, [&](auto zero) {
          using T = decltype(zero);
          weight_noise_backward(ptr<const T>(grad), ptr<const int64_t>(starts), filters, key_of(key), ptr<T>(sums));
        });
      },
      nogil());

  m.def(
      "sym_distances_fast",
      [](uintptr_t a, uintptr_t b, Counts counts, int64_t filters, int shift, bool symmetric, uintptr_t out) {
        sym_distances_fast(ptr<const double>(a), ptr<const double>(b), counts[0], counts[1], filters, shift, symmetric,
                           ptr<double>(out));
      },
      nogil());
  m.def(
      "sym_distances_exact",
      [](uintptr_t a, uintptr_t b, uintptr_t exponent_a, uintptr_t exponent_b, Counts counts, int64_t filters,
         bool symmetric, uintptr_t out) {
        sym_distances_exact(ptr<const double>(a), ptr<const double>(b), ptr<const int64_t>(exponent_a),
                            ptr<const int64_t>(exponent_b), counts[0], counts[1], filters, symmetric, ptr<double>(out));
      },
      nogil());
}
#endif

#ifdef TASK2VEC_CUDA
void expect_float32(int scalar) {
  if (Scalar{scalar} != Scalar::kFloat32)
    throw std::invalid_argument("task2vec_ext: expected float32 weights on CUDA, got another scalar type");
}

void def_cuda(py::module_ m) {
  m.attr("noise_tile") = kNoiseTile;
  m.attr("noise_filters") = kNoiseFilters;

  m.def(
      "filter_grad_sq_direct",
      [](uintptr_t input, Strides input_strides, uintptr_t grad_output, Strides grad_strides, int scalar,
         ConvFields conv, int splits, uintptr_t partial, int device, uintptr_t stream) {
        filter_grad_sq_direct(array(input, input_strides), array(grad_output, grad_strides), Scalar{scalar},
                              conv_of(conv), splits, ptr<float>(partial), {device, ptr<void>(stream)});
      },
      nogil());
  m.def(
      "filter_grad_sq_direct_mma_tiles",
      [](int scalar, ConvFields conv, int device) {
        return filter_grad_sq_direct_mma_tiles(Scalar{scalar}, conv_of(conv), device);
      },
      nogil());
  m.def(
      "filter_grad_sq_direct_mma",
      [](uintptr_t input, Strides input_strides, uintptr_t grad_output, Strides grad_strides, int scalar,
         ConvFields conv, int splits, uintptr_t partial, int device, uintptr_t stream) {
        filter_grad_sq_direct_mma(array(input, input_strides), array(grad_output, grad_strides), Scalar{scalar},
                                  conv_of(conv), splits, ptr<float>(partial), {device, ptr<void>(stream)});
      },
      nogil());
  m.def(
      "filter_grad_sq_narrow",
      [](uintptr_t input, Strides input_strides, uintptr_t grad_output, Strides grad_strides, int scalar,
         ConvFields conv, uintptr_t out, int device, uintptr_t stream) {
        filter_grad_sq_narrow(array(input, input_strides), array(grad_output, grad_strides), Scalar{scalar},
                              conv_of(conv), ptr<float>(out), {device, ptr<void>(stream)});
      },
      nogil());
  using WindowFields = std::tuple<Pair, Pair, Pair, int, int>;
  m.def(
      "filter_grad_sq_gather",
      [](uintptr_t gram, int64_t matrices, Pair positions, Pair pixels, WindowFields fields, int pitch, uintptr_t a,
         int device, uintptr_t stream) {
        const auto& [kernel, stride, dilation, gram_width, out_width] = fields;
        const GramWindow window{kernel[0],   kernel[1],   stride[0],  stride[1],
                                dilation[0], dilation[1], gram_width, out_width};
        filter_grad_sq_gather(ptr<const float>(gram), matrices, positions[0], positions[1], pixels[0], pixels[1],
                              window, pitch, ptr<float>(a), {device, ptr<void>(stream)});
      },
      nogil());
  m.def(
      "filter_grad_sq_gram",
      [](uintptr_t a, uintptr_t rows, Strides row_strides, uintptr_t columns, Strides column_strides, int scalar,
         int64_t samples, int64_t groups, int group_filters, Pair positions, int pitch, int out_width,
         bool tensor_cores, uintptr_t out, int device, uintptr_t stream) {
        filter_grad_sq_gram(ptr<const float>(a), array(rows, row_strides), array(columns, column_strides),
                            Scalar{scalar}, samples, groups, group_filters, positions[0], positions[1], pitch,
                            out_width, tensor_cores, ptr<float>(out), {device, ptr<void>(stream)});
      },
      nogil());

  m.def(
      "bias_relu",
      [](uintptr_t output, int scalar, uintptr_t bias, uintptr_t other, int64_t rows, int filters, int device,
         uintptr_t stream) {
        bias_relu(ptr<void>(output), Scalar{scalar}, ptr<const float>(bias), ptr<const void>(other), rows, filters,
                  {device, ptr<void>(stream)});
      },
      nogil());

  m.def(
      "local_noise",
      [](uintptr_t output, int scalar, uintptr_t norm, uintptr_t sigma, ShapeFields shape, KeyFields key, uintptr_t out,
         int device, uintptr_t stream) {
        local_noise(ptr<const void>(output), Scalar{scalar}, ptr<const float>(norm), ptr<const float>(sigma),
                    shape_of(shape), key_of(key), ptr<void>(out), {device, ptr<void>(stream)});
      },
      nogil());
  m.def(
      "local_noise_backward",
      [](uintptr_t grad, int scalar, uintptr_t norm, uintptr_t sigma, ShapeFields shape, KeyFields key, uintptr_t sums,
         uintptr_t grad_norm, int device, uintptr_t stream) {
        local_noise_backward(ptr<const void>(grad), Scalar{scalar}, ptr<const float>(norm), ptr<const float>(sigma),
                             shape_of(shape), key_of(key), ptr<float>(sums), ptr<float>(grad_norm),
                             {device, ptr<void>(stream)});
      },
      nogil());
  m.def(
      "weight_noise",
      [](uintptr_t weight, int scalar, uintptr_t sigma, uintptr_t starts, int64_t filters, KeyFields key, uintptr_t out,
         int device, uintptr_t stream) {
        expect_float32(scalar);
        weight_noise(ptr<const float>(weight), ptr<const float>(sigma), ptr<const int64_t>(starts), filters,
                     key_of(key), ptr<float>(out), {device, ptr<void>(stream)});
      },
      nogil());
  m.def(
      "weight_noise_backward",
      [](uintptr_t grad, int scalar, uintptr_t starts, int64_t filters, KeyFields key, uintptr_t sums, int device,
         uintptr_t stream) {
        expect_float32(scalar);
        weight_noise_backward(ptr<const float>(grad), ptr<const int64_t>(starts), filters, key_of(key),
                              ptr<float>(sums), {device, ptr<void>(stream)});
      },
      nogil());

  using Rows = std::array<uintptr_t, 3>;  // numerators, others, mean
  m.def(
      "sym_distances_fast",
      [](Rows a, Rows b, Counts counts, int64_t filters, bool symmetric, uintptr_t live, uintptr_t out, int device,
         uintptr_t stream) {
        const auto rows = [](const Rows& r, int64_t count) {
          return SymRows{ptr<const float>(r[0]), ptr<const float>(r[1]), ptr<const float>(r[2]), count};
        };
        sym_distances_fast(rows(a, counts[0]), rows(b, counts[1]), filters, symmetric, ptr<const float>(live),
                           ptr<double>(out), {device, ptr<void>(stream)});
      },
      nogil());
  m.def(
      "sym_distances_exact",
      [](uintptr_t a, uintptr_t b, uintptr_t exponent_a, uintptr_t exponent_b, Counts counts, int64_t filters,
         bool symmetric, uintptr_t out, int device, uintptr_t stream) {
        sym_distances_exact(ptr<const double>(a), ptr<const double>(b), ptr<const int64_t>(exponent_a),
                            ptr<const int64_t>(exponent_b), counts[0], counts[1], filters, symmetric, ptr<double>(out),
                            {device, ptr<void>(stream)});
      },
      nogil());
}
#endif

std::string compiler() {
#if defined(__clang__)
  return "clang " __clang_version__;
#elif defined(__GNUC__)
  return "gcc " __VERSION__;
#elif defined(_MSC_VER)
  return "msvc " + std::to_string(_MSC_VER);
#else
  return "unknown";
#endif
}

}  // namespace

PYBIND11_MODULE(TASK2VEC_MODULE, m) {
  m.attr("compiler") = compiler();
#ifdef _OPENMP
  m.attr("openmp") = _OPENMP;  // yyyymm of the specification
#else
  m.attr("openmp") = py::none();
#endif
#ifdef TASK2VEC_CPU
  def_cpu(m.def_submodule("cpu"));
#endif
#ifdef TASK2VEC_CUDA
  m.attr("cuda_version") = TASK2VEC_CUDA_VERSION;
  m.attr("cuda_architectures") = TASK2VEC_ARCHITECTURES;
  def_cuda(m.def_submodule("cuda"));
#else
  m.attr("cuda_version") = py::none();
  m.attr("cuda_architectures") = py::none();
#endif
}
