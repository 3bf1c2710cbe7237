// The Python module `shoal.kernels._native`. Everything that comes from Python is checked here or in MoeCall::check;
// what is wrong becomes ValueError or TypeError, never undefined behaviour. The GIL is released while numbers are made.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/unique_ptr.h>
#include <nanobind/stl/vector.h>

#include <cmath>
#include <cstring>
#include <optional>
#include <stdexcept>
#include <tuple>
#include <utility>

#include "moe.h"
#include "quantize.h"

namespace nb = nanobind;

namespace shoal {
namespace {

using Array = nb::ndarray<nb::ro, nb::device::cpu>;
using Output = nb::ndarray<float, nb::ndim<2>, nb::device::cpu>;
using Result = nb::ndarray<nb::device::cpu>;  // written, of a type that is looked at

constexpr int kMaxThreads = 1024;            // far above any machine's cores; more would only take memory
constexpr int64_t kMaxSize = int64_t{1} << 20;  // rows or columns of a matrix; the widest known has 18,432

[[noreturn]] void refuse(const std::string& message) { throw std::invalid_argument(message); }

void check_contiguous(const nb::ndarray<nb::ro, nb::device::cpu>& array, const char* name) {
  if (array.size() == 0) return;
  int64_t expected = 1;
  for (size_t axis = array.ndim(); axis-- > 0;) {
    if (array.shape(axis) > 1 && array.stride(axis) != expected) refuse(std::string(name) + " is not contiguous");
    expected *= static_cast<int64_t>(array.shape(axis));
  }
}

// Bits of the elements, which must be plain numbers.
int element_bits(const Array& array) { return array.dtype().lanes == 1 ? array.dtype().bits : 0; }

void check_matrix(const Array& array, const char* name, int bits, int64_t rows, int64_t columns) {
  if (element_bits(array) != bits) refuse(std::string(name) + " has elements of another size than its format");
  if (array.ndim() != 2 || static_cast<int64_t>(array.shape(0)) != rows ||
      static_cast<int64_t>(array.shape(1)) != columns) {
    refuse(std::string(name) + " must have shape [" + std::to_string(rows) + ", " + std::to_string(columns) + "]");
  }
  check_contiguous(array, name);
}

Format checked_format(int format) {
  if (format < 1 || format >= kNumFormats) refuse("no such format: " + std::to_string(format));
  return static_cast<Format>(format);
}

void check_size(int64_t rows, int64_t columns) {
  if (rows < 1 || columns < 1 || rows > kMaxSize || columns > kMaxSize) {
    refuse("a matrix of " + std::to_string(rows) + " x " + std::to_string(columns));
  }
}

int data_bits(Format format) {
  switch (codes_of(format)) {
    case Codes::kF32: return 32;
    case Codes::kBf16: return 16;
    default: return 8;
  }
}

void check_scale(const Array& scale, Format format, int64_t rows, int64_t columns) {
  const int64_t groups = (columns + group_columns(format) - 1) / group_columns(format);
  const bool is_block = scales_of(format) == Scales::kF32Block;
  check_matrix(scale, "scale", 8 * static_cast<int>(scale_bytes(scales_of(format))),
               is_block ? round_up(rows, kBlock) / kBlock : rows, groups);
  if (is_block && scale.dtype() != nb::dtype<float>()) refuse("block scales must be float32");
}

std::shared_ptr<Matrix> pack(int format_number, int64_t rows, int64_t columns, const Array& data,
                             const std::optional<Array>& scale) {
  const Format format = checked_format(format_number);
  check_size(rows, columns);
  check_matrix(data, "data", data_bits(format), rows, codes_of(format) == Codes::kNibble ? (columns + 1) / 2 : columns);
  const bool has_scales = scales_of(format) != Scales::kNone;
  if (has_scales != scale.has_value()) refuse(has_scales ? "no scales" : "scales, which this format does not have");
  if (scale) check_scale(*scale, format, rows, columns);
  const StoredWeight stored{format, rows, columns, static_cast<const uint8_t*>(data.data()),
                            scale ? static_cast<const uint8_t*>(scale->data()) : nullptr};
  const nb::gil_scoped_release release;
  return std::make_shared<Matrix>(stored);
}

size_t byte_count(const Array& array, const char* name) {
  if (array.ndim() != 1 || element_bits(array) != 8) refuse(std::string(name) + " are no bytes");
  check_contiguous(array, name);
  return array.size();
}

// The arrays are kept: whatever gave them, a mapped file say, lives as long as the matrix.
std::shared_ptr<Matrix> packed(int format_number, int64_t rows, int64_t columns, const Array& codes,
                               const std::optional<Array>& scales) {
  const Format format = checked_format(format_number);
  check_size(rows, columns);
  const PackedBytes bytes{static_cast<const uint8_t*>(codes.data()), byte_count(codes, "codes"),
                          scales ? static_cast<const uint8_t*>(scales->data()) : nullptr,
                          scales ? byte_count(*scales, "scales") : 0};
  auto owner = std::make_shared<std::pair<Array, std::optional<Array>>>(codes, scales);
  return std::make_shared<Matrix>(format, rows, columns, bytes, std::move(owner));
}

using Bytes = nb::ndarray<nb::numpy, const uint8_t, nb::ndim<1>>;

Bytes stored_codes(const Matrix& matrix) { return Bytes(matrix.bytes().codes, {matrix.bytes().code_bytes}); }

std::optional<Bytes> stored_scales(const Matrix& matrix) {
  if (!matrix.bytes().scales) return std::nullopt;
  return Bytes(matrix.bytes().scales, {matrix.bytes().scale_bytes});
}

int64_t packed_bytes(int format, int64_t rows, int64_t columns) {
  check_size(rows, columns);
  return static_cast<int64_t>(Matrix::packed_bytes(checked_format(format), rows, columns));
}

XType type_of_x(const Array& x) {
  if (x.ndim() != 2) refuse("x is no matrix");
  check_contiguous(x, "x");
  if (x.dtype() == nb::dtype<float>()) return XType::kF32;
  if (x.dtype() == nb::dtype<uint16_t>()) return XType::kBf16;
  refuse("x must be float32, or bf16 viewed as uint16");
}

// A copy of a list of numbers that may be misaligned.
template <class T>
std::vector<T> copied(const Array& array, const char* name) {
  if (array.ndim() != 1 || array.dtype() != nb::dtype<T>()) refuse(std::string(name) + " has another type or shape");
  check_contiguous(array, name);
  std::vector<T> values(array.size());
  if (!values.empty()) std::memcpy(values.data(), array.data(), values.size() * sizeof(T));
  return values;
}

Activation checked_activation(float limit, float alpha, float up_offset) {
  if (!(limit > 0)) refuse("an activation's limit must be above 0");
  if (!(alpha > 0) || !std::isfinite(alpha)) refuse("an activation's alpha must be finite and above 0");
  if (!std::isfinite(up_offset)) refuse("an activation's up_offset must be finite");
  return {limit, alpha, up_offset};
}

Bias checked_bias(const Array& array, const char* name, const Matrix& matrix) {
  Bias bias = copied<float>(array, name);
  if (static_cast<int64_t>(bias.size()) != matrix.rows()) {
    refuse(std::string(name) + " has " + std::to_string(bias.size()) + " numbers for " + std::to_string(matrix.rows()) +
           " rows");
  }
  for (const float value : bias) {
    if (!std::isfinite(value)) refuse(std::string(name) + " is not finite");
  }
  bias.resize(static_cast<size_t>(matrix.num_panels() * kPanelRows), 0.0f);
  return bias;
}

Expert make_expert(std::shared_ptr<Matrix> gate, std::shared_ptr<Matrix> up, std::shared_ptr<Matrix> down,
                   std::tuple<float, float, float> activation,
                   const std::optional<std::tuple<Array, Array, Array>>& biases) {
  if (!gate || !up || !down) refuse("an expert has three matrices");
  Expert expert{std::move(gate), std::move(up), std::move(down), std::apply(checked_activation, activation), {}, {}, {}};
  if (biases) {
    expert.gate_bias = checked_bias(std::get<0>(*biases), "gate_bias", *expert.gate);
    expert.up_bias = checked_bias(std::get<1>(*biases), "up_bias", *expert.up);
    expert.down_bias = checked_bias(std::get<2>(*biases), "down_bias", *expert.down);
  }
  return expert;
}

void check_output(const Output& y, int64_t rows, int64_t columns) {
  if (static_cast<int64_t>(y.shape(0)) != rows || static_cast<int64_t>(y.shape(1)) != columns) {
    refuse("y must have shape [" + std::to_string(rows) + ", " + std::to_string(columns) + "]");
  }
  check_contiguous(nb::ndarray<nb::ro, nb::device::cpu>(y), "y");
  if (reinterpret_cast<uintptr_t>(y.data()) % alignof(float)) refuse("y is misaligned");
}

Rounding checked_rounding(int rounding) {
  if (rounding != 0 && rounding != 1) refuse("no such rounding: " + std::to_string(rounding));
  return static_cast<Rounding>(rounding);
}

void run(Runner& runner, const std::vector<const Expert*>& experts, const Array& x, const Array& row_idx,
         const std::vector<int64_t>& offsets, const Array& topk_weights, int rounding, const Output& y) {
  MoeCall call{experts, static_cast<const uint8_t*>(x.data()), type_of_x(x), 0, 0, copied<int64_t>(row_idx, "row_idx"),
               offsets, copied<float>(topk_weights, "topk_weights"), checked_rounding(rounding), nullptr};
  for (const Expert* expert : experts) {
    if (!expert) refuse("None is no expert");
  }
  call.num_rows = static_cast<int64_t>(x.shape(0));
  call.hidden = static_cast<int64_t>(x.shape(1));
  check_output(y, call.num_rows, call.hidden);
  call.y = y.data();
  call.check();
  const nb::gil_scoped_release release;
  runner.run(call);
}

void linear(Runner& runner, const Matrix& matrix, const Array& x, int64_t num_groups, int rounding, const Result& y) {
  const XType x_type = type_of_x(x);
  const auto num_all = static_cast<int64_t>(x.shape(0));
  if (static_cast<int64_t>(x.shape(1)) != matrix.columns()) refuse("x has another width than the matrix");
  if (num_groups < 1 || num_all % num_groups || matrix.rows() % num_groups) {
    refuse(std::to_string(num_groups) + " groups do not divide " + std::to_string(num_all) + " rows of x and " +
           std::to_string(matrix.rows()) + " rows of the matrix");
  }
  if (num_groups > 1 && matrix.rows() / num_groups % kPanelRows) {
    refuse("groups of " + std::to_string(matrix.rows() / num_groups) + " rows, expected multiples of 64");
  }
  const bool is_bf16 = y.dtype() == nb::dtype<uint16_t>();
  if (!is_bf16 && y.dtype() != nb::dtype<float>()) refuse("y must be float32, or bf16 viewed as uint16");
  check_matrix(Array(y), "y", is_bf16 ? 16 : 32, num_all, matrix.rows() / num_groups);
  if (reinterpret_cast<uintptr_t>(y.data()) % (is_bf16 ? 2 : 4)) refuse("y is misaligned");
  const Rounding checked = checked_rounding(rounding);
  const nb::gil_scoped_release release;
  runner.linear(matrix, static_cast<const uint8_t*>(x.data()), x_type, num_all / num_groups, num_groups, checked,
                {static_cast<uint8_t*>(y.data()), is_bf16 ? XType::kBf16 : XType::kF32});
}

Grid checked_grid(std::tuple<int, int, int, int, bool> numbers) {
  const auto [low, high, scale_bits, num_steps, is_signed] = numbers;
  if (high < 1 || high > 127 || low < -128 || low > -1) refuse("a grid that int8 does not hold, or without zero");
  if (scale_bits < 1 || scale_bits > 8 || num_steps < 1 || num_steps > (1 << scale_bits)) refuse("no such grid of scales");
  return {low, high, scale_bits, num_steps, is_signed};
}

void check_written(const Result& array, const char* name, nb::dlpack::dtype dtype, int64_t rows,
                   int64_t columns) {
  if (array.dtype() != dtype) refuse(std::string(name) + " has another dtype");
  check_matrix(Array(array), name, dtype.bits, rows, columns);
}

void quantize_groups(const std::string& isa_name, const nb::ndarray<nb::ro, nb::device::cpu>& weight, int group,
                     std::tuple<int, int, int, int, bool> numbers, const Result& codes, const Result& scales) {
  if (weight.ndim() != 2 || weight.dtype() != nb::dtype<float>()) refuse("weight must be float32[rows, columns]");
  if (group != 32 && group != 128) refuse("groups of " + std::to_string(group) + "; 32 or 128");
  const auto rows = static_cast<int64_t>(weight.shape(0)), columns = static_cast<int64_t>(weight.shape(1));
  check_size(rows, columns);
  check_contiguous(weight, "weight");
  check_written(codes, "codes", nb::dtype<int8_t>(), rows, columns);
  check_written(scales, "scales", nb::dtype<float>(), rows, (columns + group - 1) / group);
  for (const void* data : {weight.data(), static_cast<const void*>(scales.data())}) {
    if (reinterpret_cast<uintptr_t>(data) % alignof(float)) refuse("weight or scales are misaligned");
  }
  const QuantizeArgs args{static_cast<const float*>(weight.data()), rows, columns, group, checked_grid(numbers),
                          static_cast<int8_t*>(codes.data()), static_cast<float*>(scales.data())};
  const Isa isa = isa_named(isa_name);
  const nb::gil_scoped_release release;
  quantize(isa, args);
}

constexpr int64_t kMaxProbeBytes = int64_t{1} << 36;

double probe_read(Runner& runner, int64_t num_bytes) {
  if (num_bytes < 1 || num_bytes > kMaxProbeBytes) refuse("a probe reads 1 byte to 64 GiB");
  const nb::gil_scoped_release release;
  return runner.probe_read(num_bytes);
}

double probe_multiply(Runner& runner) {
  const nb::gil_scoped_release release;
  return runner.probe_multiply();
}

std::vector<std::string> features() {
  std::vector<std::string> names;
  for (const Isa isa : available_isas()) names.emplace_back(name_of(isa));
  return names;
}

std::unique_ptr<Runner> make_runner(const std::string& isa_name, int num_threads) {
  if (num_threads < 1 || num_threads > kMaxThreads) {
    refuse("threads must be 1.." + std::to_string(kMaxThreads) + ", not " + std::to_string(num_threads));
  }
  return std::make_unique<Runner>(isa_named(isa_name), num_threads);
}

}  // namespace
}  // namespace shoal

