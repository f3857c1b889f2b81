// Draws work items and executes them on the CPU. Compiled once per instruction set, with BERTADAM_ISA as the
// namespace; everything it calls is inlined, so the copies share no symbol and give the same bits.
#include <fenv.h>
#include <sched.h>

#include "core/rules/adam.h"
#include "core/rules/clip.h"
#include "core/rules/descent.h"
#include "core/step_args.h"
#include "core/types.h"
#include "cpu/worker.h"

namespace bertadam::cpu::BERTADAM_ISA {
namespace {

uint32_t add_one(uint32_t* counter) { return __atomic_fetch_add(counter, 1u, __ATOMIC_ACQ_REL); }

// True for whoever brings the `n`-th arrival; leaves the counter at zero.
bool arrives_last(uint32_t* arrivals, uint32_t n) {
  if (n == 1) return true;
  if (add_one(arrivals) + 1 < n) return false;
  __atomic_store_n(arrivals, 0u, __ATOMIC_RELAXED);
  return true;
}

// IEEE arithmetic with denormals whatever the thread was set to (torch.set_flush_denormal, -Ofast libraries).
class DefaultFloatingPoint {
 public:
  DefaultFloatingPoint() {
    fegetenv(&saved_);
    fesetenv(FE_DFL_ENV);
  }
  ~DefaultFloatingPoint() { fesetenv(&saved_); }
  DefaultFloatingPoint(const DefaultFloatingPoint&) = delete;
  DefaultFloatingPoint& operator=(const DefaultFloatingPoint&) = delete;

 private:
  fenv_t saved_;
};

struct Step {
  const StepArgs& args;
  const Workspace& workspace;
  const uint32_t epoch;

  void publish(uint32_t tensor, float coefficient) const {
    args.statistics.coefficients[tensor] = coefficient < 0.0f ? 0.0f : coefficient;
    __atomic_store_n(&workspace.coefficients[tensor], tag_coefficient(epoch, coefficient), __ATOMIC_RELEASE);
  }

  float wait_for_coefficient(uint32_t tensor) const {
    for (;;) {
      const uint64_t word = __atomic_load_n(&workspace.coefficients[tensor], __ATOMIC_ACQUIRE);
      if (static_cast<uint32_t>(word >> 32) == epoch) return untag_coefficient(word);
      sched_yield();
    }
  }

  // `norm`: of the tensor, or of all of them where they are clipped together.
  float coefficient(const PlanTensor& tensor, double norm) const {
    return clip_coefficient(norm, args.groups[tensor.group].max_grad_norm, args.skip_nonfinite && tensor.needs_norm);
  }

  void finish_all_norms() const {
    const double total = pairwise_sum(workspace.nodes + args.total_tree, args.n_tensors);
    const bool null_step = args.skip_if_all_zero && total == 0.0;
    const double total_norm = sqrt(total);
    *args.statistics.total_norm = total_norm;
    for (uint32_t i = 0; i < args.n_tensors; ++i) {
      if (args.rows[i].grad == nullptr) continue;
      const double norm = args.clip_by_total_norm ? total_norm : args.statistics.norms[i];
      publish(i, null_step ? kNullStep : coefficient(args.tensors[i], norm));
    }
  }

  void finish_norm(uint32_t index, bool has_grad, double sum) const {
    const PlanTensor& tensor = args.tensors[index];
    const double norm = has_grad ? sqrt(sum) : NAN;
    if (tensor.needs_norm) args.statistics.norms[index] = norm;
    if (!has_grad) args.statistics.coefficients[index] = NAN;
    if (args.wait_for_all) {
      workspace.nodes[args.total_tree + index] = sum;
      if (arrives_last(workspace.tensors_summed, args.n_tensors)) finish_all_norms();
    } else if (has_grad) {
      publish(index, coefficient(tensor, norm));
    }
  }

