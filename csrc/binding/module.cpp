// Names and docstrings for Python, nothing else.
#include <ATen/record_function.h>
#include <torch/csrc/utils/pybind.h>

#include "binding/inspection.h"
#include "binding/keys.h"
#include "binding/scaling.h"
#include "binding/stepper.h"
#include "binding/traversal.h"
#include "core/rules.h"
#if defined(BERTADAM_WITH_CUDA)
#include "cuda/tuning.h"
#endif

namespace py = pybind11;

namespace bertadam::binding {
namespace {

py::dict cuda_info() {
  py::dict info;
#if defined(BERTADAM_WITH_CUDA)
  const cuda::RuntimeInfo runtime = cuda::runtime_info();
  py::list devices;
  for (const cuda::DeviceInfo& device : runtime.devices) {
    py::dict entry;
    entry["name"] = device.name;
    entry["capability"] = py::make_tuple(device.major, device.minor);
    entry["multiprocessors"] = device.multiprocessors;
    devices.append(entry);
  }
  info["runtime"] = runtime.runtime_version;
  info["driver"] = runtime.driver_version;
  info["error"] = runtime.error == 0 ? py::object(py::none()) : py::object(py::str(cuda::error_string(runtime.error)));
  info["devices"] = devices;
#endif
  return info;
}

// The names of every rule's states, by its name. The plan's own keys: state dicts made with them are read faster.
py::dict rules() {
  py::dict names;
  for (int rule = 0; rule < kNumRules; ++rule) {
    names[kRules[rule].name] = py::tuple(py::cast(keys().states[rule]));
  }
  return names;
}

RuleId rule_named(const std::string& name) {
  for (int rule = 0; rule < kNumRules; ++rule) {
    if (name == kRules[rule].name) return static_cast<RuleId>(rule);
  }
  throw py::value_error("StepPlan: there is no rule '" + name + "'");
}

py::dict as_dict(const ScratchLayout& layout) {
  py::dict offsets;
  offsets["nodes"] = layout.nodes;
  offsets["arrivals"] = layout.arrivals;
  offsets["coefficients"] = layout.coefficients;
  offsets["postponed"] = layout.postponed;
  offsets["survey_nodes"] = layout.survey_nodes;
  offsets["survey_arrivals"] = layout.survey_arrivals;
  offsets["ratios"] = layout.ratios;
  offsets["end"] = layout.end;
  return offsets;
}

}  // namespace

PYBIND11_MODULE(TORCH_EXTENSION_NAME, m) {
  m.doc() = "The compiled part of bertadam_cuda; use the classes of the package instead.";
#if defined(BERTADAM_WITH_CUDA)
  m.attr("with_cuda") = true;
  m.attr("cuda_chunk_elements") = cuda::kChunkElements;
#else
  m.attr("with_cuda") = false;
#endif
  m.attr("rules") = rules();
  m.def("cuda_info", &cuda_info, "Versions of the linked CUDA runtime and the driver, and the devices they see.");
  m.def("cpu_isas", &cpu_isas, "Instruction set levels of the CPU backend that this machine can run.");
  m.def("set_cpu_isa", &set_cpu_isa, "Choose one of cpu_isas(); the best is the default, the bits are the same.");

  m.def("is_observed", &at::hasCallbacks, "Whether a profiler, or anything else, is told of what torch runs.");

  m.def("is_capturing", &is_capturing, py::arg("device"), "Whether a CUDA graph captures the device's current stream.");

  py::class_<CapturedSteps, std::shared_ptr<CapturedSteps>>(m, "CapturedSteps")
      .def(py::init<>())
      .def_property_readonly("n_launches", &CapturedSteps::n_launches);

  py::class_<StepPlan>(m, "StepPlan", traversed<StepPlan>())
      .def(py::init([](std::string where, py::list param_groups, py::dict state, at::Device device,
                       at::Tensor n_skipped, const std::string& rule, const std::optional<std::string>& master_weights,
                       bool stochastic_rounding, uint64_t rounding_seed, std::shared_ptr<CapturedSteps> captured) {
             auto plan = std::make_unique<StepPlan>(
                 std::move(where), rule_named(rule), std::move(param_groups), std::move(state), device,
                 std::move(n_skipped),
                 StorageSettings{master_kind_of(master_weights), stochastic_rounding, rounding_seed});
             plan->execution->captured = std::move(captured);
             return plan;
           }),
           py::arg("where"), py::arg("param_groups"), py::arg("state"), py::arg("device"), py::arg("n_skipped"),
           py::kw_only(), py::arg("rule"), py::arg("master_weights"), py::arg("stochastic_rounding"),
           py::arg("rounding_seed"), py::arg("captured"))
      .def(
          "set_group",
          [](StepPlan& plan, size_t index, double lr, double beta1, double beta2, double eps, double weight_decay,
             double l2_decay, double max_grad_norm, double clip_epsilon, bool normalizes_always, bool maximize,
             bool grad_averaging, bool adapts, bool nesterov, double momentum, double trust_coefficient,
             at::Tensor multipliers, std::optional<at::Tensor> corrections) {
            plan.set_group(index,
                           {lr, beta1, beta2, eps, weight_decay, l2_decay, max_grad_norm, clip_epsilon,
                            normalizes_always, maximize, grad_averaging, adapts, nesterov, momentum, trust_coefficient},
                           std::move(multipliers), std::move(corrections));
          },
          py::arg("index"), py::kw_only(), py::arg("lr"), py::arg("beta1"), py::arg("beta2"), py::arg("eps"),
          py::arg("weight_decay"), py::arg("l2_decay") = 0.0, py::arg("max_grad_norm"), py::arg("clip_epsilon") = 1e-6,
          py::arg("normalizes_always") = false, py::arg("maximize"), py::arg("grad_averaging") = true,
          py::arg("adapts") = false, py::arg("nesterov") = false, py::arg("momentum") = 0.0,
          py::arg("trust_coefficient") = 0.0, py::arg("multipliers"), py::arg("corrections"))
      .def("set_lr", py::overload_cast<size_t, double, const std::optional<at::Tensor>&>(&StepPlan::set_lr),
           py::arg("index"), py::arg("lr"), py::arg("on_device"))
      .def(
          "configure",
          [](StepPlan& plan, bool clip_by_total_norm, bool skip_nonfinite, std::vector<bool> group_needs_norm) {
            plan.configure({clip_by_total_norm, skip_nonfinite, std::move(group_needs_norm)});
          },
          py::kw_only(), py::arg("clip_by_total_norm"), py::arg("skip_nonfinite"), py::arg("group_needs_norm"))
      .def(
          "inspect",
          [](StepPlan& plan, const py::list& param_groups, const py::dict& state) {
            return plan.same_structure(param_groups) && plan.read(state);
          },
          py::arg("param_groups"), py::arg("state"))
      .def("create_states", &StepPlan::create_states, py::arg("init_state"))
      .def_property_readonly("counters_changed", &StepPlan::counters_changed)
      .def_property_readonly("grad_norms", [](const StepPlan& plan) { return plan.execution->grad_norms(); })
      .def_property_readonly("total_norm", [](const StepPlan& plan) { return plan.execution->total_norm(); })
      .def_property_readonly("clip_coefficients",
                             [](const StepPlan& plan) { return plan.execution->clip_coefficients(); })
      .def_property_readonly("trust_ratios", [](const StepPlan& plan) { return plan.execution->trust_ratios(); })
      .def_property_readonly("device", [](const StepPlan& plan) { return plan.execution->device(); })
      .def_property_readonly("n_copies", [](const StepPlan& plan) { return plan.execution->n_copies(); })
      .def_property_readonly("scratch", [](const StepPlan& plan) { return plan.execution->scratch(); })
      .def_property_readonly("scratch_layout",
                             [](const StepPlan& plan) { return as_dict(plan.execution->scratch_layout()); })
      .def_property_readonly("n_threads", [](const StepPlan& plan) { return plan.execution->n_threads; })
      .def_property(
          "retained_draws", [](const StepPlan& plan) { return plan.execution->retained_draws(); },
          [](StepPlan& plan, int64_t n) { plan.execution->set_retained_draws(n); })
      .def_property(
          "workers", [](const StepPlan& plan) { return plan.execution->workers; },
          [](StepPlan& plan, int workers) { plan.execution->workers = workers; });

  py::class_<Stepper>(m, "Stepper", traversed<Stepper>())
      .def(py::init<py::list>(), py::arg("plans"))
      .def("accept", &Stepper::accept, py::arg("param_groups"), py::arg("rates_may_change"))
      .def(
          "step",
          [](Stepper& stepper, const py::list& param_groups, const py::dict& state, py::handle scaling) {
            // pybind takes 0.6 us to find that None is no Scaling (Xeon, 2026-11).
            return stepper.step(param_groups, state, scaling.is_none() ? nullptr : scaling.cast<const Scaling*>());
          },
          py::arg("param_groups"), py::arg("state"), py::arg("scaling"));

  py::class_<Scaling>(m, "Scaling")
      .def(py::init<std::string, py::handle, py::handle, bool>(), py::arg("where"), py::kw_only(),
           py::arg("grad_scale"), py::arg("found_inf"), py::arg("finds_inf"));

  bind_inspection(m);
}

}  // namespace bertadam::binding