NB_MODULE(_native, module) {
  using namespace shoal;
  nb::set_leak_warnings(false);  // programs may end while they hold experts; the system takes the memory back
  nb::class_<Matrix>(module, "Matrix")
      .def_prop_ro("format", [](const Matrix& m) { return static_cast<int>(m.format()); })
      .def_prop_ro("rows", &Matrix::rows)
      .def_prop_ro("columns", &Matrix::columns)
      .def_prop_ro("size_bytes", &Matrix::size_bytes)
      .def_prop_ro("codes", &stored_codes, nb::rv_policy::reference_internal)
      .def_prop_ro("scales", &stored_scales, nb::rv_policy::reference_internal);
  nb::class_<Expert>(module, "Expert");
  nb::class_<Runner>(module, "Runner")
      .def_prop_ro("threads", &Runner::num_threads)
      .def("run", &run, nb::arg("experts"), nb::arg("x").noconvert(), nb::arg("row_idx").noconvert(), nb::arg("offsets"),
           nb::arg("topk_weights").noconvert(), nb::arg("rounding"), nb::arg("y").noconvert())
      .def("probe_read", &probe_read, nb::arg("num_bytes"))
      .def("probe_multiply", &probe_multiply)
      .def("linear", &linear, nb::arg("matrix"), nb::arg("x").noconvert(), nb::arg("num_groups"),
           nb::arg("rounding"), nb::arg("y").noconvert());
  module.def("features", &features);
  module.def("runner", &make_runner, nb::arg("isa"), nb::arg("threads"));
  module.def("pack", &pack, nb::arg("format"), nb::arg("rows"), nb::arg("columns"), nb::arg("data").noconvert(),
             nb::arg("scale").noconvert().none());
  module.def("packed", &packed, nb::arg("format"), nb::arg("rows"), nb::arg("columns"), nb::arg("codes").noconvert(),
             nb::arg("scales").noconvert().none());
  module.attr("PACKING_VERSION") = kPackingVersion;
  module.def("quantize_groups", &quantize_groups, nb::arg("isa"), nb::arg("weight").noconvert(), nb::arg("group"),
             nb::arg("grid"), nb::arg("codes").noconvert(), nb::arg("scales").noconvert());
  module.def("packed_bytes", &packed_bytes, nb::arg("format"), nb::arg("rows"), nb::arg("columns"));
  module.def("expert", &make_expert, nb::arg("gate"), nb::arg("up"), nb::arg("down"), nb::arg("activation"),
             nb::arg("biases").none());
}