  template <class Grad>
  void norm(const WorkItem& item) const {
    const PlanTensor& tensor = args.tensors[item.tensor];
    const Grad* const grad = static_cast<const Grad*>(args.rows[item.tensor].grad);
    if (grad == nullptr) {
      if (item.chunk() == 0) finish_norm(item.tensor, false, 0.0);
      return;
    }
    const int64_t begin = static_cast<int64_t>(item.chunk()) * args.chunk_elements;
    const int64_t end = std::min(begin + args.chunk_elements, tensor.n_elements);
    double leaves[kMaxLeaves];
    int n_leaves = 0;
    for (int64_t i = begin; i < end; i += kLeafElements) {
      leaves[n_leaves++] = leaf_sum(grad + i, std::min<int64_t>(kLeafElements, end - i));
    }
    double* const nodes = workspace.nodes + tensor.first_node;
    nodes[item.chunk()] = pairwise_sum(leaves, n_leaves);
    if (arrives_last(&workspace.norm_arrivals[item.tensor], tensor.n_chunks)) {
      finish_norm(item.tensor, true, pairwise_sum(nodes, tensor.n_chunks));
    }
  }

  template <class Rule, class Types>
  void update(const WorkItem& item) const {
    const PlanTensor& tensor = args.tensors[item.tensor];
    const TensorRow& row = args.rows[item.tensor];
    if (row.grad == nullptr) return;
    const bool waits = tensor.needs_norm || args.wait_for_all;
    const float coefficient = waits ? wait_for_coefficient(item.tensor) : 1.0f;
    const bool applied = !(coefficient < 0.0f);
    if (applied) {
      const GroupScalars group = args.groups[tensor.group];
      const TensorScalars scalars = tensor_scalars(group, row, coefficient);
      const int64_t begin = static_cast<int64_t>(item.chunk()) * args.chunk_elements;
      const int64_t n = std::min<int64_t>(args.chunk_elements, tensor.n_elements - begin);
      update_elements<Rule, Types>(group, scalars, row, begin, n);
    }
    if (!arrives_last(&workspace.update_arrivals[item.tensor], tensor.n_chunks)) return;
    if (applied) {
      *row.step += 1.0f;
    } else if (coefficient == kSkipped) {
      __atomic_fetch_add(args.statistics.n_skipped, int64_t{1}, __ATOMIC_RELAXED);
    }
  }

  template <class Rule, class Types>
  static void update_elements(const GroupScalars group, const TensorScalars scalars, const TensorRow& row,
                              int64_t begin, int64_t n) {
    auto* const param = static_cast<typename Types::Param*>(row.param) + begin;
    const auto* const grad = static_cast<const typename Types::Grad*>(row.grad) + begin;
    typename Types::State* state[Rule::kNumStates];
    for (int k = 0; k < Rule::kNumStates; ++k) state[k] = static_cast<typename Types::State*>(row.states[k]) + begin;
#pragma GCC ivdep  // the binding has checked that nothing written overlaps
    for (int64_t i = 0; i < n; ++i) {
      float states[Rule::kNumStates];
      for (int k = 0; k < Rule::kNumStates; ++k) states[k] = to_float(state[k][i]);
      const float p = to_float(param[i]);
      const float direction = Rule::update(group, scalars, to_float(grad[i]), p, states);
      for (int k = 0; k < Rule::kNumStates; ++k) state[k][i] = from_float<typename Types::State>(states[k]);
      param[i] = from_float<typename Types::Param>(descend(p, scalars.lr, direction));
    }
  }
};

}  // namespace

void adam_worker(const StepArgs& args) {
  const DefaultFloatingPoint guard;
  const Workspace& workspace = args.workspace;
  const Step step{args, workspace, *workspace.epoch + 1};
  for (uint32_t ticket; (ticket = add_one(workspace.ticket)) < args.n_items;) {
    const WorkItem item = args.items[ticket];
    if (item.is(kNorm)) step.norm<Float32Row::Grad>(item);
    if (item.is(kUpdate)) step.update<Adam, Float32Row>(item);
  }
  if (arrives_last(workspace.workers_done, args.n_workers)) {
    *workspace.ticket = 0;
    *workspace.epoch += 1;
  }
}

}  // namespace bertadam::cpu::BERTADAM_ISA
