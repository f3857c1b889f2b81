#include "binding/param_storage.h"

#include <pybind11/pybind11.h>

namespace py = pybind11;

namespace bertadam::binding {
namespace {

ParamStorage half_storage(const StorageSettings& settings, const std::string& whose) {
  const ElementType half = element_type<at::Half>();
  if (settings.stochastic_rounding) {
    throw py::value_error(whose +
                          " has dtype float16, and stochastic_rounding=True is for bfloat16 parameters; use bfloat16, "
                          "or master_weights='fp32' instead");
  }
  switch (settings.master_weights) {
    case MasterKind::kRemainder:
      throw py::value_error(whose +
                            " has dtype float16, and master_weights='remainder' is for bfloat16 parameters, whose "
                            "bits are the upper half of a float32's; use bfloat16, or master_weights='fp32'");
    case MasterKind::kFloat32:
      return {StorageKind::kFloat16Master, half, MasterKind::kFloat32, element_type<float>()};
    case MasterKind::kNone:
      break;
  }
  return {StorageKind::kFloat16, half, MasterKind::kNone, {}};
}

ParamStorage bfloat16_storage(const StorageSettings& settings) {
  const ElementType bfloat16 = element_type<at::BFloat16>();
  if (settings.stochastic_rounding) return {StorageKind::kBFloat16Stochastic, bfloat16, MasterKind::kNone, {}};
  switch (settings.master_weights) {
    case MasterKind::kRemainder:
      return {StorageKind::kBFloat16Remainder, bfloat16, MasterKind::kRemainder, element_type<int16_t>()};
    case MasterKind::kFloat32:
      return {StorageKind::kBFloat16Master, bfloat16, MasterKind::kFloat32, element_type<float>()};
    case MasterKind::kNone:
      break;
  }
  return {StorageKind::kBFloat16, bfloat16, MasterKind::kNone, {}};
}

}  // namespace

std::optional<ParamStorage> storage_of(at::ScalarType dtype, const StorageSettings& settings,
                                       const std::string& whose) {
  switch (dtype) {
    case at::kFloat:
      return ParamStorage{StorageKind::kFloat32, element_type<float>(), MasterKind::kNone, {}};
    case at::kBFloat16:
      return bfloat16_storage(settings);
    case at::kHalf:
      return half_storage(settings, whose);
    default:
      return std::nullopt;
  }
}

std::optional<DType> grad_type_of(at::ScalarType dtype) {
  switch (dtype) {
    case at::kFloat:
      return DType::kFloat32;
    case at::kBFloat16:
      return DType::kBFloat16;
    case at::kHalf:
      return DType::kFloat16;
    default:
      return std::nullopt;
  }
}

MasterKind master_kind_of(const std::optional<std::string>& master_weights) {
  if (!master_weights) return MasterKind::kNone;
  if (*master_weights == "fp32") return MasterKind::kFloat32;
  if (*master_weights == "remainder") return MasterKind::kRemainder;
  throw py::value_error("master_weights is '" + *master_weights + "', expected None, 'fp32' or 'remainder'");
}

}  // namespace bertadam::binding
