// A plan on its device, and the scratch memory of every stream that it has run on.
#pragma once

#include <ATen/core/Tensor.h>

#include <map>
#include <memory>
#include <vector>

#include "core/plan.h"
#include "core/step_args.h"
#if defined(BERTADAM_WITH_CUDA)
#include "cuda/launch.h"
#endif

namespace bertadam::binding {

struct Scratch {
  at::Tensor memory;
  Workspace workspace;
#if defined(BERTADAM_WITH_CUDA)
  std::unique_ptr<cuda::Launcher> launcher;
#endif
};

// Where the arrays of a workspace lie in each scratch, in bytes from its start, where the counters are.
struct ScratchLayout {
  size_t nodes, arrivals, coefficients, postponed, survey_nodes, survey_arrivals, ratios, end;
};

class WorkList {
 public:
  // `n_coefficients`: as many as tensors and as groups, at least.
  WorkList(Plan plan, at::Device device, size_t n_coefficients);

  // What a step takes from here.
  void describe(StepArgs& args) const;
  bool is_empty() const { return plan_.items.empty(); }

  // Made at the first call for a stream.
  Scratch& scratch_of(void* stream);
  const std::map<void*, Scratch>& scratch() const { return scratch_; }
  ScratchLayout scratch_layout() const;
  Workspace workspace_at(unsigned char* scratch) const;
  std::vector<at::Tensor> memory() const { return {items_, tensors_, large_}; }

 private:
  size_t n_draws() const { return plan_.items.size() / static_cast<size_t>(plan_.items_per_draw); }
  at::Tensor upload(const void* data, size_t bytes) const;

  const Plan plan_;
  const at::Device device_;
  const size_t n_coefficients_;
  const at::Tensor items_, tensors_, large_;  // the plan on the device
  std::map<void*, Scratch> scratch_;          // by stream
};

}  // namespace bertadam::binding
