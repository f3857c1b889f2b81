#include "binding/stepper.h"

namespace py = pybind11;

namespace bertadam::binding {

Stepper::Stepper(const py::list& plans) {
  for (const py::handle plan : plans) {
    objects_.push_back(py::reinterpret_borrow<py::object>(plan));
    plans_.push_back(plan.cast<StepPlan*>());
  }
}

void Stepper::accept(const py::list& param_groups, bool rates_may_change) {
  for (const StepPlan* const plan : plans_) {
    TORCH_CHECK(plan->same_structure(param_groups), "the plans are not made for these parameters");
  }
  groups_.accept(param_groups, rates_may_change);
}

bool Stepper::step(const py::list& param_groups, const py::dict& state, const Scaling* scaling) {
  if (!groups_.matches(param_groups)) return false;
  for (StepPlan* const plan : plans_) {
    if (!plan->read(state) || !plan->ready()) return false;
  }
  if (const std::vector<double>* const rates = groups_.new_rates()) {
    for (StepPlan* const plan : plans_) {
      for (size_t g = 0; g < rates->size(); ++g) plan->set_lr(g, (*rates)[g]);
    }
  }
  for (StepPlan* const plan : plans_) {
    if (!plan->prepare(scaling)) return false;
  }
  for (StepPlan* const plan : plans_) {
    // One graph, or none: a step that is half recorded would be half made now.
    if (plan->execution->is_captured() != plans_.front()->execution->is_captured()) return false;
  }
  for (StepPlan* const plan : plans_) plan->run();
  return true;
}

}  // namespace bertadam::binding
