// A whole step in one call from Python: all that Python has to see to before is noticed here, on the plans of every
// device, before the first of them writes.
#pragma once

#include <torch/csrc/utils/pybind.h>

#include <vector>

#include "binding/group_watch.h"
#include "binding/scaling.h"
#include "binding/step_plan.h"

namespace bertadam::binding {

class Stepper {
 public:
  // `plans`: one per device.
  explicit Stepper(const pybind11::list& plans);

  // The plans now hold the groups' settings. `rates_may_change`: see GroupWatch.
  void accept(const pybind11::list& param_groups, bool rates_may_change);

  // Checks everything and makes the step. False, with nothing written, where plans, settings or states have to be
  // brought up to date first, or where a capture cannot be. `scaling`: null without a scaler.
  bool step(const pybind11::list& param_groups, const pybind11::dict& state, const Scaling* scaling);

  void traverse(Visit& visit) const {
    for (const pybind11::object& plan : objects_) visit(plan);
    groups_.traverse(visit);
  }

 private:
  std::vector<pybind11::object> objects_;  // keep the plans alive
  std::vector<StepPlan*> plans_;
  GroupWatch groups_;
};

}  // namespace bertadam::binding
