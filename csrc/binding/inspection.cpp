#include "binding/inspection.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>

#include <array>
#include <vector>

#include "core/dtypes.h"
#include "core/norm_tree.h"
#include "core/philox.h"
#include "core/plan.h"
#include "core/rules/clip.h"
#include "core/scalars.h"
#include "core/types.h"

namespace py = pybind11;

namespace bertadam::binding {
namespace {

py::dict plan(const std::vector<int64_t>& n_elements, const std::vector<bool>& needs_norm, int64_t part_elements,
              int64_t items_per_draw, bool wait_for_all, bool in_turn, int64_t retained_draws, bool surveys) {
  const PlanOrder order = in_turn ? PlanOrder::kInTurn : PlanOrder::kRetaining;
  const Plan plan = make_plan(n_elements, std::vector<uint32_t>(n_elements.size(), 0), needs_norm,
                              {part_elements, items_per_draw, wait_for_all, order, retained_draws, surveys});
  const auto n_items = static_cast<int64_t>(plan.items.size());
  at::Tensor items = at::empty({n_items, 4}, at::kLong);  // tensor (-1: none), part, kinds, whole
  int64_t* out = items.mutable_data_ptr<int64_t>();
  for (const WorkItem& item : plan.items) {
    *out++ = item.tensor == kNoTensor ? -1 : int64_t{item.tensor};
    *out++ = item.part();
    *out++ = item.kinds();
    *out++ = item.is_whole();
  }
  const auto n_tensors = static_cast<int64_t>(plan.tensors.size());
  at::Tensor tensors = at::empty({n_tensors, 3}, at::kLong);  // elements, first node, chunks
  out = tensors.mutable_data_ptr<int64_t>();
  for (const PlanTensor& tensor : plan.tensors) {
    *out++ = tensor.n_elements;
    *out++ = tensor.first_node;
    *out++ = tensor.n_chunks;
  }
  py::dict result;
  result["items"] = items;
  result["tensors"] = tensors;
  result["n_leading"] = plan.n_leading;
  result["n_preparing"] = plan.n_preparing;
  result["n_nodes"] = plan.n_nodes;
  return result;
}

// By leaves and pairs as they stand in core/, in chunks of `chunk_elements`.
double sum_of_squares(const at::Tensor& grad, int64_t chunk_elements) {
  const float* const data = grad.const_data_ptr<float>();
  std::vector<double> chunks;
  for (int64_t begin = 0; begin < grad.numel(); begin += chunk_elements) {
    std::vector<double> leaves;
    const int64_t end = std::min(begin + chunk_elements, grad.numel());
    for (int64_t i = begin; i < end; i += kLeafElements) {
      leaves.push_back(leaf_sum(data + i, std::min<int64_t>(kLeafElements, end - i)));
    }
    chunks.push_back(pairwise_sum(leaves.data(), static_cast<int64_t>(leaves.size())));
  }
  return pairwise_sum(chunks.data(), static_cast<int64_t>(chunks.size()));
}

template <class Storage>
at::Tensor encode(const at::Tensor& values) {
  at::Tensor bits = at::empty(values.sizes(), at::kInt);
  const float* const in = values.const_data_ptr<float>();
  int* const out = bits.mutable_data_ptr<int>();
  for (int64_t i = 0; i < values.numel(); ++i) out[i] = from_float<Storage>(in[i]).bits;
  return bits;
}

template <class Storage>
at::Tensor decode(const at::Tensor& bits) {
  at::Tensor values = at::empty(bits.sizes(), at::kFloat);
  const int* const in = bits.const_data_ptr<int>();
  float* const out = values.mutable_data_ptr<float>();
  for (int64_t i = 0; i < bits.numel(); ++i) out[i] = to_float(Storage{static_cast<uint16_t>(in[i])});
  return values;
}

const char* dtype_name(float) { return "float32"; }
const char* dtype_name(BFloat16) { return "bfloat16"; }
const char* dtype_name(Float16) { return "float16"; }

py::object master_weights_of(NoMaster) { return py::none(); }
py::object master_weights_of(float) { return py::str("fp32"); }
py::object master_weights_of(int16_t) { return py::str("remainder"); }

// Dtypes of parameter and gradient, and the settings that make this row of them.
template <class Storage, class Grad>
py::tuple type_row() {
  return py::make_tuple(dtype_name(typename Storage::Param{}), dtype_name(Grad{}),
                        master_weights_of(typename Storage::Master{}), Storage::kIsRandom);
}

}  // namespace

void bind_inspection(py::module& m) {
  m.def("plan", &plan, py::arg("n_elements"), py::arg("needs_norm"), py::arg("part_elements"),
        py::arg("items_per_draw"), py::arg("wait_for_all"), py::arg("in_turn"), py::arg("retained_draws"),
        py::arg("surveys") = false);
  m.def("sum_of_squares", &sum_of_squares, py::arg("grad"), py::arg("chunk_elements"));
  m.def(
      "clip_coefficient",
      [](double norm, double max_grad_norm, bool skip, double inverse_scale) {
        return clip_coefficient(norm, {max_grad_norm, 1e-6, false, skip}, {inverse_scale, false});
      },
      py::arg("norm"), py::arg("max_grad_norm"), py::arg("skip_nonfinite"), py::arg("inverse_scale"));
  m.def(
      "without_unscaling",
      [](float coefficient, double inverse_scale) { return without_unscaling(coefficient, {inverse_scale, false}); },
      py::arg("coefficient"), py::arg("inverse_scale"));
  m.def("unscaling", [](float scale, float found_inf) {
    const Unscaling of = unscaling(scale, found_inf);
    return py::make_tuple(of.inverse_scale, of.skips_step);
  });
  m.def("split", [](double x) {
    const SplitFloat s = split(x);
    return py::make_tuple(s.hi, s.lo);
  });
  m.def("encode_bfloat16", &encode<BFloat16>);
  m.def("encode_float16", &encode<Float16>);
  m.def("decode_bfloat16", &decode<BFloat16>);
  m.def("decode_float16", &decode<Float16>);
  m.attr("leaf_elements") = kLeafElements;
  m.def("philox4x32", [](const std::array<uint32_t, 4>& counter, const std::array<uint32_t, 2>& key) {
    const PhiloxWords words = philox4x32({{counter[0], counter[1], counter[2], counter[3]}}, key[0], key[1]);
    return py::make_tuple(words.x[0], words.x[1], words.x[2], words.x[3]);
  });
  py::list rows;
#define BERTADAM_LIST_ROW(kind, Storage, type, Grad) rows.append(type_row<Storage, Grad>());
  BERTADAM_FOR_EACH_TYPE_ROW(BERTADAM_LIST_ROW)
#undef BERTADAM_LIST_ROW
  m.attr("type_rows") = rows;
}

}  // namespace bertadam::binding
