// The C++ that Python sees: names, and addresses turned into pointers. The Python side has checked types and shapes
// (task2vec_ext/_geometry.py); the GIL is released while kernels are launched.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <string>
#include <tuple>

#include "kernels.h"
#include "philox.h"

#ifndef TASK2VEC_MODULE
#define TASK2VEC_MODULE TORCH_EXTENSION_NAME  // built by torch.utils.cpp_extension (task2vec_ext/_native.py)
#endif

namespace py = pybind11;
using namespace task2vec;

namespace {

using nogil = py::call_guard<py::gil_scoped_release>;
using Strides = std::array<int64_t, 4>;

template <class T>
T* ptr(uintptr_t address) {
  return reinterpret_cast<T*>(address);
}

void def_conv(py::module_& m) {
  py::class_<Conv>(m, "Conv", py::module_local())
      .def(py::init([](int64_t samples, int64_t groups, int group_channels, int group_filters, std::array<int, 2> size,
                       std::array<int, 2> out_size, std::array<int, 2> kernel, std::array<int, 2> stride,
                       std::array<int, 2> padding, std::array<int, 2> dilation) {
        return Conv{samples,     groups,      group_channels, group_filters, size[0],   size[1],
                    out_size[0], out_size[1], kernel[0],      kernel[1],     stride[0], stride[1],
                    padding[0],  padding[1],  dilation[0],    dilation[1]};
      }));
}

using ShapeArgument = std::tuple<int64_t, int, int, bool, bool>;
using KeyArgument = std::tuple<uint64_t, uint32_t, uint32_t>;

NoiseShape noise_shape(ShapeArgument fields) {
  return std::apply([](auto... field) { return NoiseShape{field...}; }, fields);
}
NoiseKey noise_key(KeyArgument fields) {
  return std::apply([](auto... field) { return NoiseKey{field...}; }, fields);
}

#ifndef TASK2VEC_CUDA_ONLY
template <class T>
using CpuRoute = void (*)(Array4, Array4, const Conv&, T*);

template <class T>
void def_cpu_route(py::module_& m, const char* name, CpuRoute<T> route) {
  m.def(
      name,
      [route](uintptr_t input, Strides input_strides, uintptr_t grad_output, Strides grad_strides, const Conv& conv,
              uintptr_t out) {
        route({ptr<const void>(input), input_strides}, {ptr<const void>(grad_output), grad_strides}, conv, ptr<T>(out));
      },
      nogil());
}

template <class T>
void def_cpu_noise(py::module_& m, const std::string& suffix) {
  m.def(("local_noise_" + suffix).c_str(),
        [](uintptr_t output, uintptr_t norm, uintptr_t sigma, ShapeArgument shape, KeyArgument key, uintptr_t out) {
          local_noise(ptr<const T>(output), ptr<const T>(norm), ptr<const T>(sigma), noise_shape(shape), noise_key(key),
                      ptr<T>(out));
        },
        nogil());
  m.def(("local_noise_backward_" + suffix).c_str(),
        [](uintptr_t grad, uintptr_t norm, uintptr_t sigma, ShapeArgument shape, KeyArgument key, uintptr_t sums,
           uintptr_t grad_norm) {
          local_noise_backward(ptr<const T>(grad), ptr<const T>(norm), ptr<const T>(sigma), noise_shape(shape),
                               noise_key(key), ptr<T>(sums), ptr<T>(grad_norm));
        },
        nogil());
  m.def(("weight_noise_" + suffix).c_str(),
        [](uintptr_t weight, uintptr_t sigma, uintptr_t starts, int64_t filters, KeyArgument key, uintptr_t out) {
          weight_noise(ptr<const T>(weight), ptr<const T>(sigma), ptr<const int64_t>(starts), filters, noise_key(key),
                       ptr<T>(out));
        },
        nogil());
  m.def(("weight_noise_backward_" + suffix).c_str(),
        [](uintptr_t grad, uintptr_t starts, int64_t filters, KeyArgument key, uintptr_t sums) {
          weight_noise_backward(ptr<const T>(grad), ptr<const int64_t>(starts), filters, noise_key(key), ptr<T>(sums));
        },
        nogil());
}

void def_cpu(py::module_& m) {
  m.def("instruction_sets", instruction_sets);
  m.def("use_instruction_set", use_instruction_set);
  m.def("scratch_peak", scratch_peak);
  def_cpu_noise<float>(m, "f32");
  def_cpu_noise<double>(m, "f64");
  def_cpu_route<float>(m, "filter_grad_sq_direct_f32", filter_grad_sq_direct<float>);
  def_cpu_route<double>(m, "filter_grad_sq_direct_f64", filter_grad_sq_direct<double>);
  def_cpu_route<float>(m, "filter_grad_sq_winograd_f32", filter_grad_sq_winograd<float>);
  def_cpu_route<double>(m, "filter_grad_sq_winograd_f64", filter_grad_sq_winograd<double>);
  def_cpu_route<float>(m, "filter_grad_sq_shifted_gram_f32", filter_grad_sq_shifted_gram<float>);
  def_cpu_route<double>(m, "filter_grad_sq_shifted_gram_f64", filter_grad_sq_shifted_gram<double>);
  m.def(
      "sym_distances_fast",
      [](uintptr_t a, uintptr_t b, std::array<int64_t, 2> counts, int64_t filters, int shift, bool symmetric,
         uintptr_t out) {
        sym_distances_fast(ptr<const double>(a), ptr<const double>(b), counts[0], counts[1], filters, shift, symmetric,
                           ptr<double>(out));
      },
      nogil());
  m.def(
      "sym_distances_exact",
      [](uintptr_t a, uintptr_t b, uintptr_t exponent_a, uintptr_t exponent_b, std::array<int64_t, 2> counts,
         int64_t filters, bool symmetric, uintptr_t out) {
        sym_distances_exact(ptr<const double>(a), ptr<const double>(b), ptr<const int64_t>(exponent_a),
                            ptr<const int64_t>(exponent_b), counts[0], counts[1], filters, symmetric, ptr<double>(out));
      },
      nogil());
}
#endif

#ifdef TASK2VEC_KERNELS
void def_cuda(py::module_& m) {
  m.def(
      "local_noise",
      [](uintptr_t output, int scalar, uintptr_t norm, uintptr_t sigma, ShapeArgument shape, KeyArgument key,
         uintptr_t out, int device, uintptr_t stream) {
        local_noise(ptr<const void>(output), Scalar{scalar}, ptr<const float>(norm), ptr<const float>(sigma),
                    noise_shape(shape), noise_key(key), ptr<void>(out), {device, ptr<void>(stream)});
      },
      nogil());
  m.def(
      "local_noise_backward",
      [](uintptr_t grad, int scalar, uintptr_t norm, uintptr_t sigma, ShapeArgument shape, KeyArgument key,
         uintptr_t sums, uintptr_t grad_norm, int device, uintptr_t stream) {
        local_noise_backward(ptr<const void>(grad), Scalar{scalar}, ptr<const float>(norm), ptr<const float>(sigma),
                             noise_shape(shape), noise_key(key), ptr<float>(sums), ptr<float>(grad_norm),
                             {device, ptr<void>(stream)});
      },
      nogil());
  m.def(
      "weight_noise",
      [](uintptr_t weight, uintptr_t sigma, uintptr_t starts, int64_t filters, KeyArgument key, uintptr_t out,
         int device, uintptr_t stream) {
        weight_noise(ptr<const float>(weight), ptr<const float>(sigma), ptr<const int64_t>(starts), filters,
                     noise_key(key), ptr<float>(out), {device, ptr<void>(stream)});
      },
      nogil());
  m.def(
      "weight_noise_backward",
      [](uintptr_t grad, uintptr_t starts, int64_t filters, KeyArgument key, uintptr_t sums, int device,
         uintptr_t stream) {
        weight_noise_backward(ptr<const float>(grad), ptr<const int64_t>(starts), filters, noise_key(key),
                              ptr<float>(sums), {device, ptr<void>(stream)});
      },
      nogil());
  py::class_<GramWindow>(m, "GramWindow", py::module_local())
      .def(py::init([](std::array<int, 2> kernel, std::array<int, 2> stride, std::array<int, 2> dilation,
                       int gram_width, int out_width) {
        return GramWindow{kernel[0], kernel[1], stride[0], stride[1], dilation[0], dilation[1], gram_width, out_width};
      }));
  using Rows = std::array<uintptr_t, 3>;  // numerators, others, mean
  m.def(
      "sym_distances_fast_cuda",
      [](Rows a, Rows b, std::array<int64_t, 2> counts, int64_t filters, bool symmetric, uintptr_t live, uintptr_t out,
         int device, uintptr_t stream) {
        const auto rows = [](const Rows& r, int64_t count) {
          return SymRows{ptr<const float>(r[0]), ptr<const float>(r[1]), ptr<const float>(r[2]), count};
        };
        sym_distances_fast(rows(a, counts[0]), rows(b, counts[1]), filters, symmetric, ptr<const float>(live),
                           ptr<double>(out), {device, ptr<void>(stream)});
      },
      nogil());
  m.def(
      "sym_distances_exact_cuda",
      [](uintptr_t a, uintptr_t b, uintptr_t exponent_a, uintptr_t exponent_b, std::array<int64_t, 2> counts,
         int64_t filters, bool symmetric, uintptr_t out, int device, uintptr_t stream) {
        sym_distances_exact(ptr<const double>(a), ptr<const double>(b), ptr<const int64_t>(exponent_a),
                            ptr<const int64_t>(exponent_b), counts[0], counts[1], filters, symmetric, ptr<double>(out),
                            {device, ptr<void>(stream)});
      },
      nogil());
  m.def(
      "filter_grad_sq_direct",
      [](uintptr_t input, Strides input_strides, uintptr_t grad_output, Strides grad_strides, int scalar,
         const Conv& conv, int splits, uintptr_t partial, int device, uintptr_t stream) {
        filter_grad_sq_direct({ptr<const void>(input), input_strides}, {ptr<const void>(grad_output), grad_strides},
                              Scalar{scalar}, conv, splits, ptr<float>(partial), {device, ptr<void>(stream)});
      },
      nogil());
  m.def(
      "filter_grad_sq_direct_mma_tiles",
      [](int scalar, const Conv& conv, int device) {
        return filter_grad_sq_direct_mma_tiles(Scalar{scalar}, conv, device);
      },
      nogil());
  m.def(
      "filter_grad_sq_direct_mma",
      [](uintptr_t input, Strides input_strides, uintptr_t grad_output, Strides grad_strides, int scalar,
         const Conv& conv, int splits, uintptr_t partial, int device, uintptr_t stream) {
        filter_grad_sq_direct_mma({ptr<const void>(input), input_strides}, {ptr<const void>(grad_output), grad_strides},
                                  Scalar{scalar}, conv, splits, ptr<float>(partial), {device, ptr<void>(stream)});
      },
      nogil());
  m.def(
      "filter_grad_sq_narrow",
      [](uintptr_t input, Strides input_strides, uintptr_t grad_output, Strides grad_strides, int scalar,
         const Conv& conv, uintptr_t out, int device, uintptr_t stream) {
        filter_grad_sq_narrow({ptr<const void>(input), input_strides}, {ptr<const void>(grad_output), grad_strides},
                              Scalar{scalar}, conv, ptr<float>(out), {device, ptr<void>(stream)});
      },
      nogil());
  m.def(
      "filter_grad_sq_gram",
      [](uintptr_t gram, uintptr_t rows, Strides row_strides, uintptr_t columns, Strides column_strides, int scalar,
         int64_t samples, int64_t groups, int group_filters, std::array<int, 2> positions, std::array<int, 2> pixels,
         const GramWindow& window, bool tensor_cores, uintptr_t out, int device, uintptr_t stream) {
        filter_grad_sq_gram(ptr<const float>(gram), {ptr<const void>(rows), row_strides},
                            {ptr<const void>(columns), column_strides}, Scalar{scalar}, samples, groups, group_filters,
                            positions[0], positions[1], pixels[0], pixels[1], window, tensor_cores, ptr<float>(out),
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
  def_conv(m);
  m.attr("noise_tile") = kNoiseTile;
  m.attr("noise_filters") = kNoiseFilters;
  m.def("philox", [](uint64_t key, std::array<uint32_t, 4> counter) {
    const Words random = philox(key, {{counter[0], counter[1], counter[2], counter[3]}});
    return std::array<uint32_t, 4>{random.word[0], random.word[1], random.word[2], random.word[3]};
  });
#ifndef TASK2VEC_CUDA_ONLY
  def_cpu(m);
#endif
#ifdef TASK2VEC_KERNELS
  m.attr("cuda_version") = TASK2VEC_CUDA_VERSION;
  m.attr("cuda_architectures") = TASK2VEC_ARCHITECTURES;
  def_cuda(m);
#else
  m.attr("cuda_version") = py::none();
  m.attr("cuda_architectures") = py::none();
#endif
}
