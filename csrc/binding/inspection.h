// core/ made visible to Python, so that its parts can be tested without a GPU. Nothing of a step goes through here.
#pragma once

#include <torch/csrc/utils/pybind.h>

namespace bertadam::binding {

void bind_inspection(pybind11::module& module);

}  // namespace bertadam::binding
